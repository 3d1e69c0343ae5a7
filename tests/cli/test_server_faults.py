"""Every fault of every endpoint of a model's server, in every command: only the work that needs the server fails, and in time."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli import HERE, TIMEOUT, Result, run, served
from fake_chat import Api, ChatServer, chunk
from fake_server import GARBAGE, REFUSED, SILENT, Answer, Body, HashServer, on_loopback
from faults import write_problems
from processes import awaited

KEY = "sk-secret-0123"
ENV = {"ARBITRAGE_TARGET_API_KEY": KEY}
SLOW, QUICK = {"SHORT_SECONDS": 60.0, "CHUNK_SECONDS": 60.0}, {"SHORT_SECONDS": 1.0, "CHUNK_SECONDS": 1.0}
SERVING = {"SERVING_SECONDS": 0.5}
HURRY = {"FIRST_DELAY": 0.001, "MAX_DELAY": 0.005, "GONE_SECONDS": 0.6}
QUESTIONS = ["31 * 12", "77 * 12", "33 * 12"]
BAD = QUESTIONS[1]


def refusal(status: int, **headers: str) -> Answer:
    return Answer(
        [{"error": {"message": f"{KEY} may not"}}], status, {name.replace("_", "-"): text for name, text in headers.items()}
    )


FAULTS = {
    **{str(status): refusal(status) for status in (401, 403, 404, 429, 500, 503)},
    "429 soon": refusal(429, Retry_After="0.01"),
    "429 late": refusal(429, Retry_After="3600"),
    "redirect": refusal(307, Location="http://127.0.0.1:9/v1"),
    "garbage": Answer([{}], GARBAGE),
    "silence": Answer([{}], SILENT),
    "reset": Answer([{}], REFUSED),
    "cut": Answer([], is_streamed=True, cut=0),
    "filter": Answer([chunk({}, "content_filter")], is_streamed=True),
    "object": Answer([{}]),
    "stall": Answer([{"choices": [], "content": ""}], is_streamed=True, falls_silent=True),
}
STREAMED = ("completions", "completion", "chat")
ONLY_OF: Mapping[str, Sequence[str]] = {"cut": STREAMED, "stall": STREAMED, "filter": ("chat",)}
ENDS = ("401", "redirect", "silence")
"""The faults that end a run, because all later requests to this server would fail."""
OVERLOADED = {"429": 429, "429 soon": 429, "429 late": 429, "503": 503}
"""The statuses that `serve` passes on."""


class Faulty:
    """A server with a fault at one endpoint, for requests that contain a text."""

    def __init__(self, kind: str, endpoint: str, text: str) -> None:
        self.server = ChatServer(Api(), key=KEY) if kind == "chat" else HashServer(kind, key=KEY)  # type: ignore[arg-type]
        self.endpoint, self.text, self.fault = endpoint, text, ""
        self.num_failed = 0
        self._answer, self.server.handle = self.server.handle, self._handle  # type: ignore[method-assign]

    def _handle(self, path: str, body: Body | None, headers: Mapping[str, str]) -> Answer:
        is_meant = bool(self.fault) and path.endswith(self.endpoint) and self.text in self._text(body or {})
        self.num_failed += is_meant
        return FAULTS[self.fault] if is_meant else self._answer(path, body, headers)

    def _text(self, body: Body) -> str:
        prompt: Any = body.get("prompt", body.get("content", ""))
        text = prompt if isinstance(prompt, str) else self.server.text_of(prompt)
        return text + "".join(message["content"] for message in body.get("messages", ()))


ENDPOINTS = {
    "models": ("vllm", "/v1/models", ""),
    "tokenize": ("vllm", "/tokenize", BAD),
    "apply-template": ("llamacpp", "/apply-template", ""),
    "completions": ("vllm", "/v1/completions", BAD),
    "chat": ("chat", "/v1/chat/completions", BAD),
}
CASES = [(endpoint, fault) for endpoint in ENDPOINTS for fault in FAULTS if endpoint in ONLY_OF.get(fault, ENDPOINTS)]


@pytest.mark.parametrize(("endpoint", "fault"), CASES)
def test_a_fault_ends_what_needs_the_server_and_nothing_is_lost(endpoint: str, fault: str, quick_path: Path) -> None:
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    faulty = Faulty(*ENDPOINTS[endpoint])
    begins = faulty.text == ""  # the fault is met before the first problem
    expected = 3 if begins or fault in ENDS else 1
    with on_loopback(faulty.server) as address:
        models = ("--draft", "scripted:draft", "--target", address, "--max-tokens", "8")

        def command(*arguments: str) -> Result:
            limits = {"silence": QUICK, "stall": QUICK | {"MAX_TRIES": 2}}.get(faulty.fault, SLOW)
            made = run(*arguments, *models, cwd=quick_path, env=ENV, hurry=HURRY | limits)
            assert KEY not in made.out + made.err
            assert "Traceback" not in made.err
            return made

        runs: Sequence[tuple[str, ...]] = (
            ("solve", "--policy", "target", "-i", "problems.jsonl", "-o", "out.jsonl"),
            ("bench", "--policy", "target", "--dataset", "problems.jsonl", "-o", "run"),
        )
        faulty.fault = fault
        alone = command("solve", "--policy", "target", BAD)
        assert alone.code == expected, alone.err
        for arguments in runs:
            ended = command(*arguments)
            assert ended.code == expected, ended.err
        advice = ("--dataset", "problems.jsonl", "--minutes", "0.01", "--router", "builtin:universal", "-o", "advice")
        assert command("advise", *advice).code in ((3,) if begins else (0, 3) if expected == 3 else (0,))
        faulty.fault = ""
        for arguments in () if begins else runs:
            assert command(*arguments, "--debug", "--debug").code == 0
    files = () if begins else (quick_path / "out.jsonl", quick_path / "run" / "results.jsonl")
    for rows in ([json.loads(line) for line in path.read_text().splitlines()] for path in files):
        assert sorted(row["id"] for row in rows if row["status"] == "done") == ["p0", "p1", "p2"]
    assert not any(KEY.encode() in path.read_bytes() for path in quick_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "chat"])
def test_serve_answers_others_while_a_server_fails(kind: str, tmp_path: Path) -> None:
    """Also a conversation of a shape that the server has never rendered."""
    faulty = Faulty(kind, "", "")
    program = (sys.executable, str(HERE / "hurry.py"), json.dumps(HURRY | QUICK | SERVING))
    options = ("--draft", "scripted:draft", "--upstream-timeout", "1")
    endpoints = {
        "vllm": ("tokenize", "completions"),
        "llamacpp": ("apply-template", "tokenize", "completion"),
        "chat": ("chat/completions",),
    }
    with (
        on_loopback(faulty.server) as address,
        served(*options, "--target", address, models=(), env=ENV, program=program) as (process, client),
        ThreadPoolExecutor(8) as pool,
    ):
        num_asked = 0

        def ask(model: str, num_turns: int = 0, **fields: Any) -> tuple[int, str]:
            turns = [{"role": role, "content": "1 + 1"} for _ in range(num_turns) for role in ("user", "assistant")]
            messages = [*turns, {"role": "user", "content": "2 + 3"}]  # the toy's answer is never empty
            answer = client.post("/chat/completions", json={"model": model, "messages": messages, "max_tokens": 8, **fields})
            return answer.status_code, answer.text

        for faulty.endpoint in endpoints[kind]:
            for fault in FAULTS:
                if faulty.endpoint.split("/")[0] not in ONLY_OF.get(fault, faulty.endpoint):
                    continue
                num_asked += 1
                faulty.fault = fault
                failing = [pool.submit(ask, "target", num_asked + 2, stream=stream) for stream in (False, True)]
                others = [pool.submit(ask, "draft", number) for number in (0, num_asked + 2)]
                assert [one.result(TIMEOUT)[0] for one in others] == [200, 200], (faulty.endpoint, fault)
                ended = [one.result(TIMEOUT) for one in failing]
                status = OVERLOADED.get(fault, 502)
                assert [found for found, _ in ended] == [status, status], (faulty.endpoint, fault, ended)
                assert not any(secret in text for _, text in ended for secret in (KEY, "API_KEY", "may not", "127.0.0.1"))
                faulty.fault = ""
                assert ask("target", num_asked + 2)[0] == 200, (faulty.endpoint, fault)
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=TIMEOUT)[1].decode()
        assert process.returncode == 0
    assert all(words in log for words in ("may not", "127.0.0.1", "ARBITRAGE_TARGET_API_KEY"))
    assert KEY not in log


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_requests_for_a_silent_server_keep_no_others_from_running(concurrency: int) -> None:
    """They fill the slots and the queue of this server, and no others. Once one has failed, the waiting ones fail at once."""
    faulty = Faulty("vllm", "completions", "")
    limits = {"MAX_FAILED": 1, "BREAK_SECONDS": 1000.0}
    program = (sys.executable, str(HERE / "hurry.py"), json.dumps(limits))
    options = ("--draft", "scripted:draft", "--concurrency", str(concurrency), "--queue", "5", "--upstream-timeout", "3")
    with (
        on_loopback(faulty.server) as address,
        served(*options, "--target", address, models=(), env=ENV, program=program) as (_, client),
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(model: str) -> int:
            messages = [{"role": "user", "content": "1 + 1"}]
            return client.post("/chat/completions", json={"model": model, "messages": messages}).status_code

        def health() -> Any:
            return client.get(client.base_url.join("/health")).json()

        faulty.fault = "silence"
        failing = [pool.submit(ask, "target") for _ in range(concurrency + 5)]
        load = {"running": concurrency, "waiting": 5}
        expected = {"status": "ok", **load, "limits": load, "servers": [{"models": ["target"], **load}]}
        awaited(lambda: health() == expected)
        assert [ask(model) for model in ("target", "draft", "entropy", "draft")] == [429, 200, 429, 200]
        assert not any(one.done() for one in failing)
        assert [one.result(TIMEOUT) for one in failing] == [502] * len(failing)
        assert faulty.num_failed == concurrency
        faulty.fault = ""
        assert (ask("target"), ask("draft")) == (502, 200)


def test_a_deadline_that_passes_in_silence_is_a_failure_of_the_server() -> None:
    faulty = Faulty("vllm", "completions", "")
    program = (sys.executable, str(HERE / "hurry.py"), json.dumps({"BREAK_SECONDS": 1000.0}))
    options = ("--draft", "scripted:draft", "--timeout", "1")
    with (
        on_loopback(faulty.server) as address,
        served(*options, "--target", address, models=(), env=ENV, program=program) as (_, client),
        ThreadPoolExecutor(3) as pool,
    ):

        def ask(model: str) -> int:
            messages = [{"role": "user", "content": "2 + 3"}]
            body = {"model": model, "messages": messages, "max_tokens": 8}
            return client.post("/chat/completions", json=body).status_code

        faulty.fault = "silence"
        for answers in ([504, 504], [504], [502]):  # the last one is not sent
            assert list(pool.map(ask, ["target"] * len(answers))) == answers
        assert (faulty.num_failed, ask("draft")) == (3, 200)

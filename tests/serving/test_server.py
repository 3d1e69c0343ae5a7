"""The server over HTTP: answers, streams, model names, refusals, and clients that hang up."""

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest
from cli import TIMEOUT
from hash_language import SHORT, HashBackend, hash_engines, solve
from hypothesis import given
from hypothesis import strategies as st
from processes import awaited
from serving import CONCURRENCY, DEFAULTS, LONG, Gate, Served, chunks, refusal, serving, text_of

from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.serving.answers import StopFilter
from arbitrage_cli.serving.limits import RequestLimits
from arbitrage_cli.serving.requests import RefusedError, find_route, read_request
from arbitrage_cli.serving.server import Access, ServerBounds
from arbitrage_cli.serving.worker import Intake, Ticket
from arbitrage_cli.types import Message, Problem, RequestEnded, RoleLimits, Thinking, Writing, Wrote

KEY = "a key"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def client() -> Iterator[Served]:
    with serving() as served:
        yield served


def expected(problem: Problem, policy: str = "entropy", tau: float | None = 1.5, **options: Any) -> str:
    sampler = options.pop("sampler", None)
    return solve(hash_engines(sampler), [problem], policy, tau, **options)[problem.id].text


def text_of_stream(response: httpx2.Response) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(response.iter_lines()))


def wait_until(client: Served, condition: Callable[[int, int], bool]) -> None:
    awaited(lambda: condition(*client.load()))


# --- answers


def test_an_answer(client: Served) -> None:
    problem = Problem("1", "question 0")
    trace = solve(hash_engines(), [problem], "entropy", 1.5)["1"]
    answer = client.ask(arbitrage=True).json()
    (choice,) = answer["choices"]
    assert (answer["object"], answer["model"], choice["index"]) == ("chat.completion", "entropy", 0)
    assert choice["message"] == {"role": "assistant", "content": trace.text, "refusal": None}
    assert choice["finish_reason"] == ("stop" if trace.stop == "end" else "length")
    usage, choices = answer["usage"], [decision.choice for decision in trace.decisions]
    assert usage["prompt_tokens"] == len(f"u{INSTRUCTIONS}u{problem.question}a")
    assert usage["completion_tokens"] == trace.num_tokens == usage["total_tokens"] - usage["prompt_tokens"]
    assert (usage["accepted_steps"], usage["escalated_steps"]) == (choices.count("accept"), choices.count("escalate"))
    assert usage["draft_tokens"] == sum(decision.draft.num_tokens for decision in trace.decisions if decision.draft)
    assert [step["decision"] for step in answer["arbitrage"]["steps"]] == choices


@pytest.mark.parametrize("fields", [{}, {"arbitrage": True}, {"stop": ["zz", "qq"]}, {"max_tokens": 20}])
def test_a_stream_is_the_answer_in_parts(client: Served, fields: dict[str, Any]) -> None:
    whole = client.ask(**fields).json()
    response = client.ask(stream=True, stream_options={"include_usage": True}, **fields)
    found = chunks(response.iter_lines())
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last = found
    deltas = [part["choices"][0]["delta"] for part in parts]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == text_of(client.ask(**fields))
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [
        whole["choices"][0]["finish_reason"]
    ]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], whole["usage"]["completion_tokens"])
    assert len({(part["id"], part["object"], part["created"]) for part in found}) == 1
    steps = [step for part in parts for step in part.get("arbitrage", {}).get("steps", [])]
    assert len(steps) == (len(parts) - 2 if fields.get("arbitrage") else 0)


@pytest.mark.parametrize("model", ["draft", "target", "speculative"])
@pytest.mark.parametrize("stop", ["zz", None, "\n\n"])
def test_tokens_that_are_surely_kept_are_streamed_as_they_are_written(client: Served, model: str, stop: str | None) -> None:
    fields = {"model": model, "stop": stop, "stream_options": {"include_usage": True}}
    whole = client.ask(**fields).json()
    *parts, last = chunks(client.ask(stream=True, **fields).iter_lines())
    texts = [text for part in parts if (text := part["choices"][0]["delta"].get("content"))]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert parts[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len(texts) > whole["usage"]["completion_tokens"] / 3


@pytest.mark.parametrize(
    "thoughts",
    [
        "",
        "<think>\nHm.\n</think>\n\n",
        "\n<|channel>thought\nHm.<channel|>",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>",
    ],
)
def test_a_conversation(client: Served, thoughts: str) -> None:
    said = [
        ("system", "Be"), ("developer", "brief."), ("user", "a"), ("user", "b"), ("assistant", thoughts + "c"),
        ("user", "d"),
    ]  # fmt: skip
    answer = client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]},
    )
    problem = Problem("1", "d", (Message("user", "a\n\nb"), Message("assistant", "c")), "Be\n\nbrief.")
    assert text_of(answer) == expected(problem) != expected(Problem("1", "d"))


@pytest.mark.parametrize(
    ("model", "policy", "tau"),
    [
        ("arbitrage", "entropy", 1.5),
        ("draft", "draft", None),
        ("target", "target", None),
        ("logprob@1.2", "logprob", 1.2),
        ("entropy@inf", "draft", None),
    ],
)
def test_the_model_says_how_to_route(client: Served, model: str, policy: str, tau: float | None) -> None:
    answer = client.ask(model=model)
    assert (answer.json()["model"], text_of(answer)) == (model, expected(Problem("1", "question 0"), policy, tau))


@pytest.fixture(scope="module")
def thinker() -> Iterator[Served]:
    with serving(thinking=Thinking(True, 30)) as served:
        yield served


THOUGHTFUL = replace(SHORT, thinking=Thinking(True, 30))


@pytest.mark.parametrize("model", ["target", "entropy"])
def test_thoughts_are_apart_from_the_answer(thinker: Served, model: str) -> None:
    problem = Problem("1", "question 0")
    trace = solve(hash_engines(), [problem], model, 1.5, limits=THOUGHTFUL)["1"]
    assert trace.thoughts
    assert trace.text
    stop = trace.thoughts[:4]
    assert stop not in trace.text
    fields = {"model": "entropy@1.5" if model == "entropy" else model, "stop": stop}
    whole = thinker.ask(**fields).json()
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (trace.thoughts, trace.text)
    assert whole["usage"]["completion_tokens"] == trace.num_tokens
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 30}
    stream = chunks(thinker.ask(stream=True, **fields).iter_lines())
    deltas = [chunk["choices"][0]["delta"] for chunk in stream]
    for name in ("reasoning_content", "content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message[name]
    assert not [delta for delta in deltas if delta.get("content") and "reasoning_content" in delta]


ON, OFF = {"chat_template_kwargs": {"enable_thinking": True}}, {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("fields", "usual", "reasoning_tokens"),
    [
        ({}, 30, 30), ({"reasoning_effort": "none"}, 30, 0), (OFF, 30, 0), (OFF | {"reasoning_effort": "none"}, 30, 0),
        ({}, 0, 0), (ON | {"max_tokens": 9}, 0, 9), ({"reasoning_effort": "high", "max_tokens": 9}, 0, 9),
    ],
)  # fmt: skip
def test_requests_say_whether_to_think(
    client: Served, thinker: Served, fields: dict[str, Any], usual: int, reasoning_tokens: int
) -> None:
    response = (thinker if usual else client).ask(**fields)
    details = response.json()["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": reasoning_tokens}
    assert ("reasoning_content" in response.json()["choices"][0]["message"]) == (reasoning_tokens > 0)


@pytest.mark.parametrize("fields", [{"reasoning_effort": "none"}, OFF])
def test_models_that_always_think_cannot_be_told_not_to(fields: dict[str, Any]) -> None:
    body = json.dumps({"messages": USER, **fields}).encode()
    assert read_request(body, "1", DEFAULTS).own_limits.thinking.is_off
    with pytest.raises(RefusedError) as caught:
        read_request(body, "1", replace(DEFAULTS, answering=None))
    assert caught.value.status == 400


@pytest.mark.parametrize(("field", "value"), [("reasoning_effort", "high"), *ON.items()])
def test_models_that_cannot_think_are_not_told_to(field: str, value: Any) -> None:
    body = json.dumps({"messages": USER, field: value}).encode()
    assert read_request(body, "1", DEFAULTS).own_limits.thinking.is_on
    with pytest.raises(RefusedError) as caught:
        read_request(body, "1", replace(DEFAULTS, thinking=None, thinking_pair="thinkers"))
    assert (caught.value.status, caught.value.parameter, "thinkers" in caught.value.hint) == (400, field, True)


def test_who_asks_for_thoughts_gets_the_limits_of_solutions_that_think(client: Served) -> None:
    answer = client.ask("question 6", **ON).json()
    assert SHORT.max_steps < answer["usage"]["accepted_steps"] + answer["usage"]["escalated_steps"] <= LONG.max_steps
    assert (answer["choices"][0]["finish_reason"], bool(text_of(client.ask("question 6", **ON)))) == ("stop", True)


def test_how_tokens_are_drawn(client: Served) -> None:
    sampler = Sampler(temperature=1.0, top_p=0.9, seed=7)
    answer = client.ask(temperature=1, top_p=0.9, seed=7, top_k=-1)
    assert text_of(answer) == expected(Problem("1", "question 0"), sampler=sampler)
    for fields in ({"top_k": 2}, {"min_p": 0.5}):
        answer = client.ask(temperature=1, seed=7, **fields)
        drawn = Sampler(temperature=1.0, seed=7, **fields)
        assert (
            text_of(answer)
            == expected(Problem("1", "question 0"), sampler=drawn)
            != text_of(client.ask(temperature=1, seed=7))
        )
    short = client.ask(max_completion_tokens=5).json()
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (5, "length")
    assert client.ask(max_tokens=10**9).json()["usage"]["completion_tokens"] <= SHORT.token_limit + SHORT.max_step_tokens


def ends(client: Served) -> list[str]:
    return [event.end for event in client.events if isinstance(event, RequestEnded)]


def test_a_stop_text_ends_the_answer(client: Served) -> None:
    num_ended = len(ends(client))
    unstopped = client.ask()
    whole = text_of(unstopped)
    stop = whole[whole.index("\n\n") - 2 :][:6]
    stopped = client.ask(stop=stop).json()
    answer = stopped["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    assert stopped["usage"]["prompt_tokens"] == unstopped.json()["usage"]["prompt_tokens"]
    awaited(lambda: len(ends(client)) == num_ended + 2)
    assert ends(client)[-1] in ("stop", "")  # if the scheduler was quick, the solution was complete


def test_many_clients_get_the_texts_of_one(client: Served) -> None:
    """Law 1 through HTTP."""
    problems = [Problem(str(number), f"question {number}") for number in range(64)]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(lambda problem: text_of(client.ask(problem.question)), problems))
    assert found == [trace.text for trace in solve(hash_engines(), problems, "entropy", 1.5).values()]


def test_what_models_there_are(client: Served) -> None:
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names[:2] == ["arbitrage", "entropy"]
    assert {"draft", "target", "logprob"} < set(names)
    assert not {"arbitrage@fast", "rsd", "oracle", "random"} & set(names)
    for name in ("target", "entropy@0.2"):
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    assert refusal(client.get("/v1/models/gpt-7"))["code"] == "model_not_found"


# --- refusals

USER = [{"role": "user", "content": "1"}]


REFUSED: dict[str, list[Any]] = {
    "tools": [[{"type": "function"}]],
    "n": [2, True],
    "logprobs": [True],
    "response_format": [{"type": "json_object"}],
    "json_schema": [{"type": "object"}],
    "temperature": [3, "1"],
    "top_p": [-0.1],
    "top_k": [-2],
    "min_p": [1.5],
    "max_tokens": [0, 1.5],
    "seed": [2**63],
    "stop": [["a"] * 5, ""],
    "stream": [1],
    "stream_options": [[]],
    "model": [1],
    "messages": [
        *([], "hello", USER * 600, [1]),
        *([{"role": role, "content": "1"}] for role in ("system", "tool", ["user"])),
        *([{"role": "user", "content": content}] for content in (" ", "\0", [{"type": "image_url"}], "long " * 2000)),
        [{"role": "user", "content": "1", "tool_calls": [{}]}],
        [*USER, {"role": "assistant", "content": "2"}],
        [*USER, {"role": "system", "content": "2"}, *USER],
        [{"role": "system", "content": "long " * 5000}, *USER],
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values])
def test_an_invalid_field_is_refused(client: Served, field: str, value: Any) -> None:
    for stream in ({}, {"stream": True}):
        response = client.post("/v1/chat/completions", json={"messages": USER, **stream, field: value})
        error = refusal(response)
        assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", field)
        assert "instance of" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]}, "messages.0.content.0.type"),
    ],
)
def test_a_refusal_names_the_field_by_its_place_in_the_body(client: Served, fields: dict[str, Any], place: str) -> None:
    message = refusal(client.post("/v1/chat/completions", json={"messages": USER} | fields))["message"]
    assert message.partition(": ")[0] == place


@pytest.mark.parametrize(
    "model",
    ["gpt-7", "arbitrage@0.5", "target@1", "entropy@", "entropy@fast", "rsd", "x" * 10_000, f"random@0.{'5' * 900_000}"],
)
def test_unknown_models(client: Served, model: str) -> None:
    """Names of any length are refused safely, because they appear in messages and logs."""
    response = client.ask(model=model)
    assert (response.status_code, refusal(response)["code"]) == (404, "model_not_found")
    assert len(response.content) < 1000


def test_each_request_without_a_seed_draws_another_one_and_reports_it() -> None:
    for streams, reported in itertools.product((False, True), (False, True)):
        body = {"messages": [{"role": "user", "content": "q"}], "temperature": 0.5, "stream": streams}
        made = [read_request(json.dumps(body).encode(), "1", replace(DEFAULTS, draws_seeds=reported)) for _ in range(4)]
        assert len({one.sampler.seed for one in made}) == (4 if reported else 1)
        own = read_request(json.dumps({**body, "seed": 7}).encode(), "1", replace(DEFAULTS, draws_seeds=reported))
        assert own.sampler.seed == 7


def test_a_response_contains_the_seed_and_the_drafted_tokens(client: Served) -> None:
    whole = client.ask(temperature=1, seed=7).json()
    *_, last = [chunk for chunk in chunks(client.ask(temperature=1, seed=7, stream=True).iter_lines()) if chunk["choices"]]
    assert whole["seed"] == last["seed"] == 7
    assert whole["timings"] == last["timings"]
    assert 0 <= whole["timings"]["draft_n_accepted"] < whole["timings"]["draft_n"] == whole["usage"]["draft_tokens"]
    assert "seed" not in client.ask().json()


def test_beside_quick_answers_no_policy_writes_with_both_models() -> None:
    quick = replace(SHORT, thinking=Thinking(False)), replace(LONG, thinking=Thinking(True))
    defaults = replace(DEFAULTS, limits=RoleLimits(*quick))
    with pytest.raises(RefusedError) as caught:
        find_route("entropy", defaults)
    assert (caught.value.status, caught.value.code, "checker" in caught.value.message) == (404, "model_not_found", False)
    assert find_route("target", defaults).policy.name == "target"


def test_unknown_fields_are_ignored_and_listed(client: Served) -> None:
    nothing = {
        "n": 1,
        "tools": [],
        "logprobs": False,
        "response_format": {"type": "text"},
        "stop": None,
        "temperature": None,
    }
    fields: dict[str, Any] = {
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100},
        "cache_prompt": True,
    }
    answer = client.ask(user="me", max_tokens=-1, frequency_penalty=0, logit_bias={}, **nothing)
    assert "x-arbitrage-ignored" not in answer.headers
    unknown: dict[str, Any] = {"reasoning": {"max_tokens": 500}, "a,\r\nb: \xe9": 1, "x" * 500: 1}
    template = {"chat_template_kwargs": {"enable_thinking": False, "other": 1}}
    assert "warnings" not in answer.json()
    for stream in (False, True):
        response = client.ask(stream=stream, **fields, **template, **unknown)
        found = [chunk["warnings"] for chunk in chunks(response.iter_lines()) if "warnings" in chunk] if stream else []
        (warning,) = found[0] if stream else response.json()["warnings"]
        assert "frequency_penalty" in warning
        assert (text_of_stream(response) if stream else text_of(response)) == text_of(answer)
        assert response.headers["x-arbitrage-ignored"].split(", ") == [
            "repeat_penalty", "frequency_penalty", "logit_bias", "reasoning", "a???b:??", "x" * 40, "chat_template_kwargs.other"
        ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"temperature": NaN}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "list", "not UTF-8", "deep list", "deep object", "NaN", "long number"],
)  # fmt: skip
def test_bodies_that_are_no_request(client: Served, body: bytes) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, refusal(response)["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("status", "request_of"),
    [
        (404, {"method": "GET", "url": "/v2"}),
        (405, {"method": "GET", "url": "/v1/chat/completions"}),
        (403, {"method": "GET", "url": "/v1/models", "headers": {"origin": "https://evil.example"}}),
        (403, {"method": "GET", "url": "/v1/models", "headers": {"origin": "null"}}),
        (
            415,
            {"method": "POST", "url": "/v1/chat/completions", "content": b"{}", "headers": {"content-type": "text/plain"}},
        ),
        (413, {"method": "POST", "url": "/v1/chat/completions", "json": {"prompt": "x" * (1 << 20)}}),
    ],
)
def test_other_refusals(client: Served, status: int, request_of: dict[str, Any]) -> None:
    response = client.request(**request_of)
    assert response.status_code == status
    assert ("/v1/models" in refusal(response)["message"]) == (status == 404)


def test_a_malformed_body_is_no_defect(client: Served, caplog: pytest.LogCaptureFixture) -> None:
    """A body with two lengths could contain another client's request: proxies and servers disagree about its end."""
    body = json.dumps({"messages": USER}).encode()
    for rest in (
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    ):
        with socket.create_connection(client.address, timeout=TIMEOUT) as raw:
            raw.sendall(HEAD + rest)
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert text_of(client.ask())
    assert caplog.records == []


def test_a_defect_is_logged_and_answered(
    client: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("arbitrage_cli.serving.server.find_route", lambda name, menu: 1 / 0)
    response = client.get("/v1/models/target")
    assert (response.status_code, refusal(response)["type"]) == (500, "server_error")
    assert response.headers["connection"] == "close"  # uvicorn closes it: a request that reused it would be lost
    assert [record.name for record in caplog.records] == ["arbitrage.serving"]


def test_the_key() -> None:
    with serving(access=Access(KEY)) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            response = client.get("/v1/models", headers=headers)
            assert (response.status_code, refusal(response)["code"]) == (401, "invalid_api_key")
            assert KEY not in response.text
        assert client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        idle, limits = {"running": 0, "waiting": 0}, {"running": CONCURRENCY, "waiting": 64}
        assert client.get("/health", headers={"host": "anything"}).json() == {
            "status": "ok",
            **idle,
            "limits": limits,
            "servers": [],
        }


@pytest.mark.parametrize(
    "host", ["x/health?", "x/health#", "x/health", "x\\health?", "/health?", "x@y/health;", "x/health/?a="]
)
def test_no_host_header_opens_a_route(host: str) -> None:
    """Starlette 1.0.0 builds the URL of a request from this header."""
    with serving(access=Access(KEY)) as client:
        for path in ("/v1/models", "/v1/models/target", "/other", "//health", "/health/", "/health/../v1/models"):
            with socket.create_connection(client.address, timeout=TIMEOUT) as raw:
                raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: raw.recv(1000), b""))
            assert answer.partition(b"\r\n")[0] in (b"HTTP/1.1 401 Unauthorized", b"HTTP/1.1 400 Bad Request"), (
                path,
                answer,
            )


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("127.0.0.1:1", 200), ("evil.example", 400), ("[", 400)])
def test_only_known_hosts_are_served(client: Served, host: str, status: int) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_bodies_that_never_end() -> None:
    with serving(bounds=ServerBounds(body_seconds=0.5)) as client:
        with socket.create_connection(client.address, timeout=TIMEOUT) as slow:
            slow.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
            answer = b"".join(iter(lambda: slow.recv(1000), b""))  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 408")
        assert client.load() == (0, 0)


@pytest.mark.parametrize("body", [b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n"])
def test_unfinished_bodies_shut_nobody_out(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr("arbitrage_cli.serving.server.MAX_CONNECTIONS", 20)
    with serving() as client, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(client.address, timeout=TIMEOUT)) for _ in range(20)]
        for connection in slow:
            connection.sendall(HEAD + body)
        assert text_of(client.ask())
        with contextlib.suppress(ConnectionResetError):
            assert slow[0].recv(1) == b""


def test_idle_connections_shut_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.serving.server.MAX_CONNECTIONS", 20)
    with serving() as client, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(client.address, timeout=TIMEOUT)) for _ in range(60)]
        idle[-1].sendall(b"GET /health HTTP/1.1\r\n")
        assert text_of(client.ask())
        assert idle[0].recv(1) == b""
        idle[-1].sendall(b"Host: localhost\r\n\r\n")
        assert idle[-1].recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_an_idle_connection_outlives_the_pools_of_clients(client: Served) -> None:
    """Many clients reuse a connection for five seconds. A server with the same limit closes it under their requests."""
    with contextlib.closing(HTTPConnection(*client.address, timeout=TIMEOUT)) as connection:
        for pause in (0, 7):
            time.sleep(pause)
            connection.request("GET", "/health")
            assert connection.getresponse().read()


# --- many requests, and clients that do not wait


def test_a_full_queue() -> None:
    gate = Gate()
    gate.close()
    with serving(gate=gate, concurrency=1, queue=2) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.ask) for _ in range(3)]
        wait_until(client, lambda running, waiting: running + waiting == 3)
        full = client.ask()
        assert (full.status_code, refusal(full)["type"]) == (429, "rate_limit_error")
        assert full.headers["retry-after"]
        gate.open()
        assert len({text_of(one.result()) for one in waiting}) == 1


@pytest.mark.parametrize("concurrency", [1, 2], ids=["waits", "runs"])
def test_a_request_that_takes_too_long(concurrency: int) -> None:
    gate = Gate()
    gate.close()
    bounds = ServerBounds(seconds=0.3, keep_alive_seconds=0.1)
    with serving(gate=gate, bounds=bounds, concurrency=concurrency) as client, ThreadPoolExecutor(2) as pool:
        for asked in [pool.submit(client.ask) for _ in range(2)]:
            late = asked.result()
            assert (late.status_code, refusal(late)["code"]) == (504, "timeout")
        gate.open()
        wait_until(client, lambda running, waiting: running + waiting == 0)


def test_a_request_withdrawn_while_the_scheduler_takes_it() -> None:
    """Otherwise, the scheduler would wait for another request while it solves problems."""
    intake, request = (
        Intake(RequestLimits()),
        read_request(b'{"messages": [{"role": "user", "content": "1"}]}', "1", DEFAULTS),
    )
    taken = Ticket(request, 10.0, lambda report: None)
    intake.put(taken)
    with ThreadPoolExecutor(1) as pool:
        assert intake.is_ready()
        intake.withdraw(taken)
        asked = pool.submit(lambda: list(itertools.islice(intake, 1)))
        try:
            assert asked.result(TIMEOUT) == [taken]
        finally:
            intake.close()
    assert (taken.deadline.has_passed, len(intake)) == (True, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_clients_that_hang_up_leave_nothing(stream: bool) -> None:
    gate = Gate()
    with serving(gate=gate, queue=100, bounds=ServerBounds(keep_alive_seconds=0.01)) as client:
        expected_text = text_of(client.ask())
        gate.close()
        body = json.dumps({"messages": USER, "stream": stream}).encode()
        head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
        sent = [socket.create_connection(client.address, timeout=TIMEOUT) for _ in range(20)]
        for one in sent:
            one.sendall(head + body)
        wait_until(client, lambda running, waiting: running + waiting == 20)
        for one in sent:
            one.close()
        wait_until(client, lambda running, waiting: waiting == 0)
        gate.open()
        wait_until(client, lambda running, waiting: running == 0)
        awaited(lambda: sum(isinstance(event, RequestEnded) for event in client.events) > 1)
        ended = [event for event in client.events if isinstance(event, RequestEnded)]
        assert len(ended) <= 1 + CONCURRENCY
        assert [event.end for event in ended] == ["", *["cancelled"] * (len(ended) - 1)]
        assert text_of(client.ask()) == expected_text


def test_a_stream_says_that_it_is_alive() -> None:
    gate = Gate()
    gate.close()
    with (
        serving(gate=gate, bounds=ServerBounds(keep_alive_seconds=0.01)) as client,
        client.stream("POST", "/v1/chat/completions", json={"messages": USER, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"
        gate.open()
        assert chunks(lines)


class SlowPrefill(Gate):
    """Models that report several times, each time soon, before they write."""

    def backend(self, *arguments: Any, **options: Any) -> HashBackend:
        class Slow(HashBackend):
            def read(self, *arguments: Any, **options: Any) -> None:
                time.sleep(0.05)
                super().read(*arguments, **options)

        return Slow(*arguments, **options)


LONG_QUESTION = {"messages": [{"role": "user", "content": "long " * 360}], "model": "target", "stream": True}


def test_a_stream_says_that_it_is_alive_while_a_model_reads_a_long_prompt() -> None:
    with (
        serving(gate=SlowPrefill(), bounds=ServerBounds(keep_alive_seconds=0.1)) as client,
        client.stream("POST", "/v1/chat/completions", json=LONG_QUESTION) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
        reports = [event.num_unread for event in client.events if isinstance(event, Writing)]
        assert (len(reports) > 10, lines[1:3]) == (True, [": keep-alive"] * 2)


def test_a_client_that_leaves_while_a_model_reads_its_prompt_is_noticed() -> None:
    with serving(gate=SlowPrefill(), bounds=ServerBounds(keep_alive_seconds=0.1)) as client:
        body = json.dumps(LONG_QUESTION).encode()
        with socket.create_connection(client.address, timeout=TIMEOUT) as raw:
            raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            awaited(lambda: any(isinstance(event, Writing) for event in client.events))
        awaited(lambda: any(isinstance(event, RequestEnded) for event in client.events))
        assert [event.end for event in client.events if isinstance(event, RequestEnded)] == ["cancelled"]
        assert not any(isinstance(event, Wrote) for event in client.events)


words = st.text(alphabet="ab", max_size=4)


@given(st.lists(words, max_size=6), st.lists(words.filter(bool), max_size=3))
def test_a_text_ends_before_the_first_whole_stop_text(parts: list[str], stops: list[str]) -> None:
    """The result does not depend on the chunks. Text that may begin a stop string is held back, and then released or cut."""
    stop_filter = StopFilter(tuple(stops))
    shown = ""
    for part in parts:
        shown += stop_filter.add(part)
    shown += stop_filter.finish()
    whole = "".join(parts)
    places = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    assert (shown, stop_filter.is_stopped) == (whole[: min(places)[1]] if places else whole, bool(places))


def test_a_request_with_two_lengths_is_refused(client: Served) -> None:
    """Proxies and servers that disagree about its end let one client's body become another client's request."""
    body = json.dumps({"messages": USER}).encode()
    with socket.create_connection(client.address, timeout=TIMEOUT) as raw:
        raw.sendall(
            HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        )
        answer = b"".join(iter(lambda: raw.recv(1000), b""))  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1

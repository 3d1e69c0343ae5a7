"""`arbitrage serve` as a process: where it listens, who may ask, how it ends, and what a terminal shows."""

import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from cli import (
    MODELS,
    PROGRAM,
    QUESTION,
    RIGHT,
    TIMEOUT,
    WRONG,
    Terminal,
    assert_refused,
    pair_named_mine,
    run,
    served,
)
from fake_chat import Api, ChatServer
from fake_server import HashServer, on_loopback
from hash_language import HashBackend
from processes import awaited, ended_by
from serving import chunks

ASKED = {"messages": [{"role": "user", "content": QUESTION}]}


def test_it_answers_and_ends_when_it_is_told_to() -> None:
    with served() as (process, client):
        for model, answer in (("draft", WRONG), ("target", RIGHT)):
            text = client.post("/chat/completions", json={**ASKED, "model": model}).json()["choices"][0]["message"][
                "content"
            ]
            assert f"boxed{{{answer}}}" in text
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (0, b"")
    lines = [line for line in err.decode().splitlines() if line.startswith("chatcmpl-")]
    assert [line.split(", ")[1].partition(":")[0] for line in lines] == ["draft", "target"]


def test_a_checker_makes_agree_a_model() -> None:
    models = (*MODELS, "--check", "scripted:target")
    with served(models=models) as (_, client):
        assert "agree" in {model["id"] for model in client.get("/models").json()["data"]}
        for question, answer in (("2 * 3 + 4", "10"), (QUESTION, RIGHT)):
            messages = [{"role": "user", "content": question}]
            made = client.post("/chat/completions", json={"messages": messages, "model": "agree"}).json()
            assert f"boxed{{{answer}}}" in made["choices"][0]["message"]["content"]
            record = run("solve", *models, "--policy", "agree", "--json", question).record
            counted = {model: made["usage"][f"{model}_tokens"] for model in ("draft", "check", "target")}
            assert counted == {model: record["timing"][model]["decode_tokens"] for model in counted}


def test_usage_has_the_tokens_of_the_drafts_further_solutions() -> None:
    models, question = ("--draft", "builtin:draft", "--target", "builtin:target"), "What is 12 + 7?"
    with served(models=models) as (_, client):
        messages = [{"role": "user", "content": question}]
        usage = client.post("/chat/completions", json={"messages": messages, "model": "agree"}).json()["usage"]
    record = run("solve", *models, "--policy", "agree", "--json", question).record
    assert record["check"]["solutions"][1]["sample"] == 1
    assert usage["accepted_steps"] == len(record["steps"]) > 0
    assert usage["draft_tokens"] == record["timing"]["draft"]["decode_tokens"]


def test_a_list_of_models_says_how_much_they_can_read() -> None:
    with served("--ctx", "300", "--policy", "draft", models=("--pair", "builtin")) as (_, client):
        listed = {model["id"]: model for model in client.get("/models").json()["data"]}
        assert {(one["context_length"], one["max_model_len"], one["meta"]["n_ctx"]) for one in listed.values()} == {
            (300,) * 3
        }
        assert client.get("/models/target").json() == listed["target"]
    with served("--task", "free", models=("--pair", "builtin")) as (_, client):
        assert "agree" not in {model["id"] for model in client.get("/models").json()["data"]}
        assert client.get("/models/agree").status_code == 404


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_warns_of_a_question_that_the_built_in_models_never_learned(*, streams: bool) -> None:
    with served(models=()) as (_, client):

        def warnings(question: str) -> list[str]:
            body = {"messages": [{"role": "user", "content": question}], "stream": streams}
            response = client.post("/chat/completions", json=body)
            made = chunks(response.iter_lines()) if streams else [response.json()]
            return [warning for one in made for warning in one.get("warnings", [])]

        assert (len(warnings("What is 5 + 6?")), len(warnings("5!"))) == (0, 1)


@pytest.mark.parametrize("problem", ["is unreachable", "has no model 'toy'"])
def test_it_starts_without_a_checker_whose_server_cannot_be_used(problem: str) -> None:
    """The draft does not check itself instead."""
    checker = HashServer(backend=HashBackend("target"))
    checker.names = ["another"]
    with on_loopback(checker) as address:
        place = "http://127.0.0.1:9/v1" if problem == "is unreachable" else f"{address}#toy"
        with served(models=(*MODELS, "--check", place)) as (process, client):
            offered = {model["id"] for model in client.get("/models").json()["data"]}
            assert offered & {"agree", "arbitrage", "target"} == {"arbitrage", "target"}
            asked = client.post("/chat/completions", json={**ASKED, "model": "agree"})
            for refused in (asked, client.get("/models/agree")):
                assert (refused.status_code, "checker" in refused.text, "127.0.0.1" in refused.text) == (503, True, False)
                assert "retry-after" not in refused.headers
            assert client.post("/chat/completions", json={**ASKED, "model": "target"}).status_code == 200
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=TIMEOUT)[1].decode()
    assert log.count(problem) == 1
    assert checker.counts["/v1/completions"] == 0


@pytest.mark.parametrize("is_of_pair", [False, True])
def test_it_does_not_start_if_the_default_policy_needs_a_checker_that_cannot_be_used(
    is_of_pair: bool, tmp_path: Path
) -> None:
    env = {}
    arguments: tuple[str, ...] = (*MODELS, "--check", "http://127.0.0.1:9/v1", "--policy", "agree")
    if is_of_pair:
        env = pair_named_mine(
            tmp_path, draft="scripted:draft", target="scripted:target", check="http://127.0.0.1:9/v1", policy="agree"
        )
        arguments = ("--pair", "mine")
    ended = run("serve", "--port", "0", *arguments, env=env)
    assert (ended.code, ended.out) == (3, "")


def test_policies_that_need_log_probabilities_are_not_offered_without_them() -> None:
    server = HashServer(backend=HashBackend("draft"))
    server.max_alternatives = 0
    options = ("--target", "scripted:target", "--policy", "target", "--max-tokens", "40")
    with on_loopback(server) as address, served("--draft", address, *options, models=()) as (_, client):
        names = {model["id"] for model in client.get("/models").json()["data"]}
        assert ("draft" in names, "entropy" in names) == (True, False)
        num_asked = sum(server.counts.values())
        error = client.post("/chat/completions", json={**ASKED, "model": "entropy"})
        assert (error.status_code, "log-probabilities" in error.text) == (404, True)
        assert sum(server.counts.values()) == num_asked
        for model in ("random", "draft", "target"):
            assert client.post("/chat/completions", json={**ASKED, "model": model}).status_code == 200


def test_usage_has_the_tokens_of_the_prompt(tmp_path: Path) -> None:
    models = ("--max-tokens", "40")
    with on_loopback(HashServer("vllm", HashBackend("draft"))) as draft, on_loopback(ChatServer(Api())) as target:
        env = pair_named_mine(tmp_path, draft=draft, target=target)
        with served(*models, models=("--pair", "mine"), env=env) as (_, client):
            for model in ("target", "draft"):
                usage = client.post("/chat/completions", json={**ASKED, "model": model}).json()["usage"]
                record = run("solve", "--pair", "mine", *models, "--policy", model, "--json", QUESTION, env=env).record
                assert usage["prompt_tokens"] == record["timing"][model]["prefill_tokens"] > 5
                assert usage["completion_tokens"] == sum(step["tokens"] for step in record["steps"])


def test_a_signal_ends_no_computation() -> None:
    with served("--threads", "1", models=("--pair", "builtin")) as (process, client), ThreadPoolExecutor(16) as pool:
        texts = [{"messages": [{"role": "user", "content": f"Evaluate {n}*11."}]} for n in range(16)]
        asked = [pool.submit(client.post, "/chat/completions", json=text) for text in texts]
        awaited(lambda: any(one.done() for one in asked) and sum(one.done() for one in asked) + sum(load(client)) == 16)
        process.send_signal(signal.SIGTERM)
        assert {one.result().status_code for one in asked} == {200}
        assert process.wait(TIMEOUT) == 0


def load(client: httpx2.Client) -> tuple[int, int]:
    health = client.get(client.base_url.join("/health")).json()
    return health["running"], health["waiting"]


def test_the_key_comes_from_the_environment() -> None:
    with served("--host", "0.0.0.0", env={"ARBITRAGE_SERVE_API_KEY": "secret-1"}) as (process, client):  # noqa: S104
        assert client.get("/models").status_code == 401
        assert client.get("/models", headers={"authorization": "Bearer secret-1"}).status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert b"secret-1" not in out + err


def test_a_web_page_does_not_reach_an_open_server_under_its_own_name() -> None:
    """Its domain name may resolve to any address (DNS rebinding)."""
    hosts = {
        "gpu-box": 200,
        "10.1.2.3:8000": 200,
        "8.8.8.8": 200,
        "[2001:db8::1]:80": 200,
        "box.lan": 200,
        "evil.example": 400,
    }
    with served("--host", "0.0.0.0", "--no-api-key") as (_, client):  # noqa: S104
        assert {host: client.get("/models", headers={"host": host}).status_code for host in hosts} == hosts


def test_what_it_refuses_to_start_with() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, place in (
            (("--host", "0.0.0.0"), "--host"),  # noqa: S104 - refused
            (("--port", str(taken.getsockname()[1])), "127.0.0.1"),
            (("--policy", "rsd"), "--policy"),
        ):
            assert_refused(run("serve", *MODELS, "--port", "0", *flags), 2, place)
    assert_refused(run("serve", *MODELS, env={"ARBITRAGE_SERVE_API_KEY": "ké"}), 2, "ARBITRAGE_SERVE_API_KEY: ")


def test_a_second_signal_does_not_wait() -> None:
    with served() as (process, client):
        body = b'{"prompt": "' + b"x" * 100
        host, port = client.base_url.host, client.base_url.port
        with socket.create_connection((host, port or 0), timeout=10) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n" + body)
            code = ended_by(signal.SIGINT, process)
        assert b"Traceback" not in process.communicate(timeout=TIMEOUT)[1]
    assert code in (130, -signal.SIGINT)


def test_signals_that_are_ignored_stay_ignored() -> None:
    """As under nohup, and for the background jobs of a script."""
    nohup = ("/bin/sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *PROGRAM)
    with served(program=nohup) as (process, client):
        for number in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        assert client.get("/models").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0


def test_requests_are_lines_in_a_terminal(tmp_path: Path) -> None:
    output = tmp_path / "url"
    with Terminal("serve", *MODELS, "--port", "0", stdout=output, columns=100) as terminal:
        terminal.wait_until(lambda: output.exists() and output.read_bytes().endswith(b"\n"))
        url = output.read_text().strip()
        for _ in range(2):
            assert httpx2.post(f"{url}/chat/completions", json=ASKED, timeout=TIMEOUT).status_code == 200
        terminal.wait_until(lambda: len(re.findall(r"^chatcmpl-", terminal.text, re.MULTILINE)) == 2)
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 0
    assert not terminal.screen.cursor.hidden

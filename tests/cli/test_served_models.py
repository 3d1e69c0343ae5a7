"""Models on servers, from the command line: how they are named, what is refused, what is recorded, and that no key leaks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli import assert_refused, pair_named_mine, run
from fake_chat import Api, ChatServer
from fake_server import HashServer, Kind, on_loopback
from faults import run_json, write_problems
from hash_language import TEMPLATE, HashBackend

KEY = "sk-secret-0123"


@contextmanager
def serving(kind: Kind = "vllm", *, key: str | None = None) -> Iterator[tuple[HashServer, str]]:
    server = HashServer(kind, HashBackend("target"), key=key)
    with on_loopback(server) as address:
        yield server, address


def test_a_pair_thinks_if_a_served_model_does_by_itself() -> None:
    with serving() as (server, address):
        server.backend.chat_template = TEMPLATE + "{% if enable_thinking | default(true) %}<think>\n{% endif %}"
        models = ("--draft", "scripted:draft", "--target", address, "--policy", "target", "--max-tokens", "40")
        default, off = (run("solve", *models, *think, "--json", "1 + 1").record for think in ((), ("--think", "off")))
        server.backend.chat_template = TEMPLATE + "<think>\n"
        assert_refused(run("solve", *models, "--think", "off", "1 + 1"), 2, "--think", address)
    assert (default["settings"]["think_tokens"], default["settings"]["max_tokens"]) == (None, 40)
    assert default["steps"][0]["phase"] == "think"
    assert (off["settings"]["think_tokens"], {step["phase"] for step in off["steps"]}) == (0, {"answer"})


def test_a_run_keeps_the_thinking_that_was_decided_and_is_shown_without_its_servers(quick_path: Path) -> None:
    write_problems(quick_path / "arithmetic.jsonl", ("1 + 1", "2 + 2"))
    with serving() as (server, target), serving() as (_, check):
        server.backend.chat_template = TEMPLATE + "<think>\n"
        models = ("--draft", "scripted:draft", "--target", target, "--check", check, "--policy", "agree,target")
        command = ("bench", *models, "--dataset", "arithmetic.jsonl", "-o", "run", "--json", "--max-tokens", "40")
        assert run(*command, "--limit", "1-1", cwd=quick_path).code == 0
        server.backend.chat_template = TEMPLATE
        whole = run(*command, cwd=quick_path)
    again, other = (run(*command, *think, cwd=quick_path) for think in ((), ("--think", "off")))
    assert (again.record["n"], again.record["policies"]) == (2, whole.record["policies"])
    assert run_json(quick_path / "run")["decided"]["settings"]["think_tokens"] is None
    assert_refused(other, 2, "--think: ")


def test_a_pair_of_servers_and_its_keys(tmp_path: Path) -> None:
    with serving(key=KEY) as (_, target), serving("llamacpp", key="sk-other") as (_, draft):
        env = pair_named_mine(tmp_path, draft=draft, target=f"{target}#toy", target_api_key_env="MY_KEY")
        env |= {"MY_KEY": KEY, "ARBITRAGE_DRAFT_API_KEY": "sk-other"}
        arguments = ("solve", "--pair", "mine", "--policy", "logprob", "--json", "What is 1 + 1?")
        result = run(*arguments, env=env)
        assert result.record["steps"]
        assert_refused(run(*arguments, env=env | {"MY_KEY": None}), 2, "", "MY_KEY")
        assert_refused(run(*arguments, env=env | {"ARBITRAGE_DRAFT_API_KEY": "sk-wrong"}), 3, "", "ARBITRAGE_DRAFT_API_KEY")


def test_no_key_is_in_any_file_or_output(quick_path: Path) -> None:
    write_problems(quick_path / "arithmetic.jsonl", ("1 + 1", "2 + 2"))
    arguments = ("--dataset", "arithmetic.jsonl", "--policy", "target,draft,entropy", "-o", "run", "--debug", "--debug")
    with serving(key=KEY) as (_, address):
        models = ("--draft", "scripted:draft", "--target", address)
        result = run("bench", *models, *arguments, cwd=quick_path, env={"ARBITRAGE_TARGET_API_KEY": KEY})
    assert result.code == 0, result.err
    written = [path.read_bytes() for path in quick_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in text for text in [*written, result.stdout, result.stderr])


def test_a_run_is_not_resumed_with_another_model_at_the_same_address(quick_path: Path) -> None:
    write_problems(quick_path / "arithmetic.jsonl", ("1 + 1", "2 + 2"))
    with serving() as (server, address):
        arguments = ("bench", "--draft", "scripted:draft", "--target", address, "--dataset", "arithmetic.jsonl", "-o", "run")
        assert run(*arguments, "--policy", "target", cwd=quick_path).code == 0
        server.names = ["other"]
        assert_refused(run(*arguments, "--policy", "target,draft,entropy", cwd=quick_path), 2, "", "other")


def test_what_a_server_lacks_is_refused_before_anything_is_spent(quick_path: Path) -> None:
    (quick_path / "template.jinja").write_text(TEMPLATE)
    with serving("plain") as (server, address):
        plain = ("solve", "--pair", "mine", "--policy", "logprob", "1 + 1")
        models = {"draft": address, "target": "scripted:target"}
        env = pair_named_mine(quick_path, **models)
        assert_refused(run(*plain, env=env), 3, "", "template")
        pair_named_mine(quick_path, **models, draft_template=quick_path / "template.jinja")
        assert run(*plain, env=env).code == 0
        server.max_alternatives = 0
        assert_refused(run(*plain, env=env), 3, "", "log-probabilities")
        asked = sum(server.counts.values())
        assert_refused(run("solve", "--target", address, "--draft", "builtin:draft", "--policy", "speculative", "1"), 2)
        assert_refused(run(*plain[:-2], "logprob-min", "--early-stop", "1 + 1", env=env), 2, "--early-stop")
        assert sum(server.counts.values()) == asked


@pytest.mark.parametrize(
    "address", ["http://", "http://user:secret@host/v1", "http://host:99999/v1", "https://host/v1?key=secret"]
)
def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    result = run("solve", "--draft", "scripted:draft", "--target", address, "1 + 1")
    assert_refused(result, 2, "--target")
    assert "secret" not in result.err


def test_a_key_for_one_server_is_not_sent_to_two() -> None:
    with serving() as (one, first), serving() as (other, second):
        result = run("solve", "--draft", first, "--target", second, "1 + 1", env={"ARBITRAGE_API_KEY": KEY})
    assert_refused(result, 2, "", "ARBITRAGE_DRAFT_API_KEY")
    assert not one.headers
    assert not other.headers


@pytest.mark.parametrize("host", ["models.example.com", "134744072", "0x08080808"])
def test_a_key_is_not_sent_unencrypted_to_another_network(host: str) -> None:
    arguments = ("solve", "--draft", "scripted:draft", "--target", f"http://{host}/v1#toy", "1 + 1")
    result = run(*arguments, env={"ARBITRAGE_TARGET_API_KEY": KEY})
    assert_refused(result, 2, "", "https")
    assert KEY not in result.err


def test_a_pair_with_prices_shows_what_a_problem_cost(tmp_path: Path) -> None:
    with on_loopback(ChatServer(Api(names_stop=True))) as address:
        models, solve = {"draft": "scripted:draft", "target": address}, ("solve", "--pair", "mine", "What is 1 + 1?")
        env = pair_named_mine(tmp_path, **models, target_price="1000/1000/1000")
        for policy, is_estimate in (("random", True), ("target", False)):
            shown = run(*solve, "--policy", policy, "--json", env=env)
            cost = shown.record["timing"]["target"]
            assert f"${(cost['prefill_tokens'] + cost['decode_tokens']) / 1000:.5f}" in shown.err
            assert ("about $" in shown.err) == is_estimate
        for price in ("1/x", "0/0/0"):
            refused = run(*solve, env=pair_named_mine(tmp_path, **models, target_price=price))
            assert_refused(refused, 2, "pair 'mine': price")


def test_ignored_sampling_options_are_noted_if_they_matter() -> None:
    with on_loopback(ChatServer(Api(rejects=("seed", "top_p")))) as address:
        solve = ("solve", "--draft", "scripted:draft", "--target", address, "--policy", "target", "1 + 1")
        greedy, sampled = (run(*solve, *more) for more in ((), ("--temperature", "0.5")))
    assert (greedy.code, sampled.code) == (0, 0)
    assert [name in result.err for result in (greedy, sampled) for name in ("seed", "top_p")] == [False, False, True, True]


def test_a_pair_fixes_how_its_target_is_continued(tmp_path: Path) -> None:
    with on_loopback(ChatServer(Api("partial"))) as address:
        models = {"draft": "scripted:draft", "target": address}
        arguments = ("solve", "--pair", "mine", "--policy", "target", "--json", "1 + 1")
        assert_refused(
            run(*arguments, env=pair_named_mine(tmp_path, **models, target_continuation="prefix")), 3, "", "prefix"
        )
        assert_refused(
            run(*arguments, env=pair_named_mine(tmp_path, **models, target_continuation="none")), 2, "", "trailing"
        )
        assert run(*arguments, env=pair_named_mine(tmp_path, **models, target_continuation="partial")).code == 0

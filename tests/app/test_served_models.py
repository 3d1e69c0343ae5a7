"""Models on servers: how they are named, what is decided about them, what is refused, what is noted, and that no key leaks."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import pair_named_mine
from commands import MATH, Shown, bench, collect, decided, refused, solve, typed
from fake_chat import Api, ChatServer
from fake_server import HashServer, Kind, on_loopback
from faults import write_problems
from hash_language import TEMPLATE, HashBackend

from arbitrage_cli import ServerError, open_pair
from arbitrage_cli.app.asking.naming import choose_models
from arbitrage_cli.app.options import Options
from arbitrage_cli.display.display import CommandDisplay, PlainScreen
from arbitrage_cli.types import Thinking

KEY = "sk-secret-0123"
DRAFT, OTHER = "scripted:draft", "http://127.0.0.1:1/v1"
MINE = typed(pair="mine", policy="target", max_tokens=8)


@pytest.fixture
def here(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two problems, which is the settings folder too."""
    write_problems(quick_path / "problems.jsonl", ("1 + 1", "2 + 2"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(quick_path))
    return quick_path


@contextmanager
def serving(kind: Kind = "vllm", *, key: str | None = None) -> Iterator[tuple[HashServer, str]]:
    server = HashServer(kind, HashBackend("target"), key=key)
    with on_loopback(server) as address:
        yield server, address


def routed(target: str, policy: str = "target", **more: Any) -> Options:
    return typed(draft=DRAFT, target=target, policy=policy, **{"max_tokens": 40, **more})


def solved(folder: Path, options: Options, display: Any = None) -> None:
    assert not solve(folder, options, "1 + 1", output=None, display=display).num_failed


def test_a_pair_thinks_if_a_served_model_does_by_itself() -> None:
    with serving() as (server, address):
        server.backend.chat_template = TEMPLATE + "{% if enable_thinking | default(true) %}<think>\n{% endif %}"
        found = [decided(routed(address, **think)).settings for think in ({}, {"think": "off"})]
        assert [(one.limits.target.thinking.switch, one.limits.target.max_tokens) for one in found] == [
            (True, 40),
            (False, 40),
        ]
        server.backend.chat_template = TEMPLATE + "<think>\n"
        error = refused(decided, routed(address, think="off"))
    assert (error.option, "toy" in error.message) == ("think", True)


@pytest.mark.parametrize(("think", "thinks"), [({}, True), ({"think": "off"}, False), ({"think": "0"}, False)])
def test_a_checker_thinks_if_it_does_by_itself_unless_thinking_is_off(think: dict[str, str], thinks: bool) -> None:
    with serving() as (server, check):
        server.backend.chat_template = TEMPLATE + "{% if enable_thinking | default(true) %}<think>\n{% endif %}"
        limits = decided(routed("scripted:target", "agree", check=check, **think)).settings.limits
    assert limits.of("check").thinking.is_on is thinks


def test_a_call_that_turns_thinking_off_turns_off_the_checkers_too() -> None:
    with serving() as (server, check):
        server.backend.chat_template = TEMPLATE + "{% if enable_thinking | default(true) %}<think>\n{% endif %}"
        with open_pair(DRAFT, "scripted:target", check=check, policy="agree", max_tokens=40) as pair:
            records = [pair.solve("1 + 1", think=think).to_dict() for think in (None, False)]
    assert [record["settings"]["check_thinking"] for record in records] == ["on", "off"]


@pytest.mark.parametrize(("think", "num_notes"), [("off", 0), ("on", 1)])
def test_a_model_behind_a_chat_api_answers_without_thinking(here: Path, think: str, num_notes: int) -> None:
    with on_loopback(ChatServer(Api())) as address:
        solved(here, routed(address, think=think), shown := Shown())
    (record,) = shown.records
    assert "".join(step["text"] for step in record["steps"] if step["phase"] == "think") == ""
    assert record["text"]
    assert len([note for note in shown.notes if "without thinking" in note]) == num_notes


def test_a_run_keeps_the_thinking_that_was_decided_and_is_shown_without_its_servers(here: Path) -> None:
    with serving() as (server, target), serving() as (_, check):
        server.backend.chat_template = TEMPLATE + "<think>\n"
        options = routed(target, "agree,target", check=check)
        bench(here, options, limit="1-1")
        server.backend.chat_template = TEMPLATE
        whole = bench(here, options, limit="1-2")
    again = bench(here, options)
    assert (again.todo, len(again.results), again.results) == ([], 4, whole.results)
    assert again.run.decided.settings.limits.target.thinking == Thinking(True)
    assert refused(bench, here, routed(target, "agree,target", check=check, think="off")).option == "think"


def test_a_run_is_not_resumed_with_another_model_at_the_same_address(here: Path) -> None:
    with serving() as (server, address):
        bench(here, routed(address))
        server.names = ["other"]
        assert "other" in refused(bench, here, routed(address, "target,draft,entropy")).message


# --- addresses and keys


@pytest.mark.parametrize(
    ("target", "keys", "place"),
    [
        *((address, {}, "target") for address in ("http://", "http://host:99999/v1")),
        *((f"http{address}", {}, "target") for address in ("://user:secret@host/v1", "s://host/v1?key=secret")),
        *(
            (f"http://{host}/v1#toy", {"ARBITRAGE_TARGET_API_KEY": KEY}, "target")
            for host in ("models\u3002example.com", "8\uff0e8.8.8", "models%2eexample.com", "localhost\\.example.com")
        ),
        ("http://127.0.0.1:2/v1", {"ARBITRAGE_API_KEY": KEY}, "ARBITRAGE_DRAFT_API_KEY"),
        *(
            (f"http://{host}/v1#toy", {"ARBITRAGE_TARGET_API_KEY": KEY}, "https")
            for host in ("models.example.com", "134744072", "0x08080808")
        ),
    ],
)
def test_what_would_not_reach_its_server_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, target: str, keys: Mapping[str, str], place: str
) -> None:
    """A bad address, a key that two servers would get, and a key that another network could read."""
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    error = refused(choose_models, Options(draft=OTHER, target=target), MATH)
    assert place in (error.option, *error.message.split(), *error.hint.split()), (error.message, error.hint)
    assert not any(secret in f"{error.message} {error.hint}" for secret in ("secret@", "=secret", KEY))


def test_a_pair_of_servers_and_its_keys(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(key=KEY) as (_, target), serving("llamacpp", key="sk-other") as (_, draft):
        pair_named_mine(here, draft=draft, target=f"{target}#toy", target_api_key_env="MY_KEY")
        monkeypatch.setenv("ARBITRAGE_DRAFT_API_KEY", "sk-other")
        assert "MY_KEY" in refused(choose_models, MINE, MATH).message
        monkeypatch.setenv("MY_KEY", KEY)
        options = typed(pair="mine", policy="logprob", max_tokens=8)
        solved(here, options)
        monkeypatch.setenv("ARBITRAGE_DRAFT_API_KEY", "sk-wrong")
        error = refused(solved, here, options)
    assert (error.exit_code, "ARBITRAGE_DRAFT_API_KEY" in error.hint) == (3, True)


# --- what a server can do


def test_a_pair_names_the_server_behind_a_proxy(here: Path) -> None:
    """Otherwise, it is a chat API, which routes no steps and has chat templates of its own."""
    (here / "template.jinja").write_text(TEMPLATE)
    with serving() as (server, address):
        models, options = {"draft": address, "target": "scripted:target"}, typed(pair="mine", policy="logprob")
        pair_named_mine(here, **models)
        solved(here, options)
        server.owner = "a proxy"
        for template in ({}, {"draft_template": here / "template.jinja"}):
            pair_named_mine(here, **models, **template)
            assert "target.server" in refused(solved, here, options).hint
            pair_named_mine(here, **models, **template, draft_server="vllm")
            solved(here, options)
        pair_named_mine(here, **models, draft_server="ollama")
        assert "server" in refused(solved, here, options).message


def test_what_a_server_lacks_is_refused_before_anything_is_spent(here: Path) -> None:
    with serving() as (server, address):
        models, options = {"draft": address, "target": "scripted:target"}, typed(pair="mine", policy="logprob")
        pair_named_mine(here, **models)
        solved(here, options)
        server.max_alternatives = 0
        assert "log-probabilities" in refused(solved, here, options).message
        asked = sum(server.counts.values())
        assert refused(solved, here, typed(pair="mine", policy="speculative")).option == "policy"
        assert sum(server.counts.values()) == asked


def test_a_draft_without_log_probabilities_is_used_where_they_are_not_needed(here: Path) -> None:
    """Otherwise, the error comes before the server has written anything but probes."""
    server = HashServer(backend=HashBackend("draft"))
    server.max_alternatives = 0
    with on_loopback(server) as address, open_pair(address, "scripted:target", policy="target", max_tokens=40) as pair:
        for policy in ("random", "draft", "target", "agree"):
            assert pair.solve("1 + 1", policy=policy).error is None
        num_written = sum(server.counts.values())
        with pytest.raises(ServerError, match="log-probabilities"):
            pair.solve("1 + 1", policy="entropy")
        assert sum(server.counts.values()) == num_written
        options = typed(draft=address, target="scripted:target", max_tokens=40)
        server.counts.clear()
        error = refused(collect, here, options)
        assert (error.exit_code, "collect" in error.message) == (3, True)
        probes = server.counts["/v1/completions"]
        server.counts.clear()
        assert refused(bench, here, replace(options, policy="draft,entropy", explicit=frozenset())).exit_code == 3
        assert server.counts["/v1/completions"] == probes


def test_ignored_sampling_options_are_noted_if_they_matter(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with on_loopback(ChatServer(Api(rejects=("seed", "top_p")))) as address:
        for temperature, noted in ((0.0, []), (0.5, ["seed", "top_p"])):
            solved(here, routed(address, temperature=temperature))
            assert [name for name in ("seed", "top_p") if name in caplog.text] == noted


def test_a_pair_with_prices_shows_what_a_problem_cost(here: Path) -> None:
    with on_loopback(HashServer()) as address:
        pair_named_mine(here, draft=DRAFT, target=address, target_price="1000/1000/1000")
        for policy, is_estimate in (("random@-1", True), ("random@1", False), ("target", False)):
            shown, records = io.StringIO(), io.StringIO()
            solved(here, typed(pair="mine", policy=policy), CommandDisplay(PlainScreen(shown), records))
            cost = json.loads(records.getvalue())["timing"]["target"]
            assert f"${(cost['prefill_tokens'] + cost['decode_tokens']) / 1000:.5f}" in shown.getvalue()
            assert ("about $" in shown.getvalue()) == is_estimate
    for price in ("1/x", "0/0/0"):
        pair_named_mine(here, draft=DRAFT, target=OTHER, target_price=price)
        assert refused(choose_models, MINE, MATH).message.startswith("pair 'mine': price")

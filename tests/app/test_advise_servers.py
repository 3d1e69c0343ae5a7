"""Advice on pairs whose servers cannot do everything: a chat API, a draft without log-probabilities."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import MATH, Shown, refused, solve, typed
from fake_server import HashServer, on_loopback
from faults import rows_of, write_problems
from hash_language import HashBackend
from pairs_file import add_pair
from test_agree import Answering

from arbitrage_cli import ServerError, open_pair
from arbitrage_cli.app.asking.request import ask
from arbitrage_cli.app.commands.advise import Advice
from arbitrage_cli.app.entries.ask_advice import advise_pair
from arbitrage_cli.app.entries.start import open_session
from arbitrage_cli.app.options import AdviceOptions, Options
from arbitrage_cli.model_files.pairs import ModelEntry, PairEntry, read_pairs
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.runs.folder import read_run_folder

SUMS = tuple(f"{number} + {number // 2}" for number in range(12))
PRICES = {"draft": "0.1/0.1", "check": "0.1/0.1", "target": "10/10"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_problems(tmp_path / "sums.jsonl", SUMS)
    return tmp_path


@contextmanager
def pair_with(home: Path, draft: str, *, is_priced: bool) -> Iterator[Mapping[str, Any]]:
    """The servers of a pair named mine, whose target and checker are right. A draft on a server is wrong about odd numbers."""
    servers: dict[str, Any] = {"target": Answering(), "check": Answering()}
    if draft == "chat API":
        servers["draft"] = Answering(1)
    with ExitStack() as stack:
        sources = {role: stack.enter_context(on_loopback(server)) for role, server in servers.items()}
        entries: dict[str, dict[str, Any]] = {
            role: {"source": sources.get(role, "builtin:draft")} | ({"price": PRICES[role]} if is_priced else {})
            for role in PRICES
        }
        add_pair(
            home / "arbitrage" / "pairs.toml",
            PairEntry(
                "mine",
                ModelEntry(**entries["draft"]),
                ModelEntry(**entries["target"]),
                check=ModelEntry(**entries["check"]),
            ),
        )
        yield servers


def advised(options: Options, dataset: str = "sums.jsonl", display: Shown | None = None, output: str = "run") -> Advice:
    given = AdviceOptions(dataset, output_folder=Path(output), minutes=1.0)
    return advise_pair(options, given, display or Shown())


@pytest.mark.parametrize("is_priced", [True, False], ids=["priced", "timed"])
@pytest.mark.parametrize("draft", ["chat API", "here"])
def test_a_pair_is_judged_without_routing_if_its_target_is_behind_a_chat_api(
    home: Path, draft: str, *, is_priced: bool
) -> None:
    """The policies that it can follow are compared. The reason for the others is stored, shown, and kept by a run that continues."""
    options = typed(pair="mine")
    with pair_with(home, draft, is_priced=is_priced) as servers:
        made = advised(options, display=(shown := Shown()))
        num_rows, num_asked = len(rows_of(Path("run"))), len(servers["target"].bodies)
        again = advised(options)
    assert {one.route.name for one in made.figures.policies} == {"target", "draft", "agree"}
    assert {one.route.policy.name for one in made.verdict.candidates} == {"draft", "agree"}
    assert (made.verdict.basis, made.num_errors) == ("price" if is_priced else "time", 0)
    run = read_run_folder(Path("run")).run
    (reason,) = (text for route, text in run.decided.left_out.items() if route == "arbitrage@careful")
    for notes in (shown.notes, made.figures.notes, again.figures.notes):
        assert any("arbitrage@careful" in note and reason in note for note in notes)
    assert run.decided.left_out.keys() == {"arbitrage@careful"}
    assert {one.route.name for one in again.figures.policies} == {"target", "draft", "agree"}
    if is_priced:
        assert len(rows_of(Path("run"))) == num_rows
        assert len(servers["target"].bodies) == num_asked
    assert again.num_errors == 0


def test_a_pair_that_cannot_route_uses_the_target_until_its_entry_names_agree(home: Path) -> None:
    """The draft loses answers, so the pair pays with the policy that asks the target where the small models differ.

    Advice changes nothing by itself. The line about the default names this policy.
    """
    options, path = typed(pair="mine"), home / "arbitrage" / "pairs.toml"
    with pair_with(home, "chat API", is_priced=True) as servers:
        made = advised(options)
        assert (made.policy, made.verdict.is_decided) == ("agree", True)
        for policy, num_asked in (("target", 1), ("agree", 0)):
            servers["target"].bodies.clear()
            shown = Shown()
            assert solve(home, options, "21 + 3", "20 + 4", output=None, display=shown).num_failed == 0
            assert [record["policy"] for record in shown.records] == [policy, policy]
            asked = servers["target"].asked()
            assert (asked["21 + 3"], asked["20 + 4"]) == (1, num_asked)
            (line,) = [note for note in shown.notes if note.startswith(f"policy {policy}: ")]
            assert ("use policy agree" in line) is (policy == "target")
            mine = read_pairs(path)["mine"]
            path.unlink()
            add_pair(path, replace(mine, policy="agree"))


@pytest.mark.parametrize("policy", ["target", "draft", "agree"])
def test_every_policy_that_advice_may_name_can_be_used_with_whole_solutions(home: Path, policy: str) -> None:
    with pair_with(home, "chat API", is_priced=False):
        assert solve(home, typed(pair="mine", policy=policy), "20 + 4", output=None).num_failed == 0
        with open_pair(pair="mine", policy=policy) as pair:
            assert pair.solve("20 + 4").answer == "24"
            with pytest.raises(ServerError, match="chat API"):
                pair.solve("20 + 4", policy="random")
        for use in ("chat", "serve"):
            if (use, policy) == ("chat", "agree"):
                continue
            with open_session(ask(typed(pair="mine", policy=policy), MATH, use=use), Shown()) as session:
                session.load()
                menu = session.menu()
            assert not {POLICIES[name.partition("@")[0]] for name in menu.names} & {*filter(routes_steps, POLICIES.values())}
            assert refused(menu.find, "random").option == "policy"


def routes_steps(policy: Policy) -> bool:
    return policy.routes_steps


def test_a_policy_without_the_log_probabilities_that_it_needs_is_left_out() -> None:
    server = HashServer(backend=HashBackend("draft"))
    server.max_alternatives = 0
    with on_loopback(server) as draft, on_loopback(Answering()) as target:
        for pair, reason in (({"target": "builtin:target"}, "log-probabilities"), ({"target": target}, "chat API")):
            options = typed(draft=draft, **pair, max_tokens=8, router="builtin:universal")
            made = advised(options, output=reason)
            assert {one.route.name for one in made.figures.policies} == {"target", "draft", "agree"}
            run = read_run_folder(Path(reason)).run
            assert [reason in text for text in run.decided.left_out.values()] == [True]


def test_the_draft_alone_is_compared_if_nothing_else_can_be(home: Path) -> None:
    """Answers to free questions are compared as texts, and such a task has no policy `agree`."""
    (home / "free.jsonl").write_text('{"question": "1 + 2"}\n{"question": "3 + 4"}\n')
    with pair_with(home, "chat API", is_priced=True):
        made = advised(typed(pair="mine", task="free"), "free.jsonl")
    assert [one.route.name for one in made.figures.policies] == ["target", "draft"]
    assert made.figures.policies[1].answers_same is not None

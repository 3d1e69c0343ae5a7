"""A run that continues: it reads what was decided when it began, whatever has changed since then."""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import describe
from made_up_tuning import make_tuned, unit_costs
from pairs_file import add_pair
from small_routers import write_router

from arbitrage_cli.app import session as sessions
from arbitrage_cli.app.decide import decide
from arbitrage_cli.app.gather import advised_pair, gather
from arbitrage_cli.app.options import Options
from arbitrage_cli.app.protocol import LogDisplay
from arbitrage_cli.app.request import Request, ask, ask_to_compare
from arbitrage_cli.app.resume import asked_options, begun_options
from arbitrage_cli.app.session import open_session
from arbitrage_cli.costs.store import StoredAdvice, keep_advice, keep_tuned, machine_here, tuned_file
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files, read_pairs
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.runs.folder import encode
from arbitrage_cli.runs.run import Run, Setup, read_run

MATH, DISPLAY = find_task(None), LogDisplay(logging.getLogger("arbitrage.test"))
SERVER = "http://127.0.0.1:1/v1#strong"
POLICIES = ("arbitrage@careful", "arbitrage@0.3", "arbitrage@40%", "speculative", "agree", "logprob")
PAIRS = {"local": {}, "served": {"source": SERVER}, "priced": {"source": SERVER, "price": "0.6/2.4"}}
CHANGES = ("costs", "advice", "concurrency", "price", "policy", "settings")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "arbitrage").mkdir()
    keep_costs(unit_costs(1.0, prefill=0.01))
    return tmp_path


def write_pair(home: Path, **target: str) -> None:
    """Write a pair with a router of its own, whose target has these fields."""
    router = str(write_router(home / "router.safetensors"))
    built_in = read_pairs()["builtin"]
    pair = replace(built_in, name="mine", policy=None, router=router, target=replace(built_in.target, **target))
    (path := home / "arbitrage" / "pairs.toml").unlink(missing_ok=True)
    add_pair(path, pair)


def keep_costs(target: UnitCosts) -> None:
    """Store made-up costs of the built-in models, of which the draft's are fixed."""
    costs = {"draft": unit_costs(0.1, prefill=0.01), "target": target}
    keep_tuned(tuned_file(), [make_tuned(machine_here(), sha256_of(find_files(f"builtin:{r}")), 1, costs[r]) for r in costs])


def begun(request: Request, decided: Setup) -> Run:
    """The run.json of a run that began with this request."""
    asked = {"command": ["arbitrage"], "options": asked_options(request.options)}
    return read_run(encode(describe({}) | {"asked": asked, "decided": json.loads(decided.model_dump_json())}))


def is_possible(policy: str, pair: str) -> bool:
    return pair == "local" or policy != "speculative"  # speculation needs both models here


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_was_decided_is_read(home: Path, policy: str, pair: str) -> None:
    """Whatever changed, the run continues as it began, or an error names an option that was changed."""
    if not is_possible(policy, pair):
        return
    for number, (change, compares) in enumerate(itertools.product(CHANGES, (False, True))):
        concurrency = (1, 8)[number % 3 % 2]
        write_pair(home, **PAIRS[pair])
        name, _, tau = policy.partition("@")
        routing: dict[str, Any] = {"policy": policy} if compares else {"policy": name, **({"tau": tau} if tau else {})}
        typed = Options(pair="mine", concurrency=concurrency, explicit=frozenset({"pair", *routing}), **routing)
        asks: Callable[[Options], Request] = (
            (lambda one: ask_to_compare(one, MATH)) if compares else (lambda one: ask(one, MATH))
        )
        request = asks(typed)
        run = begun(request, decide(request, gather(request)))
        decided = run.decided
        changed, added = apply(change, home, typed, request, compares=compares)
        again = asks(begun_options(changed, run))
        if change == "policy" and not compares:
            with pytest.raises(UsageError) as raised, open_session(again, DISPLAY, run):
                pass
            assert raised.value.option in ("policy", "tau")
            continue
        with open_session(again, DISPLAY, run) as session:
            assert session.decided.routes[: len(decided.routes)] == decided.routes
            assert (session.decided.settings, session.decided.price) == (decided.settings, decided.price)
            assert [one.policy for one in session.decided.routes[len(decided.routes) :]] == added
            assert session.decided == decided or added


def apply(change: str, home: Path, typed: Options, request: Request, *, compares: bool) -> tuple[Options, list[str]]:
    """Make a change after a run began. Return what is typed now, and the policies that are added to the run."""
    match change:
        case "costs":
            keep_costs(unit_costs(1.0, 8.0, 32.0, prefill=0.01))
        case "advice":
            keep_advice(tuned_file(), StoredAdvice(advised_pair(request), "draft", "2026-11-29T12:00:00+00:00"))
        case "price":
            write_pair(home, source=request.named.sources["target"], price="9/0.1")
        case "concurrency":
            return replace(typed, concurrency=5, explicit=typed.explicit | {"concurrency"}), []
        case "settings":
            return replace(typed, temperature=0.5, seed=3), []  # from a settings file
        case "policy" if compares:
            return replace(typed, policy=f"{typed.policy},entropy@0.4"), ["entropy"]
        case "policy":
            return replace(typed, policy="entropy", tau="0.4"), []
    return typed, []


def test_a_default_run_keeps_its_policy_and_tau(home: Path) -> None:
    """Without any routing option, however few problems are left, and whatever is advised afterwards."""
    write_pair(home)
    request = ask(Options(pair="mine", concurrency=8, explicit=frozenset({"pair"})), MATH)
    run = begun(request, decide(request, gather(request)))
    decided = run.decided
    keep_costs(unit_costs(1.0, 8.0, 32.0, prefill=0.01))
    keep_advice(tuned_file(), StoredAdvice(advised_pair(request), "draft", "2026-11-29T12:00:00+00:00"))
    for most in (8, 3, 1, 0):
        with open_session(ask(begun_options(request.options, run), MATH), DISPLAY, run, most=most) as session:
            assert (session.decided, session.concurrency) == (decided, max(1, most))


def test_a_benchmark_decides_presets_for_one_problem_at_a_time(home: Path) -> None:
    write_pair(home)
    keep_costs(unit_costs(1.0, 1.0, 1.1, prefill=0.01))  # batches make the target cheaper
    policies = "arbitrage@careful,arbitrage@balanced,arbitrage@fast"
    options = Options(pair="mine", policy=policies, explicit=frozenset({"pair", "policy"}))
    one, several = (ask_to_compare(replace(options, concurrency=count), MATH) for count in (None, 8))
    assert decide(one, gather(one)).routes == decide(several, gather(several)).routes
    alone = [ask(replace(options, policy="arbitrage", tau=tau), MATH) for tau in ("careful", "balanced", "fast")]
    assert {decide(one, gather(one)).route for one in alone} == {one.route for one in decide(one, gather(one)).routes}


def test_presets_that_meet_are_one_row_with_a_note(home: Path) -> None:
    write_pair(home)
    keep_costs(unit_costs(1.0, 8.0, 32.0, prefill=0.01))
    options = Options(pair="mine", policy="target,arbitrage@careful,arbitrage@balanced,arbitrage@fast")
    request = ask_to_compare(options, MATH)
    decided = decide(request, gather(request))
    taus = Counter(one.tau for one in decided.routes)
    met = 4 - len(decided.routes)
    assert set(taus.values()) == {1}
    assert sum("the same tau" in note for note in decided.notes) == met


@pytest.mark.parametrize("asked", [("bench",), ("solve", "-i", "sums.jsonl")])
def test_a_command_decides_once(quick_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]) -> None:
    counted = list[Request]()

    def counting(request: Request, *given: Any) -> Setup:
        counted.append(request)
        return decide(request, *given)

    monkeypatch.setattr(sessions, "decide", counting)
    request = ask(Options(draft="scripted:draft", target="scripted:target"), MATH)
    with open_session(request, DISPLAY) as session:
        run = begun(request, session.decided)
    assert len(counted) == 1
    with open_session(request, DISPLAY, run):
        assert len(counted) == 1

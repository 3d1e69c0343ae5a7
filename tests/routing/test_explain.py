"""Explanations of decisions: the parts of a score, and the output of `solve --explain`."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli import flat, run
from small_routers import write_router
from test_router import make_draft, make_router

from arbitrage_cli.display.decisions import log_odds
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.router import Router, load
from arbitrage_cli.types import Attribution, Cost, Decision, Limits, Problem, Step, Trace

QUESTION = "What is 37 * 12 - 95?"
SHIPPED = ("builtin:builtin", "builtin:universal", "builtin:qwen2.5-coder")  # the last one is linear


def new_trace(**changes: Any) -> Trace:
    return Trace(Problem("p", "1 + 2", **changes), Limits())


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def attribution_of(router: Router, draft: Step) -> Attribution:
    trace = new_trace()
    trace.add(Decision(draft, draft))
    found = router.explain(trace, 0)
    assert found
    return found


@pytest.mark.parametrize("source", SHIPPED)
def test_parts_add_up_to_the_log_odds(source: str) -> None:
    """The base is the score of the mean training step, so it is equal for every step up to float32 rounding."""
    router = load(router_file(source))
    mean = float(router.network.log_odds(router.network.mean))
    for log_probability in (-0.001, -0.5, -3.0):
        draft = make_draft(log_probability)
        found = attribution_of(router, draft)
        assert found.average_step + sum(value for _, value in found.features) == pytest.approx(found.log_odds, abs=1e-6)
        assert found.log_odds == pytest.approx(logit(router.probability(new_trace(), draft)), abs=1e-6)
        assert found.average_step == pytest.approx(mean, abs=1e-4)
        sizes = [abs(value) for _, value in found.features]
        assert sizes == sorted(sizes, reverse=True)
        assert {name for name, _ in found.features} == set(router.card.features)


def test_only_steps_that_the_router_scored_are_explained() -> None:
    router, thought = make_router(), replace(make_draft(-0.5), phase="think")
    trace = new_trace(thinks=True)
    trace.add(Decision(thought, thought, score=0.5))
    trace.add(Decision(make_draft(-3.0), make_draft(-3.0), score=0.25))
    trace.add(Decision(kept=Step("target", "3", 1, Cost(), "end")))
    assert [bool(router.explain(trace, position)) for position in range(3)] == [False, True, False]
    knows = Router(router.network, replace(router.card, data={"thoughts": 100}))
    assert [bool(knows.explain(trace, position)) for position in range(3)] == [True, True, False]


def test_shown_figures_add_up() -> None:
    parts = [(name, 0.004 * (20 - number)) for number, name in enumerate(FEATURES[:20])]
    shown = log_odds(Attribution(1.0 + sum(value for _, value in parts), 1.0, parts))
    total, *figures = map(float, re.findall(r"[+-]\d+\.\d\d", shown))
    assert len(figures) == 1 + 5 + 1
    assert sum(figures) == pytest.approx(total)


@pytest.fixture
def scripted(tmp_path: Path) -> tuple[str, ...]:
    router = write_router(tmp_path / "router.safetensors")
    return ("solve", QUESTION, "--pair", "scripted", "--router", str(router))


def test_records_have_explanations(scripted: tuple[str, ...]) -> None:
    (record,) = run(*scripted, "--tau", "0.0", "--explain", "--json", "-q").records
    for step in record["steps"]:
        made: Mapping[str, Any] = step["explanation"]
        assert made["average_step"] + sum(made["features"].values()) == pytest.approx(made["log_odds"], abs=1e-6)
        assert made["log_odds"] == pytest.approx(logit(step["score"]), abs=1e-6)
    (plain,) = run(*scripted, "--tau", "0.0", "--json", "-q").records
    assert not any("explanation" in step for step in plain["steps"])


def test_the_view_explains_each_step(scripted: tuple[str, ...]) -> None:
    found = run(*scripted, "--tau", "0.0", "--explain")
    assert (found.code, found.out) == (0, "349\n")
    assert flat(found.err).count("log-odds ") == flat(found.err).count("an average step; ") == 3

"""What each tau would do: against a simulation step by step; and which tau a name or a budget stands for."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from arbitrage_cli.errors import RouterError, UsageError
from arbitrage_cli.taus import (
    ALWAYS,
    NEVER,
    Costs,
    Outcomes,
    TauRow,
    TauTable,
    make_table,
    name_taus,
    spread_taus,
)

COSTS = Costs(
    draft_seconds_per_token=1.0,
    target_seconds_per_token=10.0,
    target_prefill_seconds_per_token=2.0,
    draft_prefill_seconds_per_token=0.5,
    router_seconds_per_step=0.25,
)


def row_at(table: TauTable, tau: float) -> TauRow:
    """The row of the nearest tau."""
    return min(table.rows, key=lambda row: abs(row.tau - tau))


def make_outcomes(solutions: int = 60, seed: int = 0, *, repeats: int = 1) -> tuple[np.ndarray[Any, Any], Outcomes]:
    """Probabilities that tell something, and what came of the states; each problem is solved `repeats` times."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, solutions)
    solution = np.repeat(np.arange(solutions), lengths)
    count = len(solution)
    probability = rng.random(count)
    is_better = rng.random(count) < probability / 2
    is_worse = ~is_better & (rng.random(count) < 0.1)
    draft, target = np.where(is_better, 0.0, 1.0), np.where(is_worse, 0.0, 1.0)
    tokens = rng.integers(5, 30, count).astype(float)
    written = rng.integers(5, 30, count).astype(float)
    prefill = np.where(np.diff(solution, prepend=-1) > 0, 50.0, 9.0)
    shared = np.minimum(written, rng.integers(0, 10, count))
    return probability, Outcomes(solution, solution // repeats, draft, target, tokens, written, prefill, shared)


def simulate(escalated: list[bool], outcomes: Outcomes) -> dict[str, float]:
    """Tokens of both models, walked through step by step."""
    sums = dict.fromkeys(("draft", "draft_prefill", "target", "verify", "prefill"), 0.0)
    unread = 0.0
    for index, is_escalated in enumerate(escalated):
        if index == 0 or outcomes.solution[index] != outcomes.solution[index - 1]:
            unread = outcomes.target_prefill_tokens[index]
        sums["draft"] += outcomes.draft_tokens[index]
        if is_escalated:
            sums["prefill"] += unread
            sums["target"] += outcomes.target_tokens[index] - outcomes.shared_tokens[index]
            sums["verify"] += outcomes.shared_tokens[index]
            sums["draft_prefill"] += outcomes.target_tokens[index]
            unread = 0.0
        else:
            unread += outcomes.draft_tokens[index]
    return sums


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_row_is_what_a_run_would_do(tau: float) -> None:
    """Rates, rewards and tokens of one tau, per solution."""
    probability, outcomes = make_outcomes()
    row = row_at(make_table(probability, outcomes, [tau], {}, COSTS), tau)
    escalated = probability > tau
    kept = np.where(escalated, outcomes.target_reward, outcomes.draft_reward)
    best = np.maximum(outcomes.target_reward, outcomes.draft_reward)
    assert row.escalation_rate == pytest.approx(escalated.mean())
    assert row.change == pytest.approx(100 * (kept - outcomes.target_reward).sum() / 60)
    assert row.regret == pytest.approx(100 * (best - kept).sum() / 60)
    if escalated.any():
        assert row.wasted == pytest.approx((outcomes.advantage[escalated] <= 0).mean())
    assert row.recall == pytest.approx(escalated[outcomes.advantage > 0].mean())
    sums = simulate(escalated.tolist(), outcomes)
    assert row.draft_tokens == pytest.approx(sums["draft"] / 60)
    assert row.draft_prefill_tokens == pytest.approx(sums["draft_prefill"] / 60)
    assert row.target_tokens == pytest.approx(sums["target"] / 60)
    assert row.target_verify_tokens == pytest.approx(sums["verify"] / 60)
    assert row.target_prefill_tokens == pytest.approx(sums["prefill"] / 60)


def test_time_is_a_share_of_the_target_alone() -> None:
    """Each model's tokens at their costs; the target alone reads the prompt and writes every step."""
    probability, outcomes = make_outcomes()
    table = make_table(probability, outcomes, [0.5], {}, COSTS)
    sums = simulate((probability > 0.5).tolist(), outcomes)
    steps, prompts = len(outcomes), 50.0 * 60
    routed = sums["draft"] + (sums["draft_prefill"] + prompts) / 2 + 10 * sums["target"]
    routed += 2 * (sums["verify"] + sums["prefill"]) + steps / 4
    alone = 10 * outcomes.target_tokens.sum() + 2 * prompts
    assert table.time(row_at(table, 0.5)) == pytest.approx(routed / alone)


def test_time_on_another_machine() -> None:
    """The same rows at other costs; without any there is no time."""
    probability, outcomes = make_outcomes()
    table = make_table(probability, outcomes, [0.5], {}, None)
    assert table.time(row_at(table, 0.5)) is None
    slow, fast = (table.time(row_at(table, NEVER), replace(COSTS, draft_seconds_per_token=cost)) for cost in (2.0, 1.0))
    assert slow is not None
    assert fast is not None
    assert slow > fast


def test_ends_of_the_table() -> None:
    """Always is the target's reward exactly, and never is the draft's; both are in every table."""
    probability, outcomes = make_outcomes()
    table = make_table(probability, outcomes, [], {}, COSTS)
    always, never = table.rows
    assert (always.tau, always.escalation_rate, always.change, always.change_interval) == (ALWAYS, 1, 0, (0, 0))
    assert (never.tau, never.escalation_rate, never.wasted, never.recall) == (NEVER, 0, None, 0)
    assert never.target_prefill_tokens == 0  # the target never reads a word


def test_intervals_are_over_problems() -> None:
    """The same solution ten times over is no more than one, if it is of one problem."""
    probability, outcomes = make_outcomes(40, 1)
    ten = {one.name: np.tile(getattr(outcomes, one.name), 10) for one in fields(Outcomes)}
    ten["solution"] += np.repeat(np.arange(10), len(outcomes)) * 40
    widths = []
    for problem in (ten["problem"], ten["solution"]):
        repeated = Outcomes(**(ten | {"problem": problem}))
        interval = row_at(make_table(np.tile(probability, 10), repeated, [0.5], {}, COSTS), 0.5).change_interval
        assert interval is not None
        widths.append(interval[1] - interval[0])
    once = row_at(make_table(probability, outcomes, [0.5], {}, COSTS), 0.5).change_interval
    assert once is not None
    assert widths[0] == pytest.approx(once[1] - once[0])
    assert widths[1] == pytest.approx(widths[0] / math.sqrt(10), rel=0.15)


# --- names


def make_row(tau: float, rate: float, change: float, low: float) -> TauRow:
    zeros = dict.fromkeys((one.name for one in fields(TauRow)), 0.0)
    changes: dict[str, Any] = {"tau": tau, "escalation_rate": rate, "change": change, "change_interval": (low, change + 1)}
    return TauRow(**{**zeros, **changes})


def make_rows(*rows: TauRow, costs: Costs | None = None) -> TauTable:
    return TauTable(rows, 5.0, 50.0, 100.0, {}, costs)


def test_names_by_their_definitions() -> None:
    """The target is better by 20 points: exact loses none with certainty, balanced at most 2, fast at most 10."""
    table = make_rows(
        make_row(ALWAYS, 1.0, 0.0, 0.0),
        make_row(0.1, 0.8, 0.5, -0.1),
        make_row(0.2, 0.6, 0.2, -0.5),
        make_row(0.3, 0.5, 0.3, -0.6),
        make_row(0.4, 0.4, -2.0, -3.0),
        make_row(0.5, 0.3, -2.1, -3.0),
        make_row(0.6, 0.2, -10.0, -12.0),
        make_row(0.7, 0.1, -10.1, -12.0),
        make_row(NEVER, 0.0, -20.0, -22.0),
    )
    assert name_taus(table) == {"exact": 0.2, "balanced": 0.4, "fast": 0.6}


def test_names_never_get_slower() -> None:
    """Where exact allows more than balanced does, balanced is as fast as exact."""
    table = make_rows(
        make_row(ALWAYS, 1.0, 0.0, 0.0),
        make_row(0.2, 0.6, -0.3, -0.5),
        make_row(NEVER, 0.0, -1.0, -2.0),
    )
    assert name_taus(table) == {"exact": 0.2, "balanced": 0.2, "fast": 0.2}


def test_draft_as_good_as_the_target_needs_none() -> None:
    """Then every name is the draft alone."""
    table = make_rows(make_row(ALWAYS, 1.0, 0.0, 0.0), make_row(NEVER, 0.0, 0.5, 0.1))
    assert set(name_taus(table).values()) == {NEVER}


def test_without_certainty_exact_is_always() -> None:
    """Too few problems to tell: nothing is promised."""
    unknown = replace(make_row(0.5, 0.3, 0.0, 0.0), change_interval=None)
    table = make_rows(make_row(ALWAYS, 1.0, 0.0, 0.0), unknown, make_row(NEVER, 0.0, -20.0, -22.0))
    assert name_taus(table)["exact"] == ALWAYS


def test_resolve_takes_names_and_numbers() -> None:
    """Names as they stand in the table, and any number, infinite ones included."""
    table = replace(make_rows(make_row(ALWAYS, 1, 0, 0), make_row(NEVER, 0, 0, 0)), named={"exact": 0.25})
    assert (table.resolve("exact"), table.resolve("0.7"), table.resolve("-1")) == (0.25, 0.7, -1)
    assert table.resolve("inf") == float("inf")
    for wrong in ("nan", "exactly", ""):
        with pytest.raises(UsageError):
            table.resolve(wrong)


def test_budget_is_a_share_of_the_steps() -> None:
    """The tau that escalates so many on recorded states, between two rows if need be."""
    probability, outcomes = make_outcomes(500)
    table = make_table(probability, outcomes, spread_taus(probability), {}, COSTS)
    for share in (0.0, 0.13, 0.5, 1.0):
        assert (probability > table.at_budget(share)).mean() == pytest.approx(share, abs=0.01)
    for wrong in (-0.1, 1.1):
        with pytest.raises(UsageError):
            table.at_budget(wrong)


# --- as JSON


def test_table_comes_back_from_a_card() -> None:
    """Through JSON, to the last bit."""
    probability, outcomes = make_outcomes()
    table = make_table(probability, outcomes, [0.3], {"exact": 0.3}, COSTS)
    assert TauTable.from_json(json.loads(json.dumps(table.to_json(), allow_nan=False))) == table


@pytest.mark.parametrize(
    "changes",
    [{"rows": []}, {"rows": [{}]}, {"rows": 7}, {"named": 7}, {"costs": {"draft_seconds_per_token": -1}}, {"surprise": 1}],
)
def test_table_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    """It came from a file: a RouterError, whatever is in it."""
    probability, outcomes = make_outcomes()
    found = json.loads(json.dumps(make_table(probability, outcomes, [0.3], {}, COSTS).to_json()))
    with pytest.raises(RouterError):
        TauTable.from_json(found | changes)


def test_costs_of_a_run_have_more_than_is_needed() -> None:
    """Other entries are left alone; missing, negative or infinite ones are an error."""
    found = {
        "draft_seconds_per_token": 1,
        "target_seconds_per_token": 2,
        "target_prefill_seconds_per_token": 3,
        "machine": "a fast one",
    }
    assert Costs.from_json(found) == Costs(1, 2, 3)
    for wrong in ({}, found | {"target_seconds_per_token": -1}, found | {"target_seconds_per_token": float("inf")}):
        with pytest.raises(ValueError, match="costs"):
            Costs.from_json(wrong)

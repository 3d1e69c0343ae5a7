"""The effect of each tau, compared with a step-by-step simulation, and the taus of presets and budgets."""

import json
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import small_routers
from made_up_tuning import pair_costs

from arbitrage_cli.costs.pair import PairCosts, parse_prices, price_costs
from arbitrage_cli.errors import RouterError, UsageError
from arbitrage_cli.inference.unit_costs import TOKEN_SECONDS
from arbitrage_cli.routing.presets import (
    ALWAYS,
    DECISION_SECONDS,
    FOUND_IN_TIME,
    NEVER,
    SAVED,
    TauRow,
    TauTable,
    choose_presets,
)
from arbitrage_cli.routing.router import LOOK_EVERY
from arbitrage_cli.training.taus import Outcomes, Prefixes, make_table, spread_taus

COSTS = pair_costs(1.0, 10.0, prefill=2.0, draft_prefill=0.5)


def row_at(table: TauTable, tau: float) -> TauRow:
    return min(table.rows, key=lambda row: abs(row.tau - tau))


def make_outcomes(solutions: int = 60, seed: int = 0, *, repeats: int = 1) -> tuple[np.ndarray[Any, Any], Outcomes]:
    """Return informative probabilities and the outcomes of states. Each problem is solved `repeats` times."""
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
    return probability, Outcomes(
        solution, solution // repeats, draft, target, tokens, written, prefill, shared, np.ones(count, bool)
    )


def simulate(escalated: list[bool], outcomes: Outcomes) -> dict[str, float]:
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
    probability, outcomes = make_outcomes()
    row = row_at(make_table(probability, outcomes, [tau], COSTS), tau)
    escalated = probability > tau
    assert row.escalation_rate == pytest.approx(escalated.mean())
    if escalated.any():
        assert row.wasted == pytest.approx((outcomes.advantage[escalated] <= 0).mean())
    assert row.recall == pytest.approx(escalated[outcomes.advantage > 0].mean())
    sums = simulate(escalated.tolist(), outcomes)
    assert row.draft_tokens == pytest.approx(sums["draft"] / 60)
    assert row.draft_prefill_tokens == pytest.approx(sums["draft_prefill"] / 60)
    assert row.target_tokens == pytest.approx(sums["target"] / 60)
    assert row.target_verify_tokens == pytest.approx(sums["verify"] / 60)
    assert row.target_prefill_tokens == pytest.approx(sums["prefill"] / 60)


def test_solutions_that_ended_early_count_in_rewards_only() -> None:
    """Steps and tokens are those of the other solutions."""
    probability, outcomes = make_outcomes()
    is_unsolved = outcomes.solution % 3 == 0
    nothing = np.where(is_unsolved, 0.0, outcomes.draft_reward), np.where(is_unsolved, 0.0, outcomes.target_reward)
    some = replace(outcomes, draft_reward=nothing[0], target_reward=nothing[1], is_written=~is_unsolved)
    others = some.take(some.is_written)
    found = make_table(probability, some, [0.5], COSTS)
    expected = make_table(probability[some.is_written], others, [0.5], COSTS)
    sizes = ("steps", "prompt_tokens", "alone_tokens")
    assert [getattr(found, name) for name in sizes] == [getattr(expected, name) for name in sizes]
    assert (found.num_solutions, expected.num_solutions) == (60, 40)
    row, other = row_at(found, 0.5), row_at(expected, 0.5)
    assert found.time(row) == expected.time(other)
    assert row.escalation_rate == other.escalation_rate
    assert row.change == pytest.approx(other.change * 40 / 60, abs=0.3)
    assert row.recall == other.recall
    assert (row.wasted or 0) > (other.wasted or 0)


def test_time_is_a_share_of_the_target_alone() -> None:
    probability, outcomes = make_outcomes()
    table = make_table(probability, outcomes, [0.5], COSTS)
    sums = simulate((probability > 0.5).tolist(), outcomes)
    prompts, saved = 50.0 * 60, FOUND_IN_TIME * sums["verify"] * SAVED * max(0.0, COSTS.write() - COSTS.verify)
    routed = sums["draft"] + (sums["draft_prefill"] + prompts) / 2 + 2 * sums["prefill"]
    routed += COSTS.write() * (sums["target"] + sums["verify"]) - saved
    routed += TOKEN_SECONDS * (sums["draft"] + sums["target"] + sums["verify"]) + DECISION_SECONDS * len(outcomes)
    alone = (10 + TOKEN_SECONDS) * outcomes.target_tokens.sum() + 2 * prompts
    assert table.time(row_at(table, 0.5)) == pytest.approx(routed / alone)


def test_a_token_is_decoded_or_speculated_on() -> None:
    """The cheaper of decoding and speculation is used, at an acceptance rate of 80%."""
    costs = pair_costs(1.0, 10.0, prefill=2.0, verify=2.5)  # each token more in a batch takes 2 seconds
    three, four = (sum(0.8**power for power in range(1 + count)) for count in (3, 4))
    assert costs.write() == pytest.approx(min((10 + 3 * (1 + 2)) / three, (10 + 4 * (1 + 2)) / four))
    assert pair_costs(9.0, 10.0, prefill=2.0, verify=2.5).write() == 10.0


def make_row(tau: float, rate: float, change: float, width: float = 0.5) -> TauRow:
    zeros = dict.fromkeys((one.name for one in fields(TauRow)), 0.0)
    changes: dict[str, Any] = {
        "tau": tau,
        "escalation_rate": rate,
        "change": change,
        "change_interval": (change - width, change + width),
    }
    return TauRow(**{**zeros, **changes})


def make_rows(*rows: TauRow, costs: PairCosts | None = None) -> TauTable:
    return TauTable(rows, 5.0, 50.0, 100.0, {}, costs)


def test_a_served_draft_pays_for_the_text_that_it_reads_again() -> None:
    """It reads the earlier text for each of 4 steps, at the price of cached tokens."""
    costs = price_costs(parse_prices("draft=0.02/0.01/0.10,target=0.60/0.30/2.40"))
    table = replace(small_routers.make_table(), costs=costs)
    draft = (20 + 50) * 0.02 + 20 * 0.10 + 4 * (50 + 40 / 2) * 0.01
    assert table.time(table.rows[-1]) == pytest.approx((draft + 100 * 0.60) / (50 * 0.60 + 40 * 2.40), rel=1e-3)


def test_names_by_their_definitions() -> None:
    """The target leads by 20 points, so `careful` may lose half a point, `balanced` 2 and `fast` 10."""
    table = make_rows(
        make_row(ALWAYS, 1.0, 0.0),
        make_row(0.1, 0.8, 0.5),
        make_row(0.2, 0.6, -0.5),
        make_row(0.3, 0.5, -0.6),
        make_row(0.4, 0.4, -2.0),
        make_row(0.5, 0.3, -2.1),
        make_row(0.6, 0.2, -10.0),
        make_row(0.7, 0.1, -10.1),
        make_row(NEVER, 0.0, -20.0),
    )
    assert choose_presets(table) == {"careful": 0.2, "balanced": 0.4, "fast": 0.6}


@pytest.mark.parametrize(
    ("width", "presets"),
    [
        (1.1, {"careful": 0.1, "balanced": 0.1, "fast": 0.1}),
        (1.3, {"careful": ALWAYS, "balanced": 0.1, "fast": 0.1}),
        (4.3, {"careful": ALWAYS, "balanced": ALWAYS, "fast": 0.1}),
        (20.3, {"careful": ALWAYS, "balanced": ALWAYS, "fast": ALWAYS}),
    ],
)
def test_interval_of_a_preset_stays_within_twice_its_limit(width: float, presets: dict[str, float]) -> None:
    """The target leads by 20 points, so the intervals end at losses of 1, 4 and 20 points at most."""
    table = make_rows(make_row(ALWAYS, 1.0, 0.0, 0), make_row(0.1, 0.5, 0.2, width), make_row(NEVER, 0.0, -20.0))
    assert choose_presets(table) == presets


def test_a_tau_beyond_one_that_fails_is_not_chosen() -> None:
    """Of many taus with similar losses, the luckiest would be chosen."""
    table = make_rows(
        make_row(ALWAYS, 1.0, 0.0, 0),
        make_row(0.1, 0.8, 0.3),
        make_row(0.2, 0.6, 0.3, 5.0),
        make_row(0.3, 0.4, 0.3),
        make_row(NEVER, 0.0, -4.0),
    )
    assert choose_presets(table) == {"careful": 0.1, "balanced": 0.1, "fast": 0.1}


@pytest.mark.parametrize(("width", "needed"), [(0.5, None), (1.3, None), (5.0, "1,400")])
def test_too_few_solutions_for_careful_are_named(width: float, needed: str | None) -> None:
    """An interval of 1 point needs 54 * 5**2 solutions."""
    rows = make_row(ALWAYS, 1.0, 0.0, 0), make_row(0.1, 0.5, 0.0, width), make_row(NEVER, 0.0, -20.0)
    shortage = replace(make_rows(*rows), num_solutions=54).shortage
    assert (re.findall(r"[\d,]+", shortage) if shortage else None) == (needed and ["54", needed])


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.7])
def test_rows_of_early_stops_are_what_a_run_would_do(tau: float) -> None:
    probability, outcomes = make_outcomes()
    rng = np.random.default_rng(1)
    looks = [(index, number) for index, count in enumerate(outcomes.draft_tokens) for number in range(2, int(count), 2)]
    state, tokens = np.array(looks).T
    begun = Prefixes(state, tokens.astype(float), rng.random(len(looks)) ** 3)
    table = make_table(probability, outcomes, [tau], COSTS, begun)
    stops = [
        min(
            (
                number
                for (of, number), one in zip(looks, begun.probability, strict=True)
                if of == index and is_clear(one, tau)
            ),
            default=None,
        )
        for index in range(len(outcomes))
    ]
    cut = np.array([count if stop is None else stop for count, stop in zip(outcomes.draft_tokens, stops, strict=True)])
    limits = np.array([np.inf if stop is None else stop for stop in stops])
    escalated = [stop is not None or own > tau for stop, own in zip(stops, probability.tolist(), strict=True)]
    stopped = replace(outcomes, draft_tokens=cut, shared_tokens=np.minimum(outcomes.shared_tokens, limits))
    row, sums, count = table.row_at(tau, stops_early=True), simulate(escalated, stopped), len(outcomes.starts)
    assert row.draft_tokens * count == pytest.approx(sums["draft"])
    assert row.target_verify_tokens * count == pytest.approx(sums["verify"])
    assert row.target_prefill_tokens * count == pytest.approx(sums["prefill"])
    assert row.escalation_rate == pytest.approx(np.mean(escalated))
    assert row.looks * count == pytest.approx(sums["draft"] / LOOK_EVERY)
    assert table.row_at(tau).looks == 0
    assert TauTable.from_json(json.loads(json.dumps(table.to_json()))) == table


def is_clear(probability: float, tau: float) -> bool:
    return probability * (1 - tau) > 1.5 * tau * (1 - probability)


@pytest.mark.parametrize(("stop", "draft", "pays"), [(2, 0.5, True), (2, 0.01, False), (18, 1e-5, False)])
def test_early_stop_pays_if_it_takes_less_time(stop: int, draft: float, pays: bool) -> None:
    """Early stops do not pay if the target loses more draft tokens to verify, or if scoring takes longer than drafting."""
    count = 200
    places, ones = np.arange(count), np.ones(count)
    outcomes = Outcomes(places, places, 0 * ones, ones, 20 * ones, 20 * ones, 0 * ones, 10 * ones, ones > 0)
    begun = Prefixes(places, stop * ones, ones)
    costs = pair_costs(draft, 1.0, prefill=0.02, verify=0.3)
    table = make_table(0.6 * ones, outcomes, [0.5], costs, begun)
    decided = table.with_early_stops()
    assert decided.stops_early(0.5) is pays
    assert (decided.followed_row(0.5).looks > 0) is pays
    assert decided.at_costs(pair_costs(1.0, 1.0, prefill=0.02)).stops_early(0.5) is pays
    assert make_table(0.6 * ones, outcomes, [0.5], costs).with_early_stops().stops_early(0.5) is False  # nothing is known


def test_resolve_takes_names_and_numbers() -> None:
    table = replace(make_rows(make_row(ALWAYS, 1, 0), make_row(NEVER, 0, 0)), named={"careful": 0.25})
    assert (table.resolve("careful"), table.resolve("0.7"), table.resolve("-1")) == (0.25, 0.7, -1)
    assert table.resolve("inf") == float("inf")
    for wrong in ("nan", "exactly", "", "%", "nan%", "101%", "-1%"):
        with pytest.raises(UsageError):
            table.resolve(wrong)


def test_budget_is_a_share_of_the_steps() -> None:
    probability, outcomes = make_outcomes(500)
    table = make_table(probability, outcomes, spread_taus(probability), COSTS)
    assert table.at_budget(0.0) == NEVER  # though another tau may do the same on these states
    for share in (0.0, 0.13, 0.5, 1.0):
        assert (probability > table.at_budget(share)).mean() == pytest.approx(share, abs=0.01)
    for wrong in (-0.1, 1.1):
        with pytest.raises(UsageError):
            table.at_budget(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": []}, {"rows": [{}]}, {"named": 7}, {"steps": "9" * 50}, {"costs": {"draft": {"batches": [-1]}}},
    ],
)  # fmt: skip
def test_table_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    probability, outcomes = make_outcomes()
    found = json.loads(json.dumps(make_table(probability, outcomes, [0.3], COSTS).to_json()))
    with pytest.raises(RouterError):
        TauTable.from_json(found | changes)


@pytest.mark.parametrize(("stops_early", "tau"), [(False, 0.3), (True, 0.6)])
def test_a_budget_follows_the_rows_of_routes_that_do_or_do_not_stop_early(stops_early: bool, tau: float) -> None:
    table = small_routers.make_table()
    early = [replace(row, escalation_rate=min(1.0, row.escalation_rate + 0.2), draft_tokens=1.0) for row in table.rows]
    both = replace(table, early=tuple(early))
    followed = both.with_early_stops() if stops_early else both.without_early_stops()
    assert followed.at_budget(0.5) == pytest.approx(tau)

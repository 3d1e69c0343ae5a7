"""Computed time: the counted work of attempts at unit costs that a disturbed step does not change."""

import copy
import itertools
import math
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from made_up_runs import DRAFT_TOKEN, TARGET_TOKEN, MadeUp, figures, make_run, slow_down

ALONE = (("target", None), ("draft", None))
COLUMNS = (*ALONE, ("entropy", 0.5))


def policies(made: MadeUp, changed: Callable[[dict[str, Any]], None] = lambda row: None) -> list[dict[str, Any]]:
    rows = copy.deepcopy(made.rows)
    for row in rows:
        changed(row)
    found: list[dict[str, Any]] = figures(made.run, rows)["policies"]
    return found


def test_on_a_quiet_machine_the_computed_time_is_the_measured_time() -> None:
    for policy in policies(make_run(20, columns=COLUMNS, drift=0.0)):
        assert policy["seconds_mean"] == pytest.approx(policy["measured_seconds_mean"], rel=0.01)
        assert policy["speedup"] == pytest.approx(policy["measured_speedup"], rel=0.01)


def test_a_freeze_changes_no_computed_time() -> None:
    made = make_run(20, columns=COLUMNS)
    frozen = made.rows[4]["id"], made.rows[4]["policy"]

    def freeze(row: dict[str, Any]) -> None:
        if (row["id"], row["policy"]) == frozen:
            slow_down(row, 100.0)

    for before, after in zip(policies(made), policies(made, freeze), strict=True):
        assert after["seconds_mean"] == pytest.approx(before["seconds_mean"], rel=1e-3)
        assert (after["measured_seconds_mean"] > 2 * before["measured_seconds_mean"]) == (before["policy"] == frozen[1])


def written(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a row in the order in which the models wrote them."""
    return [
        one
        for step in row["steps"]
        for one in sorted(filter(None, (step, step["discarded"])), key=lambda one: str(one["model"]))
    ]


def draft_and_wall(row: dict[str, Any]) -> tuple[float, float]:
    """The seconds of the draft, and of the whole attempt."""
    draft = row["timing"]["draft"]
    return draft["decode_seconds"] + draft["prefill_seconds"], row["wall_seconds"]


def assert_real(made: MadeUp, changed: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Assert that the computed time contains all seconds that `changed` adds, because they belong to the work."""
    found = policies(made, changed)
    for policy in found:
        assert policy["seconds_mean"] == pytest.approx(policy["measured_seconds_mean"], rel=0.01)
        assert policy["speedup"] == pytest.approx(policy["measured_speedup"], rel=0.01)
    return found


@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
def test_a_policy_pays_for_changes_of_model(seconds: float) -> None:
    """A target step takes about 2.7 s. Single models never change."""
    made = make_run(30, columns=COLUMNS, drift=0.0)

    def slow_changes(row: dict[str, Any]) -> None:
        for before, after in itertools.pairwise(written(row)):
            if before["model"] != after["model"]:
                after["cost"]["decode_seconds"] += seconds
                row["wall_seconds"] += seconds

    before, after = policies(made), assert_real(made, slow_changes)
    assert after[-1]["speedup"] < before[-1]["speedup"]
    assert [one["seconds_mean"] for one in before[:2]] == pytest.approx([one["seconds_mean"] for one in after[:2]])


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("factor", [2.0, 6.0])
def test_tokens_may_cost_more_in_a_long_context(factor: float, count: int) -> None:
    """A solution has 60 steps, and its last token costs `factor` times as much as its first."""

    def lengthen(row: dict[str, Any]) -> None:
        row["steps"] = [copy.deepcopy(row["steps"][number % len(row["steps"])]) for number in range(60)]
        for number, step in enumerate(row["steps"]):
            for one in filter(None, (step, step["discarded"])):
                one["cost"]["decode_seconds"] *= 1 + (factor - 1) * number / 59
        costs = [one["cost"] for one in written(row)]
        row["wall_seconds"] = sum(cost.get("decode_seconds", 0) + cost.get("prefill_seconds", 0) for cost in costs)
        row["timing"]["router"]["seconds"] = 0.0

    assert_real(make_run(count, columns=COLUMNS, drift=0.0), lengthen)


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_a_step_that_was_disturbed_counts_as_its_neighbours(factor: float) -> None:
    made = make_run(20, columns=COLUMNS, drift=0.0)
    dice = random.Random(1)

    def disturb(row: dict[str, Any]) -> None:
        for step in written(row):
            if dice.random() < 0.1:
                step["cost"]["decode_seconds"] *= factor

    for before, after in zip(policies(made), policies(made, disturb), strict=True):
        assert after["seconds_mean"] == pytest.approx(before["seconds_mean"], rel=1e-3)


def test_a_uniform_slowdown_changes_no_speedup() -> None:
    made = make_run(20, columns=COLUMNS)
    for before, after in zip(policies(made), policies(made, lambda row: slow_down(row, 3.0)), strict=True):
        assert after["seconds_mean"] == pytest.approx(3 * before["seconds_mean"])
        assert after["speedup"] == pytest.approx(before["speedup"])


def test_the_cost_of_a_target_token_has_an_interval() -> None:
    """All tokens cost the same, so the interval contains only the error of the unit costs."""
    ratio = TARGET_TOKEN / DRAFT_TOKEN
    made = figures((run := make_run(20, columns=ALONE)).run, run.rows)
    low, high = made["token_ratio_interval"]
    assert made["token_ratio"] == pytest.approx(ratio)
    assert ratio / low == pytest.approx(high / ratio)
    assert 1.10 < high / ratio < 1.12
    alone = make_run(10, columns=ALONE[:1])
    assert figures(alone.run, alone.rows)["token_ratio"] == pytest.approx(3.5)  # of the unit costs


@pytest.mark.parametrize(("error", "other"), [(0.0, 0.03), (0.03, 0.04), (0.1, 0.0)])
def test_the_error_of_unit_costs_affects_only_time_that_differs_from_the_target(error: float, other: float) -> None:
    columns = (*COLUMNS, ("speculative", None))
    made = make_run(20, columns=columns, drift=0.0)
    exact, known = deepcopy(made.run), deepcopy(made.run)
    for role, wrong in (("draft", error), ("target", other)):
        exact["decided"]["models"][role]["costs"]["error"] = 0.0
        known["decided"]["models"][role]["costs"]["error"] = wrong
    without, found = (policies(MadeUp(run, made.rows)) for run in (exact, known))
    for policy, before in zip(found, without, strict=True):
        added = math.sqrt(policy["speedup_log_error"] ** 2 - before["speedup_log_error"] ** 2)
        if policy["policy"] in ("target", "speculative"):  # this speculation drafts nothing
            assert policy["speedup_log_error"] == pytest.approx(0.0, abs=1e-9)
        elif policy["policy"] == "draft":
            assert added == pytest.approx(math.hypot(error, other), rel=0.02)
        else:
            seconds = [draft_and_wall(row) for row in made.rows if row["policy"] == policy["policy"]]
            share = sum(draft for draft, _ in seconds) / sum(wall for _, wall in seconds)
            assert added == pytest.approx(share * math.hypot(error, other), rel=0.02)


def test_policies_with_the_same_work_have_the_same_time() -> None:
    """Speculation that proposes nothing does the target's work, even if its steps were measured at another time."""
    made = make_run(20, columns=(("target", None), ("speculative", None)), drift=0.0)

    def slow_down_speculation(row: dict[str, Any]) -> None:
        if row["policy"] == "speculative":
            slow_down(row, 1.3)

    target, speculative = policies(made, slow_down_speculation)
    assert speculative["speedup"] == pytest.approx(1.0)
    assert speculative["seconds_mean"] == pytest.approx(target["seconds_mean"])
    assert speculative["measured_speedup"] == pytest.approx(1 / 1.3)


@pytest.mark.parametrize("usage", [True, False])
def test_the_latency_of_a_server_is_time(usage: bool) -> None:
    made = make_run(20, columns=COLUMNS, drift=0.0)
    del (run := made.run)["decided"]["models"]["target"]["costs"]

    def served(row: dict[str, Any]) -> None:
        steps = [one for step in row["steps"] for one in (step, step["discarded"]) if one]
        for number, step in enumerate(step for step in steps if step["model"] == "target"):
            latency = 4.0 if number % 7 == 3 else 0.4
            step["cost"]["prefill_seconds"] = step["cost"].get("prefill_seconds", 0.0) + latency
            row["wall_seconds"] += latency
            if not usage:
                step["cost"].pop("prefill_tokens", None)

    found = policies(MadeUp(run, made.rows), served)
    for policy in found:
        assert policy["seconds_mean"] == pytest.approx(policy["measured_seconds_mean"], rel=0.01)
        assert policy["speedup"] == pytest.approx(policy["measured_speedup"], rel=0.01)
    assert found[-1]["speedup"] > 1


@pytest.mark.parametrize(("factor", "is_shown"), [(1.0, False), (1.05, False), (1.3, True)])
def test_a_clock_that_contradicts_the_computed_speedup_is_shown(factor: float, is_shown: bool) -> None:
    made = make_run(20, columns=COLUMNS, drift=0.0)
    for row in made.rows:
        if row["policy"] == "entropy":
            row["wall_seconds"] *= factor
    notes = figures(made.run, made.rows)["notes"]
    assert [note for note in notes if "entropy@0.5" in note] == notes
    assert len(notes) == is_shown


def test_the_token_ratio_of_a_served_model_is_unknown() -> None:
    made = make_run(10, columns=ALONE)
    del (run := made.run)["decided"]["models"]["target"]["costs"]
    assert figures(run, made.rows)["token_ratio"] is None

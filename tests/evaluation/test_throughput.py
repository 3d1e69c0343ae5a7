"""Figures of throughput runs: block statistics, missing figures, and notes."""

from typing import Any

import pytest
from made_up_runs import MadeUp, failed, make_run

from arbitrage_cli.evaluation.comparison import compare_runs
from arbitrage_cli.evaluation.metrics import figures

COLUMNS = (("target", None), ("draft", None), ("entropy", 0.3), ("entropy", 0.5))
SECONDS = {"target": 2.0, "draft": 0.25, "entropy": 1.0}  # that a problem adds to its block


def made_up(count: int = 40, size: int = 8, concurrency: int = 2) -> MadeUp:
    made = make_run(count, columns=COLUMNS)
    rows = [
        {**row, "throughput": {"block": index // len(COLUMNS) // size, "of": size, "seconds": SECONDS[row["policy"]]}}
        for index, row in enumerate(made.rows)
    ]
    return MadeUp({**made.run, "concurrency": concurrency}, rows)


def figures_of(made: MadeUp) -> dict[str, Any]:
    return figures(made.run, made.rows)


def by_label(made: MadeUp) -> dict[str, dict[str, Any]]:
    return {policy["label"]: policy for policy in figures_of(made)["policies"]}


def test_problems_per_second_and_their_ratio() -> None:
    policies = by_label(made_up(120))
    assert {label: policy["problems_per_second"] for label, policy in policies.items()} == {
        "target": 0.5, "draft": 4.0, "entropy@0.3": 1.0, "entropy@0.5": 1.0,
    }  # fmt: skip
    draft = policies["draft"]
    assert (draft["throughput_ratio"], draft["blocks_compared"]) == (8.0, 15)
    assert draft["throughput_ratio_interval"] == pytest.approx((8.0, 8.0))
    assert draft["ratios"]["problems_per_second"] == {"numerator": 120, "denominator": 30.0}
    assert (policies["target"]["throughput_ratio"], policies["target"]["throughput_ratio_interval"]) == (1.0, None)


def test_failed_attempts_that_were_tried_again_cost_time_as_well() -> None:
    made = made_up()
    number = next(index for index, row in enumerate(made.rows) if row["policy"] == "draft")
    row = made.rows[number]
    before = failed(row | {"throughput": row["throughput"] | {"seconds": 60.0}})
    again = row | {"throughput": row["throughput"] | {"of": 1}}
    others = [*made.rows[:number], *made.rows[number + 1 :]]
    for rows in ([before, *others, again], [again, *others, before]):
        draft = by_label(MadeUp(made.run, rows))["draft"]
        assert draft["ratios"]["problems_per_second"] == {"numerator": 40, "denominator": 70.0}
        assert (draft["throughput_ratio"], draft["blocks_compared"]) == (pytest.approx(8 / 7), 5)
        assert any("1 block " in note for note in figures(made.run, rows)["notes"])


@pytest.mark.parametrize("order", [1, -1])
def test_times_of_the_two_kinds_are_not_compared(order: int) -> None:
    first, second = [made_up(), make_run(40, columns=COLUMNS)][::order]
    compared = compare_runs(first.run, first.rows, second.run, second.rows)
    assert all(entry["seconds_ratio"] is None for entry in compared["policies"])
    assert any("Times are not compared" in note for note in compared["notes"])

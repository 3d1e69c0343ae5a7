"""Sentences of verdicts, with the figures that support them."""

import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import pytest
from made_up_runs import figures, make_run, unscored
from made_up_tuning import pair_costs
from small_routers import make_table

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.display.card import preset_sentence
from arbitrage_cli.display.verdict import alone, confidence, sentence
from arbitrage_cli.evaluation.verdict import Candidate, Verdict

COUNTS: Any = {"num_problems": 40, "num_finished": 40, "num_gained": 3, "num_lost": 2, "num_graded": 21, "is_measured": True}
ROUTED = Candidate("arbitrage@careful", "arbitrage", 2.5, 0.99, 0.97, speedup=2.5, interval=(2.2, 2.8), **COUNTS)
SPECULATIVE = Candidate(
    "speculative", "speculative", 1.5, 0.9, speedup=1.5, interval=(1.4, 1.6), num_problems=8, is_measured=True
)
SLOW = replace(SPECULATIVE, speedup=0.876, interval=None, saves=0.01)
DRAFT = replace(ROUTED, route="draft", policy="draft", speedup=3.0, num_graded=0, num_ungraded=40, num_same=38)
CHEAP = replace(ROUTED, saving=0.4, saving_interval=(0.3, 0.5))
UNTRIED = Candidate("entropy@0.5", "entropy", 0.8, 0.1, 0.5)


@pytest.mark.parametrize(
    ("verdict", "figures"),
    [
        (Verdict(ROUTED.route, 0.96, 40, (ROUTED,)), ["9 in 10", "arbitrage@careful", "2.50x", "[2.20-2.80]", "3 answers gained and 2 lost of 21", "19 answers"]),
        (Verdict("speculative", 0.9, 8, (ROUTED, SPECULATIVE)), ["9 in 10", "speculation", "1.50x"]),
        (Verdict("draft", 0.6, 20, (DRAFT,)), ["6 in 10", "3.00x", "38 of 40 answers"]),
        (Verdict(ROUTED.route, 0.99, 40, (CHEAP,), is_priced=True), ["99 in 100", "saves 40.0%", "[30-50]", "2.50x"]),
        (Verdict("target", 0.85, 40, (replace(CHEAP, saving=-0.2),), is_priced=True), ["8 in 10", "costs 120.0%"]),
        (Verdict("target", 0.85, 20, (SLOW,)), ["8 in 10", "20 problems", "0.876x", "Use the target alone"]),
        (Verdict("target", 0.5, 8, (SPECULATIVE,)), ["Undecided (5 in 10)", "1.50x"]),
        (Verdict("target", None, 0, (UNTRIED,), token_ratio=1.4), ["Expected", "0.800x", "1.40x slower", "5 problems"]),
        (Verdict("target", None, 40, (replace(DRAFT, is_measured=False, num_ungraded=0),)), ["40 answers that", "tests"]),
    ],
    ids=["routing", "speculation", "draft", "money", "no money", "slow", "undecided", "no problems", "nothing to compare"],
)  # fmt: skip
def test_a_sentence_has_its_figures(verdict: Verdict, figures: list[str]) -> None:
    words = sentence(asdict(verdict))
    assert [figure for figure in figures if figure not in words] == []
    assert (" in 10" in words) == (verdict.confidence is not None)


def advised_figures(right: dict[str, Iterable[int]], count: int, *, is_graded: bool = True) -> dict[str, Any]:
    """The figures of a run by `advise` in which these policies solve these problems."""
    made = make_run(count, columns=[(policy, None) for policy in right])
    for row in made.rows:
        is_right = int(re.findall(r"\d+", row["id"])[-1]) in right[row["policy"]]
        row |= {"answer": str(is_right), "grade": {**row["grade"], "value": "correct" if is_right else "incorrect"}}
    rows = made.rows if is_graded else [unscored(row) | {"same_as_target": row["answer"] == "True"} for row in made.rows]
    return figures({**made.run, "skips_attempts": True}, rows)


@pytest.mark.parametrize(
    ("made", "counts", "is_weak"),
    [
        (advised_figures({"target": range(8), "draft": range(1, 8)}, 10), [10, 7, 8], False),
        (advised_figures({"target": [1, 3], "draft": [2]}, 10), [10, 1, 2], True),
        (advised_figures({"target": range(8), "draft": [1, 2]}, 10, is_graded=False), [2, 10], False),
        (advised_figures({"target": range(8)}, 10), [], False),
        (advised_figures({"draft": range(8)}, 10), [], False),
    ],
    ids=["graded", "a weak target", "no answers known", "no draft", "no target"],
)
def test_what_draft_and_target_solve_alone(made: dict[str, Any], counts: list[int], *, is_weak: bool) -> None:
    words = alone(made)
    assert ([int(number) for number in re.findall(r"\d+", words)], "stronger" in words) == (counts, is_weak)


def test_a_confidence_is_never_rounded_up() -> None:
    assert [confidence(one)[1] for one in (0.5, 0.59, 0.899, 0.9, 0.98, 1.0)] == [
        *("5 in 10", "5 in 10", "8 in 10", "9 in 10", "9 in 10", "99 in 100"),
    ]


@pytest.mark.parametrize(
    ("costs", "figures"),
    [
        (pair_costs(0.1, 1.0, prefill=0.01), ["--tau careful", "46%"]),
        (pair_costs(0.9, 1.0, prefill=0.5), ["no preset"]),
        (None, ["--costs"]),
    ],
)
def test_a_threshold_table_in_words(costs: PairCosts | None, figures: list[str]) -> None:
    words = preset_sentence(replace(make_table(), costs=costs))
    assert [figure for figure in figures if figure not in words] == []

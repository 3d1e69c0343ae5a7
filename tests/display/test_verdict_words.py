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

COUNTS: Any = {"num_problems": 40, "num_compared": 21, "num_gained": 3, "num_lost": 2, "num_graded": 21, "num_attempts": 40}
ROUTED = Candidate("arbitrage@careful", "arbitrage", 2.5, (2.2, 2.8), 0.99, 0.97, **COUNTS)
SPECULATIVE = Candidate("speculative", "speculative", 1.5, (1.4, 1.6), 0.9, 1.0, num_problems=8)
SLOW = replace(SPECULATIVE, speedup=0.876, is_fast=0.01)
DRAFT = replace(ROUTED, route="draft", policy="draft", speedup=3.0, num_compared=40, num_gained=0, num_graded=0)
LIKE = "differ from the target's"


@pytest.mark.parametrize(
    ("verdict", "figures"),
    [
        (Verdict(ROUTED.route, 0.96, 40, (ROUTED,)), ["9 in 10", "arbitrage@careful", "2.50x", "[2.20-2.80]", "3 answers gained and 2 lost of 21", "19 others"]),
        (Verdict("speculative", 0.9, 8, (ROUTED, SPECULATIVE)), ["9 in 10", "speculation", "1.50x"]),
        (Verdict("draft", 0.6, 20, (DRAFT,)), ["6 in 10", "3.00x", "2 lost of 40", LIKE]),
        (Verdict("arbitrage@careful", 0.99, 40, (replace(ROUTED, saving=0.4, saving_interval=(0.3, 0.5)),)), ["99 in 100", "40.0%", "[30-50]"]),
        (Verdict("target", 0.85, 20, (SLOW,), 3.21, 100.0), ["1.14x slower", "3.21x slower per token"]),
        (Verdict("target", 0.85, 20, (SLOW,), 123.4, 310.6), ["8 in 10", "20 problems", "Use the target alone", "123x slower", "about 310x"]),
        (Verdict("target", 0.85, 20, (SLOW, replace(ROUTED, is_safe=0.1)), 1.4), ["1.14x slower", "2.50x", "2 lost", "1.40x slower"]),
        (Verdict("target", 0.5, 0, (replace(SLOW, speedup=0.965, num_problems=0, is_expected=True),)), ["Undecided (5 in 10)", "Estimated", "4% slower"]),
        (Verdict(ROUTED.route, 0.7, 8, (replace(ROUTED, is_expected=True),)), ["7 in 10", "about 2.50x"]),
    ],
    ids=["routing", "speculation", "draft", "money", "hopeless", "slow", "loses answers", "no problems", "few problems"],
)  # fmt: skip
def test_a_sentence_has_its_figures(verdict: Verdict, figures: list[str]) -> None:
    words = sentence(asdict(verdict))
    assert [figure for figure in figures if figure not in words] == []


def advised_figures(right: dict[str, Iterable[int]], count: int, *, is_graded: bool = True) -> dict[str, Any]:
    """The figures of a run by `advise` in which these policies solve these problems."""
    made = make_run(count, columns=[(policy, None) for policy in right])
    for row in made.rows:
        is_right = int(re.findall(r"\d+", row["id"])[-1]) in right[row["policy"]]
        row |= {"answer": str(is_right), "grade": {**row["grade"], "value": "correct" if is_right else "incorrect"}}
    return figures({**made.run, "skips_attempts": True}, made.rows if is_graded else map(unscored, made.rows))


@pytest.mark.parametrize(
    ("made", "counts", "is_weak"),
    [
        (advised_figures({"target": range(8), "draft": range(1, 8)}, 10), [10, 7, 8], False),
        (advised_figures({"target": [1, 3], "draft": [2]}, 10), [10, 1, 2], True),
        (advised_figures({"target": range(8), "draft": []}, 10, is_graded=False), [2, 10], False),
        (advised_figures({"target": range(8)}, 10), [], False),
        (advised_figures({"draft": range(8)}, 10), [], False),
    ],
    ids=["graded", "a weak target", "no answers known", "no draft", "no target"],
)
def test_what_draft_and_target_solve_alone(made: dict[str, Any], counts: list[int], *, is_weak: bool) -> None:
    words = alone(made)
    assert ([int(number) for number in re.findall(r"\d+", words)], "stronger" in words) == (counts, is_weak)


@pytest.mark.parametrize(("is_safe", "has_costs"), [(0.9, True), (0.1, False)])
def test_token_costs_are_mentioned_only_if_a_faster_draft_would_help(is_safe: float, has_costs: bool) -> None:
    words = sentence(asdict(Verdict("target", 0.9, 40, (replace(ROUTED, is_safe=is_safe),), 1.4)))
    assert ("1.40x slower" in words) == has_costs


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

"""Sentences of verdicts, with the figures that support them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from made_up_runs import make_run, typed_figures, unscored

from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.display.verdict import alone, confidence, sentence
from arbitrage_cli.evaluation.bounds import Bound
from arbitrage_cli.evaluation.figures import UNKNOWN, Estimate, Factor, PolicyFigures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.evaluation.verdict import TARGET, Basis, Candidate, Verdict
from arbitrage_cli.numbers.intervals import Interval, Ratio
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route

ROUTED, SPECULATIVE, DRAFT, UNTRIED = (
    Route(POLICIES["arbitrage"], 0.2, "careful"),
    Route(POLICIES["speculative"]),
    Route(POLICIES["draft"]),
    Route(POLICIES["entropy"], 0.5),
)


def about(
    route: Route, speedup: float, interval: Interval | None = None, saving: Estimate = UNKNOWN, **answers: Ratio
) -> PolicyFigures:
    """Return the figures of a policy on 40 problems."""
    counts = dict.fromkeys(("answers_gained", "answers_lost", "answers_same"), Ratio(0, 0)) | answers
    return PolicyFigures(
        route,
        speedup=Factor(Ratio(speedup, 1), interval),
        saving=saving,
        both_finished=40,
        answers_gained=counts["answers_gained"],
        answers_lost=counts["answers_lost"],
        answers_same=counts["answers_same"],
    )


POLICIES_OF_RUN = (
    about(
        ROUTED,
        2.5,
        (2.2, 2.8),
        Estimate(Ratio(4, 10), (0.3, 0.5)),
        answers_gained=Ratio(3, 21),
        answers_lost=Ratio(2, 21),
    ),
    about(SPECULATIVE, 0.876),
    about(DRAFT, 3.0, saving=Estimate(Ratio(-2, 10)), answers_same=Ratio(38, 40)),
)


def figures_with(
    verdict: Verdict, policies: Sequence[PolicyFigures] = POLICIES_OF_RUN, *, is_priced: bool = False
) -> RunFigures:
    run = typed_figures((made := make_run(1)).run, made.rows)
    return replace(run, policies=policies, is_priced=is_priced, token_ratio=Estimate(Ratio(1.4, 1)), verdict=verdict)


def measured(route: Route) -> Candidate:
    return Candidate(route, 1.0, 0.5, num_problems=40, is_measured=True, was_run=True)


@pytest.mark.parametrize(
    ("route", "confidence", "candidates", "basis", "figures"),
    [
        (ROUTED, 0.96, [ROUTED], "time", ["9 in 10", ROUTED.name, "2.50x", "[2.20-2.80]", "3 answers gained and 2 lost of 21", "19 answers"]),
        (SPECULATIVE, 0.9, [ROUTED, SPECULATIVE], "time", ["9 in 10", "speculation", "0.876x"]),
        (DRAFT, 0.6, [DRAFT], "time", ["6 in 10", "3.00x", "38 of 40 answers"]),
        (ROUTED, 0.99, [ROUTED], "price", ["99 in 100", "saves 40.0%", "[30-50]", "2.50x"]),
        (TARGET, 0.85, [DRAFT], "price", ["8 in 10", "costs 120.0%"]),
        (TARGET, 0.85, [SPECULATIVE, ROUTED], "time", ["8 in 10", "40 problems", "0.876x", "2.50x", "Use the target alone"]),
        (TARGET, 0.5, [SPECULATIVE], "time", ["Undecided (5 in 10)"]),
        (TARGET, None, [], "time", ["Expected", "0.800x", "1.40 draft tokens", "5 problems"]),
        (TARGET, None, [], "price", ["Expected", "costs 125.0%"]),
    ],
    ids=["routing", "speculation", "draft", "money", "no money", "not worth it", "undecided", "no problems", "no prices"],
)  # fmt: skip
def test_a_sentence_has_its_figures(
    route: Route, confidence: float | None, candidates: list[Route], basis: Basis, figures: list[str]
) -> None:
    found = tuple(map(measured, candidates)) or (Candidate(UNTRIED, 0.8, 0.1, 0.5),)
    words = sentence(figures_with(Verdict(route, confidence, 40, found, basis), is_priced=basis == "price"))
    assert [figure for figure in figures if figure not in words] == []
    assert (" in 10" in words) == (confidence is not None)
    assert "judged by time" not in words


@pytest.mark.parametrize(
    ("bound", "basis", "words"),
    [
        (Bound(SPECULATIVE, 1.6, 1.06, 0.05), "time", ["Probably not", "9 in 10", "1.60x", "1.06x", "1.40 draft tokens"]),
        (Bound(SPECULATIVE, 1.02, 1.0, 0.0), "time", ["Not worth it", "1.02x", "1.40 draft tokens"]),
        (Bound(ROUTED, 1.0, 1.0, 0.0, escalates_all=True), "time", ["Not worth it", "every step"]),
        (Bound(ROUTED, 1.25, 0.8, 0.05), "price", ["Probably not", "9 in 10", "80.0%", "125.0%"]),
    ],
    ids=["probably", "certainly", "no routing", "prices"],
)
def test_bounds_are_named_with_their_figures(bound: Bound, basis: Basis, words: list[str]) -> None:
    """Whether no problem was solved, or the draft alone solved some."""
    found = Candidate(bound.route, bound.at_most, bound.chance, bound=bound)
    made = sentence(figures_with(Verdict(TARGET, 1 - bound.chance, 0, (found,), basis)))
    assert [word for word in words if word not in made] == []
    beside = sentence(figures_with(Verdict(TARGET, 0.9, 40, (found, measured(DRAFT)), basis)))
    figures = [word for word in words if "x" in word or "%" in word]
    assert [word for word in figures if word not in beside] == []


def test_answers_that_cannot_be_compared_are_named() -> None:
    verdict = Verdict(TARGET, None, 40, (replace(measured(DRAFT), is_measured=False),))
    words = sentence(figures_with(verdict, [about(DRAFT, 2.0)]))
    assert ("40 answers" in words, "tests" in words, " in 10" in words) == (True, True, False)


def test_a_policy_that_was_run_is_not_expected() -> None:
    """Neither if no problem counts, nor if other policies solved more problems."""
    untried, tried = Candidate(UNTRIED, 0.8, 0.1), Candidate(DRAFT, 2.0, 0.5, was_run=True)
    few = replace(measured(ROUTED), num_problems=3)
    words = sentence(figures_with(Verdict(TARGET, None, 40, (untried, tried))))
    expected, run = words.partition("Expected")[2].partition(".")[0], words.partition("Tried")[2].partition(".")[0]
    assert ("the draft" in expected, "the draft" in run, UNTRIED.name in words) == (False, True, True)
    words = sentence(figures_with(Verdict(TARGET, None, 40, (measured(SPECULATIVE), few))))
    assert ("Expected" in words, "on 3 problems" in words, "up to 40 problems" in words) == (False, True, True)


def test_a_pair_with_prices_that_are_unknown_is_judged_by_time() -> None:
    words = sentence(figures_with(Verdict(TARGET, 0.99, 40, (measured(ROUTED),)), is_priced=True))
    assert ("by time" in words, "2.50x" in words, "saves" in words) == (True, True, False)


def test_a_price_above_the_target_has_an_interval_of_the_price() -> None:
    dear = about(ROUTED, 2.5, saving=Estimate(Ratio(-8, 10), (-1.5, -0.25)))
    words = sentence(figures_with(Verdict(TARGET, 0.99, 40, (measured(ROUTED),), "price"), [dear], is_priced=True))
    assert "costs 180.0% of the target's price [125-250]" in words


@pytest.mark.parametrize("basis", ["price", "time"])
def test_without_a_verdict_the_times_of_tokens_are_named_only_if_times_decide(basis: Basis) -> None:
    words = sentence(figures_with(Verdict(TARGET, None, 3, (measured(ROUTED),), basis), is_priced=basis == "price"))
    assert ("1.40 draft tokens" in words) == (basis == "time")


def test_a_pair_whose_target_is_free_is_judged_by_time_for_this_reason() -> None:
    made = make_run(10, columns=[("target", None), ("entropy", 0.5)])
    words = sentence(typed_figures(made.run, made.rows, prices=parse_prices("draft=1/1")))
    assert ("by time" in words, "free" in words, "unavailable" in words) == (True, True, False)


def advised_figures(right: dict[str, Iterable[int]], count: int, *, is_graded: bool = True) -> RunFigures:
    """The figures of a run by `advise` in which these policies solve these problems."""
    made = make_run(count, columns=[(policy, None) for policy in right])
    for row in made.rows:
        is_right = int(re.findall(r"\d+", row["id"])[-1]) in right[row["policy"]]
        row |= {"answer": str(is_right), "grade": {**row["grade"], "value": "correct" if is_right else "incorrect"}}
    rows = made.rows if is_graded else [unscored(row) | {"same_as_target": row["answer"] == "True"} for row in made.rows]
    return typed_figures({**made.run, "skips_attempts": True}, rows)


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
def test_what_draft_and_target_solve_alone(made: RunFigures, counts: list[int], *, is_weak: bool) -> None:
    words = alone(made)
    assert ([int(number) for number in re.findall(r"\d+", words)], "stronger" in words) == (counts, is_weak)


def test_a_confidence_is_never_rounded_up() -> None:
    assert [confidence(one)[1] for one in (0.5, 0.59, 0.899, 0.9, 0.98, 1.0)] == [
        *("5 in 10", "5 in 10", "8 in 10", "9 in 10", "9 in 10", "99 in 100"),
    ]

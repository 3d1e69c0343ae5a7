"""Sentences of verdicts, with the figures that support them."""

import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import pytest
from made_up_runs import figures, make_run, unscored

from arbitrage_cli.display.verdict import alone, confidence, sentence
from arbitrage_cli.evaluation.verdict import Candidate, Verdict


def about(route: str, speedup: float, interval: tuple[float, float] | None = None, **answers: Any) -> dict[str, Any]:
    """Return the figures of a policy on 40 problems."""
    ratios = {f"answers_{name}": {"numerator": 0, "denominator": 0} for name in ("gained", "lost", "same")}
    return {
        "policy": route.partition("@")[0],
        "route": route,
        "speedup": speedup,
        "speedup_interval": interval,
        "saving": None,
        "saving_interval": None,
        "both_finished": 40,
        "ratios": ratios | answers.pop("ratios", {}),
        **answers,
    }


def ratio(numerator: int, denominator: int) -> dict[str, int]:
    return {"numerator": numerator, "denominator": denominator}


ROUTED = "arbitrage@careful"
GRADED = {"answers_gained": ratio(3, 21), "answers_lost": ratio(2, 21)}
POLICIES = [
    about(ROUTED, 2.5, (2.2, 2.8), ratios=GRADED, saving=0.4, saving_interval=(0.3, 0.5)),
    about("speculative", 0.876),
    about("draft", 3.0, ratios={"answers_same": ratio(38, 40)}, saving=-0.2),
]
MEASURED = {
    one["route"]: Candidate(one["route"], one["policy"], 1.0, 0.5, num_problems=40, is_measured=True) for one in POLICIES
}
UNTRIED = Candidate("entropy@0.5", "entropy", 0.8, 0.1, 0.5)


@pytest.mark.parametrize(
    ("route", "confidence", "candidates", "is_priced", "figures"),
    [
        (ROUTED, 0.96, [ROUTED], False, ["9 in 10", ROUTED, "2.50x", "[2.20-2.80]", "3 answers gained and 2 lost of 21", "19 answers"]),
        ("speculative", 0.9, [ROUTED, "speculative"], False, ["9 in 10", "speculation", "0.876x"]),
        ("draft", 0.6, ["draft"], False, ["6 in 10", "3.00x", "38 of 40 answers"]),
        (ROUTED, 0.99, [ROUTED], True, ["99 in 100", "saves 40.0%", "[30-50]", "2.50x"]),
        ("target", 0.85, ["draft"], True, ["8 in 10", "costs 120.0%"]),
        ("target", 0.85, ["speculative", ROUTED], False, ["8 in 10", "40 problems", "0.876x", "2.50x", "Use the target alone"]),
        ("target", 0.5, ["speculative"], False, ["Undecided (5 in 10)"]),
        ("target", None, [], False, ["Expected", "0.800x", "1.40x slower", "5 problems"]),
        ("target", None, [], True, ["Expected", "costs 125.0%"]),
    ],
    ids=["routing", "speculation", "draft", "money", "no money", "not worth it", "undecided", "no problems", "no prices"],
)  # fmt: skip
def test_a_sentence_has_its_figures(
    route: str, confidence: float | None, candidates: list[str], *, is_priced: bool, figures: list[str]
) -> None:
    found = tuple(MEASURED[name] for name in candidates) or (UNTRIED,)
    verdict = asdict(Verdict(route, confidence, 40, found))
    words = sentence({"policies": POLICIES, "is_priced": is_priced, "token_ratio": 1.4, "verdict": verdict})
    assert [figure for figure in figures if figure not in words] == []
    assert (" in 10" in words) == (confidence is not None)


def test_answers_that_cannot_be_compared_are_named() -> None:
    verdict = asdict(Verdict("target", None, 40, (replace(MEASURED["draft"], is_measured=False),)))
    words = sentence({"policies": [about("draft", 2.0)], "is_priced": False, "token_ratio": None, "verdict": verdict})
    assert ("40 answers" in words, "tests" in words, " in 10" in words) == (True, True, False)


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

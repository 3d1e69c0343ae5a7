"""Measures a policy's accuracy, with confidence intervals, and compares its answers with the target's."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from arbitrage_cli.numbers.intervals import Interval, Ratio, paired_difference, wilson
from arbitrage_cli.runs.records import LIMITS
from arbitrage_cli.runs.results import PolicyResults, Result, paired, sums_by_problem

COMPARED = (
    *("accuracy_difference", "accuracy_difference_interval"),
    *("same_answers", "answers_gained", "answers_lost", "answers_graded", "target_right", "texts_differ"),
)


def accuracy(results: Collection[Result], planned: int) -> dict[str, Any]:
    """Return the outcome counts of all `planned` attempts, and the accuracy of the attempts made so far.

    The accuracy is unknown if no answer was graded. If all attempts failed, it is 0.
    """
    counts = Counter[str](result.outcome for result in results)
    counted = () if counts["unscored"] and not counts["correct"] + counts["incorrect"] else results
    return {
        "n": planned,
        **{name: counts[name] for name in ("correct", "incorrect", "unscored")},
        "errors": counts["error"],
        "missing": planned - len(results),
        "cut": cut_by_limit(result for result in results if result.is_done).total(),
        "accuracy": Ratio(counts["correct"], len(counted)),
        "accuracy_interval": _interval(counted),
    }


def cut_by_limit(results: Iterable[Result]) -> Counter[str]:
    return Counter(flag for result in results if (flag := LIMITS.get(result.stop or "")))


def compared_with_target(policy: PolicyResults, target: PolicyResults | None) -> dict[str, Any]:
    """Compare the accuracy, answers and texts of a policy with those of the target alone.

    All figures are None for the target itself, or if the run has no target. If the right answer to a question is unknown,
    the target's answer counts as right.
    """
    if target is None or target is policy:
        return dict.fromkeys(COMPARED)
    pairs = paired(policy, target)
    known = [(own, other) for own, other in pairs if other.is_done]
    compared = [(own, other) for own, other in known if other.is_graded or other.answer is not None]
    lost = sum(_is_lost(own, other) for own, other in compared)
    gained = sum(other.is_graded and own.is_correct and not other.is_correct for own, other in compared)
    both = [(own, other) for own, other in known if own.is_done]
    answered = [(own.answer, other.answer) for own, other in both if other.answer is not None]
    return {
        "accuracy_difference": Ratio(sum(own.is_correct - other.is_correct for own, other in pairs), len(pairs)),
        "accuracy_difference_interval": difference_interval(pairs),
        "same_answers": Ratio(sum(own == others for own, others in answered), len(answered)),
        "answers_gained": Ratio(gained, len(compared)),
        "answers_lost": Ratio(lost, len(compared)),
        "answers_graded": sum(other.is_graded for _, other in compared),
        "target_right": Ratio(sum(other.is_correct or not other.is_graded for _, other in compared), len(compared)),
        "texts_differ": sum(own.text != other.text for own, other in both),
    }


def _is_lost(result: Result, target: Result) -> bool:
    """Return whether a correct answer of the target is lost or, without grades, whether the two answers differ."""
    return target.is_correct and not result.is_correct if target.is_graded else result.answer != target.answer


def difference_interval(pairs: Sequence[tuple[Result, Result]]) -> Interval | None:
    """Return the interval for the first accuracy minus the second, or None if there are no attempts."""
    if not pairs:
        return None
    table = Counter((own.is_correct, other.is_correct) for own, other in pairs)
    count = _effective_count([(own.key[0], own.is_correct - other.is_correct) for own, other in pairs])
    cells = ((True, True), (True, False), (False, True), (False, False))
    return paired_difference(*(table[cell] * count / len(pairs) for cell in cells))


def _interval(results: Collection[Result]) -> Interval | None:
    if not results:
        return None
    count = _effective_count([(result.key[0], int(result.is_correct)) for result in results])
    return wilson(sum(result.is_correct for result in results) * count / len(results), count)


def _effective_count(values: Sequence[tuple[str, int]]) -> float:
    """Return how many attempts at different problems would determine the mean of the values as precisely (Kish).

    Attempts at the same problem tend to have equal values. If all values are equal, each problem counts once.
    """
    table = sums_by_problem(((problem, [value, 1.0]) for problem, value in values), 2)
    total, count = table.sum(axis=0).tolist()
    spread = count * sum(value**2 for _, value in values) - total**2
    between = float(((count * table[:, 0] - total * table[:, 1]) ** 2).sum())
    if not spread:
        return len(table)
    return float(min(count, count**2 * spread / between)) if between else float(count)

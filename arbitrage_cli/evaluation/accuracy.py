"""Right answers of a policy, and how sure the share of them is. Knows no time."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from arbitrage_cli.runs.results import PolicyResults, Result, paired, sums_by_problem
from arbitrage_cli.stats.intervals import Floats, Interval, Ratio, bootstrap, paired_difference, ratio_of_sums, wilson

LIMITS: Mapping[str, str] = {"max_tokens": "--max-tokens", "max_steps": "--max-steps", "context": "--ctx"}
"""The flag of each limit that ends a solution before it is finished, by `Result.stop`."""


def accuracy(policy: PolicyResults, planned: int) -> dict[str, Any]:
    """Counts of the `planned` attempts, and the share of right answers among those that were made."""
    counts = Counter[str](result.outcome for result in policy.results.values())
    made = counts.total()
    return {
        "n": planned,
        **{name: counts[name] for name in ("correct", "incorrect", "unscored")},
        "errors": counts["error"],
        "missing": planned - made,
        "cut": sum(cut_by_limit(policy.done).values()),
        "accuracy": Ratio(counts["correct"], made),
        "accuracy_interval": _interval(policy),
    }


def cut_by_limit(results: Iterable[Result]) -> Counter[str]:
    """How many attempts ended at each limit, by its flag."""
    return Counter(flag for result in results if (flag := LIMITS.get(result.stop or "")))


def accuracy_difference(policy: PolicyResults, target: PolicyResults | None, samples: int) -> dict[str, Any]:
    """Accuracy minus that of the target alone, over the attempts that both have; None for the target itself."""
    if target is None or target is policy:
        return {"accuracy_difference": None, "accuracy_difference_interval": None}
    pairs = paired(policy, target)
    gained = sum(one.is_correct - other.is_correct for one, other in pairs)
    return {
        "accuracy_difference": Ratio(gained, len(pairs)),
        "accuracy_difference_interval": difference_interval(pairs, samples),
    }


def difference_interval(pairs: Sequence[tuple[Result, Result]], samples: int) -> Interval | None:
    """Interval of the accuracy of the first of each pair minus that of the second.

    Over problems. If the problems do not differ in this, resampling shows no spread: then as if each had one sample.
    """
    differences = sums_by_problem(((one.key[0], [one.is_correct - other.is_correct, 1.0]) for one, other in pairs), 2)
    if samples > 1 and _varies(differences):
        return bootstrap(differences, ratio_of_sums)
    both = [(one.is_correct, other.is_correct) for one, other in pairs]
    cells = (both.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False)))
    return paired_difference(*(cell * len(differences) / max(1, len(pairs)) for cell in cells))


def _interval(policy: PolicyResults) -> Interval | None:
    """Over problems, with the same exception."""
    correct = sums_by_problem(((key[0], [one.is_correct, 1.0]) for key, one in policy.results.items()), 2)
    if not len(correct):
        return None
    if np.any(correct[:, 1] > 1) and _varies(correct):
        return bootstrap(correct, ratio_of_sums)
    right, tried = (math.fsum(column) for column in correct.T)
    return wilson(right / tried * len(correct), len(correct))


def _varies(sums: Floats) -> bool:
    """Whether the share differs from problem to problem."""
    return len(np.unique(ratio_of_sums(sums))) > 1

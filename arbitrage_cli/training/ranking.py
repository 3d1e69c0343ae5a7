"""Measures how well a score identifies the steps that the target would improve, with confidence intervals across problems.

A higher score is a stronger reason to escalate. Ties are treated as if broken at random. All functions process many
resamples at once. `weights`, of shape (r, n), counts how often each resample contains each state.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.numbers.intervals import Numbers

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # escalation rates over which the selection score averages recall

ADVANTAGE_DIGITS = 9
"""The number of decimals to which advantages are rounded. Means of equal rewards may differ by rounding errors."""

BINS = 10  # equal-width bins of the calibration error
RESAMPLES = 1000
SEED = 0
MAX_CELLS = 1 << 18  # per batch of resamples; limits memory without changing results


class Figure(NamedTuple):
    """A value with its 95% confidence interval across problems."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Whether the target improves each state, and the index of the state's problem. Only selection scores use `weight`."""

    is_better: NDArray[np.bool_]
    problem: NDArray[np.int64]
    weight: Numbers | None = None


def measure(score: Numbers, truth: Truth, *, is_probability: bool = False) -> dict[str, Figure]:
    """Return the AUC for predicting an advantage and, for a probability, the expected calibration error (`ece`)."""
    values: dict[str, list[Numbers]] = defaultdict(list)
    for weights in resampled_weights(truth.problem, RESAMPLES):
        values["auc"].append(_auc(*_running_sums(score, truth, weights)))
        if is_probability:
            values["ece"].append(_calibration_error(score, truth.is_better, weights))
    return {name: figure(np.concatenate(parts), truth) for name, parts in values.items()}


def selection_score(score: Numbers, truth: Truth) -> float:
    """Return the mean of two measures: the AUC and the mean recall at RATES. Return NaN unless both classes occur."""
    return float(_selection_scores(score, truth, np.ones((1, len(score))))[0])


def selection_gaps(better: Numbers, worse: Numbers, truth: Truth) -> Numbers:
    """Return the first selection score minus the second: for all problems, then for each of RESAMPLES resamples."""
    gaps = [
        _selection_scores(better, truth, weights) - _selection_scores(worse, truth, weights)
        for weights in resampled_weights(truth.problem, RESAMPLES)
    ]
    return np.concatenate(gaps)


def resampled_weights(problem: NDArray[np.int64], resamples: int) -> Iterator[Numbers]:
    """Yield weights for a bootstrap over problems, given each row's problem. The first weights are all 1."""
    _, index = np.unique(problem, return_inverse=True)
    count = int(index.max()) + 1
    generator = np.random.default_rng(SEED)
    yield np.ones((1, len(problem)))
    batch = max(1, MAX_CELLS // len(problem))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)[:, index]


def figure(values: Numbers, truth: Truth) -> Figure:
    """Return the first value, with an interval from the other values, the resamples, if there are several problems."""
    if not np.isfinite(values[0]):
        return Figure(None)
    others = values[1:][np.isfinite(values[1:])]
    if len(others) < 0.9 * RESAMPLES or len(np.unique(truth.problem)) == 1:
        return Figure(float(values[0]))
    low, high = np.percentile(others, [2.5, 97.5])
    return Figure(float(values[0]), float(low), float(high))


def _running_sums(score: Numbers, truth: Truth, weights: Numbers) -> tuple[Numbers, Numbers]:
    """Return the weights of the states that the target improves, and of the others, with a score of at least each score.

    The sums run from the highest score to the lowest, and begin with 0. Ties form one group. Both have shape (r, groups + 1).
    """
    order = np.argsort(-score, kind="stable")
    falling, weights = score[order], weights[:, order]
    starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
    sums = [
        np.add.reduceat(weights * members[order], starts, axis=1).cumsum(axis=1)
        for members in (truth.is_better, ~truth.is_better)
    ]
    better, others = (np.pad(one, ((0, 0), (1, 0))) for one in sums)
    return better, others


def _selection_scores(score: Numbers, truth: Truth, weights: Numbers) -> Numbers:
    better, others = _running_sums(score, truth, weights if truth.weight is None else weights * truth.weight)
    scores: Numbers = (_recalls(better, others) + _auc(better, others)) / 2
    return scores


def _auc(better: Numbers, others: Numbers) -> Numbers:
    """Return the area under the ROC curve. Each tie counts as half."""
    area = (np.diff(others, axis=1) * (better[:, 1:] + better[:, :-1]) / 2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc: Numbers = area / (better[:, -1] * others[:, -1])
    return auc


def _recalls(better: Numbers, others: Numbers) -> Numbers:
    """Return the mean recall at RATES."""
    pairs = zip(better + others, better, strict=True)
    found = np.array([np.interp(np.multiply(RATES, total[-1]), total, running) for total, running in pairs])
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls: Numbers = (found / better[:, -1:]).mean(axis=1)
    return recalls


def _calibration_error(probability: Numbers, is_better: NDArray[np.bool_], weights: Numbers) -> Numbers:
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    members = bins[:, None] == np.arange(BINS)
    distance = weights @ (members * (probability - is_better)[:, None])
    error: Numbers = np.abs(distance).sum(axis=1) / weights.sum(axis=1)
    return error

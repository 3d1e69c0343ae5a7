"""Measures how well a score separates examples by their labels. Confidence intervals are those across problems.

All functions process many resamples at once. `weights`, of shape (r, n), counts how often each resample contains each example.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers

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
    """The label of each example, the index of its problem, and its weight (default: 1)."""

    labels: Mask
    problem: Indices
    weight: Numbers | float = 1.0

    @property
    def resamples(self) -> Iterator[Numbers]:
        """Weights for all problems, then for RESAMPLES resamples."""
        return (weights * self.weight for weights in resampled_weights(self.problem, RESAMPLES))


def measure(score: Numbers, truth: Truth, *, is_probability: bool = False) -> dict[str, Figure]:
    """Return the AUC for predicting the labels and, for a probability, the expected calibration error (`ece`)."""
    measures = {"auc": _auc, **({"ece": _calibration_error} if is_probability else {})}
    return {
        name: figure(np.concatenate([of(score, truth.labels, weights) for weights in truth.resamples]), truth)
        for name, of in measures.items()
    }


def auc(score: Numbers, truth: Truth) -> float:
    """Return the AUC for predicting the labels, or NaN unless both classes occur."""
    return float(_auc(score, truth.labels, next(truth.resamples))[0])


def auc_gaps(better: Numbers, worse: Numbers, truth: Truth) -> Numbers:
    """Return the first score's AUC minus the second's: for all problems, then for each of RESAMPLES resamples."""
    labels = truth.labels
    return np.concatenate([_auc(better, labels, weights) - _auc(worse, labels, weights) for weights in truth.resamples])


def resampled_weights(problem: Indices, resamples: int) -> Iterator[Numbers]:
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


def _auc(score: Numbers, labels: Mask, weights: Numbers) -> Numbers:
    """Return the area under the ROC curve for each row of weights. Each tie counts as half."""
    order = np.argsort(-score, kind="stable")
    falling, weights = score[order], weights[:, order]
    starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))  # ties form one group
    true, false = (
        np.add.reduceat(weights * members[order], starts, axis=1) for members in (labels, ~labels)
    )  # the weights of each group, from the highest score to the lowest
    area = (false * (true.cumsum(axis=1) - true / 2)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = area / (true.sum(axis=1) * false.sum(axis=1))
    return found


def _calibration_error(probability: Numbers, labels: Mask, weights: Numbers) -> Numbers:
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    members = bins[:, None] == np.arange(BINS)
    distance = weights @ (members * (probability - labels)[:, None])
    error: Numbers = np.abs(distance).sum(axis=1) / weights.sum(axis=1)
    return error

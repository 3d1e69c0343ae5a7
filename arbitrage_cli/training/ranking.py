"""Measures how well a score identifies the steps that the target would improve, with confidence intervals across problems.

A higher score is a stronger reason to escalate. Ties are treated as if broken at random. All functions process many
resamples at once. `weights`, of shape (r, n), counts how often each resample contains each state.
"""

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

MEASURES = ("auc", "spearman", "ece")
"""AUC for predicting an advantage, rank correlation of score and advantage, and expected calibration error."""


class Figure(NamedTuple):
    """A value with its 95% confidence interval across problems."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The advantage of each state, and the index of the state's problem. Only `selection_score` uses `weight`."""

    advantage: Numbers
    is_better: NDArray[np.bool_]
    problem: NDArray[np.int64]
    weight: Numbers | None = None


def measure(score: Numbers, truth: Truth, *, is_probability: bool = False) -> dict[str, Figure]:
    """Return all `MEASURES` of a score. The measures have no intervals if there is only one problem."""
    measured = [_measure(score, truth, weights, is_probability) for weights in resampled_weights(truth.problem, RESAMPLES)]
    values = np.concatenate(measured if len(np.unique(truth.problem)) > 1 else measured[:1])
    return {name: _figure(values[:, index]) for index, name in enumerate(MEASURES)}


def selection_score(score: Numbers, truth: Truth) -> float:
    """Return the mean of two measures: the AUC and the mean recall at RATES. Return NaN unless both classes occur."""
    return float(_selection_scores(score, truth, np.ones((1, len(score))))[0])


def selection_score_gaps(better: Numbers, worse: Numbers, truth: Truth) -> Numbers:
    """Return the first selection score minus the second for each resample, with shape (RESAMPLES,)."""
    gaps = [
        _selection_scores(better, truth, weights) - _selection_scores(worse, truth, weights)
        for weights in resampled_weights(truth.problem, RESAMPLES)
    ]
    return np.concatenate(gaps)[1:]


def selection_lead(better: Numbers, worse: Numbers, truth: Truth) -> Figure:
    lead = selection_score(better, truth) - selection_score(worse, truth)
    gaps = selection_score_gaps(better, worse, truth) if len(np.unique(truth.problem)) > 1 else ()
    return _figure(np.array([lead, *gaps]))


def resampled_weights(problem: NDArray[np.int64], resamples: int) -> Iterator[Numbers]:
    """Yield batches of weights, given each row's problem: first all ones, then how often each row's problem was drawn."""
    _, index = np.unique(problem, return_inverse=True)
    count = int(index.max()) + 1
    generator = np.random.default_rng(SEED)
    yield np.ones((1, len(problem)))
    batch = max(1, MAX_CELLS // len(problem))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        yield generator.multinomial(count, np.full(count, 1 / count), size).astype(np.float64)[:, index]


def _figure(values: Numbers) -> Figure:
    if not np.isfinite(values[0]):
        return Figure(None)
    others = values[1:][np.isfinite(values[1:])]
    if len(others) < 0.9 * RESAMPLES:
        return Figure(float(values[0]))
    low, high = np.percentile(others, [2.5, 97.5])
    return Figure(float(values[0]), float(low), float(high))


class _Ranking:
    """Computes running sums over the states, from the highest score to the lowest, with shape (r, groups + 1).

    Ties form one group.
    """

    def __init__(self, score: Numbers, weights: Numbers) -> None:
        self._order = np.argsort(-score, kind="stable")
        falling = score[self._order]
        self._starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
        self._weights = weights[:, self._order]
        self.total = self.sums(np.ones(len(score)))

    def sums(self, values: Numbers) -> Numbers:
        grouped = np.add.reduceat(self._weights * values[self._order], self._starts, axis=1)
        return np.concatenate([np.zeros((len(grouped), 1)), grouped.cumsum(axis=1)], axis=1)

    def at_rates(self, sums: Numbers) -> Numbers:
        pairs = zip(self.total, sums, strict=True)
        return np.array([np.interp(np.multiply(RATES, total[-1]), total, running) for total, running in pairs])

    def ranks(self) -> Numbers:
        """Return the ranks of the states in each resample, starting with the highest score.

        Tied states share their mean rank.
        """
        middles = (self.total[:, 1:] + self.total[:, :-1]) / 2
        lengths = np.diff(self._starts, append=len(self._order))
        ranks = np.empty_like(self._weights)
        ranks[:, self._order] = np.repeat(middles, lengths, axis=1)
        return ranks


def _measure(score: Numbers, truth: Truth, weights: Numbers, is_probability: bool) -> Numbers:
    ranking, oracle = _Ranking(score, weights), _Ranking(truth.advantage, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            _auc(ranking, truth),
            _correlation(ranking.ranks(), oracle.ranks(), weights),
            _calibration_error(score, truth.is_better, weights, is_probability),
        ]
    return np.stack(columns, axis=1)


def _selection_scores(score: Numbers, truth: Truth, weights: Numbers) -> Numbers:
    ranking = _Ranking(score, weights if truth.weight is None else weights * truth.weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: Numbers = (_recalls(ranking, truth).mean(axis=1) + _auc(ranking, truth)) / 2
    return scores


def _auc(ranking: _Ranking, truth: Truth) -> Numbers:
    """Return the area under the ROC curve. Each tie counts as half."""
    better, others = ranking.sums(truth.is_better.astype(np.float64)), ranking.sums((~truth.is_better).astype(np.float64))
    area = (np.diff(others, axis=1) * (better[:, 1:] + better[:, :-1]) / 2).sum(axis=1)
    auc: Numbers = area / (better[:, -1] * others[:, -1])
    return auc


def _recalls(ranking: _Ranking, truth: Truth) -> Numbers:
    better = ranking.sums(truth.is_better.astype(np.float64))
    recalls: Numbers = ranking.at_rates(better) / better[:, -1:]
    return recalls


def _correlation(first: Numbers, second: Numbers, weights: Numbers) -> Numbers:
    total = weights.sum(axis=1, keepdims=True)
    a = first - (weights * first).sum(axis=1, keepdims=True) / total
    b = second - (weights * second).sum(axis=1, keepdims=True) / total
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    correlation: Numbers = (weights * a * b).sum(axis=1) / spread
    return np.where(spread > 0, correlation, np.nan)


def _calibration_error(
    probability: Numbers, is_better: NDArray[np.bool_], weights: Numbers, is_probability: bool
) -> Numbers:
    if not is_probability:
        return np.full(len(weights), np.nan)
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    members = bins[:, None] == np.arange(BINS)
    distance = weights @ (members * (probability - is_better)[:, None])
    error: Numbers = np.abs(distance).sum(axis=1) / weights.sum(axis=1)
    return error

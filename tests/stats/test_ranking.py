"""How numbers are measured: against definitions in a few plain lines, and against scikit-learn where it has the measure."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from arbitrage_cli.stats.ranking import (
    BINS,
    Truth,
    best_threshold,
    measure,
    selection_score,
)

Numbers = NDArray[np.float64]


def make(count: int = 400, seed: int = 0, *, rounded: bool = True) -> tuple[Numbers, Truth]:
    """Calibrated probabilities, with ties if rounded, and what is true; five states a problem."""
    rng = np.random.default_rng(seed)
    probability = 1 / (1 + np.exp(-rng.normal(-1, 1.5, count)))
    is_better = rng.random(count) < probability
    advantage = np.where(is_better, rng.uniform(0.1, 1, count), -rng.uniform(0, 0.5, count).round(1))
    return probability.round(2) if rounded else probability, Truth(advantage, is_better, np.arange(count) // 5)


def value(name: str, number: Numbers, truth: Truth, threshold: float = 0.5) -> float:
    found = measure(number, truth, threshold, is_probability=True)[name].value
    assert found is not None
    return found


def test_auc_and_spearman_are_those_of_the_libraries() -> None:
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    number, truth = make()
    assert value("auc", number, truth) == pytest.approx(metrics.roc_auc_score(truth.is_better, number))
    assert value("spearman", number, truth) == pytest.approx(stats.spearmanr(number, truth.advantage).statistic)


def test_recall_counts_the_highest() -> None:
    """At 20%: of the steps with an advantage, those among the highest fifth."""
    number, truth = make(rounded=False)
    highest = np.argsort(-number)[: len(number) // 5]
    assert value("recall_20", number, truth) == pytest.approx(truth.is_better[highest].sum() / truth.is_better.sum())


def test_oracle_share_is_gain_over_gain() -> None:
    """What escalating the highest gains over a random choice of as many, by what the oracle's choice gains."""
    number, truth = make(rounded=False)
    count = len(number) * 3 // 10
    random = truth.advantage.mean() * count
    gain = truth.advantage[np.argsort(-number)[:count]].sum() - random
    best = np.sort(truth.advantage)[-count:].sum() - random
    assert value("oracle_share_30", number, truth) == pytest.approx(gain / best)


def test_accuracies_are_of_each_class() -> None:
    """At the threshold, strictly above it: what should be accepted, and what should be escalated."""
    number, truth = make()
    accepted, escalated = number <= 0.5, number > 0.5
    assert value("accept_accuracy", number, truth) == pytest.approx(accepted[~truth.is_better].mean())
    assert value("escalate_accuracy", number, truth) == pytest.approx(escalated[truth.is_better].mean())


def test_calibration_error_is_over_ten_bins() -> None:
    number, truth = make()
    error = 0.0
    for low in range(BINS):
        inside = np.minimum((number * BINS).astype(int), BINS - 1) == low
        if inside.any():
            error += inside.mean() * abs(number[inside].mean() - truth.is_better[inside].mean())
    assert value("ece", number, truth) == pytest.approx(error)


def test_intervals_are_over_problems() -> None:
    """States of one problem are no independent witnesses: the same states in fewer problems have wider intervals."""
    number, truth = make(600)
    fewer = Truth(truth.advantage[::10].repeat(10), truth.is_better[::10].repeat(10), np.arange(600) // 10)
    apart = Truth(fewer.advantage, fewer.is_better, np.arange(600))
    wide, narrow = (measure(number[::10].repeat(10), one, 0.5)["auc"] for one in (fewer, apart))
    assert wide.value == narrow.value
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_interval_covers_the_truth() -> None:
    """Of many samples, about 95 in 100 intervals of the AUC hold what a large sample says."""
    number, truth = make(40_000, 1000, rounded=False)
    large = pytest.importorskip("sklearn.metrics").roc_auc_score(truth.is_better, number)
    found = [measure(*make(200, seed, rounded=False), 0.5)["auc"] for seed in range(12)]
    covered = sum(one.low <= large <= one.high for one in found if one.low is not None and one.high is not None)
    assert covered >= 9


def test_one_class_only() -> None:
    found = measure(np.arange(10.0), Truth(np.zeros(10), np.zeros(10, bool), np.arange(10)), 0.5)
    assert (found["auc"].value, found["recall_20"].value, found["escalate_accuracy"].value) == (None, None, None)
    assert found["accept_accuracy"].value == 0.1


def test_merit_counts_by_weight() -> None:
    number, truth = make(300)
    times = np.arange(300) % 3 + 1
    weighted = Truth(truth.advantage, truth.is_better, truth.problem, times.astype(np.float64))
    repeated = Truth(truth.advantage.repeat(times), truth.is_better.repeat(times), truth.problem.repeat(times))
    assert selection_score(number, weighted) == pytest.approx(selection_score(number.repeat(times), repeated))
    assert selection_score(number, weighted) != pytest.approx(selection_score(number, truth))


def test_best_threshold_has_the_highest_mean_accuracy() -> None:
    number, truth = make()
    better, others = number[truth.is_better], number[~truth.is_better]

    def mean_accuracy(threshold: float) -> float:
        return float(np.mean(better > threshold) + np.mean(others <= threshold)) / 2

    best = mean_accuracy(best_threshold(number, truth.is_better))
    assert best == pytest.approx(max(mean_accuracy(threshold) for threshold in [-1, *number]))
    assert math.isfinite(best_threshold(np.zeros(3), np.array([True, True, True])))

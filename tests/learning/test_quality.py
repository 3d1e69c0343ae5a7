"""Ranking measures, compared with short definitions and with scikit-learn."""

import numpy as np
import pytest
from numpy.typing import NDArray

from arbitrage_cli.learning.quality import BINS, Truth, auc, measure

Numbers = NDArray[np.float64]


def make(count: int = 400, seed: int = 0, *, rounded: bool = True) -> tuple[Numbers, Truth]:
    """Return calibrated probabilities, with ties if rounded, and true outcomes, with five states per problem."""
    rng = np.random.default_rng(seed)
    probability = 1 / (1 + np.exp(-rng.normal(-1, 1.5, count)))
    is_better = rng.random(count) < probability
    return probability.round(2) if rounded else probability, Truth(is_better, np.arange(count) // 5)


def value(name: str, number: Numbers, truth: Truth) -> float:
    found = measure(number, truth, is_probability=True)[name].value
    assert found is not None
    return found


def test_auc_is_that_of_the_library() -> None:
    metrics, (number, truth) = pytest.importorskip("sklearn.metrics"), make()
    assert value("auc", number, truth) == pytest.approx(metrics.roc_auc_score(truth.labels, number))


def test_calibration_error_is_over_ten_bins() -> None:
    number, truth = make()
    error = 0.0
    for low in range(BINS):
        inside = np.minimum((number * BINS).astype(int), BINS - 1) == low
        if inside.any():
            error += inside.mean() * abs(number[inside].mean() - truth.labels[inside].mean())
    assert value("ece", number, truth) == pytest.approx(error)


def test_intervals_are_over_problems() -> None:
    """States of one problem are not independent, so the same states in fewer problems have wider intervals."""
    number, truth = make(600)
    fewer = Truth(truth.labels[::10].repeat(10), np.arange(600) // 10)
    apart = Truth(fewer.labels, np.arange(600))
    wide, narrow = (measure(number[::10].repeat(10), one)["auc"] for one in (fewer, apart))
    assert wide.value == narrow.value
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_interval_covers_the_truth() -> None:
    number, truth = make(40_000, 1000, rounded=False)
    large = pytest.importorskip("sklearn.metrics").roc_auc_score(truth.labels, number)
    found = [measure(*make(200, seed, rounded=False))["auc"] for seed in range(12)]
    covered = sum(one.low <= large <= one.high for one in found if one.low is not None and one.high is not None)
    assert covered >= 9


def test_one_class_only() -> None:
    assert measure(np.arange(10.0), Truth(np.zeros(10, bool), np.arange(10)))["auc"].value is None


def test_states_count_by_weight() -> None:
    number, truth = make(300)
    times = np.arange(300) % 3 + 1
    weighted = Truth(truth.labels, truth.problem, times.astype(np.float64))
    repeated = Truth(truth.labels.repeat(times), truth.problem.repeat(times))
    assert auc(number, weighted) == pytest.approx(auc(number.repeat(times), repeated))
    assert auc(number, weighted) != pytest.approx(auc(number, truth))

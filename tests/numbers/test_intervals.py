"""Intervals, compared with published values and with their coverage in simulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.numbers.intervals import (
    MIN_FOR_RATIO,
    Numbers,
    log_ratio,
    paired_difference,
    wilson,
)

cells = st.integers(0, 60)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # the first four: Newcombe, Statistics in Medicine 17 (1998), 857-872, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_has_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_between_0_and_1(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    interval = wilson(successes, trials)
    assert interval is not None
    low, high = interval
    assert 0 <= low <= successes / trials <= high <= 1
    assert high > low


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # the first two: Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10
        ((18, 12, 2, 18), 0.0562, 0.3290),  # its correlation is positive, and drawn towards 0
        ((53, 0, 0, 0), -0.0676, 0.0676),
    ],
)
def test_paired_difference_has_the_published_values(table: tuple[int, int, int, int], low: float, high: float) -> None:
    assert paired_difference(*table) == pytest.approx((low, high), abs=5e-5)


@given(cells, cells, cells, cells)
def test_paired_difference_turns_over_with_its_order(both: int, first: int, second: int, neither: int) -> None:
    interval = paired_difference(both, first, second, neither)
    if interval is None:
        assert both + first + second + neither == 0
        return
    difference = (first - second) / (both + first + second + neither)
    assert interval[0] - 1e-12 <= difference <= interval[1] + 1e-12
    assert paired_difference(both, second, first, neither) == pytest.approx((-interval[1], -interval[0]))


def test_log_ratio_has_the_values_of_a_jackknife_and_of_student() -> None:
    """With equal denominators and numerators 1 +- d, the jackknife has a closed form; all problems have equal weights."""
    table = np.ones((20, 2))
    table[::2, 0], table[1::2, 0] = 1.0001, 0.9999
    error, interval = log_ratio(table)
    assert error is not None
    assert interval is not None
    assert error == pytest.approx(1e-4 / math.sqrt(19), rel=1e-3)
    assert interval == pytest.approx((1 - 2.093 * error, 1 + 2.093 * error), abs=1e-7)  # 19 degrees of freedom
    assert log_ratio(table[:, ::-1])[1] == pytest.approx((1 / interval[1], 1 / interval[0]))


@pytest.mark.parametrize("count", [2, 14, 15])
def test_log_ratio_of_few_problems_has_an_error_but_no_interval(count: int) -> None:
    table = np.random.default_rng(count).lognormal(size=(count, 2))
    alone, _ = log_ratio(table)
    error, interval = log_ratio(table, 0.3)
    assert alone is not None
    assert error == pytest.approx(math.hypot(alone, 0.3))
    assert (interval is not None) == (count >= MIN_FOR_RATIO)


@pytest.mark.parametrize(
    "table",
    [
        np.ones((1, 2)),
        np.array([[2.0, 0.0], [1.0, 0.0]]),
        np.array([[2.0, 1.0], *([[1.0, 0.0]] * 20)]),  # all of a sum comes from one problem
        np.empty((0, 2)),
    ],
)
def test_log_ratio_of_one_problem_or_of_no_time_is_unknown(table: Numbers) -> None:
    assert log_ratio(table) == (None, None)


def test_log_ratio_has_no_interval_if_one_problem_determines_a_sum() -> None:
    table = np.ones((20, 2))
    table[0] = 1e6
    error, interval = log_ratio(table)
    assert error == pytest.approx(0.0)
    assert interval is None

"""Computes 95% confidence intervals for proportions, differences of proportions, and ratios of sums."""

import math

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.types import frozen

Interval = tuple[float, float]
Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

MIN_FOR_RATIO = 15  # with fewer problems, the intervals of ratios cover less than they claim
SEED = 0  # of random draws, so that identical data produce identical figures
Z = 1.959963984540054  # the 97.5% quantile of the normal distribution


@frozen
class Ratio:
    """A quotient. `value` is None if the denominator is 0."""

    numerator: float
    denominator: float

    @property
    def value(self) -> float | None:
        return self.numerator / self.denominator if self.denominator > 0 else None


def wilson(successes: float, trials: float) -> Interval | None:
    """Return Wilson's score interval for a proportion, or None if there are no trials.

    E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if trials <= 0:
        return None
    share = successes / trials
    scale = 1 + Z**2 / trials
    center = (share + Z**2 / (2 * trials)) / scale
    reach = Z / scale * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    low = 0.0 if successes == 0 else center - reach
    high = 1.0 if successes == trials else center + reach
    return low, high


def paired_difference(both: float, first_only: float, second_only: float, neither: float) -> Interval | None:
    """Return the interval for the difference of two proportions of the same trials, or None if there are no trials.

    This is Newcombe's hybrid of two Wilson intervals (method 10 in Statistics in Medicine 17 (1998), 2635-2650). It
    has a positive width even if no trial differs.
    """
    trials = both + first_only + second_only + neither
    first = wilson(both + first_only, trials)
    second = wilson(both + second_only, trials)
    if first is None or second is None:
        return None
    share_1, share_2 = (both + first_only) / trials, (both + second_only) / trials
    phi = _correlation(both, first_only, second_only, neither)
    below = _joined(share_1 - first[0], second[1] - share_2, phi)
    above = _joined(first[1] - share_1, share_2 - second[0], phi)
    return share_1 - share_2 - below, share_1 - share_2 + above


def _joined(reach_1: float, reach_2: float, phi: float) -> float:
    return math.sqrt(max(0.0, reach_1**2 - 2 * phi * reach_1 * reach_2 + reach_2**2))


def _correlation(both: float, first_only: float, second_only: float, neither: float) -> float:
    spread = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if not spread:
        return 0.0
    excess = both * neither - first_only * second_only
    if excess > 0:
        excess = max(0.0, excess - (both + first_only + second_only + neither) / 2)
    return excess / math.sqrt(spread)


def log_ratio(table: Numbers, common: float = 0.0) -> tuple[float | None, Interval | None]:
    """Return the standard error of the logarithm of a ratio of sums, and the interval of the ratio.

    The rows of `table` are problems. Its columns are the numerator and the denominator. The error is a jackknife over
    problems. `common`, the standard deviation of an error that all problems share, is added in quadrature. Both results are
    None for a single problem, or if a sum is 0 without one of the problems.

    A few long problems determine most of a sum, so the degrees of freedom of Student's t distribution are computed from the
    effective number of problems (Kish, Survey Sampling, 1965). The interval is None for fewer than MIN_FOR_RATIO problems, and
    if this number is below 2.
    """
    count = len(table)
    sums = table.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        without_one = np.log(sums - table) @ [1, -1]
    if count < 2 or not np.isfinite(without_one).all():
        return None, None
    error = math.hypot(math.sqrt((count - 1) * without_one.var()), common)
    freedom = 1 / float(((table / sums) ** 2).sum(axis=0).max()) - 1
    if count < MIN_FOR_RATIO or freedom < 1:
        return error, None
    ratio = float(sums[0] / sums[1])
    factor = math.exp(_student(freedom) * error)
    return error, (ratio / factor, ratio * factor)


def _student(freedom: float) -> float:
    """Return the 97.5% quantile of Student's t distribution, approximately (D. L. Wallace, Ann. Math. Stat. 30 (1959),
    1121-1130).

    The error is below 0.1% from 9 degrees of freedom on, and 4% for 2 degrees of freedom.
    """
    normal = Z * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(normal**2 / freedom))

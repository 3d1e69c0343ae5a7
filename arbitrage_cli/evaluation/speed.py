"""Seconds of a policy, against the target alone on the same problems, and where they went. Knows no accuracy."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arbitrage_cli.runs.results import PolicyResults, Result, sums_by_problem
from arbitrage_cli.stats.intervals import Floats, Interval, Ratio, bootstrap, ratio_of_sums

MIN_PROBLEMS = 5
"""With fewer there is nothing to resample a ratio of times from."""

SPEEDUP_BINS = tuple(2.0 ** (quarter / 4) for quarter in range(-12, 13))
"""Edges of the histogram of `problem_speedups`: quarters of an octave from 1/8 to 8. The end bins hold what is outside."""

PERCENTILES = (10, 25, 50, 75, 90)

Pairs = Sequence[tuple[Result, Result]]
"""The policy's result and the target's, of each attempt that both finished."""


def seconds(policy: PolicyResults) -> dict[str, Any]:
    """Mean, median and 90th percentile over the finished attempts."""
    values = [_seconds_of(result) for result in policy.done]
    median, p90 = map(float, np.percentile(values, [50, 90])) if values else (None, None)
    return {"seconds_mean": Ratio(math.fsum(values), len(values)), "seconds_median": median, "seconds_p90": p90}


def speedups(pairs: Pairs) -> dict[str, Any]:
    """The speed-up over all problems."""
    value, interval = speedup(pairs, _seconds_of)
    return {"speedup": value, "speedup_interval": interval}


def speedup(pairs: Pairs, cost: Callable[[Result], float]) -> tuple[Ratio | None, Interval | None]:
    """Cost of the target alone / of the policy. No interval from few problems, nor for the target against itself."""
    if not pairs:
        return None, None
    table = _table(pairs, cost)
    can_vary = len(table) >= MIN_PROBLEMS and not np.array_equal(*table.T)
    return Ratio(*(math.fsum(column) for column in table.T)), bootstrap(table, ratio_of_sums) if can_vary else None


def problem_speedups(pairs: Pairs) -> dict[str, Any] | None:
    """How the speed-ups of single problems are distributed; None if none has a time."""
    table = _table(pairs, _seconds_of)
    timed = table[(table > 0).all(axis=1)]
    if not len(timed):
        return None
    ratios = ratio_of_sums(timed)
    points = zip(PERCENTILES, np.percentile(ratios, PERCENTILES), strict=True)
    clipped = np.clip(ratios, SPEEDUP_BINS[0], np.nextafter(SPEEDUP_BINS[-1], 0))
    return {
        "n": len(ratios),
        "slower": int((ratios < 1).sum()),
        "min": float(ratios.min()),
        **{f"p{percent}": float(value) for percent, value in points},
        "max": float(ratios.max()),
        "counts": np.histogram(clipped, SPEEDUP_BINS)[0].tolist(),
    }


def time_parts(policy: PolicyResults) -> dict[str, float]:
    """Seconds of the finished attempts, by what they were spent on."""
    done = policy.done
    parts = {
        f"{model}_{kind}": math.fsum(getattr(getattr(one.tally, f"{model}_cost"), f"{kind}_seconds") for one in done)
        for model in ("draft", "target")
        for kind in ("decode", "prefill", "verify")
    }
    parts["router"] = math.fsum(one.router_seconds for one in done)
    parts["reward"] = math.fsum(one.reward_seconds for one in done)
    wall = math.fsum(one.share.seconds if one.share else _seconds_of(one) for one in done)
    return {"wall": wall, **parts, "rest": wall - math.fsum(parts.values())}


def _seconds_of(result: Result) -> float:
    return result.seconds or 0.0


def _table(pairs: Pairs, cost: Callable[[Result], float]) -> Floats:
    """Costs of the target alone and of the policy, one row a problem."""
    return sums_by_problem(((one.key[0], [cost(alone), cost(one)]) for one, alone in pairs), 2)

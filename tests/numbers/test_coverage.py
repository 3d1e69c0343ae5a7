"""The true coverage of 95% intervals of speed-ups, on simulated problems.

To print the table in `tests/benchmarks/README.md`: python -m pytest -s -m slow tests/numbers/test_coverage.py
"""

import math

import numpy as np
import pytest

from arbitrage_cli.numbers.intervals import Numbers, log_ratio

DESIGNS = {  # standard deviations of log time and of the log speed-up, and the share of problems without escalation
    "speculation": (0.5, 0.1, 0.0),
    "routing": (0.6, 0.3, 0.0),
    "wide": (0.8, 0.5, 0.0),
    "half of the problems escalate": (0.6, 0.1, 0.5),
    "15% of the problems escalate": (0.6, 0.1, 0.85),
}
COVERED = [*DESIGNS][:-1]  # a small sample of the last design often contains no slow problem
COST_ERROR = 0.05


def draw(generator: np.random.Generator, count: int, design: str) -> Numbers:
    """Return the seconds of the target and of the policy on each problem."""
    sd_time, sd_ratio, easy = DESIGNS[design]
    target = generator.lognormal(0.0, sd_time, count)
    middle = np.where(generator.random(count) < easy, math.log(5.6), math.log(1.3)) if easy else math.log(1.5)
    return np.stack([target, target / np.exp(generator.normal(middle, sd_ratio, count))], axis=1)


def coverage(design: str, count: int, simulations: int, cost_error: float) -> tuple[float, float]:
    """Return the share of intervals that contain the true speed-up, and the mean ratio of their ends."""
    generator = np.random.default_rng(5)
    target, policy = draw(generator, 2_000_000, design).sum(axis=0)
    hits, width = 0, 0.0
    for _ in range(simulations):
        table = draw(generator, count, design) * [math.exp(generator.normal(0.0, cost_error)), 1.0]
        _, interval = log_ratio(table, cost_error)
        if interval is None:
            continue
        low, high = interval
        hits += low <= target / policy <= high
        width += math.log(high / low)
    return hits / simulations, math.exp(width / simulations)


@pytest.mark.parametrize("cost_error", [0.0, COST_ERROR])
@pytest.mark.parametrize("count", [15, 40])
@pytest.mark.parametrize("design", COVERED)
def test_intervals_cover_what_they_claim(design: str, count: int, cost_error: float) -> None:
    assert coverage(design, count, 1500, cost_error)[0] >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_table_of_coverage(design: str) -> None:
    for cost_error in (0.0, COST_ERROR):
        found = [coverage(design, count, 10_000, cost_error) for count in (15, 16, 25, 40, 100)]
        cells = " | ".join(f"{100 * share:.1f} ({width:.2f}x)" for share, width in found)
        print(f"\n| {design}, {cost_error:.0%} | {cells} |", end="")  # noqa: T201
        assert design not in COVERED or min(share for share, _ in found) >= 0.93

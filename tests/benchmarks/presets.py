"""Compare the expected and the true loss of preset `careful` in simulations.

Usage: python tests/benchmarks/presets.py [--tables 300] [--solutions 54 120 700] [--seed 0]

Simulated solutions have five steps. The target solves 75% of the problems. A drafted step spoils a right solution with a
probability that the router knows up to noise, and corrects 2% of the wrong ones. Rewards are shares of sampled rollouts.

Each table of taus is computed from the given number of solutions. The true loss of its preset is computed from 40,000 other
solutions. "expectation alone" shows the preset that would be chosen without regard to the interval.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.training.taus import Outcomes, make_table, spread_taus
from arbitrage_cli.types import frozen

STEPS = 5
SOLVED, LIFTED = 0.75, 0.02
# The probability that a rollout continues a right solution to the right answer, or a wrong one to a wrong one.
CERTAIN = 0.95
SAME_TEXT = 0.6  # share of drafted steps with the target's text, if they neither spoil nor correct a solution
COSTS = PairCosts(UnitCosts((0.15,) * 5, 0.005), UnitCosts((1.0, 1.2, 1.6, 2.4, 4.0), 0.02))
POINTS = (0.5, 1.0, 2.0)


@frozen
class World:
    """The log-odds that a drafted step spoils a right solution: `base + insight * z` (known to the router), `bias` and noise."""

    base: float
    insight: float
    bias: float = 0.0
    rollouts: int = 4

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Numbers, Numbers]:
        """Return the router's probabilities and the true probabilities of `count` steps."""
        known = self.base + self.insight * rng.normal(size=count)
        return _sigmoid(known), _sigmoid(known + self.bias + rng.normal(size=count))

    def outcomes(self, rng: np.random.Generator, solutions: int) -> tuple[Numbers, Outcomes]:
        count = solutions * STEPS
        probability, spoils = self.draw(rng, count)
        is_right = np.repeat(rng.random(solutions) < SOLVED, STEPS)
        is_spoiled, is_lifted = rng.random(count) < spoils, rng.random(count) < LIFTED
        target = self.reward(rng, is_right)
        is_same = ~is_spoiled & ~is_lifted & (rng.random(count) < SAME_TEXT)
        draft = np.where(is_same, target, self.reward(rng, np.where(is_right, ~is_spoiled, is_lifted)))
        index, tokens = np.repeat(np.arange(solutions), STEPS), rng.integers(15, 45, count).astype(float)
        is_written = np.full(count, fill_value=True)
        columns = draft, target, tokens, tokens + 2, np.full(count, 80.0), 0.7 * tokens, is_written
        return probability, Outcomes(index, index, *columns)

    def reward(self, rng: np.random.Generator, is_right: NDArray[np.bool_]) -> Numbers:
        return rng.binomial(self.rollouts, np.where(is_right, CERTAIN, 1 - CERTAIN)) / self.rollouts


def _sigmoid(log_odds: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-log_odds)))


WORLDS = {
    "informative router": World(-3.6, 1.8),
    "weak router": World(-3.2, 0.6),
    "informative, one rollout": World(-3.6, 1.8, rollouts=1),
    "weak, one rollout": World(-3.2, 0.6, rollouts=1),
    "overconfident router": World(-3.6, 1.8, bias=0.7),
    "draft almost as good": World(-5.0, 1.5),
}


def true_change(tau: float, probability: Numbers, spoils: Numbers) -> float:
    """Return the change in reward, in points, if all steps with a probability of at most tau are accepted."""
    accepted = (probability <= tau).reshape(-1, STEPS)
    gap = 2 * CERTAIN - 1
    kept = np.where(accepted, 1 - spoils.reshape(-1, STEPS), 1).prod(axis=1).mean()
    lifted = 1 - np.where(accepted, 1 - LIFTED, 1).prod(axis=1).mean()
    return float(100 * gap * (SOLVED * (kept - 1) + (1 - SOLVED) * lifted))


def row(table: TauTable, tau: float, *many: Numbers) -> tuple[float, float, float, bool]:
    """Return the true and the expected change, the share of escalated steps, and whether the interval is too optimistic."""
    found, change = table.row_at(tau), true_change(tau, *many)
    return change, found.change, found.escalation_rate, change < found.change_interval[0] - 1e-9


def report(label: str, rows: list[tuple[float, float, float, bool]]) -> None:
    changes, expected, escalated, missed = np.array(rows).T
    over = " ".join(f"{np.mean(changes < -points):6.1%}" for points in POINTS)
    print(
        f"  {label:24}{expected.mean():+6.2f}{changes.mean():+7.2f} ({changes.min():+.1f})   {over}{escalated.mean():8.0%}"
        f"{np.mean(escalated == 1):8.0%}{missed.mean():8.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=300)
    parser.add_argument("--solutions", type=int, nargs="+", default=[54, 120, 700])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print("change expected, true (worst); true loss over 0.5, 1, 2 points; steps escalated, all in; truth below interval")
    for name, world in WORLDS.items():
        many = world.draw(np.random.default_rng(1), 40_000 * STEPS)
        for solutions in options.solutions:
            drawn = [world.outcomes(rng, solutions) for _ in range(options.tables)]
            tables = [make_table(probability, outcomes, spread_taus(probability), COSTS) for probability, outcomes in drawn]
            print(f"{name}, {solutions} solutions")
            report("careful", [row(table, table.named["careful"], *many) for table in tables])
            report("expectation alone", [row(table, table.likely_careful.tau, *many) for table in tables])


if __name__ == "__main__":
    main()

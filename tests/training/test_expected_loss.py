"""The expected loss of accepted steps, in simulations whose losses are known."""

import functools
from typing import Any

import numpy as np
import pytest

from arbitrage_cli.training.taus import ExpectedLoss, Outcomes, make_table, spread_taus

Array = np.ndarray[Any, Any]
STEPS = 4
SOLVED, LIFTED = 0.8, 0.02  # by the target alone; what an accepted step saves of the others


def world(problems: int, seed: int, *, odds: float = 1.0) -> tuple[Array, Array, Array, Array]:
    """Return probabilities, rewards and solutions. An accepted step loses a right solution at `odds` times p's odds."""
    rng = np.random.default_rng(seed)
    solution = np.repeat(np.arange(problems), STEPS)
    probability = rng.beta(0.4, 2.5, len(solution))
    alone = np.repeat(rng.random(problems) < SOLVED, STEPS)
    drops = rng.random(len(solution)) < odds * probability / (1 - probability + odds * probability)
    lifts = rng.random(len(solution)) < LIFTED
    lifted = (lifts & ~alone).reshape(-1, STEPS)
    target = np.logical_or(alone, (np.cumsum(lifted, axis=1) > lifted).ravel())
    draft = np.where(target, ~drops, lifts)
    return probability, draft.astype(float), target.astype(float), solution


def outcomes_of(solution: Array, problem: Array, draft: Array, target: Array) -> Outcomes:
    none = np.zeros(len(solution))
    return Outcomes(solution, problem, draft, target, none, none, none, none, is_written=none == 0)


def expected(world: tuple[Array, Array, Array, Array], tau: float) -> tuple[float, float, float]:
    probability, draft, target, solution = world
    return ExpectedLoss(probability, outcomes_of(solution, solution, draft, target)).changes(probability <= tau)


@functools.cache
def truth(tau: float) -> float:
    probability, *_ = world(100_000, 99)
    rng = np.random.default_rng(1)
    chance = np.where(probability <= tau, probability, 0.0).reshape(-1, STEPS)
    reward = np.where(rng.random(len(chance)) < SOLVED, 1.0, 0.0)
    before = reward.mean()
    for step, accepted in zip(chance.T, (probability <= tau).reshape(-1, STEPS).T, strict=True):
        draw = rng.random(len(step))
        reward = np.where(reward > 0, draw >= step, accepted & (draw < LIFTED)).astype(float)
    return float(reward.mean() - before)


def test_nothing_accepted_loses_nothing() -> None:
    assert expected(world(50, 0), -1.0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_many_problems_show_the_loss(tau: float) -> None:
    """A solution is lost once, so the draft alone loses less than the sum over its bad steps."""
    change, low, high = expected(world(1500, 1), tau)
    assert change == pytest.approx(truth(tau), abs=0.015)
    assert low < change < high


@pytest.mark.parametrize("odds", [0.2, 5.0])
def test_many_problems_correct_a_router_that_is_wrong(odds: float) -> None:
    states = world(1500, 2, odds=odds)
    probability, draft, target, solution = states
    seen = np.add.reduceat(np.where(probability <= 0.1, target - draft, 0.0), np.arange(0, len(solution), STEPS))
    assert expected(states, 0.1)[0] == pytest.approx(-np.minimum(seen, 1).mean(), abs=0.015)


def test_few_problems_are_not_luck() -> None:
    """With a calibrated router, the expected loss of 40 problems is closer to the truth than their observed loss."""
    tau, missed, seen = 0.1, [], []
    true = truth(tau)
    for seed in range(40):
        states = world(40, seed)
        probability, draft, target, _ = states
        missed.append(expected(states, tau)[0] - true)
        seen.append(-np.where(probability <= tau, target - draft, 0.0).sum() / 40 - true)
    assert np.abs(missed).mean() < 0.8 * np.abs(seen).mean()


def test_intervals_are_over_problems() -> None:
    probability, draft, target, solution = world(100, 3)
    widths = []
    again = np.concatenate([solution + 100 * copy for copy in range(4)])
    for problem in (solution, np.tile(solution, 4), again):
        copies = len(problem) // len(solution)
        number, drafted, written = (np.tile(one, copies) for one in (probability, draft, target))
        _, low, high = ExpectedLoss(number, outcomes_of(again[: len(problem)], problem, drafted, written)).changes(
            number <= 0.3
        )
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.3)  # the curves are surer, the problems are as few
    assert widths[2] < 0.65 * widths[1]


def test_interval_of_few_problems_is_as_wide_as_the_error() -> None:
    changes, lows, highs = np.array([expected(world(54, seed), 0.1) for seed in range(30)]).T
    assert 0.7 < np.mean(highs - lows) / (2 * 1.96) / np.std(changes) < 1.4


def test_careful_rarely_loses_more_than_a_point() -> None:
    """The tau of few solutions is not chosen for its luck: by the expected loss alone, this share is over 30%."""
    losses = []
    for seed in range(80):
        probability, draft, target, solution = world(54, seed)
        outcomes = outcomes_of(solution, solution, draft, target)
        losses.append(-100 * truth(make_table(probability, outcomes, spread_taus(probability), None).named["careful"]))
    assert np.mean(np.array(losses) > 1) < 0.05

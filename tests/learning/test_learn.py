"""Learning from examples that are not steps, and the file of what was learned."""

from typing import Any

import numpy as np
import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.learning.examples import FOLDS, Examples, fold_of
from arbitrage_cli.learning.file import decode, encode
from arbitrage_cli.learning.fitting import RECIPES, Recipe, calibrate
from arbitrage_cli.learning.learn import FittedRecipe, choose, learn
from arbitrage_cli.learning.network import Network, network_of, probability_of
from arbitrage_cli.learning.quality import Truth, auc, measure


def made_up(count: int, seed: int = 0) -> tuple[Examples, np.ndarray[Any, Any]]:
    """Return examples with 4 inputs, of 2 groups and 5 to a problem, and the probabilities of their labels."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, 4)).astype(np.float32)
    probability = 1 / (1 + np.exp(1 - inputs @ np.array([2.0, -1.0, 0.0, 0.5])))
    problem = np.arange(count) // 5
    fold = np.array([fold_of(f"problem {number}") for number in problem])
    return Examples(inputs, rng.random(count) < probability, problem, problem % 2, fold), probability


def test_a_network_is_learned_from_examples_that_are_not_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.learning.learn.RECIPES", [recipe for recipe in RECIPES if not recipe.units])
    examples, probability = made_up(3000)
    announced: list[str] = []
    learned = learn(examples, on_progress=announced.append)
    assert auc(learned.probability, examples.truth) > auc(probability, examples.truth) - 0.02
    error = measure(learned.probability, examples.truth, is_probability=True)["ece"].value
    assert error is not None
    assert error < 0.05
    assert len(announced) == len([recipe for recipe in RECIPES if not recipe.units]) + 1
    new, likely = made_up(1000, seed=1)
    assert probability_of(learned.network.log_odds(new.inputs).astype(np.float64)) == pytest.approx(likely, abs=0.1)
    arrays, card = decode(encode(learned.network, '{"name": "of no step"}'))
    assert card == {"name": "of no step"}
    assert (network_of(arrays, 4).log_odds(new.inputs) == learned.network.log_odds(new.inputs)).all()
    assert set(examples.fold) == set(range(FOLDS))


def test_what_nothing_can_be_learned_from_is_refused() -> None:
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=300)
    with pytest.raises(UsageError, match="learned nothing"):
        calibrate(log_odds, rng.random(300) < 1 / (1 + np.exp(log_odds)))


def test_calibration_finds_the_line() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(-1.5, 1.5, 40_000)
    is_better = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    assert calibrate(2 * true + 1, is_better) == pytest.approx((0.5, -0.5), abs=0.05)


def make_candidate(log_odds: np.ndarray[Any, Any], truth: Truth, units: int) -> FittedRecipe:
    size = 10
    layer = (np.zeros((size, units), np.float32), np.zeros(units, np.float32)) if units else None
    zeros = np.zeros(size, np.float32)
    network = Network(zeros, zeros + 1, np.zeros(units or size, np.float32), 0.0, layer)
    return FittedRecipe(Recipe(units, 1.0), [network], log_odds, log_odds, auc(log_odds, truth))


def test_smaller_router_wins_unless_the_larger_is_clearly_better() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=2000)
    is_better = rng.random(2000) < 1 / (1 + np.exp(2 - 2 * signal))
    truth = Truth(is_better, np.arange(2000) // 5)
    large = make_candidate(signal, truth, 64)
    near = make_candidate(signal + rng.normal(0, 0.02, 2000), truth, 0)
    far = make_candidate(signal + rng.normal(0, 1.0, 2000), truth, 0)
    assert choose([near, large], truth) is near
    assert choose([far, large], truth) is large
    assert choose([far, near, large], truth) is near

"""Learns a network from examples: fits several networks, then chooses, calibrates and measures one network.

Each recipe is cross-validated in FOLDS rounds. In each round, a network is fitted to all folds of the problems but two. One of
the two decides when fitting stops, which recipe is chosen, and how it is calibrated. The other only measures the network. Over
all rounds, each problem is measured once, by a network that does not know it. The result is the average of the networks. It
depends only on the examples and the seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arbitrage_cli.learning.examples import FOLDS, Examples
from arbitrage_cli.learning.fitting import RECIPES, Recipe, calibrate, fit
from arbitrage_cli.learning.network import Network, average, probability_of, standardiser
from arbitrage_cli.learning.quality import Truth, auc, auc_gaps
from arbitrage_cli.numbers.intervals import Numbers

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class FittedRecipe:
    """The networks of a recipe, one per round.

    `validated` and `measured`, of shape (n,), contain each example's log-odds in the round in which its problem belongs to the
    validation fold or to the test fold.
    """

    recipe: Recipe
    networks: Sequence[Network]
    validated: Numbers
    measured: Numbers
    auc: float


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A calibrated network, and its recipe.

    `probability`, of shape (n,), contains the probability that each example's label is true, according to a network that does
    not know its problem.
    """

    network: Network
    probability: Numbers
    recipe: Recipe


def learn(examples: Examples, *, seed: int = 0, on_progress: Announce = lambda text: None) -> Learned:
    """Learn a network. Raises UsageError if it learned nothing."""
    truth = examples.truth
    candidates: list[FittedRecipe] = []
    for recipe in RECIPES:
        on_progress(f"learning: {recipe.units or 'no'} hidden units, penalty {recipe.penalty:g}")
        candidates.append(cross_validate(examples, recipe, seed))
    chosen = choose(candidates, truth)
    on_progress("calibrating and measuring")
    slope, shift = calibrate(chosen.validated, truth.labels, truth.weight)
    network = average(chosen.networks).moved(slope, shift)
    return Learned(network, probability_of(slope * chosen.measured + shift), chosen.recipe)


def choose(candidates: Sequence[FittedRecipe], truth: Truth) -> FittedRecipe:
    """Return the first (simplest) candidate within one standard error of the best candidate on the validation folds.

    This is the one-standard-error rule of Breiman et al., Classification and Regression Trees (1984), section 3.4.3.
    """
    best = max(candidates, key=lambda candidate: candidate.auc)
    for candidate in candidates:
        gap, *resampled = auc_gaps(best.validated, candidate.validated, truth)
        if gap <= float(np.nanstd(resampled)):
            return candidate
    return best


def cross_validate(examples: Examples, recipe: Recipe, seed: int) -> FittedRecipe:
    blank = standardiser(examples.inputs)
    networks: list[Network] = []
    validated = np.empty(len(examples.fold))
    measured = np.empty(len(examples.fold))
    for number in range(FOLDS):
        testing = examples.fold == number
        validating = examples.fold == (number + 1) % FOLDS
        training = examples.balanced(~validating & ~testing)
        network = fit(recipe, blank, training, examples.balanced(validating), seed + number)
        log_odds = network.log_odds(examples.inputs)
        validated[validating] = log_odds[validating]
        measured[testing] = log_odds[testing]
        networks.append(network)
    return FittedRecipe(recipe, networks, validated, measured, auc(validated, examples.truth))

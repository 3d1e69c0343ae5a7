"""Fits and calibrates networks with scikit-learn."""

import importlib
import math
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.learning.network import Network
from arbitrage_cli.numbers.intervals import Mask, Numbers
from arbitrage_cli.types import frozen

INVERSE_PENALTIES = (0.001, 0.03, 1.0)  # C in scikit-learn's logistic regression
PENALTIES = (30.0, 8.0, 2.0)  # alpha in scikit-learn's networks
UNITS = 32
MAX_EPOCHS, PATIENCE, BATCH_SIZE, LEARNING_RATE = 100, 6, 256, 1e-3
MAX_ITERATIONS = 2000
SEEDS = 2**32  # scikit-learn's number of seeds

NO_PENALTY = 1e6  # as an inverse penalty
LEAST_SLOPE = 1e-3  # smallest slope of a calibration


@frozen
class Recipe:
    """The settings of a logistic regression (`units` is 0) or of a network with one hidden layer."""

    units: int
    penalty: float


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """Weighted examples: float32 inputs of shape (n, d), and labels and weights of shape (n,). The mean weight is 1."""

    inputs: Floats
    labels: Mask
    weights: Numbers


RECIPES: tuple[Recipe, ...] = (  # the simplest first
    *(Recipe(0, penalty) for penalty in INVERSE_PENALTIES),
    *(Recipe(UNITS, penalty) for penalty in PENALTIES),
)


def fit(recipe: Recipe, blank: Network, training: Weighted, validation: Weighted, seed: int) -> Network:
    """Fit a logistic regression or a network to inputs that `blank` standardises.

    Training of a network stops when the validation loss stops falling.
    """
    scaled = replace(training, inputs=blank.standardised(training.inputs))
    if not recipe.units:
        output, bias = _fit_line(scaled, recipe.penalty)
        return replace(blank, output=output.astype(np.float32), output_bias=bias)
    unseen = replace(validation, inputs=blank.standardised(validation.inputs))
    return _fit_units(recipe, blank, scaled, unseen, seed)


def calibrate(log_odds: Numbers, labels: Mask, weights: Numbers | float = 1.0) -> tuple[float, float]:
    """Return the slope and shift of Platt scaling (J. Platt, Probabilistic outputs for support vector machines, 1999).

    Raises UsageError if the slope is not positive.
    """
    examples = Weighted(log_odds[:, None].astype(np.float32), labels, np.ones(len(labels)) * weights)
    (slope,), bias = _fit_line(examples, NO_PENALTY)
    if slope < LEAST_SLOPE:
        raise UsageError(
            "the router learned nothing: its score does not rise with the labels of the validation set",
            "collect more states, or use another reward: arbitrage collect",
        )
    return float(slope), bias


def _sklearn(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise UsageError(f"cannot import scikit-learn ({error})", 'pip install "scikit-learn>=1.7"') from error


def _fit_line(examples: Weighted, inverse_penalty: float) -> tuple[Numbers, float]:
    model = _sklearn("linear_model").LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # The last digits do not matter: candidates are compared on other data.
        warnings.simplefilter("ignore", _sklearn("exceptions").ConvergenceWarning)
        model.fit(examples.inputs, examples.labels, sample_weight=examples.weights)
    return model.coef_[0], float(model.intercept_[0])


def _fit_units(recipe: Recipe, blank: Network, training: Weighted, validation: Weighted, seed: int) -> Network:
    """Return the network of the epoch with the least validation loss."""
    model = _sklearn("neural_network").MLPClassifier(
        hidden_layer_sizes=(recipe.units,),
        alpha=recipe.penalty,
        batch_size=min(BATCH_SIZE, len(training.labels)),
        learning_rate_init=LEARNING_RATE,
        random_state=np.random.RandomState(seed % SEEDS),  # a number would shuffle each epoch alike
    )
    least = math.inf
    waited = 0
    for epoch in range(MAX_EPOCHS):
        model.partial_fit(training.inputs, training.labels, classes=[False, True], sample_weight=training.weights)
        loss = _loss(model, validation)
        waited += 1
        if not epoch or loss < least:
            least = loss
            waited = 0
            weights, output = model.coefs_
            biases, output_bias = model.intercepts_
            best = replace(
                blank,
                layer=(weights.astype(np.float32), biases.astype(np.float32)),
                output=output[:, 0].astype(np.float32),
                output_bias=float(output_bias[0]),
            )
        if waited >= PATIENCE:
            break
    return best


def _loss(model: Any, examples: Weighted) -> float:
    probability = np.clip(model.predict_proba(examples.inputs)[:, 1].astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.average(np.log(np.where(examples.labels, probability, 1 - probability)), weights=examples.weights))

"""Learns a network and its calibration from arrays: inputs, labels, weights. scikit-learn does the fitting.

Knows no state, no problem and no file. What is learned is a function of the arrays and the seed.
"""

import importlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.features import Floats
from arbitrage_cli.routing.head import Curve, Network

Numbers = NDArray[np.float64]
Labels = NDArray[np.bool_]

Parameters = tuple[Floats, Floats, Floats, float]
"""Weights (d, h) and biases (h,) of the units, weights (h,) and bias of the output."""

Method = Literal["platt", "isotonic"]

INVERSE_PENALTIES = (0.001, 0.03, 1.0)  # of the logistic regression: scikit-learn's C
PENALTIES = (2.0, 8.0, 30.0)  # of a network with units: scikit-learn's alpha
UNITS = (32, 64)
MEMBERS = 3  # networks that are averaged in the end: one alone depends on its seed
MAX_EPOCHS, PATIENCE, BATCH_SIZE, LEARNING_RATE = 100, 6, 256, 1e-3
MAX_ITERATIONS = 2000
SEEDS = 2**32  # that scikit-learn has

CALIBRATION_FOLDS = 5
MIN_FOR_ISOTONIC = 400  # states: with fewer, its steps follow the noise
STATES_PER_STEP, MAX_STEPS = 50, 30  # of the isotonic curve, before those that fall are joined
BEYOND = 10.0  # log-odds: the curve goes on as Platt's does
LEAST_RISE = 1e-3  # log-odds between knots


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to fit: a logistic regression (no units), or a network with so many units in one layer."""

    units: int
    penalty: float

    @property
    def label(self) -> str:
        return f"network of {self.units}" if self.units else "logistic"


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs (n, d) float32, labels (n,), and what each example counts (n,), on average 1."""

    inputs: Floats
    labels: Labels
    weights: Numbers


RECIPES: tuple[Recipe, ...] = (
    *(Recipe(0, penalty) for penalty in INVERSE_PENALTIES),
    *(Recipe(units, penalty) for units in UNITS for penalty in PENALTIES),
)


def balanced(labels: Labels, importance: Numbers | None = None, groups: NDArray[np.int64] | None = None) -> Numbers:
    """Weights with which both classes of each group count the same in sum; within a class as important as given.

    1 on average, if each group has both classes. `groups` (n,) are numbers; without them all examples are one group.
    """
    weights = np.ones(len(labels)) if importance is None else importance.astype(np.float64)
    group = np.zeros(len(labels), np.int64) if groups is None else groups
    classes = [(group == number) & members for number in np.unique(group) for members in (labels, ~labels)]
    for members in classes:
        weights[members] *= len(labels) / len(classes) / max(weights[members].sum(), 1e-12)
    return weights


def fit(recipe: Recipe, training: Examples, validation: Examples, seed: int, members: int = 1) -> Network:
    """The network of a recipe. With units, it stops when the validation's loss does, and `members` of it are averaged."""
    mean = training.inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = training.inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    blank = Network(mean, np.where(spread > 1e-6, spread, 1).astype(np.float32), np.zeros_like(mean), 0.0)
    scaled = Examples(blank.standardised(training.inputs), training.labels, training.weights)
    if not recipe.units:
        output, bias = _fit_line(scaled, recipe.penalty)
        return Network(blank.mean, blank.scale, output.astype(np.float32), bias)
    unseen = Examples(blank.standardised(validation.inputs), validation.labels, validation.weights)
    fitted = [_fit_units(recipe, scaled, unseen, seed + member) for member in range(members)]
    weights, biases, outputs, output_biases = zip(*fitted, strict=True)
    return Network(
        blank.mean,
        blank.scale,
        (np.concatenate(outputs) / members).astype(np.float32),  # the mean of their log-odds, as one network
        float(np.mean(output_biases)),
        (np.ascontiguousarray(np.concatenate(weights, axis=1)), np.concatenate(biases)),
    )


# --- calibration


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationData:
    """What a calibration is made from: n uncalibrated log-odds, the labels, and what each counts (1 on average)."""

    log_odds: Numbers
    labels: Labels
    weights: Numbers

    def take(self, chosen: NDArray[Any]) -> "CalibrationData":
        return CalibrationData(self.log_odds[chosen], self.labels[chosen], self.weights[chosen])


def calibrate(
    log_odds: Numbers, labels: Labels, groups: NDArray[np.int64], weights: Numbers | None = None
) -> tuple[Method, Numbers]:
    """The knots (k, 2) of a curve from log-odds to calibrated ones, and how they were found.

    Platt's line, or an isotonic curve where it foretells groups (problems) better that it was not fitted to. UsageError if
    higher log-odds do not mean a higher share. `weights` are 1 on average; None: all are 1.
    """
    shown = CalibrationData(log_odds, labels, np.ones(len(labels)) if weights is None else weights)
    if _platt_line(shown)[0] < LEAST_RISE:
        raise UsageError(
            "nothing was learned: on problems not trained on, what was learned tells nothing of the advantage",
            "collect more states, or with another reward: arbitrage collect",
        )
    if len(labels) < MIN_FOR_ISOTONIC:
        return "platt", _platt(shown)
    losses: dict[Method, float] = {
        "platt": _held_out_loss(shown, groups, isotonic=False),
        "isotonic": _held_out_loss(shown, groups, isotonic=True),
    }
    if losses["isotonic"] < losses["platt"]:
        return "isotonic", _isotonic(shown)
    return "platt", _platt(shown)


def _platt(shown: CalibrationData) -> Numbers:
    """A line (J. Platt, Probabilistic outputs for support vector machines, 1999), as two knots."""
    slope, bias = _platt_line(shown)
    slope = max(slope, LEAST_RISE)  # of a part of the states it may fall
    return np.array([[-1.0, bias - slope], [1.0, bias + slope]])


def _platt_line(shown: CalibrationData) -> tuple[float, float]:
    examples = Examples(shown.log_odds[:, None].astype(np.float32), shown.labels, shown.weights)
    output, bias = _fit_line(examples, 1e6)
    return float(output[0]), bias


def _isotonic(shown: CalibrationData) -> Numbers:
    """Shares of as many states each, those that fall joined (pool adjacent violators), as knots at their mean log-odds."""
    order = np.argsort(shown.log_odds, kind="stable")
    parts = [shown.take(part) for part in np.array_split(order, min(MAX_STEPS, max(2, len(order) // STATES_PER_STEP)))]
    sizes = np.array([part.weights.sum() for part in parts])
    places = np.array([np.average(part.log_odds, weights=part.weights) for part in parts])
    shares = np.array([(part.weights[part.labels].sum() + 0.5) / (part.weights.sum() + 1) for part in parts])
    rising = _sklearn("isotonic").IsotonicRegression().fit_transform(places, shares, sample_weight=sizes)
    knots: list[tuple[float, float]] = []
    for share in np.unique(rising):
        members = rising == share
        knots.append((float(np.average(places[members], weights=sizes[members])), math.log(share / (1 - share))))
    slope, _ = _platt_line(shown)
    return np.array(list(_with_ends(knots, max(slope, LEAST_RISE))))


def _with_ends(knots: Sequence[tuple[float, float]], slope: float) -> Iterator[tuple[float, float]]:
    """Knots that rise enough to be told apart, and beyond them one more on each side, along a line of that slope."""
    x, y = knots[0]
    yield x - BEYOND, y - BEYOND * slope
    yield x, y
    for next_x, next_y in knots[1:]:
        if next_x - x > LEAST_RISE and next_y - y > LEAST_RISE:
            x, y = next_x, next_y
            yield x, y
    yield x + BEYOND, y + BEYOND * slope


def _held_out_loss(shown: CalibrationData, groups: NDArray[np.int64], *, isotonic: bool) -> float:
    """Weighted mean log loss of groups that the curve was not fitted to."""
    fold = np.unique(groups, return_inverse=True)[1] % CALIBRATION_FOLDS
    total = 0.0
    for held_out in range(CALIBRATION_FOLDS):
        inside, outside = shown.take(fold == held_out), shown.take(fold != held_out)
        if not len(inside.labels) or len(np.unique(outside.labels)) < 2:
            continue
        curve = Curve((_isotonic if isotonic else _platt)(outside))
        probability = np.array([curve(one) for one in inside.log_odds.tolist()])
        total -= float((inside.weights * np.log(np.where(inside.labels, probability, 1 - probability))).sum())
    return total / float(shown.weights.sum())


# --- scikit-learn


def _sklearn(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise UsageError(
            f"training needs scikit-learn, and it cannot be loaded ({error})", 'pip install "scikit-learn>=1.7"'
        ) from error


def _fit_line(examples: Examples, inverse_penalty: float) -> tuple[Numbers, float]:
    """Weights (d,) and bias of a logistic regression."""
    model = _sklearn("linear_model").LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # Not converged to the last digit is as good: what is chosen is judged on other data anyway.
        warnings.simplefilter("ignore", _sklearn("exceptions").ConvergenceWarning)
        model.fit(examples.inputs, examples.labels, sample_weight=examples.weights)
    return model.coef_[0], float(model.intercept_[0])


def _fit_units(recipe: Recipe, training: Examples, validation: Examples, seed: int) -> Parameters:
    """Weights (d, h), biases (h,), output (h,) and its bias, of the epoch whose loss on the validation is least."""
    model = _sklearn("neural_network").MLPClassifier(
        hidden_layer_sizes=(recipe.units,),
        alpha=recipe.penalty,
        batch_size=min(BATCH_SIZE, len(training.labels)),
        learning_rate_init=LEARNING_RATE,
        random_state=seed % SEEDS,
    )
    epochs = _epochs(model, training, validation)
    (least, best), waited = next(epochs), 0
    for loss, parameters in epochs:
        waited += 1
        if loss < least:
            least, best, waited = loss, parameters, 0
        if waited >= PATIENCE:
            break
    return best


def _epochs(model: Any, training: Examples, validation: Examples) -> Iterator[tuple[float, Parameters]]:
    """The loss on the validation after each epoch, with the parameters that gave it."""
    for _ in range(MAX_EPOCHS):
        model.partial_fit(training.inputs, training.labels, classes=[False, True], sample_weight=training.weights)
        (weights, output), (biases, output_bias) = model.coefs_, model.intercepts_
        found = weights.astype(np.float32), biases.astype(np.float32), output[:, 0].astype(np.float32), float(output_bias[0])
        yield _loss(model, validation), found


def _loss(model: Any, examples: Examples) -> float:
    """Weighted mean log loss."""
    probability = np.clip(model.predict_proba(examples.inputs)[:, 1].astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.average(np.log(np.where(examples.labels, probability, 1 - probability)), weights=examples.weights))

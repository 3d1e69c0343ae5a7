"""Logistic curves over one number, with Gaussian beliefs: they follow the data as far as there are enough. Numbers in, numbers out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEWTON_STEPS, LONGEST_STEP = 12, 2.0


@dataclass(frozen=True, slots=True)
class Prior:
    """Gaussian beliefs about a curve: intercept and slope of its log-odds."""

    mean: tuple[float, float]
    deviation: tuple[float, float]


def chance(curve: Floats, number: Floats) -> Floats:
    """Curves (r, 2) at numbers (n,): (r, n)."""
    values: Floats = 1 / (1 + np.exp(-(curve[:, :1] + curve[:, 1:] * number)))
    return values


def fit_curves(number: Floats, share: Floats, weight: Floats, prior: Prior) -> Floats:
    """The likeliest curve of the shares (n,) for each row of weights (r, n), by Newton's method: (r, 2)."""
    mean, precision = np.array(prior.mean), np.array(prior.deviation) ** -2.0
    inputs = np.stack([np.ones_like(number), number], axis=1)
    squares = np.stack([inputs[:, 0], number, number, number**2], axis=1)
    curve = np.tile(mean, (len(weight), 1))
    for _ in range(NEWTON_STEPS):
        now = chance(curve, number)
        slope = (weight * (share - now)) @ inputs - precision * (curve - mean)
        bend = ((weight * now * (1 - now)) @ squares).reshape(-1, 2, 2) + np.diag(precision)
        curve = curve + np.clip(np.linalg.solve(bend, slope[..., None])[..., 0], -LONGEST_STEP, LONGEST_STEP)
    return curve

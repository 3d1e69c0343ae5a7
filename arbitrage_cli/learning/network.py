"""A network with at most one hidden layer: its log-odds, its explanation, and its arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.numbers.intervals import Numbers

MAX_INPUT = 8.0  # standard deviations from the mean
MAX_LOG_ODDS = 30.0  # so that every probability is between 0 and 1


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network that computes log-odds from d inputs.

    The network has one hidden layer of h rectified units, or no hidden layer.

    `mean` and `scale` have shape (d,). `layer` contains the hidden units' weights of shape (d, h) and biases of shape (h,).
    `layer` is None if the network is linear. `output` has shape (h,) or, if the network is linear, (d,). All arrays are
    float32.
    """

    mean: Floats
    scale: Floats
    output: Floats
    output_bias: float
    layer: tuple[Floats, Floats] | None = None

    def standardised(self, inputs: Floats) -> Floats:
        """Convert inputs of shape (..., d) to standard deviations from the mean, clipped to `MAX_INPUT`."""
        scaled: Floats = (inputs - self.mean) / self.scale
        np.minimum(scaled, MAX_INPUT, out=scaled)
        return np.maximum(scaled, -MAX_INPUT, out=scaled)

    def log_odds(self, inputs: Floats) -> Floats:
        values = self.standardised(inputs)
        if self.layer is not None:
            weights, biases = self.layer
            values = np.maximum(values @ weights + biases, 0)
        result: Floats = values @ self.output + np.float32(self.output_bias)
        return result

    def moved(self, slope: float, shift: float) -> "Network":
        """Return a network whose log-odds are `slope` times this network's log-odds, plus `shift`."""
        output: Floats = self.output * np.float32(slope)
        return replace(self, output=output, output_bias=self.output_bias * slope + shift)

    def parts(self, inputs: Floats) -> Numbers:
        """Return the contribution of each of the d inputs to the log-odds, relative to the mean input.

        Contributions are integrated gradients (Sundararajan et al., arXiv 1703.01365, eq. 1), with the mean input as the
        baseline. The integral has a closed form, because the mean slope of a rectified unit is the change in its output
        divided by the change in its argument.
        """
        values = self.standardised(inputs).astype(np.float64)
        slopes = self.output.astype(np.float64)
        if self.layer is not None:
            weights, biases = self.layer
            change = values @ weights
            rise = np.maximum(biases + change, 0) - np.maximum(biases, 0)
            slopes = weights @ (self.output * np.divide(rise, change, out=np.zeros_like(rise), where=change != 0))
        parts: Numbers = values * slopes
        return parts

    def arrays(self) -> dict[str, Floats]:
        found: dict[str, NDArray[Any]] = {"mean": self.mean, "scale": self.scale, "output": self.output}
        found["output_bias"] = np.array([self.output_bias])
        if self.layer is not None:
            found["units"], found["unit_bias"] = self.layer
        return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def probability_of(log_odds: Numbers) -> Numbers:
    """Convert log-odds to probabilities."""
    probability: Numbers = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -MAX_LOG_ODDS, MAX_LOG_ODDS)))
    return probability


def standardiser(inputs: Floats) -> Network:
    """Return a network without weights that standardises inputs of shape (n, d) to mean 0 and variance 1."""
    mean = inputs.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = inputs.std(axis=0, dtype=np.float64).astype(np.float32)
    return Network(mean, np.where(spread > 1e-6, spread, 1).astype(np.float32), np.zeros_like(mean), 0.0)


def average(networks: Sequence[Network]) -> Network:
    """Return one network with the mean log-odds of networks that standardise inputs in the same way."""
    first = networks[0]
    count = len(networks)
    outputs = [network.output / count for network in networks]
    bias = fmean(network.output_bias for network in networks)
    if first.layer is None:
        return replace(first, output=np.stack(outputs).sum(axis=0), output_bias=bias)
    layers = [network.layer for network in networks if network.layer]
    weights, biases = (np.ascontiguousarray(np.concatenate(arrays, axis=-1)) for arrays in zip(*layers, strict=True))
    return replace(first, output=np.concatenate(outputs), output_bias=bias, layer=(weights, biases))


def network_of(arrays: Mapping[str, NDArray[Any]], size: int) -> Network:
    """Return the network with these arrays, whose inputs have this size. Raises ValueError if the arrays are invalid."""
    units = arrays["unit_bias"].size if "unit_bias" in arrays else 0
    shapes: dict[str, tuple[int, ...]] = {"mean": (size,), "scale": (size,), "output": (units or size,), "output_bias": (1,)}
    if units:
        shapes |= {"units": (size, units), "unit_bias": (units,)}
    if arrays.keys() != shapes.keys():
        raise ValueError(f"expected the arrays {', '.join(sorted(shapes))}; found {', '.join(sorted(arrays))}")
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != shapes[name] or not np.isfinite(array).all():
            raise ValueError(f"array {name}: expected finite float32 numbers of shape {shapes[name]}")
    if not (arrays["scale"] > 0).all():
        raise ValueError("array scale: expected positive numbers")
    layer = (arrays["units"], arrays["unit_bias"]) if units else None
    return Network(arrays["mean"], arrays["scale"], arrays["output"], float(arrays["output_bias"][0]), layer)

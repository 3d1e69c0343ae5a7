"""Computes statistics of the tokens of a step from their logits."""

import math
from typing import NamedTuple

import numpy as np

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.types import TokenStats

LOWEST = np.finfo(np.float32).min


class RowStats(NamedTuple):
    """Statistics of one token, in nats. `margin` is the difference between the two highest logits."""

    log_probability: float
    entropy: float
    margin: float


class RowMeter:
    """Computes the statistics of one token at a time, at temperature 1.

    With Z = sum exp z for logits z, the log-probability log p_i is z_i - log Z, and the entropy is log Z - sum p_i z_i.
    """

    def __init__(self, vocabulary_size: int) -> None:
        # NumPy computes powers of 2 twice as fast as powers of e if it has AVX-512 code for them, otherwise more slowly.
        found = np.lib.introspect.opt_func_info(func_name="^exp2$", signature="float32")
        is_fast = any(not info["current"].startswith("baseline") for kinds in found.values() for info in kinds.values())
        self._base = 2.0 if is_fast else math.e
        self._power = np.exp2 if is_fast else np.exp
        self._shifted, self._weights, self._ones = (np.ones(vocabulary_size, np.float32) for _ in range(3))

    def measure(self, logits: Floats, token: int, *, is_top: bool) -> RowStats:
        """Return the statistics of `token`, given logits (n_vocab,). `is_top` is true if no other logit is higher."""
        top = token if is_top else int(logits.argmax())
        shifted = self._shifted
        weights = self._weights
        unit = math.log(self._base)
        np.subtract(logits, logits[top], out=shifted)
        if self._base == 2.0:
            np.multiply(shifted, np.float32(1 / unit), out=shifted)
        self._power(shifted, out=weights)
        total = float(weights @ self._ones)  # faster than weights.sum()
        with np.errstate(invalid="ignore"):
            weighted = float(weights @ shifted)
        if math.isnan(weighted):  # for a logit of -inf, 0 * -inf counts as 0
            weighted = float(weights @ np.maximum(shifted, LOWEST))
        log_probability = unit * float(shifted[token]) - math.log(total)
        entropy = max(0.0, math.log(total) - unit * weighted / total)
        shifted[top] = -np.inf
        second = shifted.argmax()  # faster than max()
        return RowStats(log_probability, entropy, -unit * float(shifted[second]))


class Recorder:
    """Records the statistics of one step's tokens."""

    def __init__(self, meter: RowMeter) -> None:
        self._meter = meter
        self._rows: list[RowStats] = []
        self._pieces: list[str] = []

    def add(self, logits: Floats, token: int, *, is_top: bool) -> None:
        """Record that `token` was drawn from `logits` (n_vocab,). See `RowMeter.measure`."""
        self._rows.append(self._meter.measure(logits, token, is_top=is_top))
        self._pieces.append("")

    def add_text(self, piece: str) -> None:
        """Record the characters that the last token completes."""
        self._pieces[-1] = piece

    def so_far(self) -> TokenStats:
        """Return the statistics of all recorded tokens. At least one token must be recorded."""
        log_probabilities, entropies, margins = zip(*self._rows, strict=True)
        return TokenStats(log_probabilities, entropies, margins, tuple(self._pieces))

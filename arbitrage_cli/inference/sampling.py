"""Chooses tokens from logits, and computes the statistics of the chosen tokens.

Tokens are chosen greedily or by sampling with temperature, top-k, top-p and min-p.

Each random number depends only on the seed, the question and the token's position, never on discarded text or other problems.
"""

import hashlib
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.types import TokenStats, frozen

TAIL = 20.0  # tokens less likely than e^-TAIL times the top token are never drawn (less than 0.05% in total)
SAMPLE_TEMPERATURE = 0.7
SEEDS = 1 << 20  # between the seeds of a problem's samples; attempts have consecutive seeds
LOWEST = np.finfo(np.float32).min


@frozen
class Sampler:
    """Sampling settings. Temperature 0 chooses the first token with the highest logit.

    Otherwise, `top_k` (0 for no limit), `top_p` and `min_p` are applied in this order. Tokens pass the `min_p` filter if they
    are at least `min_p` times as likely as the top token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0

    def of_sample(self, sample: int) -> "Sampler":
        """Return the sampler of a problem's first solution (0) or of a further one, which is not greedy."""
        if not sample:
            return self
        return replace(self, temperature=self.temperature or SAMPLE_TEMPERATURE, seed=self.seed + SEEDS * sample)

    def choose(self, logits: Floats, question: str, position: int) -> int:
        """Choose the token at `position` from its logits (n_vocab,). Raises ComputeError if the logits are not finite."""
        likeliest = int(logits.argmax())
        if not math.isfinite(logits[likeliest]):
            raise ComputeError("the model computed non-finite logits", "the model file may be damaged")
        if self.is_greedy:
            return likeliest
        candidates = np.flatnonzero(logits >= logits[likeliest] - TAIL * self.temperature)
        scaled = (logits[candidates].astype(np.float64) - float(logits[likeliest])) / self.temperature
        return int(candidates[_inverse_cdf(scaled, self, self._uniform(question, position))])

    def _uniform(self, question: str, position: int) -> float:
        key = f"{self.seed}/{question}/{position}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest()) / 2**56


def _inverse_cdf(scaled: Numbers, sampler: Sampler, uniform: float) -> int:
    """Filter the tokens with the sampler's settings. Return the index of the token at the quantile `uniform` (0 to 1).

    `scaled` contains the logits, divided by the temperature and shifted so that the highest is 0.
    """
    weights = np.exp(scaled)
    order = np.argsort(-weights, kind="stable")[: sampler.top_k or None]
    cumulative = np.cumsum(weights[order])
    nucleus = int(np.count_nonzero(weights[order] >= sampler.min_p))  # the highest weight is 1
    if sampler.top_p < 1.0:
        nucleus = min(nucleus, int(np.searchsorted(cumulative, sampler.top_p * cumulative[-1], side="left")) + 1)
    index = int(np.searchsorted(cumulative[:nucleus], uniform * cumulative[nucleus - 1], side="right"))
    return int(order[min(index, nucleus - 1)])


# --- statistics


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
        self._base, self._power = 2.0 if is_fast else math.e, np.exp2 if is_fast else np.exp
        self._shifted, self._weights, self._ones = (np.ones(vocabulary_size, np.float32) for _ in range(3))

    def measure(self, logits: Floats, token: int, *, is_top: bool) -> RowStats:
        """Return the statistics of `token`, given logits (n_vocab,). `is_top` is true if no other logit is higher."""
        top = token if is_top else int(logits.argmax())
        shifted, weights, unit = self._shifted, self._weights, math.log(self._base)
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
        return RowStats(log_probability, entropy, -unit * float(shifted.max()))


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

"""Chooses tokens from logits, greedily or by sampling with temperature, top-k, top-p and min-p.

Each random number depends only on the seed, the model's role, the question, the token's position and the token's id, never on
discarded text or other problems.
"""

import hashlib
import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.types import ROLES, Count, ModelRole, Share, Temperature, frozen

TAIL = 20.0  # tokens less likely than e^-TAIL times the top token are never drawn (less than 0.05% in total)
SAMPLE_TEMPERATURE = 0.7
SEEDS = 1 << 20  # between the seeds of a problem's samples; attempts have consecutive seeds
ROLE_SEEDS = 1 << 40  # between the seeds of a problem's models
STRIDE = np.uint64(0x9E3779B97F4A7C15)  # the constants of SplitMix64
MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)

Integers = NDArray[np.integer]


@frozen
class Sampler:
    """Sampling settings. Temperature 0 chooses the first token with the highest logit.

    Otherwise, the temperature, `top_k` (0 for no limit), `top_p` and `min_p` are applied in this order. Tokens pass the
    `min_p` filter if they are at least `min_p` times as likely as the top token.
    """

    temperature: Temperature = 0.0
    top_p: Share = 1.0
    seed: int = 0
    top_k: Count = 0
    min_p: Share = 0.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0

    def of_sample(self, sample: int) -> "Sampler":
        """Return the sampler for a problem's first solution (0) or for a further solution, which is never greedy."""
        if not sample:
            return self
        return replace(self, temperature=self.temperature or SAMPLE_TEMPERATURE, seed=self.seed + SEEDS * sample)

    def of_model(self, role: ModelRole) -> "Sampler":
        """Return the sampler of one model of a pair.

        A drafted step is often rejected because of its random numbers. A target that used them again would write such a
        step itself.
        """
        return replace(self, seed=self.seed + ROLE_SEEDS * ROLES.index(role))

    def choose(self, logits: Floats, question: str, position: int) -> int:
        """Choose the token at `position` from its logits (n_vocab,).

        Raises ComputeError if the logits are not finite, or all equal, as of a file whose end is filled with zeros.
        """
        likeliest = int(logits.argmax())  # the first of equals
        if not math.isfinite(logits[likeliest]):
            raise ComputeError("the model computed non-finite logits", "the model file may be damaged")
        if likeliest == 0 and len(logits) > 1 and logits.min() == logits[0]:
            raise ComputeError("the model computed the same logit for all tokens", "the model file may be damaged")
        if self.is_greedy:
            return likeliest
        candidates = np.flatnonzero(logits >= logits[likeliest] - TAIL * self.temperature)
        scaled = (logits[candidates].astype(np.float64) - float(logits[likeliest])) / self.temperature
        kept = self._filtered(scaled)
        return int(candidates[kept][np.argmax(scaled[kept] + self._noise(question, position, candidates[kept]))])

    def _filtered(self, scaled: Numbers) -> Integers:
        """Return the indices of the tokens that pass the filters, in ascending order.

        `scaled` contains the logits, divided by the temperature and shifted so that the highest is 0.
        """
        if not self.top_k and self.top_p >= 1.0 and not self.min_p:
            return np.arange(len(scaled))
        weights = np.exp(scaled)
        order = np.argsort(-weights, kind="stable")[: self.top_k or None]
        cumulative = np.cumsum(weights[order])
        nucleus = int(np.count_nonzero(weights[order] >= self.min_p))  # the highest weight is 1
        if self.top_p < 1.0:
            nucleus = min(nucleus, int(np.searchsorted(cumulative, self.top_p * cumulative[-1], side="left")) + 1)
        return np.sort(order[: max(1, nucleus)])

    def _noise(self, question: str, position: int, tokens: Integers) -> Numbers:
        """Return Gumbel noise for the tokens with these ids at `position`.

        The token with the highest sum of scaled logit and noise is drawn with its probability (the Gumbel-max trick). Two
        models that share the noise draw the same token almost as often as is possible (Daliri et al., arXiv 2408.07978), so
        the target keeps most tokens that the draft proposes with the target's noise. The noise therefore belongs to the
        token's id. If the models have different vocabularies, the ids mean different tokens, and fewer tokens are kept.
        """
        key = f"{self.seed}/{question}/{position}".encode("utf-8", "surrogatepass")
        start = np.frombuffer(hashlib.blake2b(key, digest_size=8).digest(), np.uint64)
        uniform = (_mixed(start + STRIDE * tokens.astype(np.uint64)) >> np.uint64(12)) + 0.5  # of 52 bits, never 0 or 1
        noise: Numbers = -np.log(-np.log(uniform / 2**52))
        return noise


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each number: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    for shift, factor in MIXING:
        numbers = (numbers ^ (numbers >> shift)) * factor
    return numbers ^ (numbers >> np.uint64(31))

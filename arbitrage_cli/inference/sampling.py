"""Chooses tokens from logits, greedily or by sampling with temperature, top-k, top-p and min-p.

Each random number depends only on the seed, the model's role, the question and the token's position, never on discarded text
or other problems.
"""

import hashlib
import math
from dataclasses import replace

import numpy as np

from arbitrage_cli.errors import ComputeError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.types import ROLES, ModelRole, frozen

TAIL = 20.0  # tokens less likely than e^-TAIL times the top token are never drawn (less than 0.05% in total)
SAMPLE_TEMPERATURE = 0.7
SEEDS = 1 << 20  # between the seeds of a problem's samples; attempts have consecutive seeds
ROLE_SEEDS = 1 << 40  # between the seeds of a problem's models


@frozen
class Sampler:
    """Sampling settings. Temperature 0 chooses the first token with the highest logit.

    Otherwise, the temperature, `top_k` (0 for no limit), `top_p` and `min_p` are applied in this order. Tokens pass the
    `min_p` filter if they are at least `min_p` times as likely as the top token.
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

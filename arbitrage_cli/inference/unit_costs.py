"""Describes a model's time for each kind of work on one machine."""

import math
from bisect import bisect_left
from dataclasses import replace

from arbitrage_cli.types import Cost, frozen

ROWS = (1, 2, 4, 8, 16)
TOKEN_SECONDS = 3e-5  # Python's time per token, which matters for tiny models only: EPYC, built-in pair
STEP_TOKENS = 32  # about the length of a step
MAX_COST = 1e12  # so that no sum is infinite
COST_ERROR = 0.035  # the usual value of `UnitCosts.error`; 5% for the ratio of two models
MAX_ERROR = 100.0  # so that no factor is infinite


@frozen
class UnitCosts:
    """A model's seconds per unit of work.

    `batches` contains the seconds for batches of 1, 2, 4, 8 and 16 tokens with logits (`ROWS`), in nondecreasing order. A
    prefill of n tokens takes `prefill_call` + n * `prefill_token` seconds. `error` is the standard deviation, between
    measurements, of the logarithm of all these costs.
    """

    batches: tuple[float, ...]
    prefill_token: float
    prefill_call: float = 0.0
    error: float = COST_ERROR

    def __post_init__(self) -> None:
        numbers = (*self.batches, self.prefill_token, self.prefill_call, self.error)
        if (
            len(self.batches) != len(ROWS)
            or not all(0 <= number <= MAX_COST for number in numbers)
            or self.error > MAX_ERROR
        ):
            raise ValueError("unit costs: missing, negative or too large")

    @property
    def decode(self) -> float:
        """Seconds per decoded token."""
        return self.batches[0]

    @property
    def prefill(self) -> float:
        """Seconds per token in the prefill of a step."""
        return self.prefill_token + self.prefill_call / STEP_TOKENS

    def at(self, problems: float) -> "UnitCosts":
        """Return the costs for one of this many problems, whose tokens share batches."""
        shared = max(1.0, problems)
        return replace(self, batches=tuple(self.batch(shared * rows) / shared for rows in ROWS))

    def read(self, num_tokens: int) -> tuple[float, int]:
        """Return the least seconds to compute the logits after this many tokens, and the size of the last batch.

        If the size is 0, all tokens except the last are prefilled.
        """
        prefill = self.prefill_call + (num_tokens - 1) * self.prefill_token + self.decode
        batch = self.batch(num_tokens) if num_tokens <= ROWS[-1] else math.inf
        return min((num_tokens * self.decode, 1), (batch, num_tokens), (prefill, 0))

    def batch(self, rows: float) -> float:
        """Return the seconds for a batch of this many tokens.

        The seconds are interpolated between the sizes in `ROWS`, and extrapolated for larger batches.
        """
        index = min(max(1, bisect_left(ROWS, rows)), len(ROWS) - 1)
        low, least, most = ROWS[index - 1], self.batches[index - 1], self.batches[index]
        return least + (most - least) * (rows - low) / (ROWS[index] - low)

    def seconds(self, cost: Cost) -> tuple[float, float, float]:
        """Return the seconds for the work counted in `cost`, by phase: prefill, decode and verification."""
        prefill = self.prefill_call + cost.prefill_tokens * self.prefill_token if cost.prefill_tokens else 0.0
        batches = cost.verify_batches
        verify = batches * self.batch(cost.verify_tokens / batches) if batches else 0.0
        return prefill, cost.decode_tokens * self.decode, verify

"""Describes a model's time for each kind of work on one machine."""

from bisect import bisect_left
from dataclasses import dataclass

from arbitrage_cli.types import Cost

ROWS = (1, 2, 4, 8, 16)
STEP_TOKENS = 32  # about the length of a step


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """A model's seconds per unit of work.

    `batches` contains the seconds for batches of 1, 2, 4, 8 and 16 tokens with logits (`ROWS`), in nondecreasing order. A
    prefill of n tokens takes `prefill_call` + n * `prefill_token` seconds.
    """

    batches: tuple[float, ...]
    prefill_token: float
    prefill_call: float = 0.0

    @property
    def decode(self) -> float:
        """Seconds per decoded token."""
        return self.batches[0]

    @property
    def prefill(self) -> float:
        """Seconds per token in the prefill of a step."""
        return self.prefill_token + self.prefill_call / STEP_TOKENS

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


PER_TOKEN = UnitCosts(tuple(map(float, ROWS)), 1.0)
"""Costs of one second per token, for models that were not measured. They determine only the proportions of the work."""

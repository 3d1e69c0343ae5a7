"""Describes how long a model needs for each kind of work on one machine."""

from dataclasses import dataclass
from itertools import pairwise

from arbitrage_cli.types import Cost

ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """A model's seconds per unit of work.

    `batches` contains the seconds for a batch of 1, 2, 4, 8 and 16 tokens with logits (`ROWS`). A prefill of n tokens takes
    `prefill_call` + n * `prefill_token` seconds.
    """

    batches: tuple[float, ...]
    prefill_token: float
    prefill_call: float = 0.0

    @property
    def decode(self) -> float:
        """Seconds per decoded token."""
        return self.batches[0]

    def batch(self, rows: float) -> float:
        """Return the seconds for a batch, interpolated between the sizes in `ROWS`; larger batches are extrapolated."""
        segments = [*pairwise(zip(ROWS, self.batches, strict=True))]
        (low, least), (high, most) = next((pair for pair in segments if rows <= pair[1][0]), segments[-1])
        return max(least, least + (most - least) * (rows - low) / (high - low))

    def seconds(self, cost: Cost) -> tuple[float, float, float]:
        """Return the seconds for the work counted in `cost`, by phase: prefill, decode and verification."""
        prefill = self.prefill_call + cost.prefill_tokens * self.prefill_token if cost.prefill_tokens else 0.0
        batches = cost.verify_batches
        verify = batches * self.batch(cost.verify_tokens / batches) if batches else 0.0
        return prefill, cost.decode_tokens * self.decode, verify


PER_TOKEN = UnitCosts(tuple(map(float, ROWS)), 1.0)
"""Costs of one second per token, which describe the proportions of the work of a model that was not measured."""

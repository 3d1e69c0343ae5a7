"""What a model's tokens took on this machine, and what its batches cost."""

from dataclasses import dataclass

from arbitrage_cli.types import Cost

ENOUGH_TOKENS = 16  # decoded tokens from which a speed is known

MAX_ROWS = 128  # of a batch, all its problems together: someone who waits for text sees that it goes on
FEW, MANY = 4, 16  # rows of the batches whose costs are known
FEW_ON_PROCESSOR, MANY_ON_PROCESSOR, BYTES_PER_SECOND = 2.9, 8.2, 3.6e10  # 1.5B in Q4_K_M, two Zen 4 cores


class TokenCosts:
    """What this model took to read and decode tokens, over the whole run."""

    def __init__(self) -> None:
        self._spent = Cost()
        self._measured = Cost()

    def add(self, cost: Cost) -> None:
        self._spent += cost

    def add_measured(self, cost: Cost) -> None:
        """Add the cost of tokens decoded in a row, with no other model in between."""
        self._measured = cost
        self.add(cost)

    def seconds_alone(self, own: Cost, num_read: int, num_decoded: int) -> float | None:
        """An estimate for reading and decoding these numbers of tokens; None if nothing was decoded yet.

        At the speeds of `own`, the cost of one trace, if enough was decoded in it, because a machine's speed changes; else of the
        whole run. At most the time of tokens decoded in a row: after another model used the processor's cache, they are slower.
        """
        costs = [own if own.decode_tokens >= ENOUGH_TOKENS else self._spent]
        if self._measured.decode_tokens >= ENOUGH_TOKENS:
            costs.append(self._measured)
        decoding = [cost.decode_seconds / cost.decode_tokens for cost in costs if cost.decode_tokens]
        reading = [cost.prefill_seconds / cost.prefill_tokens for cost in costs if cost.prefill_tokens]
        return num_read * min(reading, default=0.0) + num_decoded * min(decoding) if decoding else None


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What a model's batches cost, fixed when a run begins: what is proposed must not depend on a clock.

    `decode_seconds` is the time of one token decoded alone, 0 if it is not known. `few` and `many` are the costs of batches of
    `FEW` and `MANY` rows (tokens), in decodes. Costs lie on the lines between them: llama.cpp uses other kernels for other sizes.
    """

    decode_seconds: float = 0.0
    few: float = FEW_ON_PROCESSOR
    many: float = MANY_ON_PROCESSOR

    @property
    def are_known(self) -> bool:
        return self.decode_seconds > 0

    def of_up_to(self, first: int, last: int) -> list[float]:
        """The costs of batches of `first` to `last` rows."""
        return [self._of(rows) for rows in range(first, last + 1)]

    def _of(self, rows: int) -> float:
        if rows <= FEW:
            return 1 + (self.few - 1) * (rows - 1) / (FEW - 1)
        return self.few + max(0.0, self.many - self.few) * (rows - FEW) / (MANY - FEW)


def costs_by_size(num_bytes: int) -> BatchCosts:
    """The costs of a model that was not measured here: a token reads all weights once."""
    return BatchCosts(num_bytes / BYTES_PER_SECOND)

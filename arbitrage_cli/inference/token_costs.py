"""What a model's tokens and batches cost on this machine, as measured while it writes."""

import math
from bisect import bisect_right
from collections import deque
from statistics import median, median_low

from arbitrage_cli.types import Cost

ENOUGH_TOKENS = 16  # decoded tokens from which a speed is known

LATEST = 0.3  # weight of the latest reading
FADING = 0.995  # of batch costs, for each proposal: a batch that was slow on a busy machine gets another chance,
DOUBTED_FADING = 0.9  # and soon if it was measured only once, and took
SURPRISE = 1.7  # times as long as expected
DECODES = 15  # latest decodes, whose median is the time of one,
BATCHES = 5  # and latest batches of a size: a busy machine makes some of either very slow

MAX_ROWS = 128  # of a batch, all its problems together: someone who waits for text sees that it goes on
FIRST_ROWS = 4  # at most, of the first batch; later ones have at most twice as many as the largest one measured


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


class BatchCosts:
    """What batches cost by their number of rows (tokens), in decodes: multiples of the time of one token decoded alone."""

    def __init__(self) -> None:
        self._decodes: deque[float] = deque(maxlen=DECODES)  # seconds
        self._read_seconds = self._read_tokens = 0.0  # of late
        self._measured: dict[int, float] = {}  # by number of rows: the cost,
        self._latest: dict[int, deque[float]] = {}  # and the latest costs that were measured
        self._doubted: set[int] = set()  # sizes that were measured once, and surprised

    @property
    def decode_seconds(self) -> float:
        """The time of one token decoded alone; 0 if it was not measured."""
        return median(self._decodes) if self._decodes else 0.0

    @property
    def are_known(self) -> bool:
        return bool(self.decode_seconds and self._read_tokens)

    @property
    def max_rows(self) -> int:
        """The most rows of the next batch: costs of much larger ones than measured are unknown."""
        return int(min(MAX_ROWS, 2 * max(self._measured, default=FIRST_ROWS / 2)))

    def add_read(self, num_tokens: int, seconds: float) -> None:
        """Record the time of reading without output: a first estimate of the cost of one more row."""
        self._read_seconds += seconds - LATEST * self._read_seconds
        self._read_tokens += num_tokens - LATEST * self._read_tokens

    def add_decode(self, seconds: float) -> None:
        """Record the time of one token decoded alone."""
        self._decodes.append(seconds)

    def add_batch(self, num_rows: int, seconds: float) -> float | None:
        """Record the time of a batch. Returns its cost in decodes; None if the time of a decode is unknown."""
        if not self.decode_seconds:
            return None
        cost = seconds / self.decode_seconds
        if num_rows not in self._measured and cost > SURPRISE * self.of(num_rows):
            self._doubted.add(num_rows)
        else:
            self._doubted.discard(num_rows)
        latest = self._latest.setdefault(num_rows, deque(maxlen=BATCHES))
        latest.append(cost)
        self._measured[num_rows] = median_low(latest)
        return cost

    def fade(self) -> None:
        """Lower all measured costs a little, and doubted ones faster, so that batches are tried again."""
        for rows in self._measured:
            self._measured[rows] *= DOUBTED_FADING if rows in self._doubted else FADING

    def of(self, num_rows: int) -> float:
        """The cost of a batch of this many rows."""
        return self.of_up_to(num_rows, num_rows)[0]

    def of_up_to(self, first: int, last: int) -> list[float]:
        """The costs of batches of `first` to `last` rows.

        As measured, and on the line between two measured sizes. They are not all on one line: llama.cpp uses other kernels for
        some sizes, and 12 rows may cost more than 16. Beyond the largest, one more row costs the average of two figures: the mean
        of a row up to there, and a token that is only read.
        """
        known = sorted({1: 1.0, **self._measured}.items())
        reading = self._read_seconds / self._read_tokens / self.decode_seconds if self._read_tokens else 1.0
        costs = []
        for rows in range(first, last + 1):
            above = bisect_right(known, (rows, math.inf))
            lower, cost = known[above - 1]
            if above < len(known):
                upper, upper_cost = known[above]
                a_row = (upper_cost - cost) / (upper - lower)
            else:
                a_row = (reading + (cost - 1) / (lower - 1)) / 2 if lower > 1 else reading
            costs.append(max(cost + a_row * (rows - lower), 1e-9))
        return costs

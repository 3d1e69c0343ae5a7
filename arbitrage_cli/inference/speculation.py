"""How many proposed tokens a model verifies in its next batch, and whether it asks the draft for more.

A model that verifies reads proposed tokens in one batch and draws after each of them: one token in any case, and one more for
each proposed token in a row that it would have drawn itself. A batch is worth its time if that is more tokens a second than
decoding gives. Knows no model, text or clock, and a wrong figure costs time, never a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from arbitrage_cli.inference.acceptance import KINDS, Acceptance, Kind, Place
from arbitrage_cli.inference.costs import BatchCosts
from arbitrage_cli.types import Cost, Trace

GAIN = 1.05  # times as many tokens a second as without, at least: less is lost in the noise of measuring

CREDIT, MAX_CREDIT = 5.0, 20.0  # decodes that batches may lose, at first and at most,
MAX_LOSS = 5.0  # and one batch at most: a machine may have been busy with something else
EARNED = 0.01  # added for each decode: the most that trying proposals costs in the long run

MAX_SPECULATED = 16  # tokens at once


@dataclass(frozen=True, slots=True)
class Speculation:
    """The draft's continuation of a step that another model writes, and its cost."""

    text: str
    cost: Cost


class Speculator(Protocol):
    """Continues a step that another model writes: the draft's `Engine`."""

    @property
    def seconds_per_token(self) -> float: ...

    def speculate(self, slot: int, trace: Trace, beginning: str, max_tokens: int) -> Speculation: ...


class Planner:
    """Learns what batches cost one model and how often proposals match, and plans its next batch."""

    def __init__(self) -> None:
        self.costs = BatchCosts()
        self.acceptance = Acceptance()
        self._credit = dict.fromkeys(KINDS, CREDIT)

    def record_batch(self, seconds: float, num_rows: int, num_drawn: int, places: Sequence[Place]) -> None:
        """Record the time of a batch with problems at these places, its rows, and the tokens drawn from them."""
        if num_rows == len(places):
            self.record_decode(seconds, len(places))
        else:
            kind: Kind = "speculated" if all(place.kind == "speculated" for place in places) else "drafted"
            self.record_verification(seconds, num_rows, num_drawn, len(places), kind=kind)

    def record_decode(self, seconds: float, num_problems: int = 1) -> None:
        """Record the time of a batch with one token of each problem."""
        if num_problems == 1:
            self.costs.add_decode(seconds)
        else:
            self.costs.add_batch(num_problems, seconds)
        for kind in KINDS:
            self._earn(kind, EARNED * num_problems)

    def record_verification(
        self, seconds: float, num_rows: int, num_drawn: int, num_problems: int = 1, *, kind: Kind = "drafted"
    ) -> None:
        """Record the time of a batch with proposed tokens, and how many tokens were drawn from its rows.

        `kind` is that of the proposals; drafted if there were both.
        """
        cost = self.costs.add_batch(num_rows, seconds)
        if cost is None:
            return
        without = num_drawn / num_problems * self.costs.of(num_problems)
        for each in KINDS:
            self._earn(each, without - cost if each == kind else EARNED * num_problems)

    def record_speculation(self, seconds: float) -> None:
        """Record the time that the draft took to continue a text."""
        if self.costs.decode_seconds:
            self._earn("speculated", -seconds / self.costs.decode_seconds)

    def plan(self, waiting: Sequence[Place]) -> list[int]:
        """How many proposed tokens each problem in the batch reads, in addition to the one that it reads anyway.

        Takes the likeliest tokens first, and as many as give the most tokens a second: their expected number over the batch's cost.
        """
        counts, num_problems = [0] * len(waiting), len(waiting)
        if not any(place.num_left for place in waiting) or not self.costs.are_known:
            return counts
        chances = (
            (chance, index)
            for index, place in enumerate(waiting)
            if self._credit[place.kind] >= 0
            for chance in self.acceptance.chances(place)
        )
        likeliest = sorted(chances, reverse=True)[: max(0, self.costs.max_rows - num_problems)]
        if any(place.num_left and place.num_matched == 0 and place.source != "again" for place in waiting):
            self.costs.fade()
        costs = self.costs.of_up_to(num_problems, num_problems + len(likeliest))
        taken = _fastest(num_problems, [chance for chance, _ in likeliest], costs)
        for _, index in likeliest[:taken]:
            counts[index] += 1
        return counts

    def plan_speculation(self, seconds_per_token: float, room: int) -> int:
        """How many tokens the draft should continue a text that has no proposal; 0 if that is not worth its time.

        The draft takes `seconds_per_token`, and there is room for `room` tokens.
        """
        if not self.costs.are_known or self._credit["speculated"] < 0 or not seconds_per_token:
            return 0
        max_tokens = min(room, self.costs.max_rows - 1, MAX_SPECULATED)
        chances = list(self.acceptance.chances(Place(max_tokens, 0, "speculated"))) if max_tokens > 0 else []
        price = seconds_per_token / self.costs.decode_seconds
        costs = [cost + number * price for number, cost in enumerate(self.costs.of_up_to(1, 1 + len(chances)))]
        return _fastest(1, chances, costs)

    def _earn(self, kind: Kind, gain: float) -> None:
        """Add to a credit, within its bounds: one batch on a busy machine does not end proposals."""
        self._credit[kind] = max(-MAX_CREDIT, min(MAX_CREDIT, self._credit[kind] + max(-MAX_LOSS, gain)))


def _fastest(num_certain: int, chances: Sequence[float], costs: Sequence[float]) -> int:
    """How many of the proposed tokens, likeliest first, give the most tokens a second; 0 if the gain is below `GAIN`.

    `num_certain` tokens come in any case; `costs[n]` is the cost with n proposed tokens.
    """
    expected, best, taken = float(num_certain), GAIN * num_certain / costs[0], 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if expected / costs[number] > best:
            best, taken = expected / costs[number], number
    return taken

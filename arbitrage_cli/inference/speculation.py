"""How many proposed tokens a model verifies in its next batch, and whether it asks the draft for more.

A model that verifies reads proposed tokens in one batch and draws after each of them: one token in any case, and one more for
each proposed token in a row that it would have drawn itself. A batch is worth its time if that is more tokens a second than
decoding gives. A wrong figure costs time, and never changes a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from arbitrage_cli.inference.proposals import KINDS, SOURCES, Kind, Place, Proposal
from arbitrage_cli.inference.token_costs import BatchCosts
from arbitrage_cli.types import Cost, Trace

GAIN = 1.05  # times as many tokens a second as without, at least: less is lost in the noise of measuring

CREDIT, MAX_CREDIT = 5.0, 20.0  # decodes that batches may lose, at first and at most,
MAX_LOSS = 5.0  # and one batch at most: a machine may have been busy with something else
EARNED = 0.01  # added for each decode: the most that trying proposals costs in the long run

MAX_SPECULATED = 16  # tokens at once

FADES_AFTER = {"drafted": (0,), "speculated": (0,), "copied": (8, 16, 32, 64)}
"""By source: the tokens that matched when costs fade. Once for each proposal; for copies, of which many are short, while they go on."""

NOWHERE = Place(0, 0)

EXPECTED_MATCH = 0.8  # probability that a proposed token matches, before any was seen
PRIOR_TOKENS = 4  # weight of that, in tokens seen
UNLIKELY = 0.02  # a token that is reached with less probability is not considered
BUCKETS = 8  # by the number of tokens that matched before: 0, 1, 2-3, 4-7 ... 64 and more


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


class Acceptance:
    """How often proposed tokens matched, by their source and by the number of tokens that matched before them."""

    def __init__(self) -> None:
        self._seen = {source: [0.0] * BUCKETS for source in SOURCES}  # proposed tokens whose predecessors all matched
        self._matched = {source: [0.0] * BUCKETS for source in SOURCES}  # those of them that matched too

    def follow(self, proposal: Proposal, token: int) -> None:
        """Take the next token of the text that `proposal` is compared with."""
        place = proposal.place(1)
        matched = proposal.follow(token)
        if matched is not None:
            self.record(place, matched=matched)

    def record(self, place: Place, *, matched: bool) -> None:
        """Record whether the token that was proposed at this place was the one drawn."""
        self._seen[place.source][_bucket(place.num_matched)] += 1
        self._matched[place.source][_bucket(place.num_matched)] += matched

    def chances(self, place: Place) -> Iterator[float]:
        """For each proposed token, the probability that it and all before it match."""
        seen, matched = self._seen[place.source], self._matched[place.source]
        overall = (sum(matched) + EXPECTED_MATCH * PRIOR_TOKENS) / (sum(seen) + PRIOR_TOKENS)
        chance = 1.0
        for number in range(place.num_matched, place.num_matched + place.num_left):
            bucket = _bucket(number)
            chance *= (matched[bucket] + overall * PRIOR_TOKENS) / (seen[bucket] + PRIOR_TOKENS)
            if chance < UNLIKELY:
                return
            yield chance


def _bucket(num_matched: int) -> int:
    return min(num_matched.bit_length(), BUCKETS - 1)


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
            kinds = {place.kind for place in places if place.num_left}
            kind = kinds.pop() if len(kinds) == 1 else "drafted"
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

        `kind` is that of the proposals; drafted if there were several.
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
        room = max(0, self.costs.max_rows - num_problems)
        chances = ((chance, index) for index, place in enumerate(waiting) for chance in self._chances(place, room))
        likeliest = sorted(chances, reverse=True)[:room]
        if any(place.num_left and place.num_matched in FADES_AFTER.get(place.source, ()) for place in waiting):
            self.costs.fade()
        costs = self.costs.of_up_to(num_problems, num_problems + len(likeliest))
        taken, _ = _fastest(num_problems, [chance for chance, _ in likeliest], costs)
        for _, index in likeliest[:taken]:
            counts[index] += 1
        return counts

    def plan_speculation(self, seconds_per_token: float, room: int, place: Place = NOWHERE) -> int:
        """How many tokens the draft should continue a text; 0 if that is not worth its time, or less than what is proposed at `place`.

        The draft takes `seconds_per_token`, and there is room for `room` tokens.
        """
        if not self.costs.are_known or not seconds_per_token:
            return 0
        price = seconds_per_token / self.costs.decode_seconds
        most = min(room, self.costs.max_rows - 1, MAX_SPECULATED)
        count, speed = self._fastest_alone(Place(max(0, most), 0, "speculated"), price)
        return count if speed > self._fastest_alone(place)[1] else 0

    def _fastest_alone(self, place: Place, price: float = 0.0) -> tuple[int, float]:
        """As `_fastest`, for one problem whose proposed tokens cost `price` each before they are read."""
        chances = self._chances(place, self.costs.max_rows - 1)
        costs = [cost + number * price for number, cost in enumerate(self.costs.of_up_to(1, 1 + len(chances)))]
        return _fastest(1, chances, costs)

    def _chances(self, place: Place, room: int) -> list[float]:
        """For up to `room` tokens proposed at `place`, the probabilities of reaching them; none if they were wrong too often."""
        return list(islice(self.acceptance.chances(place), room)) if self._credit[place.kind] >= 0 else []

    def _earn(self, kind: Kind, gain: float) -> None:
        """Add to a credit, within its bounds: one batch on a busy machine does not end proposals."""
        self._credit[kind] = max(-MAX_CREDIT, min(MAX_CREDIT, self._credit[kind] + max(-MAX_LOSS, gain)))


def _fastest(num_certain: int, chances: Sequence[float], costs: Sequence[float]) -> tuple[int, float]:
    """How many of the proposed tokens, likeliest first, give the most tokens a second, and how many these are.

    None if the gain is below `GAIN`.

    `num_certain` tokens come in any case; `costs[n]` is the cost with n proposed tokens.
    """
    expected, best, taken = float(num_certain), GAIN * num_certain / costs[0], 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if expected / costs[number] > best:
            best, taken = expected / costs[number], number
    return taken, best

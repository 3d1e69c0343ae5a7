"""Proposals: tokens that a model may be about to write, and how many of them are worth verifying on this machine.

A model that verifies reads tokens of a proposal in one batch and draws after each of them, which gives one token in any
case, and one more for each proposed token in a row that it would have drawn itself. A batch is worth its time if that is
more tokens a second than decoding gives. Knows no model, no text and no clock: numbers in, numbers out, and a wrong one
costs time, never a text.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import median, median_low
from typing import Literal, NamedTuple, get_args

REJOIN = 2  # tokens in a row that have to agree before a text that went another way is held to be back

MAX_ROWS = 128  # of a batch, all its problems together: a reader who waits sees that it goes on
FIRST_ROWS = 4  # at most, of the first batch; of the next ones twice as many as were ever measured
GAIN = 1.05  # times as many tokens a second as without, at least: less is lost in the noise of measuring

CREDIT, MOST_CREDIT = 5.0, 20.0  # decodes that batches may lose, at first and at most,
MOST_LOST = 5.0  # and what one batch can take of that: a machine may have been busy with something else
EARNED = 0.01  # and what a decode adds to that: the most that trying out can cost in the long run

LATEST = 0.3  # weight of the latest measurement
FADING = 0.995  # of costs, for each proposal: a batch that was slow, on a busy machine, gets another chance;
DOUBTED_FADING = 0.9  # soon, if it was measured but once and took
SURPRISE = 1.7  # times as long as expected
DECODES = 15  # whose median is the time of one,
BATCHES = 5  # and those of a size: medians both, since a busy machine makes some of either very slow

EXPECTED_MATCH = 0.8  # of a proposed token, before anything is known,
PRIOR_TOKENS = 4  # which weighs as much as so many tokens seen
UNLIKELY = 0.02  # that a token is reached: not worth a look
MOST_SPECULATED = 16  # tokens at once
BUCKETS = 8  # of a token's place in its proposal: 0, 1, 2-3, 4-7 ... 64 and more


Source = Literal["drafted", "again", "speculated"]
"""What is proposed next: the step that was drafted; what follows in it where the text has come back to it; or what whoever
drafted it said since of how the text might go on.
"""


SOURCES: tuple[Source, ...] = get_args(Source)

Kind = Literal["drafted", "speculated"]
"""Who has to pay for a proposal that was read in vain: the step that was drafted, or what was said since."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Place(NamedTuple):
    """Where a text stands in its proposal: how many proposed tokens are left, and how many in a row of the same were right."""

    num_left: int
    num_matched: int
    source: Source = "drafted"

    @property
    def kind(self) -> Kind:
        return "speculated" if self.source == "speculated" else "drafted"


class Proposal:
    """A step that a model may be about to write, token by token, beside the one that it does write.

    Where that goes another way nothing more is proposed, until it comes back: its last `REJOIN` tokens stand in the proposal
    too, and what follows them there is proposed next; if they stand there several times, at the place nearest to the one that
    the text has reached itself. (Looking up a text to copy from by its last tokens is prompt lookup decoding, or LLMA, arXiv 2304.04487.)
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens = list(tokens)
        self._next = 0
        self._written: list[int] = []
        self._num_matched = 0
        self._source: Source = "drafted"
        self._speculated: list[int] = []
        self._num_speculated_matched = 0

    def __bool__(self) -> bool:
        """Whether anything was proposed at all."""
        return bool(self._tokens or self._speculated)

    def place(self, room: int) -> Place:
        """Where the text stands, if no more than `room` tokens may be read."""
        if self._speculated:
            return Place(max(0, min(len(self._speculated), room)), self._num_speculated_matched, "speculated")
        return Place(max(0, min(len(self._tokens) - self._next, room)), self._num_matched, self._source)

    def upcoming(self, count: int) -> list[int]:
        """The next `count` tokens proposed, or as many as there are."""
        return self._speculated[:count] if self._speculated else self._tokens[self._next : self._next + count]

    def go_on_with(self, tokens: Sequence[int]) -> None:
        """Propose these next, until the text leaves them, or comes back to the drafted step, of which more is known."""
        self._speculated, self._num_speculated_matched = list(tokens), 0

    def wrote(self, token: int) -> bool | None:
        """Note the next token that was written. Whether it is the one proposed; None if none was."""
        speculated = self._speculated
        matched = self._follow(token)
        if not speculated:
            return matched
        is_right = token == speculated[0]
        is_back = self._next < len(self._tokens)
        self._speculated = speculated[1:] if is_right and not is_back else []
        self._num_speculated_matched += 1
        return is_right

    def _follow(self, token: int) -> bool | None:
        """The same for the drafted step alone."""
        self._written.append(token)
        if self._next == len(self._tokens):
            self._come_back()
            return None
        if token == self._tokens[self._next]:
            self._next += 1
            self._num_matched += 1
            return True
        self._come_back()
        return False

    def _come_back(self) -> None:
        last, tokens, here = self._written[-REJOIN:], self._tokens, len(self._written)
        ends = (end for end in range(REJOIN, len(tokens)) if tokens[end - REJOIN : end] == last)
        self._next = min(ends, key=lambda end: abs(end - here), default=len(tokens))
        self._num_matched, self._source = 0, "again"


class Planner:
    """Learns from what one model does, and says how many tokens of each waiting proposal go into its next batch."""

    def __init__(self) -> None:
        self._decodes: deque[float] = deque(maxlen=DECODES)  # seconds
        self._read_seconds = self._read_tokens = 0.0  # of late
        self._measured: dict[int, float] = {}  # cost of a batch, in decodes, by its number of rows,
        self._latest: dict[int, deque[float]] = {}  # and what the last of them took
        self._doubted: set[int] = set()  # those of these sizes that were measured once, and surprised
        self._credit = dict.fromkeys(KINDS, CREDIT)
        self._seen = {source: [0.0] * BUCKETS for source in SOURCES}  # proposed tokens, those before them right,
        self._matched = {source: [0.0] * BUCKETS for source in SOURCES}  # and those of them that matched too

    def read(self, num_tokens: int, seconds: float) -> None:
        """Note what it cost to read a text without output: a first guess at what a row more costs."""
        self._read_seconds += seconds - LATEST * self._read_seconds
        self._read_tokens += num_tokens - LATEST * self._read_tokens

    def decoded(self, seconds: float, num_problems: int = 1) -> None:
        """Note what a batch cost that read nothing but one token of each problem."""
        if num_problems == 1:
            self._decodes.append(seconds)
        else:
            self._learn(num_problems, seconds)
        for kind in KINDS:
            self._earn(kind, EARNED * num_problems)

    def verified(
        self, seconds: float, num_rows: int, num_drawn: int, num_problems: int = 1, *, kind: Kind = "drafted"
    ) -> None:
        """Note what a batch cost that read proposed tokens too, and how many tokens were drawn from its rows.

        `kind` is that of what was proposed: drafted if there were both.
        """
        cost = self._learn(num_rows, seconds)
        if cost is None:
            return
        alone = num_drawn / num_problems * self._costs(num_problems, 0)[0]
        for each in KINDS:
            self._earn(each, alone - cost if each == kind else EARNED * num_problems)

    def asked(self, seconds: float) -> None:
        """Note how long it took to say how a text might go on, whether there was anything to say or not."""
        if self.decode_seconds:
            self._earn("speculated", -seconds / self.decode_seconds)

    def compared(self, place: Place, *, matched: bool) -> None:
        """Note whether the token that was proposed at this place was the one drawn."""
        self._seen[place.source][_bucket(place.num_matched)] += 1
        self._matched[place.source][_bucket(place.num_matched)] += matched

    def plan(self, waiting: Sequence[Place]) -> list[int]:
        """Proposed tokens to read along with the one that each problem reads anyway.

        `waiting` has the place of each problem in the batch. Takes the likeliest tokens first, and as many as give the most
        tokens a second: their expected number by the batch's cost.
        """
        counts, num_problems = [0] * len(waiting), len(waiting)
        if not self._knows_costs:
            return counts
        worth = [(index, place) for index, place in enumerate(waiting) if self._credit[place.kind] >= 0]
        chances = ((chance, index) for index, place in worth for chance in self._chances(place))
        likely = sorted(chances, reverse=True)[: max(0, self._most_rows - num_problems)]
        if any(place.num_left and place.num_matched == 0 and place.source != "again" for place in waiting):
            self._fade()
        taken = _most_a_second(num_problems, [chance for chance, _ in likely], self._costs(num_problems, len(likely)))
        for _, index in likely[:taken]:
            counts[index] += 1
        return counts

    def plan_speculation(self, seconds_per_token: float, room: int) -> int:
        """For how many tokens, each at this price, to ask how one text might go on, of which nothing is proposed; 0 if that is
        not worth its time. `room` is for how many there is any.
        """
        if not self._knows_costs or self._credit["speculated"] < 0 or not seconds_per_token:
            return 0
        most = min(room, self._most_rows - 1, MOST_SPECULATED)
        chances = list(self._chances(Place(most, 0, "speculated"))) if most > 0 else []
        price = seconds_per_token / self.decode_seconds
        costs = [cost + number * price for number, cost in enumerate(self._costs(1, len(chances)))]
        return _most_a_second(1, chances, costs)

    @property
    def decode_seconds(self) -> float:
        """What a token costs alone; 0 if that was not measured."""
        return median(self._decodes) if self._decodes else 0.0

    @property
    def _knows_costs(self) -> bool:
        return bool(self.decode_seconds and self._read_tokens)

    @property
    def _most_rows(self) -> int:
        """Of the next batch: larger ones were not measured."""
        return int(min(MAX_ROWS, 2 * max(self._measured, default=FIRST_ROWS / 2)))

    def _learn(self, num_rows: int, seconds: float) -> float | None:
        """Take up what a batch cost, and return that in decodes; None if a decode has no time yet."""
        if not self.decode_seconds:
            return None
        cost = seconds / self.decode_seconds
        if num_rows not in self._measured and cost > SURPRISE * self._costs(num_rows, 0)[0]:
            self._doubted.add(num_rows)
        else:
            self._doubted.discard(num_rows)
        latest = self._latest.setdefault(num_rows, deque(maxlen=BATCHES))
        latest.append(cost)
        self._measured[num_rows] = median_low(latest)
        return cost

    def _fade(self) -> None:
        """Let measured costs fade: slowly, but for those that are doubted."""
        for rows in self._measured:
            self._measured[rows] *= DOUBTED_FADING if rows in self._doubted else FADING

    def _earn(self, kind: Kind, gain: float) -> None:
        """Add to a credit, within its bounds: one batch on a busy machine is not the end."""
        self._credit[kind] = max(-MOST_CREDIT, min(MOST_CREDIT, self._credit[kind] + max(-MOST_LOST, gain)))

    def _chances(self, place: Place) -> Iterator[float]:
        """For each proposed token, the probability that it and all before it match."""
        seen, matched = self._seen[place.source], self._matched[place.source]
        overall = (sum(matched) + EXPECTED_MATCH * PRIOR_TOKENS) / (sum(seen) + PRIOR_TOKENS)
        chance = 1.0
        for number in range(place.num_matched, place.num_matched + place.num_left):
            where = _bucket(number)
            chance *= (matched[where] + overall * PRIOR_TOKENS) / (seen[where] + PRIOR_TOKENS)
            if chance < UNLIKELY:
                return
            yield chance

    def _costs(self, num_rows: int, more: int) -> list[float]:
        """Costs, in decodes, of batches of `num_rows` and up to `more` rows on top of them.

        As measured; between two measured sizes on the line through them, for they are not all on one line: llama.cpp takes
        other kernels for some sizes, and a batch of 12 may cost more than one of 16. Above the largest a row costs what is
        halfway between the mean so far and the price of reading.
        """
        known = sorted({1: 1.0, **self._measured}.items())
        reading = self._read_seconds / self._read_tokens / self.decode_seconds if self._read_tokens else 1.0
        costs = []
        for rows in range(num_rows, num_rows + more + 1):
            above = bisect_right(known, (rows, math.inf))
            lower, cost = known[above - 1]
            if above < len(known):
                upper, upper_cost = known[above]
                a_row = (upper_cost - cost) / (upper - lower)
            else:
                a_row = (reading + (cost - 1) / (lower - 1)) / 2 if lower > 1 else reading
            costs.append(max(cost + a_row * (rows - lower), 1e-9))
        return costs


def _most_a_second(num_certain: int, chances: Sequence[float], costs: Sequence[float]) -> int:
    """How many of the tokens to take, the likeliest first, for the most tokens a second: their expected number, with those that
    are certain, by the cost of as many; none if that is hardly more than without.
    """
    expected, best, taken = float(num_certain), GAIN * num_certain / costs[0], 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if expected / costs[number] > best:
            best, taken = expected / costs[number], number
    return taken


def _bucket(num_before: int) -> int:
    return min(num_before.bit_length(), BUCKETS - 1)

"""Proposes tokens that a model is likely to write next, and decides how many of them it verifies in its next batch.

A batch yields one token, plus all leading proposed tokens that match the tokens drawn by the model. Verification is
worthwhile if it yields more tokens per second than decoding. The decision depends on acceptance rates and fixed costs but
not on a clock, so runs are reproducible. Inaccurate costs waste time, and change the text only where two tokens are almost
equally likely.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul
from typing import Literal, NamedTuple, Protocol

from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, Trace, frozen

REJOIN = 2  # matching tokens in a row after which a text has rejoined its proposal

# `drafted`: the rejected step. `rejoined`: the rejected step after a difference. `speculated`: the draft's continuation.
Source = Literal["drafted", "rejoined", "speculated", "lookup"]

MAX_ROWS = 128  # maximum rows of a batch; small, so that progress is visible
GAIN = 1.05  # minimum gain in tokens per second; less is lost in overhead that the costs omit
RELIABLE = 0.95  # acceptance rate of a proposal that has matched for a while
MAX_SPECULATED = 24  # draft tokens per continuation

EXPECTED: dict[Source, float] = {"drafted": 0.8, "rejoined": 0.8, "lookup": 0.5}  # prior rates
PRIOR_TOKENS = 4  # weight of the prior, in tokens
UNLIKELY = 0.02  # tokens with a lower probability of being reached are ignored
BUCKETS = 8  # by number of preceding matches: 0, 1, 2-3, 4-7 ... 64 and more

CONFIDENCES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # the draft's probabilities of a token that separate the bins
KEPT = (0.3, 0.4, 0.6, 0.78, 0.91, 0.98, 0.995)  # prior rates at which the target keeps these tokens
KEPT_OVERALL = 0.9
KEPT_PRIOR = 8  # weight of these rates, in tokens
BEST_CASE = 0.97  # if even this rate saves no time, nothing is ever drafted
EXPLORED = 0.02  # share of the target's time for drafts from which only the rates are learned
PROBE = 4  # tokens of such a draft


# --- proposals


class Place(NamedTuple):
    """A position in a proposal, given by the numbers of remaining tokens and preceding matches.

    `confidences` contains the draft's probabilities of the remaining tokens, if the source is `speculated`.
    """

    num_left: int
    num_matched: int
    source: Source = "drafted"
    confidences: tuple[float, ...] = ()


class _Proposed:
    """Proposed tokens and the text's position in them."""

    def __init__(self, tokens: Sequence[int], source: Source, confidences: Sequence[float] = ()) -> None:
        self.tokens, self.source, self._confidences = list(tokens), source, tuple(confidences)
        self.num_matched = 0
        self._next = 0

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self._next

    def place(self, room: int) -> Place:
        num_left = max(0, min(self.num_left, room))
        return Place(num_left, self.num_matched, self.source, self._confidences[self._next : self._next + num_left])

    def upcoming(self, count: int) -> list[int]:
        return self.tokens[self._next : self._next + count]

    def follow(self, token: int) -> None:
        if self.upcoming(1) == [token]:
            self._next, self.num_matched = self._next + 1, self.num_matched + 1
        else:
            self._leave()

    def _leave(self) -> None:
        self._next = len(self.tokens)


class _Drafted(_Proposed):
    """A drafted step.

    Once the text differs from the step, nothing is proposed until the last `REJOIN` tokens of the text occur in the step. If
    these tokens occur several times, the position nearest to the text's length is used.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens, "drafted")
        self._written: list[int] = []

    def follow(self, token: int) -> None:
        if self.tokens:
            self._written.append(token)
            super().follow(token)

    def _leave(self) -> None:
        last, tokens, length = self._written[-REJOIN:], self.tokens, len(self._written)
        ends = (end for end in range(REJOIN, len(tokens)) if tokens[end - REJOIN : end] == last)
        self._next = min(ends, key=lambda end: abs(end - length), default=len(tokens))
        self.num_matched, self.source = 0, "rejoined"


class History(_Proposed):
    """Prompt lookup (arXiv 2304.04487): proposes the tokens that followed an earlier occurrence of the last two tokens.

    Rejected steps are included. Matching two tokens is enough, because the planner learns how the acceptance rate depends on
    the number of matches.
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        super().__init__((), "lookup")
        self._after: dict[tuple[int, int], int] = {}  # the end of each pair's last occurrence
        self._extend(tokens)

    def follow(self, token: int) -> None:
        tokens, length = self.tokens, len(self.tokens)
        matches = self._next < length and tokens[self._next] == token
        pair = (tokens[-1] if tokens else token, token)
        found = self._after.get(pair)
        self._after[pair] = length + 1
        tokens.append(token)
        if matches:
            self._next, self.num_matched = self._next + 1, self.num_matched + 1
        else:
            self._next, self.num_matched = (length + 1, 0) if found is None else (found, 2)

    def catch_up(self, unread: Sequence[int]) -> None:
        """Add the tokens that the model must prefill next, unless they are already included."""
        if self.tokens[-len(unread) :] != unread:
            self._extend(unread)

    def _extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.follow(token)


def align(drafted: Iterable[tuple[int, float]], lengths: Iterable[int]) -> list[float]:
    """Return the probabilities of tokens of these lengths, from the lengths and probabilities of another model's tokens.

    The probability of a token is that of all drafted tokens that begin in it.
    """
    remaining, begin, end, confidences = iter(drafted), 0, 0, list[float]()
    for length in lengths:
        end, confidence = end + length, 1.0
        while begin < end and (token := next(remaining, None)):
            begin, confidence = begin + token[0], confidence * token[1]
        confidences.append(confidence)
    return confidences


class Proposal:
    """Proposes tokens from the drafted step while the text matches the step, then from the draft's continuation or `history`."""

    def __init__(self, tokens: Sequence[int] = (), history: History | None = None) -> None:
        self._drafted, self._speculated, self._history = _Drafted(tokens), _Proposed((), "speculated"), history

    def __bool__(self) -> bool:
        return bool(self._history or self._drafted.tokens or self._speculated.num_left)

    def place(self, room: int) -> Place:
        return self._chosen.place(room)

    def upcoming(self, count: int) -> list[int]:
        return self._chosen.upcoming(count)

    def speculate(self, tokens: Sequence[int], confidences: Sequence[float]) -> None:
        """Propose the draft's continuation until the text differs from it or rejoins the drafted step."""
        self._speculated = _Proposed(tokens, "speculated", confidences)

    def follow(self, token: int) -> bool | None:
        """Add the next token of the text. Return whether the token was proposed, or None if nothing was proposed."""
        proposed = self._chosen.upcoming(1)
        self._drafted.follow(token)
        self._speculated.follow(token)
        if self._history:
            self._history.follow(token)
        if self._drafted.num_left:
            self._speculated = _Proposed((), "speculated")
        return proposed == [token] if proposed else None

    @property
    def _chosen(self) -> _Proposed:
        if self._speculated.num_left:
            return self._speculated
        return self._drafted if self._drafted.num_left or not self._history else self._history


# --- how many tokens


class Speculation(NamedTuple):
    """A continuation of another model's step, with the lengths in bytes and the probabilities of its tokens."""

    text: str
    tokens: Sequence[tuple[int, float]]
    cost: Cost


class Speculator(Protocol):
    """Continues another model's step."""

    @property
    def unit_costs(self) -> UnitCosts | None: ...

    def speculate(
        self, slot: int, trace: Trace, prefix: str, drafting: "Drafting", *, until_end: bool = False
    ) -> Speculation: ...


class Calibration:
    """Tracks how often the target keeps the tokens of the draft's continuations, by the draft's probability of the token.

    All problems of a run are counted together. `credit` is the time that may be spent on exploration, in seconds.
    """

    def __init__(self) -> None:
        self._seen, self._matched = [0] * len(KEPT), [0] * len(KEPT)
        self.credit = 0.0

    def record(self, confidence: float, *, matched: bool) -> None:
        index = bisect_right(CONFIDENCES, confidence)
        self._seen[index] += 1
        self._matched[index] += matched

    @property
    def overall(self) -> float:
        return (sum(self._matched) + KEPT_OVERALL * KEPT_PRIOR) / (sum(self._seen) + KEPT_PRIOR)

    def chance(self, confidence: float) -> float:
        """Return the probability that the target keeps a token."""
        index = bisect_right(CONFIDENCES, confidence)
        return (self._matched[index] + KEPT[index] * KEPT_PRIOR) / (self._seen[index] + KEPT_PRIOR)


class Acceptance:
    """Tracks the acceptance rate of a problem's proposed tokens, by source and number of preceding matches.

    Continuations are tracked by the `calibration` of the run.
    """

    def __init__(self, calibration: Calibration | None = None) -> None:
        self.calibration = calibration or Calibration()
        self._seen = {source: [0.0] * BUCKETS for source in EXPECTED}  # proposed tokens that were compared
        self._matched = {source: [0.0] * BUCKETS for source in EXPECTED}

    def follow(self, proposal: Proposal, token: int) -> None:
        """Add the text's next token to `proposal` and record whether it matched."""
        place = proposal.place(1)
        matched = proposal.follow(token)
        if matched is not None:
            self.record(place, matched=matched)

    def record(self, place: Place, *, matched: bool) -> None:
        if place.source == "speculated":
            self.calibration.record(place.confidences[0], matched=matched)
            return
        self._seen[place.source][_bucket(place.num_matched)] += 1
        self._matched[place.source][_bucket(place.num_matched)] += matched

    def chances(self, place: Place, room: int) -> list[float]:
        """For each of at most `room` proposed tokens, return the probability that this token and all earlier ones match."""
        if place.source == "speculated":
            return [*accumulate(map(self.calibration.chance, place.confidences[: min(place.num_left, room)]), mul)]
        seen, matched = self._seen[place.source], self._matched[place.source]
        overall = (sum(matched) + EXPECTED[place.source] * PRIOR_TOKENS) / (sum(seen) + PRIOR_TOKENS)
        chances, chance = list[float](), 1.0
        for number in range(place.num_matched, place.num_matched + min(place.num_left, room)):
            bucket = _bucket(number)
            chance *= (matched[bucket] + overall * PRIOR_TOKENS) / (seen[bucket] + PRIOR_TOKENS)
            if chance < UNLIKELY:
                break
            chances.append(chance)
        return chances


def _bucket(num_matched: int) -> int:
    return min(num_matched.bit_length(), BUCKETS - 1)


@frozen
class Planner:
    """Plans the next batch of a model from its costs, which stay fixed during a run.

    If the costs are unknown, nothing is proposed. If `prompt_lookup` is true, the engine also proposes tokens by prompt
    lookup.
    """

    costs: UnitCosts | None = None
    prompt_lookup: bool = False

    def plan(self, waiting: Sequence[tuple[Acceptance, Place]]) -> list[int]:
        """Return how many proposed tokens to verify for each problem, in addition to the one token that is always decoded.

        Selects the most probable tokens, up to the number that maximizes the expected tokens per second.
        """
        counts, num_problems = [0] * len(waiting), len(waiting)
        if self.costs is None or not any(place.num_left for _, place in waiting):
            return counts
        room = max(0, MAX_ROWS - num_problems)
        chances = (
            (chance, index)
            for index, (acceptance, place) in enumerate(waiting)
            for chance in acceptance.chances(place, room)
        )
        likeliest = sorted(chances, reverse=True)[:room]
        costs = [self.costs.batch(num_problems + count) for count in range(1 + len(likeliest))]
        taken, _ = _fastest(num_problems, [chance for chance, _ in likeliest], costs)
        for _, index in likeliest[:taken]:
            counts[index] += 1
        return counts

    def plan_speculation(
        self, draft: UnitCosts | None, num_unread: int, room: int, acceptance: Acceptance, place: Place
    ) -> "Drafting | None":
        """Return how a draft with these costs should continue the text, of which it has not read `num_unread` tokens.

        Returns None if the tokens already proposed at `place` take at most as many seconds per token. A draft that is not
        expected to save time is explored now and then, so that the rates stay known.
        """
        most, calibration = max(0, min(room, MAX_SPECULATED)), acceptance.calibration
        if self.costs is None or draft is None or not most:
            return None
        wake = draft.read(min(num_unread, 2))[0] - draft.decode  # reading more is done once
        costs = _drafting_costs(self.costs, draft, most, wake)
        count, pace = _fastest(1, _powers(calibration.overall, most), costs)
        if count:
            chances = acceptance.chances(place, MAX_ROWS - 1)
            proposed = [self.costs.batch(1 + number) for number in range(1 + len(chances))]
            return Drafting(calibration, costs, pace) if pace < _fastest(1, chances, proposed)[1] else None
        if not _fastest(1, _powers(BEST_CASE, most), costs)[0]:
            return None
        calibration.credit += EXPLORED * self.costs.decode
        price = draft.read(num_unread)[0] + (PROBE - 1) * draft.decode
        if calibration.credit < price:
            return None
        calibration.credit -= price
        return Drafting(calibration, [0.0] * (1 + min(most, PROBE)), self.costs.decode)


class Drafting:
    """Decides after each token of a continuation whether the draft should write another one.

    `costs[n]` is the cost of drafting and verifying n tokens. A token that the target keeps saves `pace` seconds: those
    per token that speculation should reach, which is less than a decoded token costs.
    """

    def __init__(self, calibration: Calibration, costs: Sequence[float], pace: float) -> None:
        self._calibration, self._costs, self._pace = calibration, costs, pace
        self._num_drafted, self._chance = 0, 1.0
        self.max_tokens = len(costs) - 1

    def should_continue(self, confidence: float) -> bool:
        """Return whether the next token should save time, after a token of which the draft had this probability."""
        self._num_drafted += 1
        self._chance *= self._calibration.chance(confidence)
        if self._num_drafted == self.max_tokens:
            return False
        cost, more = self._costs[self._num_drafted : self._num_drafted + 2]
        return self._chance * self._calibration.overall * self._pace > more - cost


def speculative_pace(target: UnitCosts, draft: UnitCosts, match_rate: float) -> float:
    """Return the mean seconds per token of a target that verifies the best number of draft tokens, or decodes.

    `match_rate` is the probability that a draft token is kept after all earlier tokens of its batch were.
    """
    costs = _drafting_costs(target, draft, MAX_SPECULATED)
    count, pace = _fastest(1, _powers(match_rate, MAX_SPECULATED), costs)
    return pace if count else target.decode


def _drafting_costs(target: UnitCosts, draft: UnitCosts, most: int, wake: float = 0.0) -> list[float]:
    """Return the seconds to draft and verify 0, 1, ... `most` tokens. `wake` is the time before the first draft token."""
    drafted = (wake + count * draft.decode + target.batch(1 + count) for count in range(1, most + 1))
    return [target.decode, *drafted]


def _powers(chance: float, count: int) -> list[float]:
    return [chance**number for number in range(1, 1 + count)]


def most_verified(costs: UnitCosts) -> int:
    """Return how many tokens (at most MAX_SPECULATED) of a reliable proposal are worth verifying in one batch."""
    verified = [costs.batch(1 + number) for number in range(1 + MAX_SPECULATED)]
    return _fastest(1, _powers(RELIABLE, MAX_SPECULATED), verified)[0]


def _fastest(num_certain: int, chances: Sequence[float], costs: Sequence[float]) -> tuple[int, float]:
    """Return the number of proposed tokens that minimizes the seconds per token, and these seconds.

    The number is 0 if the gain is below `GAIN`. `chances` are in descending order. `num_certain` tokens are always decoded.
    `costs[n]` is the cost of a batch with n proposed tokens.
    """
    expected, best, taken = float(num_certain), costs[0] / num_certain / GAIN, 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if costs[number] / expected < best:
            best, taken = costs[number] / expected, number
    return taken, best

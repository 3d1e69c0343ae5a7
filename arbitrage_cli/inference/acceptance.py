"""Proposals, and how far texts have followed them.

A proposal is a step that a model may be about to write. Knows no model and no text: tokens in, counts and probabilities out.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

REJOIN = 2  # tokens in a row that have to agree before a text that left its proposal counts as back in it

EXPECTED_MATCH = 0.8  # probability that a proposed token matches, before any was seen
PRIOR_TOKENS = 4  # weight of that, in tokens seen
UNLIKELY = 0.02  # a token that is reached with less probability is not considered
BUCKETS = 8  # by the number of tokens that matched before: 0, 1, 2-3, 4-7 ... 64 and more

Source = Literal["drafted", "again", "speculated"]
"""Where the next proposed tokens come from: the drafted step; the drafted step after the text left it and came back; or the
draft's continuation of the text that was written instead.
"""

SOURCES: tuple[Source, ...] = get_args(Source)

Kind = Literal["drafted", "speculated"]
"""Which credit pays for a proposal that was read in vain: that of drafted steps, or that of the draft's continuations."""

KINDS: tuple[Kind, ...] = get_args(Kind)


class Place(NamedTuple):
    """Where a text is in its proposal: how many proposed tokens are left, and how many matched in a row before them."""

    num_left: int
    num_matched: int
    source: Source = "drafted"

    @property
    def kind(self) -> Kind:
        return "speculated" if self.source == "speculated" else "drafted"


class Proposal:
    """A step that a model may be about to write, next to the one that it does write, token by token.

    Once the text leaves the proposal, nothing is proposed until it comes back: its last `REJOIN` tokens are found in the proposal
    too, and the tokens after them are proposed next. Of several such places the one nearest to the text's own length counts.
    (Copying from a text after its last tokens is prompt lookup decoding, or LLMA, arXiv 2304.04487.)
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
        """Whether anything was ever proposed."""
        return bool(self._tokens or self._speculated)

    def place(self, room: int) -> Place:
        """Where the text is, if at most `room` tokens may be read."""
        if self._speculated:
            return Place(max(0, min(len(self._speculated), room)), self._num_speculated_matched, "speculated")
        return Place(max(0, min(len(self._tokens) - self._next, room)), self._num_matched, self._source)

    def upcoming(self, count: int) -> list[int]:
        """The next `count` proposed tokens, or as many as there are."""
        return self._speculated[:count] if self._speculated else self._tokens[self._next : self._next + count]

    def speculate(self, tokens: Sequence[int]) -> None:
        """Propose these next, until the text leaves them or comes back to the drafted step, of which more is known."""
        self._speculated, self._num_speculated_matched = list(tokens), 0

    def follow(self, token: int) -> bool | None:
        """Take the next token of the text. Returns whether it was the proposed one; None if none was proposed."""
        speculated = self._speculated
        matched = self._follow_draft(token)
        if not speculated:
            return matched
        is_right = token == speculated[0]
        is_back = self._next < len(self._tokens)
        self._speculated = speculated[1:] if is_right and not is_back else []
        self._num_speculated_matched += 1
        return is_right

    def _follow_draft(self, token: int) -> bool | None:
        """The same for the drafted step alone."""
        self._written.append(token)
        if self._next == len(self._tokens):
            self._rejoin()
            return None
        if token == self._tokens[self._next]:
            self._next += 1
            self._num_matched += 1
            return True
        self._rejoin()
        return False

    def _rejoin(self) -> None:
        last, tokens, here = self._written[-REJOIN:], self._tokens, len(self._written)
        ends = (end for end in range(REJOIN, len(tokens)) if tokens[end - REJOIN : end] == last)
        self._next = min(ends, key=lambda end: abs(end - here), default=len(tokens))
        self._num_matched, self._source = 0, "again"


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

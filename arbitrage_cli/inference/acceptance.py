"""How far texts have followed their proposals. Knows no model and no text: places in, probabilities out."""

from collections.abc import Iterator

from arbitrage_cli.inference.proposals import SOURCES, Place, Proposal

EXPECTED_MATCH = 0.8  # probability that a proposed token matches, before any was seen
PRIOR_TOKENS = 4  # weight of that, in tokens seen
UNLIKELY = 0.02  # a token that is reached with less probability is not considered
BUCKETS = 8  # by the number of tokens that matched before: 0, 1, 2-3, 4-7 ... 64 and more


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

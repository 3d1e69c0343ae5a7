"""Tracks how often a model keeps proposed tokens, and estimates the probability that it keeps the next ones."""

from bisect import bisect_right
from itertools import accumulate
from operator import mul

from arbitrage_cli.inference.proposals import Place, Proposal, Source

EXPECTED: dict[Source, float] = {"drafted": 0.8, "rejoined": 0.8, "lookup": 0.5}  # prior rates
PRIOR_TOKENS = 4  # weight of the prior, in tokens
UNLIKELY = 0.02  # tokens with a lower probability of being reached are ignored
BUCKETS = 8  # by number of preceding matches: 0, 1, 2-3, 4-7 ... 64 and more

CONFIDENCES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # the draft's probabilities of a token that separate the bins
KEPT = (0.3, 0.4, 0.6, 0.78, 0.91, 0.98, 0.995)  # prior rates at which the target keeps these tokens
KEPT_OVERALL = 0.9
KEPT_PRIOR = 8  # weight of these rates, in tokens


class Calibration:
    """Tracks how often the target keeps the tokens of the draft's continuations, by the draft's probability of the token.

    All problems of a run are counted together. `credit` is the time that may be spent on exploration, in seconds.
    """

    def __init__(self) -> None:
        self._seen = [0] * len(KEPT)
        self._matched = [0] * len(KEPT)
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
        chances: list[float] = []
        chance = 1.0
        for number in range(place.num_matched, place.num_matched + min(place.num_left, room)):
            bucket = _bucket(number)
            chance *= (matched[bucket] + overall * PRIOR_TOKENS) / (seen[bucket] + PRIOR_TOKENS)
            if chance < UNLIKELY:
                break
            chances.append(chance)
        return chances


def _bucket(num_matched: int) -> int:
    return min(num_matched.bit_length(), BUCKETS - 1)

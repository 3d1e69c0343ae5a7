"""Decides how many proposed tokens a model verifies in its next batch, and whether to ask the draft for more.

A batch yields one token, plus all leading proposed tokens that match the tokens drawn by the model. Verification is
worthwhile if it yields more tokens per second than decoding. The decision depends on acceptance rates and fixed costs but
not on a clock, so runs are reproducible. Inaccurate costs waste time, and change the text only where two tokens are almost
equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from arbitrage_cli.inference.proposals import SOURCES, Place, Proposal, Source
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, Trace

MAX_ROWS = 128  # maximum rows of a batch; small, so that progress is visible
GAIN = 1.05  # minimum gain in tokens per second; less is lost in overhead that the costs omit
RELIABLE = 0.95  # acceptance rate of a proposal that has matched for a while
MAX_SPECULATED = 16  # draft tokens per continuation

EXPECTED: dict[Source, float] = {"drafted": 0.8, "rejoined": 0.8, "speculated": 0.8, "lookup": 0.5}  # prior rates
PRIOR_TOKENS = 4  # weight of the prior, in tokens
UNLIKELY = 0.02  # tokens with a lower probability of being reached are ignored
BUCKETS = 8  # by number of preceding matches: 0, 1, 2-3, 4-7 ... 64 and more


class Speculator(Protocol):
    """Continues another model's step."""

    @property
    def unit_costs(self) -> UnitCosts | None: ...

    def speculate(self, slot: int, trace: Trace, prefix: str, max_tokens: int) -> tuple[str, Cost]: ...


class Acceptance:
    """Tracks the acceptance rate of a problem's proposed tokens, by source and number of preceding matches."""

    def __init__(self) -> None:
        self._seen = {source: [0.0] * BUCKETS for source in SOURCES}  # proposed tokens that were compared
        self._matched = {source: [0.0] * BUCKETS for source in SOURCES}

    def follow(self, proposal: Proposal, token: int) -> None:
        """Add the text's next token to `proposal` and record whether it matched."""
        place = proposal.place(1)
        matched = proposal.follow(token)
        if matched is not None:
            self.record(place, matched=matched)

    def record(self, place: Place, *, matched: bool) -> None:
        self._seen[place.source][_bucket(place.num_matched)] += 1
        self._matched[place.source][_bucket(place.num_matched)] += matched

    def chances(self, place: Place, room: int) -> list[float]:
        """For each of at most `room` proposed tokens, return the probability that this token and all earlier ones match."""
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


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans the next batch of a model from its costs, which stay fixed during a run.

    If the costs are unknown, nothing is proposed. If `prompt_lookup` is true, the engine also proposes tokens by prompt lookup.
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

    def plan_speculation(self, draft: UnitCosts | None, room: int, acceptance: Acceptance, place: Place) -> int:
        """Return how many tokens, at most `room`, a draft with these costs should propose.

        Returns 0 if the tokens already proposed at `place` yield at least as many tokens per second.
        """
        if self.costs is None or draft is None:
            return 0
        most = max(0, min(room, MAX_SPECULATED))
        costs = [0.0, *(draft.prefill_call + count * draft.decode for count in range(1, most + 1))]
        count, speed = _fastest_alone(self.costs, acceptance, Place(most, 0, "speculated"), costs)
        return count if speed > _fastest_alone(self.costs, acceptance, place)[1] else 0


def _fastest_alone(
    target: UnitCosts, acceptance: Acceptance, place: Place, drafting: Sequence[float] = ()
) -> tuple[int, float]:
    """Return the result of `_fastest` for a single problem. `drafting[n]` is the cost of drafting n tokens (default: 0)."""
    chances = acceptance.chances(place, MAX_ROWS - 1)
    drafted = drafting or [0.0] * (1 + len(chances))
    costs = [target.batch(1 + count) + drafted[count] for count in range(1 + len(chances))]
    return _fastest(1, chances, costs)


def most_verified(costs: UnitCosts) -> int:
    """Return how many tokens (at most MAX_SPECULATED) of a reliable proposal are worth verifying in one batch."""
    chances = [RELIABLE**number for number in range(1, 1 + MAX_SPECULATED)]
    return _fastest(1, chances, [costs.batch(1 + number) for number in range(1 + MAX_SPECULATED)])[0]


def _fastest(num_certain: int, chances: Sequence[float], costs: Sequence[float]) -> tuple[int, float]:
    """Return the number of proposed tokens that maximizes the tokens per second, and the resulting speed.

    The number is 0 if the gain is below `GAIN`. `chances` are in descending order. `num_certain` tokens are always decoded.
    `costs[n]` is the cost of a batch with n proposed tokens.
    """
    expected, best, taken = float(num_certain), GAIN * num_certain / costs[0], 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if expected / costs[number] > best:
            best, taken = expected / costs[number], number
    return taken, best

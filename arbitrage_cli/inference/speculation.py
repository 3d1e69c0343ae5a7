"""Decides how many proposed tokens a model verifies in its next batch, and how many the draft continues to propose.

A batch yields one token, plus all leading proposed tokens that match the tokens drawn by the model. Verification is
worthwhile if it yields more tokens per second than decoding. The decision depends on acceptance rates and fixed costs but
not on a clock, so runs are reproducible. Inaccurate costs waste time, and change the text only where two tokens are almost
equally likely.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from arbitrage_cli.inference.acceptance import Acceptance, Calibration
from arbitrage_cli.inference.proposals import Place
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, Trace, frozen

MAX_ROWS = 128  # maximum rows of a batch; small, so that progress is visible
GAIN = 1.05  # minimum gain in tokens per second; less is lost in overhead that the costs omit
RELIABLE = 0.95  # acceptance rate of a proposal that has matched for a while
MAX_SPECULATED = 24  # draft tokens per continuation
BEST_CASE = 0.97  # if even this rate saves no time, nothing is ever drafted
EXPLORED = 0.02  # share of the target's time for drafts from which only the rates are learned
PROBE = 4  # tokens of such a draft


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
        self, slot: int, trace: Trace, prefix: str, drafting: "Drafting", sampler: Sampler, *, until_end: bool = False
    ) -> Speculation: ...


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
        counts = [0] * len(waiting)
        num_problems = len(waiting)
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
        most = max(0, min(room, MAX_SPECULATED))
        calibration = acceptance.calibration
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
        self._calibration = calibration
        self._costs = costs
        self._pace = pace
        self._num_drafted = 0
        self._chance = 1.0
        self.max_tokens = len(costs) - 1

    def should_continue(self, confidence: float) -> bool:
        """Return whether drafting another token should save time. The draft gave the last token this probability."""
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

    The number is 0 if the gain is below `GAIN`. `chances` are in descending order. The first `num_certain` tokens are always
    decoded. `costs[n]` is the cost of a batch with n proposed tokens.
    """
    expected = float(num_certain)
    best = costs[0] / num_certain / GAIN
    taken = 0
    for number, chance in enumerate(chances, start=1):
        expected += chance
        if costs[number] / expected < best:
            best = costs[number] / expected
            taken = number
    return taken, best

"""Decides how many proposed tokens a model verifies in its next batch, and how many the draft continues to propose.

A batch yields one token, plus all leading proposed tokens that match the tokens drawn by the model. Verification is
worthwhile if it yields more tokens per second than decoding. The decision depends on acceptance rates and fixed costs but
not on a clock, so runs are reproducible. Inaccurate costs waste time, and change the text only where two tokens are almost
equally likely.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from arbitrage_cli.inference.acceptance import Acceptance, Calibration
from arbitrage_cli.inference.proposals import Place
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, Phase, Step, Trace, frozen

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


ShouldContinue = Callable[[int, float], bool]
"""Returns whether to draft another token after this token, of which the draft had this probability."""


class Drafted(NamedTuple):
    """The draft's choices at the next positions, with their probabilities.

    `room` is the number of tokens that fit into the draft's context after the text so far.
    """

    tokens: Sequence[int]
    confidences: Sequence[float]
    room: int
    cost: Cost


class Speculator(Protocol):
    """Continues another model's step: as text or, if the models have the same vocabulary, as token ids."""

    @property
    def unit_costs(self) -> UnitCosts | None: ...

    def speculate(
        self, slot: int, trace: Trace, prefix: str, drafting: "Drafting", sampler: Sampler, *, until_end: bool = False
    ) -> Speculation: ...

    def draft(
        self, slot: int, trace: Trace, tokens: Sequence[int], most: int, should_continue: ShouldContinue
    ) -> Drafted: ...

    def ends(self, phase: Phase, token: int) -> bool: ...

    def remember(self, slot: int, step: Step, tokens: list[int]) -> None: ...


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

    def plan_relaxed(self, draft: UnitCosts | None, most: int, calibration: Calibration) -> "Drafting":
        """Return how many tokens a draft with these costs should choose for relaxed acceptance: from 1 to `most`.

        The batch of the target has as many tokens, and compares each of its choices with the draft's. Without costs, the
        draft chooses one token at a time.
        """
        if self.costs is None or draft is None:
            return Drafting(calibration, [0.0, 0.0], 0.0)
        costs = _relaxed_costs(self.costs, draft, max(1, min(most, MAX_SPECULATED)))
        paces = _paces(costs, calibration.overall)
        best = paces.index(min(paces))
        if not best:
            return Drafting(calibration, [0.0, 0.0], 0.0)
        # The second token of a batch may cost as much as many more, so the cost up to the best number is spread evenly.
        each = (costs[best] - costs[0]) / best
        even = [min(cost, costs[0] + index * each) for index, cost in enumerate(costs)]
        return Drafting(calibration, [0.0, *even], paces[best], next_chance=1.0)


class Drafting:
    """Decides after each token of a continuation whether the draft should write another one.

    `costs[n]` is the cost of drafting and verifying n tokens. A token that the target keeps saves `pace` seconds: those
    per token that speculation should reach, which is less than a decoded token costs. `next_chance` is the probability that
    the next token saves them if all earlier ones are kept: by default, the usual probability that it is kept itself.
    """

    def __init__(
        self, calibration: Calibration, costs: Sequence[float], pace: float, next_chance: float | None = None
    ) -> None:
        self._calibration = calibration
        self._next_chance = calibration.overall if next_chance is None else next_chance
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
        return self._chance * self._next_chance * self._pace > more - cost


def speculative_pace(target: UnitCosts, draft: UnitCosts, match_rate: float) -> float:
    """Return the mean seconds per token of a target that verifies the best number of draft tokens, or decodes.

    `match_rate` is the probability that a draft token is kept after all earlier tokens of its batch were.
    """
    costs = _drafting_costs(target, draft, MAX_SPECULATED)
    count, pace = _fastest(1, _powers(match_rate, MAX_SPECULATED), costs)
    return pace if count else target.decode


def relaxed_pace(target: UnitCosts, draft: UnitCosts, match_rate: float) -> float:
    """Return the mean seconds per token with relaxed acceptance, if the draft chooses the best number of tokens.

    `match_rate` is the probability that a draft token is kept after all earlier tokens of its batch were.
    """
    return min(_paces(_relaxed_costs(target, draft, MAX_SPECULATED), match_rate))


def _relaxed_costs(target: UnitCosts, draft: UnitCosts, most: int) -> list[float]:
    """Return the seconds to draft and compare 1, 2, ... `most` tokens."""
    return [count * draft.decode + target.batch(count) for count in range(1, 1 + most)]


def _paces(costs: Sequence[float], match_rate: float) -> list[float]:
    """Return the seconds per written token if 1, 2, ... tokens with these costs are compared. The first is always written."""
    expected = accumulate([1.0, *_powers(match_rate, len(costs) - 1)])
    return [cost / tokens for cost, tokens in zip(costs, expected, strict=True)]


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

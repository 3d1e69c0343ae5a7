"""Computes the time of each attempt from its counted work.

The amount of work on a problem is deterministic: tokens in prefill, decoding and verification, scores, and tokens that the
program handles. Only the time of the work is noisy. The unit costs are means over many steps. A disturbed step counts as a
usual step of the same kind at a similar place in a solution. A change of model may slow down the next step. The first steps
after a change are therefore a kind of their own, so that a policy pays for its changes. The computed time of an attempt is
its work multiplied by these unit costs. The work of a model without measured unit costs keeps its measured time: most of a
server's time is latency, which does not depend on counted work.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.types import Cost, ModelRole

Kind = tuple[ModelRole, str, bool] | Literal["score", "program"]
"""A kind of work: the scores of a policy, the tokens that the program handles, or a phase of a model's work.

The last part of the tuple is whether the step follows a step of another model, which may be slower.
"""
PHASES = ("prefill", "decode", "verify")

DISTURBED = 2.0  # the factor by which a disturbed step is slower or faster than the usual step
NEIGHBOURS = 7  # steps before a place, and after it, that define the usual step
MIN_STEPS = 8  # minimum steps of a policy; with fewer, all policies define the usual step


@dataclass(frozen=True, slots=True)
class Work:
    """The work on an attempt, and the measured seconds of the work that no model does.

    `steps` contains the cost of each step by model, in order, including discarded steps and speculation. `program_seconds` is
    the time spent outside the models and the router.
    """

    steps: Sequence[tuple[ModelRole, Cost]] = ()
    num_scores: int = 0
    router_seconds: float = 0.0
    program_seconds: float = 0.0
    reward_seconds: float = 0.0

    def pieces(self, units: Mapping[ModelRole, UnitCosts]) -> "list[tuple[Kind, Piece]]":
        """Return the pieces of work that take time and that `units` cover."""
        found: list[tuple[Kind, Piece]] = []
        place, previous = 0, None
        for role, cost in self.steps:
            if role in units:
                measured = cost.prefill_seconds, cost.decode_seconds, cost.verify_seconds
                for phase, expected, seconds in zip(PHASES, units[role].seconds(cost), measured, strict=True):
                    found.append(((role, phase, previous not in (None, role)), Piece(place, expected, seconds)))
            place, previous = place + cost.decode_tokens + cost.verify_kept, role
        found.append(("score", Piece(0, self.num_scores, self.router_seconds)))
        found.append(("program", Piece(0, place, self.program_seconds)))
        return [(kind, piece) for kind, piece in found if piece.expected]

    def computed(self, units: Mapping[ModelRole, UnitCosts], scales: Mapping[Kind, float]) -> dict[str, float]:
        """Return the computed seconds of each model role, of the program and of the ratings."""
        seconds: dict[str, float] = defaultdict(float, rewards=self.reward_seconds)
        for kind, piece in self.pieces(units):
            seconds[kind if isinstance(kind, str) else kind[0]] += scales[kind] * piece.expected
        for role, cost in self.steps:
            seconds[role] += 0.0 if role in units else cost.seconds
        return seconds


class Piece(NamedTuple):
    """The expected and measured seconds of a piece of work, and its place: the number of tokens written before."""

    place: int
    expected: float
    measured: float


Pieces = Mapping[Kind, Sequence[Piece]]


def by_kind(works: Iterable[Work], units: Mapping[ModelRole, UnitCosts]) -> Pieces:
    found: dict[Kind, list[Piece]] = {}
    for kind, piece in (one for work in works for one in work.pieces(units)):
        found.setdefault(kind, []).append(piece)
    return found


def scale_of(own: Sequence[Piece], everything: Sequence[Piece]) -> float:
    """Return the total measured seconds of a policy's pieces of one kind, divided by their total expected seconds.

    A disturbed piece gets the usual time of the pieces at similar places.
    """
    ordered, total = sorted(own, key=lambda piece: piece.place), 0.0
    for index, piece in enumerate(ordered):
        near = ordered[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1] if len(own) >= MIN_STEPS else everything
        usual = piece.expected * median(one.measured / one.expected for one in near)
        is_usual = usual <= DISTURBED * piece.measured and piece.measured <= DISTURBED * usual
        total += piece.measured if is_usual else usual
    return total / math.fsum(piece.expected for piece in own)

"""Figures of solved problems: how steps, tokens and time were shared between draft and target.

A fold over decisions, so that the figures of one problem, of many, and of a run read back are made by the same lines.
Knows no model, no file and no terminal.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from arbitrage_cli.types import Cost, Decision


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over steps. Costs include what was written and thrown away; `wasted_tokens` are the draft's share of that.

    `stopped_steps` are drafted ones that were stopped before they were finished.
    """

    drafted_steps: int = 0
    accepted_steps: int = 0
    stopped_steps: int = 0
    target_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    target_tokens: int = 0
    draft_cost: Cost = field(default_factory=Cost)
    target_cost: Cost = field(default_factory=Cost)
    reward_cost: Cost = field(default_factory=Cost)

    def add(self, decision: Decision) -> "Tally":
        draft, target = decision.draft, decision.target
        accepted = draft is not None and decision.kept is draft
        return replace(
            self,
            drafted_steps=self.drafted_steps + (draft is not None),
            accepted_steps=self.accepted_steps + accepted,
            stopped_steps=self.stopped_steps + (draft is not None and draft.stop == "early"),
            target_steps=self.target_steps + (target is not None),
            drafted_tokens=self.drafted_tokens + (draft.num_tokens if draft else 0),
            accepted_tokens=self.accepted_tokens + (draft.num_tokens if draft and accepted else 0),
            target_tokens=self.target_tokens + (target.num_tokens if target else 0),
            draft_cost=self.draft_cost + (draft.cost if draft else Cost()) + (target.speculation_cost if target else Cost()),
            target_cost=self.target_cost + target.cost if target else self.target_cost,
        )

    def rated(self, cost: Cost) -> "Tally":
        """With what it cost to rate steps, which no decision tells of."""
        return replace(self, reward_cost=self.reward_cost + cost)

    @property
    def wasted_tokens(self) -> int:
        """Drafted tokens of steps that were not kept."""
        return self.drafted_tokens - self.accepted_tokens

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted drafted steps / drafted steps; None if nothing was drafted."""
        return self.accepted_steps / self.drafted_steps if self.drafted_steps else None

    @property
    def token_acceptance_rate(self) -> float | None:
        """Tokens of accepted drafted steps / drafted tokens; None if nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def seconds(self) -> float:
        """Time that the models took, reading and decoding, thrown-away steps and the rating of steps included."""
        return self.draft_cost.seconds + self.target_cost.seconds + self.reward_cost.seconds


@dataclass(frozen=True, slots=True)
class Share:
    """The part that a problem has in a block of problems, several of which are solved at once.

    `of` problems were solved in one go. `seconds` are those from the end of whichever was done before it, or from the block's
    beginning, to its own end: the block took the sum of them.
    """

    block: int
    of: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How one policy of a benchmark stands: of the attempts that are planned, those tried, done, and with the right answer.

    `seconds` are those of the attempts that are done; `speedup` compares them with the target alone, on the same problems,
    where one is solved at a time. `correct` and `seconds` are None where they are not known.
    """

    label: str
    planned: int
    tried: int
    done: int
    correct: int | None = None
    seconds: float | None = None
    speedup: float | None = None
    concurrency: int = 1


def tally(decisions: Iterable[Decision]) -> Tally:
    """The figures of all these decisions."""
    total = Tally()
    for decision in decisions:
        total = total.add(decision)
    return total

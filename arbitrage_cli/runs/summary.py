"""Counts the steps, tokens and time of the draft and the target, for live events and for the rows of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from operator import add, attrgetter
from typing import Any

from arbitrage_cli.types import Check, Cost, Decision, Finished, ModelRole

NO_COST = Cost()


@dataclass(frozen=True, slots=True)
class Tally:
    """Totals over several steps. Costs and drafted tokens include discarded steps.

    `stopped_steps` counts the drafted steps that were stopped early. `thinking_tokens` counts kept steps. `reward_cost` is
    the cost of rating steps. `check_tokens` and `check_cost` belong to the checker.
    """

    drafted_steps: int = 0
    accepted_steps: int = 0
    stopped_steps: int = 0
    target_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    target_tokens: int = 0
    check_tokens: int = 0
    thinking_tokens: int = 0
    draft_cost: Cost = field(default_factory=Cost)
    target_cost: Cost = field(default_factory=Cost)
    reward_cost: Cost = field(default_factory=Cost)
    check_cost: Cost = field(default_factory=Cost)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*map(add, _values(self), _values(other)))

    @property
    def wasted_tokens(self) -> int:
        return self.drafted_tokens - self.accepted_tokens

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted_steps / self.drafted_steps if self.drafted_steps else None

    @property
    def token_acceptance_rate(self) -> float | None:
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs.values())

    @property
    def costs(self) -> dict[ModelRole, Cost]:
        return {"draft": self.draft_cost, "target": self.target_cost, "prm": self.reward_cost, "check": self.check_cost}


def tally(decisions: Iterable[Decision], reward_cost: Cost = NO_COST, check: Check | None = None) -> Tally:
    made, others = list(decisions), check.discarded if check else ()
    drafts = [decision.draft for decision in made if decision.draft] + [step for step in others if step.model == "draft"]
    checks = [step for step in others if step.model == "check"]
    targets = [decision.target for decision in made if decision.target]
    accepted = [decision.kept for decision in made if decision.kept is decision.draft]
    speculation = [step.speculation_cost for step in targets]
    return Tally(
        drafted_steps=len(drafts),
        accepted_steps=len(accepted),
        stopped_steps=sum(step.stop == "early" for step in drafts),
        target_steps=len(targets),
        drafted_tokens=sum(step.num_tokens for step in drafts),
        accepted_tokens=sum(step.num_tokens for step in accepted),
        target_tokens=sum(step.num_tokens for step in targets),
        check_tokens=sum(step.num_tokens for step in checks),
        thinking_tokens=sum(decision.kept.num_tokens for decision in made if decision.kept.phase == "think"),
        draft_cost=_sum_costs([*(step.cost for step in drafts), *speculation]),
        target_cost=_sum_costs([step.cost for step in targets]),
        reward_cost=reward_cost,
        check_cost=_sum_costs([step.cost for step in checks]),
    )


def tally_of(finished: Finished) -> Tally:
    return tally(finished.trace.decisions, finished.reward_cost, finished.trace.check)


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of many tallies, much faster than by repeated addition."""
    columns = zip(*map(_values, tallies), strict=True)
    sums: list[Any] = [_sum_costs(column) if isinstance(column[0], Cost) else sum(column) for column in columns]
    return Tally(*sums)


_values = attrgetter(*(field.name for field in fields(Tally)))
_cost_values = attrgetter(*(field.name for field in fields(Cost)))


def _sum_costs(costs: Sequence[Any]) -> Cost:
    return Cost(*map(sum, zip(*map(_cost_values, costs), strict=True)))

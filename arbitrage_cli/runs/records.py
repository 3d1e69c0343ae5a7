"""Describes runs and attempts: settings that displays show, the keys of rows, the reasons of failures, and totals of work."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.routing.equations import steps_with_wrong_equations
from arbitrage_cli.types import (
    Attribution,
    Bill,
    ByRole,
    Check,
    Cost,
    Decision,
    Fields,
    Finished,
    ModelRole,
    Problem,
    Step,
    Trace,
    frozen,
)

if TYPE_CHECKING:  # NumPy is slow to import
    from arbitrage_cli.routing.route import Route

SCHEMA: Literal[4] = 4
"""The schema of rows."""
RUN_SCHEMA: Literal[4] = 4
"""The schema of run.json. Folders with another schema are rejected."""
Kind = Literal["bench", "collect", "solve"]
BENCH: Final = "bench"
COLLECT: Final = "collect"
SOLVE: Final = "solve"
"""The kinds of runs, named after the commands that create them."""
ADVISE: Final = "advise"
Command = Literal[Kind, "advise"]
"""The commands that create runs. A run of `advise` is a benchmark that skips attempts."""

NO_COST = Cost()

Level = str | int | None
Tau = float | Literal["inf", "-inf"] | None
AttemptKey = tuple[str, int, str | None, Tau]
"""The attempt that a row belongs to: problem ID, sample, policy and tau."""

Explain = Callable[[Trace, int], Attribution | None]  # explains the decision at an index

LIMITS: Mapping[str, str] = {"max_tokens": "--max-tokens", "max_steps": "--max-steps", "context": "--ctx"}
"""Maps the `TraceStop` of a solution that reached a limit to the option that sets the limit."""


@frozen
class RunInfo:
    """The settings of a run that solves problems."""

    route: "Route"
    models: ByRole[str] = field(default_factory=dict)  # names given by the user
    descriptions: ByRole[str] = field(default_factory=dict)  # from the model files
    names: ByRole[str] = field(default_factory=dict)  # for displays: file names and quantizations, or the user's names
    threads: Sequence[int] = ()  # of each model that computes on this machine's processor
    cores: int = 1  # of this machine
    settings: Fields = field(default_factory=dict)  # all other settings that affect the text
    num_problems: int | None = None  # None if unknown in advance
    num_done: int = 0  # by an earlier command
    answers_follow: bool = False  # the answers are written to the terminal that shows the view
    thoughts_tau: float | None = None  # threshold for thoughts if it differs from the route's
    concurrency: int = 1
    find_answer: Callable[[str], str | None] = boxed_answer  # finds the answer in a solution
    has_equations: bool = True  # an equals sign between numbers states that they are equal, as in mathematics
    needs_answer: bool = True  # a solution without an answer is incomplete
    warnings: Callable[[Problem], Sequence[str]] = lambda problem: ()  # why the models probably cannot solve a problem
    has_quick_answers: bool = False  # the target thinks only if quick answers differ
    explain: Explain | None = None
    bill: Callable[[Finished], Bill | None] = lambda finished: None

    def wrong_equations(self, trace: Trace) -> list[int]:
        """Return the numbers, from 1, of the kept steps of the answer that contain a wrong equation."""
        return steps_with_wrong_equations(trace) if self.has_equations else []


def tau_in_json(tau: float | None) -> Tau:
    """Return a tau for JSON: a number, "inf", "-inf" or None."""
    if tau is None or math.isfinite(tau):
        return tau
    return "inf" if tau > 0 else "-inf"


def to_json(content: Fields, **options: Any) -> str:
    """Serialize a record as ASCII JSON without NaN. Lone surrogates are replaced with question marks."""
    text = json.dumps(content, allow_nan=False, **options)
    if "\\ud" in text:  # JSON parsers reject lone surrogates, which Python would escape
        clean = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
        text = json.dumps(clean, allow_nan=False, **options)
    return text


def attempt_error(finished: Finished) -> str | None:
    """Return in one line why an attempt has no result. A solution that was cut at a limit is a result."""
    if finished.error is None or (isinstance(finished.error, ContextFullError) and finished.trace.decisions):
        return None
    return " ".join(str(finished.error).split())


def problem_error(finished: Finished) -> tuple[str, str] | None:
    """Return why a problem failed, and a hint, or None. Reaching `max_steps` or `max_tokens` is not a failure."""
    if finished.error is not None:
        return str(finished.error), finished.error.hint
    if finished.trace.stop == "context":
        steps = formatting.count(len(finished.trace.decisions), "step")
        return f"the context was full after {steps}", "use a larger --ctx"
    return None


@frozen
class Tally:
    """Totals over several steps. Costs and drafted tokens include discarded steps.

    `stopped_steps` counts the drafted steps that were stopped early. `thinking_tokens` counts kept steps. `reward_cost` is
    the cost of rating steps with a process reward model; that of rollouts is part of the models' costs. `check_tokens` and
    `check_cost` belong to the checker. `further_tokens` are those of the draft's further solutions, which take the checker's
    place. Their costs are part of the draft's, but nothing of them can be accepted, so they are not drafted tokens.
    """

    drafted_steps: int = 0
    accepted_steps: int = 0
    stopped_steps: int = 0
    target_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    target_tokens: int = 0
    check_tokens: int = 0
    further_tokens: int = 0
    thinking_tokens: int = 0
    draft_cost: Cost = field(default_factory=Cost)
    target_cost: Cost = field(default_factory=Cost)
    reward_cost: Cost = field(default_factory=Cost)
    check_cost: Cost = field(default_factory=Cost)

    def __add__(self, other: "Tally") -> "Tally":
        return total([self, other])

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


def tally(
    decisions: Iterable[Decision],
    reward_cost: Cost = NO_COST,
    check: Check | None = None,
    rollouts: Iterable[Cost] = (),
    abandoned: Iterable[Step] = (),
) -> Tally:
    """Return the totals over these decisions, and over the other work on a problem. `rollouts` contains the target's costs.

    Of the `abandoned` steps, only the costs count.
    """
    made = list(decisions)
    unused: dict[ModelRole, list[Cost]] = defaultdict(list)
    for step in abandoned:
        unused[step.model].append(step.cost)
    solutions = check.solutions if check else ()
    others = [step for solution in solutions if not solution.is_further for step in solution.steps]
    further = [step for solution in solutions if solution.is_further for step in solution.steps]
    drafts = [decision.draft for decision in made if decision.draft] + [step for step in others if step.model == "draft"]
    checks = [step for step in others if step.model == "check"]
    targets = [decision.target for decision in made if decision.target]
    accepted = [decision.kept for decision in made if decision.kept is decision.draft]
    thoughts = [decision.kept for decision in made if decision.kept.phase == "think"]
    return Tally(
        drafted_steps=len(drafts),
        accepted_steps=len(accepted),
        stopped_steps=sum(step.stop == "early" for step in drafts),
        target_steps=len(targets),
        drafted_tokens=_num_tokens(drafts),
        accepted_tokens=_num_tokens(accepted),
        target_tokens=_num_tokens(targets),
        check_tokens=_num_tokens(checks),
        further_tokens=_num_tokens(further),
        thinking_tokens=_num_tokens(thoughts),
        draft_cost=_sum_costs(
            [*_costs(drafts), *_costs(further), *(step.speculation_cost for step in targets), *unused["draft"]]
        ),
        target_cost=_sum_costs([*_costs(targets), *rollouts, *unused["target"]]),
        reward_cost=reward_cost,
        check_cost=_sum_costs([*_costs(checks), *unused["check"]]),
    )


def _num_tokens(steps: Iterable[Step]) -> int:
    return sum(step.num_tokens for step in steps)


def _costs(steps: Iterable[Step]) -> list[Cost]:
    return [step.cost for step in steps]


def tally_of(finished: Finished) -> Tally:
    trace = finished.trace
    return tally(trace.decisions, finished.reward_cost, trace.check, _costs(trace.rollouts), finished.abandoned)


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of many tallies, much faster than by repeated addition."""
    columns = zip(*map(_values, tallies), strict=True)
    sums: list[Any] = [_sum_costs(column) if isinstance(column[0], Cost) else sum(column) for column in columns]
    return Tally(*sums)


_values = attrgetter(*(field.name for field in fields(Tally)))
_cost_values = attrgetter(*(field.name for field in fields(Cost)))


def _sum_costs(costs: Sequence[Any]) -> Cost:
    return Cost(*map(sum, zip(*map(_cost_values, costs), strict=True)))

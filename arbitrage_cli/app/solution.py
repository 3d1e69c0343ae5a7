"""Defines a pair's results: solutions, stream events, and `InOrder`, which puts results in problem order."""

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any, Generic, TypeVar

from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.runs.records import NO_COST, RunInfo, tally_of
from arbitrage_cli.runs.rows import SolutionRow
from arbitrage_cli.types import Check, Cost, Decision, Finished, ModelRole, Phase, Problem, TraceStop

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of one solution, in tokens and seconds, including discarded steps.

    `reward` is the cost of rating steps, and `check` that of the checker. `escalated_steps` excludes steps that the target
    writes without a draft.
    """

    draft: Cost
    target: Cost
    reward: Cost
    accepted_steps: int
    escalated_steps: int
    check: Cost = NO_COST


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Solution:
    """A solved problem.

    `answer` is the final answer, or None if the text contains no answer. `text` excludes `thinking`. `steps` contains one
    decision per step. `check` is the comparison of answers by policy `agree`. `seconds` is model time. `stop` is the reason why the solution ended. `error` is set if the problem
    failed in `solve_many`; `steps` and `text` then contain the unfinished solution.
    """

    problem: Problem
    answer: str | None
    text: str
    thinking: str
    steps: tuple[Decision, ...]
    check: Check | None
    usage: Usage
    seconds: float
    stop: TraceStop | None
    error: ArbitrageError | None
    _row: SolutionRow = field(repr=False)

    @classmethod
    def of(cls, finished: Finished, run: RunInfo) -> "Solution":
        trace, row = finished.trace, SolutionRow.of(finished, run)
        work = tally_of(finished)
        escalated = sum(decision.choice == "escalate" for decision in trace.decisions)
        return cls(
            trace.problem,
            row.answer,
            trace.text,
            trace.thoughts,
            tuple(trace.decisions),
            trace.check,
            Usage(work.draft_cost, work.target_cost, work.reward_cost, work.accepted_steps, escalated, work.check_cost),
            work.seconds,
            trace.stop,
            finished.error,
            row,
        )

    def __repr__(self) -> str:
        failed = f", error={type(self.error).__name__}" if self.error else ""
        return (
            f"<Solution {short(self.problem.id)}: answer={short(self.answer)}, {len(self.steps)} steps, "
            f"{self.seconds:.2f} s, stop={self.stop!r}{failed}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record that `arbitrage solve --json` writes."""
        return self._row.to_dict()


@dataclass(frozen=True, slots=True)
class Token:
    """Text that a model has just written. The text of a drafted step is discarded if the next `Decision` escalates the step."""

    model: ModelRole
    phase: Phase
    text: str


StreamEvent = Token | Decision | Solution
"""An event of `Pair.stream`: a token, the decision about a step, or the solution at the end."""


class InOrder(Generic[T]):
    """Holds results until all earlier results are ready. Their order is that of `expect`."""

    def __init__(self) -> None:
        self._expected: deque[Hashable] = deque()
        self._held: dict[Hashable, T] = {}

    def expect(self, key: Hashable) -> None:
        self._expected.append(key)

    def put(self, key: Hashable, result: T) -> None:
        self._held[key] = result

    def ready(self) -> Iterator[T]:
        """Yield and remove the results that precede the first unfinished problem."""
        while self._expected and self._expected[0] in self._held:
            yield self._held.pop(self._expected.popleft())

    def rest(self) -> Iterator[T]:
        """Yield all remaining results in order."""
        yield from (self._held[key] for key in self._expected if key in self._held)

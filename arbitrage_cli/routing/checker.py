"""The checker of policy `agree`: the solutions whose answers are compared, and how they are written."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from arbitrage_cli.agreement import agree
from arbitrage_cli.arbitrage import Flow, WriteStep
from arbitrage_cli.types import ModelRole, RoleLimits, Trace, frozen

if TYPE_CHECKING:
    from arbitrage_cli.problems.tasks import Grader


@frozen
class Checker:
    """The settings of the checks. The models in `order` solve the problem one after another, or two of them at once.

    A model's further solutions are drawn at random. `stated_answer` returns the answer that a solution states, or None. Two
    solutions agree only if both state an answer.
    """

    stated_answer: Callable[[str], str | None]
    grader: "Grader"
    limits: RoleLimits
    order: Sequence[ModelRole] = ("draft", "check")
    at_once: bool = False

    def flow(self, trace: Trace) -> Flow:
        solutions = [
            WriteStep(model, self._own_trace(trace, model), until_end=True, sample=self.order[:index].count(model))
            for index, model in enumerate(self.order)
        ]
        return agree(
            trace,
            solutions,
            lambda solution: self.stated_answer(solution.text),
            lambda solution, answer: self.grader.grade(solution.text, {"answer": answer}).value == "correct",
            at_once=self.at_once,
        )

    def _own_trace(self, trace: Trace, model: ModelRole) -> Trace:
        limits = self.limits.of(model)
        return Trace(replace(trace.problem, thinks=limits.thinking.switch), limits)

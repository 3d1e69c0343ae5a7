"""The checker of policy `agree`: how it thinks, and how its answer is compared with the draft's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from arbitrage_cli.arbitrage import Flow, agree
from arbitrage_cli.types import THINK_TOKENS, Grade, Limits, ModelRole, Trace

Thinking = Literal["on", "off", "other"]
"""Whether the checker thinks. `other`: if and only if the draft does not."""


class Grader(Protocol):
    """Finds the answer of a solution, and compares it with another answer."""

    def grade(self, text: str, gold: Mapping[str, str]) -> Grade: ...


@dataclass(frozen=True, slots=True)
class Checker:
    """The settings of the checker. `order` is the order in which the two models solve a problem, unless they write at once."""

    grader: Grader
    thinking: Thinking = "off"
    order: Sequence[ModelRole] = ("draft", "check")
    at_once: bool = False

    def flow(self, trace: Trace) -> Flow:
        traces = {"draft": Trace(trace.problem, trace.limits), "check": self._own_trace(trace)}
        solutions = {model: traces[model] for model in self.order}
        return agree(trace, solutions, self._answer, self._is_same, at_once=self.at_once)

    def _answer(self, solution: Trace) -> str | None:
        return self.grader.grade(solution.text, {}).answer

    def _is_same(self, solution: Trace, answer: str) -> bool:
        return self.grader.grade(solution.text, {"answer": answer}).value == "correct"

    def _own_trace(self, trace: Trace) -> Trace:
        limits = self._own_limits(trace.limits)
        return Trace(replace(trace.problem, thinks=limits.thinks), limits)

    def _own_limits(self, limits: Limits) -> Limits:
        """Return the checker's limits. If only the checker thinks, the default limit is that of solutions with thinking."""
        thinks = not limits.thinks if self.thinking == "other" else self.thinking == "on"
        if thinks == bool(limits.thinks):
            return limits
        if not thinks:
            return replace(limits, think_tokens=0, is_thinking_chosen=self.thinking == "other")
        is_default = limits.max_tokens == Limits().max_tokens
        return replace(limits, think_tokens=None, max_tokens=THINK_TOKENS if is_default else limits.max_tokens)

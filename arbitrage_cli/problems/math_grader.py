"""Grades mathematical solutions: answers that are not equal as text are compared by math-verify.

math-verify runs in a child process with limits, because an answer such as `9^{9^{9^9}}` would take forever.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.problems.algebra import MAKE
from arbitrage_cli.problems.answers import IN_BOX, final_answer, gold_answer, shown
from arbitrage_cli.problems.compare import compare
from arbitrage_cli.system.child import Child, ChildError
from arbitrage_cli.types import Grade

RULES_VERSION = 3  # incremented whenever a change may affect grades

# Outcomes that decide nothing, but that a retry would not change
_UNDECIDED: Mapping[str, str] = MappingProxyType(
    {
        "unreadable gold": "math-verify cannot read the gold answer",
        "memory": "math-verify ran out of memory",
        "failed": "math-verify failed",
        "crash": "math-verify failed",
        "time": "math-verify timed out",
    }
)


def grader_version() -> str:
    """Return the versions of the rules and libraries that grades depend on."""
    names = ("math-verify", "latex2sympy2_extended", "sympy")
    return ", ".join([f"rules {RULES_VERSION}", *(f"{name} {version(name)}" for name in names)])


class MathGrader(AbstractContextManager["MathGrader"]):
    """Grades answers. `seconds` and `memory` limit each comparison by math-verify as described in `Child`."""

    protections = ()  # runs no programs

    def __init__(self, *, seconds: float = 2.5, memory: int = 300 << 20) -> None:
        self._child = Child(MAKE, seconds=seconds, memory=memory)

    def __exit__(self, *error: object) -> None:
        self._child.close()

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        """Grade a solution's final answer. Raises ProblemError if the child process is killed twice."""
        found, expected = final_answer(text), gold_answer(gold)
        if expected is None:
            return Grade("unscored", found.answer, "no gold answer in the data set")
        if found.answer is None:
            return Grade("incorrect", None, f"no answer found: {found.how}")
        comparison = compare(expected, found.answer)
        is_equal = comparison.is_equal
        if is_equal is None:
            outcome = self._ask(comparison.gold, comparison.answer)
            if outcome in _UNDECIDED:
                return Grade("unscored", found.answer, f"grader: {_UNDECIDED[outcome]}")
            is_equal = outcome == "equal"
        place = "" if found.how == IN_BOX else f"no \\boxed{{}}, {found.how}: "
        sign = "=" if is_equal else "is not"
        explanation = f"{place}{shown(found.answer)} {sign} {shown(expected)} ({comparison.rule})"
        return Grade("correct" if is_equal else "incorrect", found.answer, explanation)

    def _ask(self, gold: str, answer: str) -> str:
        try:
            return str(self._child(gold, answer))
        except ChildError as error:
            if error.cause != "machine":
                return error.cause
            raise ProblemError(f"cannot grade the answer: math-verify: {error}", "rerun the command") from error

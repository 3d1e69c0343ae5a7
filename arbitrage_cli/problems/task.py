"""Describes a task: its prompt, its step separator, and how answers are found and graded."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd
from arbitrage_cli.problems.rows import Form
from arbitrage_cli.types import Grade


class Grader(Protocol):
    """Grades solutions. `protections` names the mechanisms that isolate programs under test."""

    @property
    def protections(self) -> Sequence[str]: ...

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        """Grade a solution against `Item.gold`. Raises ProblemError if the grader fails."""


@dataclass(frozen=True, slots=True)
class AnswerGrader:
    """A grader that neither runs programs nor needs a process."""

    grade: Callable[[str, Mapping[str, Any]], Grade]
    protections: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A kind of problem.

    `instructions` is the system prompt. `find_answer` returns the answer in a solution, or None. `grader_version` returns
    the versions of all rules and libraries that affect grades. `runs_code` is true if grading runs model-written programs.
    `policy` is the default policy if there is no router. The task is the default for a data set if its rows match one of
    `forms`.
    """

    name: str
    instructions: str
    find_answer: Callable[[str], str | None]
    open_grader: Callable[[], AbstractContextManager[Grader]]
    grader_version: Callable[[], str]
    step_end: StepEnd = BLANK_LINE
    runs_code: bool = False
    policy: str = "entropy"
    forms: tuple[Form, ...] = ()

    @property
    def has_answers(self) -> bool:
        """Whether two solutions have final answers that can be compared."""
        return not self.runs_code and self.name != "free"

    def may_be_complete(self, text: str) -> bool:
        """Return whether a solution may be complete. In task `free`, every solution may be complete."""
        return self.name == "free" or self.find_answer(text) is not None


def is_correct(grader: Grader, text: str, gold: Mapping[str, Any]) -> bool:
    """Return whether a solution is correct. Raises ProblemError if it cannot be graded."""
    grade = grader.grade(text, gold)
    if grade.value == "unscored":
        raise ProblemError(f"cannot grade a solution: {grade.explanation}", "check the problem's answer")
    return grade.value == "correct"

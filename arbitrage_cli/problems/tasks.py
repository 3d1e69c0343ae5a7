"""Describes tasks: their prompts, their step separators, and how answers are found and graded. Lists all tasks by name."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from arbitrage_cli.errors import ProblemError, unknown
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd
from arbitrage_cli.problems import code, math_grader
from arbitrage_cli.problems.answers import boxed_answer, stated_answer, stated_choices
from arbitrage_cli.problems.rows import Form, InputRow, UnusableError, check_texts
from arbitrage_cli.types import Fields, Grade, Json, frozen

MAX_COMPARED = 200  # characters of a text in task `free`; the wording of longer texts says nothing about their quality


class Grader(Protocol):
    """Grades solutions."""

    def grade(self, text: str, gold: Fields) -> Grade:
        """Grade a solution against `Item.gold`. Raises ProblemError if the grader fails."""


@frozen
class AnswerGrader:
    """A grader that neither runs programs nor needs a process."""

    grade: Callable[[str, Fields], Grade]


@frozen
class Task:
    """A kind of problem.

    `instructions` is the system prompt. `find_answer` returns the answer in a solution, or None. `stated_answer`
    returns the answer that a solution states and that can be compared with the answers of other solutions, or None.
    `grader_version` returns the versions of all rules and libraries that affect grades. If grading runs model-written
    programs, `protections` names the mechanisms that isolate them. `policy` is the default policy if there is no router. The
    task is the default for a data set if its rows match one of `forms`.
    """

    name: str
    instructions: str
    find_answer: Callable[[str], str | None]
    open_grader: Callable[[], AbstractContextManager[Grader]]
    grader_version: Callable[[], str]
    stated_answer: Callable[[str], str | None] = lambda text: None
    step_end: StepEnd = BLANK_LINE
    protections: Sequence[str] = ()
    policy: str = "entropy"
    forms: tuple[Form, ...] = ()

    @property
    def runs_code(self) -> bool:
        return bool(self.protections)

    @property
    def has_answers(self) -> bool:
        """Whether two solutions have final answers that can be compared."""
        return not self.runs_code and self.name != "free"

    def same_answer(self, grader: Grader, text: str, other: str) -> bool | None:
        """Return whether the final answer of a solution equals that of another, or None if they cannot be compared.

        Programs and long texts cannot be compared. Raises ProblemError if the grader fails.
        """
        if self.name == FREE.name:
            own, expected = (" ".join(one.casefold().split()) for one in (text, other))
            return own == expected if len(expected) <= MAX_COMPARED else None
        answer = None if self.runs_code else grader.grade(other, {}).answer
        value = grader.grade(text, {"answer": answer}).value if answer is not None else "unscored"
        return None if value == "unscored" else value == "correct"


def is_correct(grader: Grader, text: str, gold: Fields) -> bool:
    """Return whether a solution is correct. Raises ProblemError if it cannot be graded."""
    grade = grader.grade(text, gold)
    if grade.value == "unscored":
        raise ProblemError(f"cannot grade a solution: {grade.explanation}", "check the problem's answer")
    return grade.value == "correct"


def without_sandbox(task: Task) -> Task:
    return replace(task, open_grader=partial(code.open_grader, is_sandboxed=False), protections=("resource limits",))


# --- multiple choice

# A and I are also words, as in "A train" and "I think". Where these words cannot stand, they are letters.
_BEFORE_A_LETTER = r"(?:\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|boldsymbol|mbox)\s*\{|\\\(|[\s($*])*"
_AFTER_A_LETTER = r"\s*(?:[^\w\s']|$)|\s+(?:is|because|as|since)\b"


def _letter_before(after: str) -> re.Pattern[str]:
    word = rf"(?:(?i:option|choice)\b:?{_BEFORE_A_LETTER})?"
    return re.compile(rf"{_BEFORE_A_LETTER}{word}(?:([AI])(?={after})|([B-HJ-Z])\b)")


_LETTER = _letter_before(_AFTER_A_LETTER)
_LETTER_IN_BOX = _letter_before(rf"{_AFTER_A_LETTER}|\s+\d")
_MORE_LETTERS = re.compile(r"(?:[\s)}*$]*(?:,|/|&|\band\b|\bor\b)[\s({*$]*[A-Z])+[\s)}*$.]*$")  # B and C, (B) or (C)

_NAMES_OR_WITHDRAWS = re.compile(
    r"(?<![\w'])[A-Z](?![\w'])|\b(?i:not?|none|neither|all of|wrong|incorrect|unclear|unknown)\b"
)


def find_letter(text: str) -> str | None:
    """Return the letter at the start of the final answer, as in `B`, `(B)`, `B. seven` or `option B`.

    Without a box, only the last statement that names letters or withdraws an answer counts. There is no letter if this
    statement withdraws an answer, as in `neither A nor B`, or names several letters, as in `B or C`.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return _letter_in(boxed, _LETTER_IN_BOX)
    last = next(filter(_NAMES_OR_WITHDRAWS.search, stated_choices(text)), "")
    return _letter_in(last, _LETTER)


def _letter_in(answer: str, letter: re.Pattern[str]) -> str | None:
    found = letter.match(answer)
    return found[found.lastindex or 0] if found and not _MORE_LETTERS.match(answer, found.end()) else None


def _grade_choice(text: str, gold: Fields) -> Grade:
    letter = find_letter(text)
    expected = gold.get("answer")
    if expected is None:
        return Grade("unscored", letter, "no gold answer in the data set")
    if letter is None:
        return Grade("incorrect", None, "no letter found")
    if letter != expected:
        return Grade("incorrect", letter, f"{letter} is not {expected}")
    return Grade("correct", letter, f"{letter} = {expected}")


def _read_choices(row: InputRow) -> tuple[str, Json]:
    """Read a row in which `choices` is a list, or an object with the lists `text` and `label` (as in ARC)."""
    check_texts(row, "question")
    choices = row["choices"]
    texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (choices, None)
    if not isinstance(texts, list) or not 1 < len(texts) <= len(string.ascii_uppercase):
        raise UnusableError("choices: expected a list of 2 to 26 choices")
    letters = string.ascii_uppercase[: len(texts)]
    labels = labels or list(letters)
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise UnusableError("choices: expected a label for each text")
    choices = [f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True)]
    answer = row["answer"] if "answer" in row else row["answerKey"]
    return "\n".join([row["question"], "", *choices]), {"answer": _letter_of(answer, letters, labels)}


def _letter_of(answer: Any, letters: str, labels: list[Any]) -> str:
    names = [str(label) for label in labels]  # ARC has labels such as "2", and other data sets the number 2
    if isinstance(answer, str | int) and str(answer) in names:
        return letters[names.index(str(answer))]
    if type(answer) is int and 0 <= answer < len(letters):
        return letters[answer]
    raise UnusableError("answer: expected the label or the index of a choice")


# --- all tasks

MATH = Task(
    "math", INSTRUCTIONS, boxed_answer, math_grader.MathGrader, math_grader.grader_version, stated_answer=stated_answer
)
CODE = Task(
    "code",
    code.CODE_INSTRUCTIONS,
    code.find_program,
    code.open_grader,
    code.grader_version,
    step_end=StepEnd("\n", 40),
    protections=("bubblewrap", "resource limits"),
    policy="speculative",  # routing by log-probability scored hardly better than the draft: tests/benchmarks
    forms=code.CODE_FORMS,
)
CHOICE = Task(
    "choice",
    "Please reason step by step, and put the letter of the right answer within \\boxed{}.",
    find_letter,
    lambda: nullcontext(AnswerGrader(_grade_choice)),
    lambda: "choice 6",
    stated_answer=find_letter,
    forms=(
        Form("choice", frozenset(("question", "choices", "answer")), _read_choices),
        Form("choice", frozenset(("question", "choices", "answerKey")), _read_choices),
    ),
)
FREE = Task(
    "free",
    "",
    lambda text: None,
    lambda: nullcontext(AnswerGrader(lambda text, gold: Grade("unscored", None, "task free is not graded"))),
    lambda: "none",
)
TASKS: Mapping[str, Task] = {task.name: task for task in (MATH, CODE, CHOICE, FREE)}
FORMS: tuple[Form, ...] = tuple(form for task in TASKS.values() for form in task.forms)


def find_task(name: str | None) -> Task:
    """Return a task by name. The default is `math`. Raises UsageError for an unknown name."""
    if name is not None and name not in TASKS:
        raise unknown("task", name, TASKS, option="task")
    return TASKS[name or MATH.name]

"""Multiple choice: reasoning in paragraphs, and the letter of one of the given answers."""

import re
import string
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from arbitrage_cli.data.problems import UnusableError
from arbitrage_cli.data.rows import Form, Row
from arbitrage_cli.grading.extract import final_answer
from arbitrage_cli.tasks.task import Task
from arbitrage_cli.types import Grade

INSTRUCTIONS = "Please reason step by step, and put the letter of the right answer within \\boxed{}."

_LETTER = re.compile(r"(?:\\text\{|\()?\s*([A-Z])\b")


def find_letter(text: str) -> str | None:
    """The letter with which the final answer begins, as in `B`, `(B)` or `B. seven`."""
    found = _LETTER.match(final_answer(text).answer or "")
    return found[1] if found else None


class _Grader:
    """Compares letters."""

    protections = ()

    def grade(self, text: str, gold: Mapping[str, Any]) -> Grade:
        letter, right = find_letter(text), gold.get("answer")
        if right is None:
            return Grade("unscored", letter, "the data have no right answer")
        if letter is None:
            return Grade("incorrect", None, "no letter found")
        is_right = letter == right
        return Grade("correct" if is_right else "incorrect", letter, f"{letter} {'=' if is_right else 'is not'} {right}")


def _read(row: Row) -> tuple[str, dict[str, Any]]:
    """The question with lettered choices. `choices` are a list, or as ARC has them: `text` and `label`, each a list."""
    choices = row["choices"]
    texts, labels = (choices.get("text"), choices.get("label")) if isinstance(choices, dict) else (choices, None)
    if not isinstance(texts, list) or not 1 < len(texts) <= len(string.ascii_uppercase):
        raise UnusableError("its choices are not a list of at least two")
    letters = string.ascii_uppercase[: len(texts)]
    question = "\n".join(
        [str(row["question"]), "", *(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))]
    )
    return question, {
        "answer": _letter(row["answer"] if "answer" in row else row["answerKey"], letters, labels or list(letters))
    }


def _letter(answer: Any, letters: str, labels: list[Any]) -> str:
    """The letter of an answer that is given as its place, from 0, or as one of the labels."""
    if type(answer) is int and 0 <= answer < len(letters):
        return letters[answer]
    if answer in labels:
        return letters[labels.index(answer)]
    raise UnusableError("its answer is not one of its choices")


CHOICE = Task(
    "choice",
    INSTRUCTIONS,
    find_letter,
    lambda: nullcontext(_Grader()),
    lambda: "choice 1",
    forms=(
        Form("choice", frozenset(("question", "choices", "answer")), _read),
        Form("choice", frozenset(("question", "choices", "answerKey")), _read),
    ),
)

"""Task `choice`: multiple-choice questions, answered with a letter."""

import re
import string
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from arbitrage_cli.problems.answers import final_answer
from arbitrage_cli.problems.lines import UnusableError
from arbitrage_cli.problems.rows import Form, Row, check_texts
from arbitrage_cli.problems.task import AnswerGrader, Task
from arbitrage_cli.types import Grade

INSTRUCTIONS = "Please reason step by step, and put the letter of the right answer within \\boxed{}."

_LETTER = re.compile(r"(?:\\text\{|\()?\s*([A-Z])\b")


def find_letter(text: str) -> str | None:
    """Return the letter at the start of the final answer, as in `B`, `(B)` or `B. seven`."""
    found = _LETTER.match(final_answer(text).answer or "")
    return found[1] if found else None


def _grade(text: str, gold: Mapping[str, Any]) -> Grade:
    letter, expected = find_letter(text), gold.get("answer")
    if expected is None:
        return Grade("unscored", letter, "no gold answer in the data set")
    if letter is None:
        return Grade("incorrect", None, "no letter found")
    if letter != expected:
        return Grade("incorrect", letter, f"{letter} is not {expected}")
    return Grade("correct", letter, f"{letter} = {expected}")


def _read(row: Row) -> tuple[str, dict[str, Any]]:
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
    return "\n".join([row["question"], "", *choices]), {"answer": _letter(answer, letters, labels)}


def _letter(answer: Any, letters: str, labels: list[Any]) -> str:
    if type(answer) is int and 0 <= answer < len(letters):
        return letters[answer]
    if answer in labels:
        return letters[labels.index(answer)]
    raise UnusableError("answer: expected the index or the label of a choice")


CHOICE = Task(
    "choice",
    INSTRUCTIONS,
    find_letter,
    lambda: nullcontext(AnswerGrader(_grade)),
    lambda: "choice 1",
    forms=(
        Form("choice", frozenset(("question", "choices", "answer")), _read),
        Form("choice", frozenset(("question", "choices", "answerKey")), _read),
    ),
)

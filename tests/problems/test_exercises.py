"""Questions that the built-in models know: those of their recipe, and no others."""

import importlib
import json
import lzma
import sys
from itertools import islice
from pathlib import Path

import pytest

from arbitrage_cli.problems.exercises import WORDINGS, is_exercise, reasons_for_doubt
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import Message, Problem


def share_known(questions: list[str]) -> float:
    return sum(map(is_exercise, questions)) / len(questions)


@pytest.mark.parametrize("name", ["builtin", "builtin-dev"])
def test_the_models_know_their_own_problems(name: str) -> None:
    lines = (models_folder() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert share_known([json.loads(line)["problem"] for line in lines]) >= 0.98


def test_the_models_know_no_questions_of_other_data_sets() -> None:
    states = models_folder() / "states" / "qwen2.5-coder-gsm8k.jsonl.xz"
    if not states.exists():
        pytest.skip("the states are not here")
    _, *lines = lzma.decompress(states.read_bytes()).splitlines()
    assert share_known([json.loads(line)["question"] for line in lines]) <= 0.1


@pytest.mark.parametrize(
    ("question", "is_known"),
    [
        ("What is 23 * 47 - 88?", True), ("what is 7*(9-2)", True), ("1+2", True), ("3 x 4 =", True),
        ("How many minutes are 12 hours?", True), ("Lena has 1200 stamps. Ivan has 7 more.\nHow many do they have together?", True),
        ("Quentin has 1200 stamps. Ivan has 7 more. How many do they have together?", False), ("", False),
        ("Lena reads 12 pages a day in 9 days", False), ("What is the capital of France?", False), ("a - b", False),
    ],
)  # fmt: skip
def test_numbers_and_known_names_may_differ(question: str, is_known: bool) -> None:
    assert is_exercise(question) is is_known


@pytest.mark.parametrize(
    ("question", "is_known"),
    [
        ("9.99 + 1", False), ("What is 2.5 + 2.5?", False), ("5!", False), ("5! + 3", False), ("2^10", False), ("-5 + 3", False),
        ("99999 + 1", True), ("123456 + 654321", False), ("1,234 + 5", False), ("9 - 12", False), ("10 / 4", False), ("7 / 0", False),
        ("84 / 12", True), ("800 / 50", False), ("123 * 456", False), ("223 * 40", True), ("(3 + 4) * 5", True), ("((3 + 4) * 5", False),
        ("1 + 2 + 3 + 4 + 5 + 6", True), ("1 + 2 + 3 + 4 + 5 + 6 + 7", False), ("1" + "+1" * 5000, False), ("007 + 1", False),
        ("What is 5?", False), ("What is 3/4 of 800?", True),
        ("Mia buys 3 books at 12.5 dollars each and 2 cards at 5 dollars each. What is the total cost?", True),
        ("Mia buys 3 books at 12.3 dollars each and 2 cards at 5 dollars each. What is the total cost?", False),
        ("Lena has 1234567 stamps. Ivan has 7 more. How many do they have together?", False),
    ],
)  # fmt: skip
def test_arithmetic_that_the_models_never_learned_is_unknown(question: str, is_known: bool) -> None:
    assert is_exercise(question) is is_known


@pytest.mark.parametrize(
    ("problem", "count"),
    [
        (Problem("1", "3 * 4"), 0), (Problem("1", "3 * 4", system=""), 0), (Problem("1", "3 * 4", system="be brief"), 1),
        (Problem("1", "3 * 4", turns=(Message("user", "1 + 1"), Message("assistant", "2"))), 1),
        (Problem("1", "5!", system="be brief"), 2),
    ],
)  # fmt: skip
def test_the_models_know_questions_only_without_context(problem: Problem, count: int) -> None:
    assert len(reasons_for_doubt(problem)) == count


@pytest.mark.slow
def test_the_wordings_come_from_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = models_folder() / "recipe"
    if not recipe.exists():
        pytest.skip("the recipe is not here")
    monkeypatch.syspath_prepend(recipe)
    before = set(sys.modules)
    try:
        made = importlib.import_module("wordings").wordings()
        new = islice(importlib.import_module("generate").training_problems(2), 5000)
        assert share_known([problem.question for problem in new]) >= 0.98
    finally:
        for name in set(sys.modules) - before:
            if name in ("wordings", "generate"):
                del sys.modules[name]
    assert made == json.loads(Path(models_folder() / WORDINGS).read_text(encoding="utf-8"))

"""Comparison of answers as text and as plain numbers."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.problems.compare import MAX_LENGTH, compare, normalise

SAME_TEXT = [
    ("x", " x . "), ("x", "\\(x\\)"), ("x", "**x**"), ("x", "\\boxed{x}"), ("x^2 + 1", "$x^2+1$"),
    ("\\frac{1}{x}", "\\dfrac{1}{x}"), ("\\text{even}", "even"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"), ("8 \\pi", "8\u03c0"), ("52_8", "52_{8}"),
    ("10 : 12", "10 \\text{ to } 12"), ("16\\sqrt{3}", "16 \\sqrt{3} \\text{ cm}^2"), ("3\\pi", "A = 3\\pi"),
]  # fmt: skip
SAME_WORDS = [
    ("Yes", "yes"), ("Mrs. Hilt", "\\text{mrs hilt}"), ("The 60th caller.", "60th caller"), ("3:30 p.m.", "3:30 PM"),
    ("Cesar's toothbrush", "cesar\u2019s toothbrush"), ("\\text{(E)}", "E"), ("\\text{(E)}", "\\textbf{(e)}"),
]  # fmt: skip
WITHOUT_UNITS_AND_NAMES = [
    ("1234", "1,234"), ("10000", "10{,}000"), ("10000", "10\\,000"), ("-7", "\u22127"), ("7", "= 7."), ("18", "$18"),
    ("18", "18 apples"), ("9 (apples)", "9"), ("350 (g)", "350\\text{ grams}"), ("9 (apples)", "9 \\text{ pieces}"),
    ("36 (sq. inches)", "36 \\text{ in}^2"), ("5", "x = 5"), ("5", "\\text{Area} = 5 \\text{ cm}"), ("5", "2 + 3 = 5"),
    ("5", "x = 10/2 = 5"), ("m_{\\max}=7", "7"), ("145^\\circ", "145"), ("30^\\circ", "30 \\text{ degrees}"),
]  # fmt: skip
EQUAL = [*SAME_TEXT, *SAME_WORDS, *WITHOUT_UNITS_AND_NAMES]
DIFFERENT = [
    ("Yes", "No"), ("Yes", "1"), ("\\text{even}", "2k"), ("Bryan", "Bryan Smith"), ("3:30 p.m.", "3:30"),
    ("\\text{(E)}", "D"), ("\\text{(A)}", "\\text{(A)(B)}"),
]  # fmt: skip
NUMBERS = [
    ("1,234", "1234.0", True), ("0.5", ".50", True), ("18", "\\mathbf{18.0}", True), ("18", "\\$18.00", True), ("3", "4", False),
    ("18", "-18", False), ("0.46", "0.459", False), ("7", "6.9999", False), ("1,234", "1.234", False), ("5", "x = 6", False),
    ("2 hours", "120 minutes", False),
]  # fmt: skip
PIECES = (
    r"(|(1,|{|}|\|\{1,|\pm|\text{|\text{a} |\frac|\frac{1}|A |a|a(a,|x_|AB|'|=|x=|1,|1:|-|\in|\approx| and |.|2^|$| |*|\,1|1 000|"
    r"\$|5 cm|cm "
)
"""Answers that are these, over and over."""


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers(gold: str, answer: str) -> None:
    assert compare(gold, answer).is_equal is True


@pytest.mark.parametrize(("gold", "answer", "is_equal"), NUMBERS)
def test_numbers(gold: str, answer: str, is_equal: bool) -> None:
    assert (compare(gold, answer).is_equal, compare(gold, answer).rule) == (is_equal, "numbers")


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_words(gold: str, answer: str) -> None:
    assert (compare(gold, answer).is_equal, compare(gold, answer).rule) == (False, "text")


def test_long_answers_are_only_the_same_text() -> None:
    digits = "9" * 1_000_000
    assert compare(digits, f" {digits} ").is_equal
    assert compare("3", digits).is_equal is False
    assert compare(digits, "3").is_equal is False


@pytest.mark.parametrize("gold", ["3", "1,2,3", "x=2y", "even"])
@pytest.mark.parametrize("piece", PIECES.split("|"))
def test_hostile_answers_take_little_time(piece: str, gold: str) -> None:
    began = time.process_time()
    assert not compare(gold, piece * (MAX_LENGTH // len(piece))).is_equal
    assert time.process_time() - began < 10


@given(st.text(max_size=30), st.text("\\{}[]()$ ,;:!.*frac1x=%", max_size=40))
def test_any_two_texts_can_be_compared(gold: str, answer: str) -> None:
    compare(gold, answer)
    compare(answer, gold)
    assert compare(answer, answer).is_equal
    assert "\n" not in normalise(gold)

"""Our own comparison of answers: which are equal, which are different, and which are left to computer algebra."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.grading.compare import MAX_LENGTH, compare, normalise

SAME_TEXT = [
    ("x", " x . "), ("x", "\\(x\\)"), ("x", "**x**"), ("x", "\\boxed{x}"), ("x^2 + 1", "$x^2+1$"),
    ("\\frac{1}{x}", "\\dfrac{1}{x}"), ("\\frac{x}{3}", "\\frac x3"), ("\\text{even}", "even"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"), ("8 \\pi", "8\u03c0"), ("52_8", "52_{8}"),
    ("10 : 12", "10 \\text{ to } 12"), ("16\\sqrt{3}", "16 \\sqrt{3} \\text{ cm}^2"), ("3\\pi", "A = 3\\pi"),
]  # fmt: skip
SAME_NUMBERS = [
    ("1234", "1,234"), ("1,234", "1234.0"), ("10000", "10{,}000"), ("10000", "10\\,000"), ("-7", "\u22127"), ("7", "= 7."),
    ("0.5", ".50"), ("\\frac{1}{2}", "0.5"), ("\\frac 59", "5/9"), ("-\\frac{3}{4}", "\\frac{-3}{4}"),
    ("7/2", "3\\frac{1}{2}"), ("-7/2", "-3 1/2"), ("9:10", "\\frac{9}{10}"), ("18", "\\mathbf{18.0}"), ("50", "50\\%"),
    ("25\\%", "\\frac{1}{4}"), ("0.25", "25 percent"),
]  # fmt: skip
SAME_QUANTITIES = [
    ("18", "\\$18.00"), ("18", "$18"), ("-18", "-\\$18"), ("18", "18 apples"), ("18", "\\text{18 dollars}"),
    ("9 (apples)", "9"), ("9 (apples)", "9 \\text{ pieces}"), ("350 (g)", "350\\text{ grams}"),
    ("0.46 (dollars)", "46 cents"), ("2 hours", "120 minutes"), ("36 (sq. inches)", "36 \\text{ in}^2"),
    ("1 \\text{ m}^2", "10000 \\text{ cm}^{2}"), ("145^\\circ", "145"), ("30^\\circ", "30 \\text{ degrees}"),
]  # fmt: skip
SAME_WITHOUT_NAMES = [
    ("5", "x = 5"), ("k=1", "1.0"), ("5", "\\text{Area} = 5 \\text{ cm}"), ("5", "2 + 3 = 5"), ("5", "x = 10/2 = 5"),
    ("10/3", "x = \\frac{10}{3} \\approx 3.33"), ("m_{\\max}=7", "7"),
]  # fmt: skip
SAME_WORDS = [
    ("Yes", "yes"), ("Mrs. Hilt", "\\text{mrs hilt}"), ("The 60th caller.", "60th caller"), ("3:30 p.m.", "3:30 PM"),
    ("Cesar's toothbrush", "cesar\u2019s toothbrush"), ("\\text{(E)}", "E"), ("\\text{(E)}", "\\textbf{(e)}"),
]  # fmt: skip
EQUAL = {"text": [*SAME_TEXT, *SAME_WORDS], "numbers": [*SAME_NUMBERS, *SAME_QUANTITIES, *SAME_WITHOUT_NAMES]}
DIFFERENT = {
    "numbers": [
        ("3", "4"), ("18", "-18"), ("10/3", "3.33"), ("0.46", "0.459"), ("7", "6.9999"), ("1,234", "1.234"), ("1", "1\\%"),
        ("0.5", "0.5\\%"), ("25\\%", "2.5"), ("5:6", "\\frac{6}{5}"), ("5", "x = 6"),
        ("5.4 \\text{ cents}", "5.4 \\text{ dollars}"), ("5 \\text{ cm}", "5 \\text{ kg}"),
        ("5 \\text{ cm}", "5 \\text{ cm}^2"),
    ],
    "text": [
        ("Yes", "No"), ("Yes", "1"), ("\\text{even}", "2k"), ("Bryan", "Bryan Smith"), ("3:30 p.m.", "3:30"),
        ("\\text{(E)}", "D"), ("\\text{(A)}", "\\text{(A)(B)}"),
    ],
    "units": [("2\\pi \\text{ cm}", "2\\pi \\text{ cm}^2")],
    "no comparable expression": [("5", "x^2+y^2=5"), ("x+y=3", "3"), ("\\sqrt{2}", "\\sqrt{2"), ("\\sqrt{2}", "$")],
}  # fmt: skip
LEFT_OPEN = [
    ("\\sqrt{8}", "2\\sqrt{2}", ("\\sqrt{8}", "2\\sqrt{2}")),
    ("f(x)=2 x", "x+x", ("2 x", "x+x")),
    ("16\\sqrt{3}", "8\\sqrt{12} \\text{ cm}^2", ("16\\sqrt{3}", "8\\sqrt{12}")),
    ("1,-2", "-2, 1", ("1,-2", "-2, 1")),
    ("(1,2)", "1 < x < 2", ("(1,2)", "1 < x < 2")),
    ("x = 2y", "y = \\frac{x}{2}", ("x = 2y", "y = \\frac{x}{2}")),
    ("2", "2m", ("2", "2m")),
    ("5", "5 \\text{ or more}", ("5", "5 \\text{ or more}")),
]
PIECES = (
    r"(|(1,|{|}|\|\{1,|\pm|\text{|\text{a} |\frac|\frac{1}|A |a|a(a,|x_|AB|'|=|x=|1,|1:|-|\in|\approx| and |.|2^|$| |*|\,1|1 000|"
    r"\$|5 cm|cm "
)
"""Answers that are these, over and over."""


@pytest.mark.parametrize(("rule", "gold", "answer"), [(rule, *pair) for rule, pairs in EQUAL.items() for pair in pairs])
def test_equal_answers(rule: str, gold: str, answer: str) -> None:
    comparison = compare(gold, answer)
    assert (comparison.is_equal, comparison.rule) == (True, rule)


@pytest.mark.parametrize(("rule", "gold", "answer"), [(rule, *pair) for rule, pairs in DIFFERENT.items() for pair in pairs])
def test_different_answers(rule: str, gold: str, answer: str) -> None:
    comparison = compare(gold, answer)
    assert (comparison.is_equal, comparison.rule) == (False, rule)


@pytest.mark.parametrize(("gold", "answer", "expressions"), LEFT_OPEN)
def test_the_rest_is_left_to_computer_algebra(gold: str, answer: str, expressions: tuple[str, str]) -> None:
    comparison = compare(gold, answer)
    assert comparison.is_equal is None
    assert (comparison.gold, comparison.answer) == expressions


@pytest.mark.parametrize(
    ("gold", "unit", "answer", "is_equal"),
    [
        ("90", "^{\\circ}", "90 \\text{ degrees}", True),
        ("5", "km", "5000 \\text{ m}", True),
        ("5", "km", "5", True),
        ("5", "\\mathrm{~cm}^{2}", "5 \\text{ cm}", False),
        ("5", "apples", "5 pears", True),
        ("5 cents", "dollars", "5 cents", True),
        ("5", "???", "5.0", True),
    ],
)
def test_unit_of_the_gold_answer(gold: str, unit: str, answer: str, is_equal: bool) -> None:
    assert compare(gold, answer, unit).is_equal == is_equal


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


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6), st.integers(1, 9))
def test_a_fraction_has_one_value_in_any_spelling(numerator: int, denominator: int, factor: int) -> None:
    fraction = f"{numerator}/{denominator}"
    assert compare(fraction, f"\\frac{{{factor * numerator}}}{{{factor * denominator}}}").is_equal
    assert not compare(fraction, f"{numerator + 1}/{denominator}").is_equal
    assert compare(str(Fraction(numerator, 10**4)), f"{numerator / 10**4:.4f}").is_equal

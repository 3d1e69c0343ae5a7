"""The final answer of a solution, the gold answer of a row, and their comparison as text and as plain numbers."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.problems.answers import MAX_LENGTH, boxed_answer, compare, final_answer, gold_answer, normalise

balanced = st.recursive(
    st.text("ab1 +-\\,", max_size=5).filter(lambda text: not text.endswith("\\")),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is \\boxed{42}.", "42"), ("\\boxed{1} no, \\boxed{2}", "2"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {7}", "7"), ("\\boxed{ 7\n}", "7"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\text{yes}} }}}", "\\text{yes}"), ("\\boxed{\\boxed{5}}", "\\boxed{5}"),
        ("$\\boxed{3}$ and then \\boxed{4", "3"), ("{ \\boxed{9}", "9"), ("\\boxed{8} \\boxed{}", "8"),
        ("\\boxed{8} \\boxed{ \n }", "8"),
    ],
)  # fmt: skip
def test_last_complete_box_is_the_answer(text: str, answer: str) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["", "42", "\\boxed", "\\boxed 42", "\\boxed{42", "\\boxed{}", "boxed{42}", "}\\boxed{", "\\fbox{1}"]
)
def test_no_complete_box_is_no_answer(text: str) -> None:
    assert boxed_answer(text) is None


@given(balanced.filter(lambda text: bool(text.strip())), st.text("xyz {}\n", max_size=20))
def test_any_balanced_content_comes_out_whole(content: str, before: str) -> None:
    assert boxed_answer(f"{before}\\boxed{{{content}}}") == content.strip()


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000,
        "\\boxed{" * 100_000 + "}" * 100_000,
        "\\boxed" + " " * 700_000,
        "{" * 700_000,
        "\\boxed{x}" * 80_000,
    ],
    ids=["open", "nested", "blank", "braces", "many"],
)
def test_hostile_text_takes_time_in_proportion_to_its_length(text: str) -> None:
    began = time.process_time()
    boxed_answer(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("So 5. \\boxed{7}. The answer is 8.", "7", "the last \\boxed{}"),
        ("The answer is 7.", "7", 'after "the answer is"'),
        ("the answer is 6. So the answer is: **7**.\nBye 8.", "7", 'after "the answer is"'),
        ("The final answer is $\\frac{1}{2}$.", "\\frac{1}{2}", 'after "the final answer is"'),
        ("Final answer: 1,234.50 dollars. Done.", "1,234.50 dollars", 'after "final answer"'),
        ("**Final Answer:**\n\n\\[\n x = 7\n\\]", "x = 7", 'after "final answer"'),
        ("Final answer: $$7$$ or so", "7", 'after "final answer"'),
        ("The answer is \\(7\\), not 8.", "7", 'after "the answer is"'),
        ("The answer is Mrs. Hilt. She has 3.", "Mrs. Hilt", 'after "the answer is"'),
        ("Answer: Yes", "Yes", 'after "answer"'),
        ("It is 3 + 4 = 7\n#### 7", "7", 'after "####"'),
        ("The answer is\n\nThe answer is", "The answer is", 'after "the answer is"'),
        ("We have 3 apples, so 7 of them.", "7", "the last number"),
        ("It costs $1,234.50.", "1,234.50", "the last number"),
        ("It falls by -3.", "-3", "the last number"),
        ("5-3", "3", "the last number"),
        ("It is \\frac{3}{4} of it", "\\frac{3}{4}", "the last number"),
        ("That is 3/4.", "3/4", "the last number"),
        ("That is 25\\%.", "25\\%", "the last number"),
        ("We get x = \u22125", "\u22125", "the last number"),
        ("The pages 2\u20135", "5", "the last number"),
        ("It is .5", ".5", "the last number"),
        ("x=-.25", "-.25", "the last number"),
        ("It costs $.50.", ".50", "the last number"),
        ("That is -$1,234.50.", "-$1,234.50", "the last number"),
        ("That is -\\$15.", "-\\$15", "the last number"),
        ("From $10-$15", "15", "the last number"),
        ("From 10$-$15", "15", "the last number"),
        ("It is 1e-5", "1e-5", "the last number"),
        ("It is \u22122.5E\u22123.", "\u22122.5E\u22123", "the last number"),
        ("After version 1.2.3", "3", "the last number"),
        ("That is a step.5", "5", "the last number"),
        ("It is...5", "5", "the last number"),
        ("It is 2e", "2", "the last number"),
        ("In case 2e5f", "5", "the last number"),
        ("In a1e5", "5", "the last number"),
        ("That is 1.5 \\times 10^3.", "1.5 \\times 10^3", "the last number"),
        ("That is -1.5 \u00d7 10^{-3} m", "-1.5 \u00d7 10^{-3}", "the last number"),
        ("About 2 x 10\u2076.", "2 x 10\u2076", "the last number"),
        ("That is 2^{10}.", "2^{10}", "the last number"),
        ("An area of 25 cm^2", "25", "the last number"),
        ("An area of 25 \\text{ cm}^{2}", "25", "the last number"),
        ("With x^12 and 7 m\u00b3", "7", "the last number"),
        ("\\boxed{} so 7", "7", "the last number"),
        ("The answer is ", None, 'no \\boxed{}, "the answer is" or number'),
        ("", None, 'no \\boxed{}, "the answer is" or number'),
        ("nothing", None, 'no \\boxed{}, "the answer is" or number'),
    ],
)
def test_final_answer_and_where_it_was_found(text: str, answer: str | None, how: str) -> None:
    found = final_answer(text)
    assert (found.answer, found.how) == (answer, how)


@given(st.text(max_size=200))
def test_any_text_has_a_final_answer_or_none(text: str) -> None:
    answer = final_answer(text).answer
    assert answer is None or (answer.strip() and answer in text)


@pytest.mark.parametrize(
    "piece",
    ["the answer is ", "answer:\n", "$", "1,", "1,111", "9", "-", "####", "\\frac{1}", "\n", "\\(", "Mr. ", "\\frac{1}{2"],
)
def test_final_answer_of_megabytes_takes_little_time(piece: str) -> None:
    text = piece * (2_000_000 // len(piece))
    began = time.process_time()
    final_answer(text)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"answer": "It is 9 * 2 = $<<9*2=18>>18.\n#### 18"}, "18"), ({"answer": "#### 2,125"}, "2,125"),
        ({"answer": "9 (apples)"}, "9 (apples)"), ({"answer": "\\frac{1}{2}"}, "\\frac{1}{2}"),
        ({"answer": ["$\\frac{1}{2 n+2}$"], "unit": None}, "$\\frac{1}{2 n+2}$"),
        ({"answer": ["$k=1$", "$k=2$"]}, "$k=1$, $k=2$"),
        ({"answer": ["$90$"], "unit": " ^{\\circ} "}, "$90$"), ({"answer": 204}, "204"),
        ({"answer": 27.0}, "27"), ({"answer": 0.5}, "0.5"), ({"answer": ""}, None),
        ({"answer": 5e-05}, "0.00005"), ({"answer": -1e16}, "-10000000000000000"), ({"answer": [1e-7, 10**30]}, f"0.0000001, {10**30}"),
        ({"answer": "  "}, None), ({"answer": "#### "}, None), ({"answer": None}, None),
        ({"answer": True}, None), ({"answer": {"a": 1}}, None), ({"answer": [None, ""]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_gold_answer_of_a_row(row: dict[str, Any], gold: str | None) -> None:
    assert gold_answer(row) == gold


# --- comparing

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
    ("2 hours", "120 minutes", False), ("0.00005", "5e-5", True), ("1500", "1.5E+3", True), ("-.02", "\u22122e\u22122", True),
    ("5e-05", "0.00005", True), ("-15", "-$15", True), ("5", "1e-5", False),
]  # fmt: skip
PIECES = (
    r"(|(1,|{|}|\|\{1,|\pm|\text{|\text{a} |\frac|\frac{1}|A |a|a(a,|x_|AB|'|=|x=|1,|1:|-|\in|\approx| and |.|2^|$| |*|\,1|1 000|"
    r"\$|5 cm|cm "
)
"""Hostile answers repeat one of these pieces."""


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

"""Answers in one form: many spellings become the same, and what differs stays different."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.grading.latex_text import closes_at_end, flat, split_outside_brackets, tidy


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("  7 . ", "7"),
        ("$7$", "7"),
        ("$$7$$", "7"),
        ("\\(7\\)", "7"),
        ("\\[7\\]", "7"),
        ("**7**", "7"),
        ("{7}", "7"),
        ("$18", "\\$18"),
        ("-$18", "-\\$18"),
        ("\\$18", "\\$18"),
        ("\u22127", "-7"),
        ("7\u00a0cm", "7 cm"),
        ("\u200b7\ufeff", "7"),
        ("10{,}000", "10,000"),
        ("10,\\!000", "10,000"),
        ("10\\,000", "10,000"),
        ("\\dfrac12", "\\frac{1}{2}"),
        ("\\tfrac{1}2", "\\frac{1}{2}"),
        ("\\frac 59", "\\frac{5}{9}"),
        ("\\frac{270}7", "\\frac{270}{7}"),
        ("\u00bd", "\\frac{1}{2}"),
        ("\\left( 1, 2 \\right)", "( 1, 2 )"),
        ("\\big(1\\big)", "(1)"),
        ("25\\%", "25%"),
        ("145^{\\circ}", "145^{\\circ}"),
        ("145^\\circ", "145^{\\circ}"),
        ("145\u00b0", "145^{\\circ}"),
        ("x \\leq 5", "x \\le 5"),
        ("x <= 5", "x \\le 5"),
        ("5\\mathrm{ cm }", "5\\text{cm}"),
        ("5~\\text{cm}", "5 \\text{cm}"),
        ("\\textbf{\\text{(E)}}", "\\text{(E)}"),
        ("\\boxed{7}", "7"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("\\lbrace 1 \\rbrace", "\\{1 \\}"),
        ("", ""),
        ("$", ""),
        ("\\", "\\"),
    ],
)
def test_spellings_become_one(text: str, tidied: str) -> None:
    """Delimiters, spaces, signs of other alphabets and variants of commands are written in one way."""
    assert tidy(text) == tidied


@pytest.mark.parametrize(
    ("one", "other"), [("2 1/2", "21/2"), ("x^{23}", "x^23"), ("(1, 2)", "[1, 2]"), ("1 2", "12"), ("x_{12}", "x_12")]
)
def test_what_differs_stays_different(one: str, other: str) -> None:
    """Spaces between numbers, and braces around more than one character, mean something."""
    assert flat(tidy(one)) != flat(tidy(other))


@given(st.text("\\{}[]()$ ,;:!.*frac1x", max_size=40))
def test_any_text_can_be_tidied(text: str) -> None:
    """No text is too odd, and none becomes longer than what its signs stand for."""
    tidied = tidy(text)
    assert "\n" not in tidied
    assert tidied == tidied.strip()
    assert len(tidied) <= 3 * len(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("(1,2),(3,4)", ["(1,2)", "(3,4)"]),
        ("[0,1),{2,3}", ["[0,1)", "{2,3}"]),
        ("f(x,y)", ["f(x,y)"]),
        (",1,,2,", ["1", "2"]),
        ("", []),
        ("((1,2", ["((1,2"]),
    ],
)
def test_lists_are_cut_outside_brackets(text: str, parts: list[str]) -> None:
    """A separator counts only where no bracket is open, and blanks are no parts."""
    assert split_outside_brackets(text, re.compile(",")) == parts


@pytest.mark.parametrize(
    ("text", "closes"), [("(1,2)", True), ("[1,2)", True), ("(1)(2)", False), ("(1", False), ("\\{1\\}", True)]
)
def test_bracket_that_holds_a_whole_text(text: str, closes: bool) -> None:
    """The first bracket is closed by the last character, or it is not."""
    assert closes_at_end(text) == closes


@pytest.mark.parametrize(
    "piece", ["\\", "{", "}", "$", "\\text{", "\\frac", "\\frac{1}", "^", " ", "*", "\\left(", "1,", "\\,1"]
)
def test_hostile_text_takes_time_in_proportion_to_its_length(piece: str) -> None:
    """Two thousand characters of anything take next to no time."""
    began = time.process_time()
    tidy(piece * (2000 // len(piece)))
    assert time.process_time() - began < 0.3

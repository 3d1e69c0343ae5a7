"""Which steps conclude the same."""

import pytest

from arbitrage_cli.routing.agreement import agree

QUESTION = "Ann has 3 boxes of 12 pens and gives 5 away. How many pens are left?"


@pytest.mark.parametrize(
    ("drafted", "written", "expected"),
    [
        ("3 * 12 = 36 pens.", "She has 12 \\times 3 = 36.", True),
        ("3 * 12 = 36 pens.", "3 * 12 = 38 pens.", False),
        ("3 * 12 = 36 pens.", "3 * 12 = 36, so 36 - 5 = 31.", False),
        ("It costs 1,200.50 dollars.", "$1200.5", True),
        ("First, find how many pens Ann has.", "First, we find how many pens Ann has.", True),
        ("First, find how many pens Ann has.", "Divide by what remains.", False),
        ("Multiply 3 by 12.", "That is 36.", False),
        ("So \\boxed{31} pens.", "36 - 5 = 31. The answer is \\boxed{31}.", True),
        ("\\boxed{31}", "\\boxed{31.0}", True),
        ("The answer is \\boxed{A}.", "\\boxed{ A }", True),
        ("The answer is \\boxed{A}.", "The answer is \\boxed{B}.", False),
        ("", "", True),
    ],
)
def test_steps_agree_by_what_they_add(drafted: str, written: str, expected: bool) -> None:
    assert agree(QUESTION, drafted, written) is agree(QUESTION, written, drafted) is expected


@pytest.mark.parametrize(
    ("drafted", "written", "expected"),
    [
        ("total = sum(xs)  # all", "s = sum(values)", True),
        ("total = sum(xs)", "total = max(xs, 0)", False),
        ("def f(a, *, b=1): return a.x", "def g(c, *, d=1):\n    return c.y", True),
        ("    return x", "    return  x", True),
        ("    return x", "    return y", False),
        ("x = '\\d'", "y = '\\d'", True),
        ("(" * 2000, "(" * 2000, True),
    ],
)
def test_code_agrees_by_its_syntax(drafted: str, written: str, expected: bool) -> None:
    """Lines that are no program by themselves are compared as texts."""
    assert agree("", drafted, written, of_code=True) is expected

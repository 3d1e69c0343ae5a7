"""Equations in texts: detection, checks against Python's fractions, and skipped expressions."""

import time
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arbitrage_cli.routing.equations import MAX_CHARACTERS, check_equations, numbers_in

LATEX = {"*": "\\times", "/": "\\div"}
UNICODE = {"*": "\u00d7", "/": "\u00f7", "-": "\u2212"}


@dataclass(frozen=True)
class Operation:
    sign: str
    left: "Expression"
    right: "Expression"


Expression = Fraction | Operation
numbers = st.one_of(
    st.integers(0, 10**6).map(Fraction), st.decimals(0, 9999, places=2).map(lambda number: Fraction(str(number)))
)
expressions: st.SearchStrategy[Expression] = st.recursive(
    numbers, lambda parts: st.builds(Operation, st.sampled_from("+-*/"), parts, parts), max_leaves=8
)


def value_of(expression: Expression) -> Fraction:
    if isinstance(expression, Fraction):
        return expression
    left, right = value_of(expression.left), value_of(expression.right)
    return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[expression.sign](right)


def number_text(number: Fraction, *, commas: bool) -> str:
    text = f"{float(number):,.2f}".rstrip("0").rstrip(".")
    return text if commas else text.replace(",", "")


def write(expression: Expression, style: str) -> str:
    """Return the expression as plain text, LaTeX, Unicode, or with units. All but numbers are in parentheses."""
    if isinstance(expression, Fraction):
        text = number_text(expression, commas=style != "plain")
        return {"units": f"{text} red apples", "latex": f"\\${text}"}.get(style, text)
    left, right = (
        write(part, style) if isinstance(part, Fraction) else f"({write(part, style)})"
        for part in (expression.left, expression.right)
    )
    if style == "latex" and expression.sign == "/":
        return f"\\frac{{{left}}}{{{right}}}"
    sign = {"latex": LATEX, "unicode": UNICODE}.get(style, {}).get(expression.sign, expression.sign)
    return f"{left} {sign} {right}"


@given(expressions, expressions, st.sampled_from(["plain", "latex", "unicode", "units"]), st.booleans())
def test_equations_are_checked_as_fractions_are(left: Expression, right: Expression, style: str, same: bool) -> None:
    assume(isinstance(left, Operation) and isinstance(right, Operation))
    found = check_equations(f"So we get: {write(left, style)} = {write(left if same else right, style)}.\n\n")
    try:
        values = value_of(left), value_of(left if same else right)
    except ZeroDivisionError:
        assert found == ()
        return
    (equation,) = found
    assert (equation.left, equation.right) == values
    assert equation.is_right == (values[0] == values[1])
    assert 0 <= equation.error <= 2
    assert (equation.error == 0) == equation.is_right


@given(expressions, st.integers(-3, 3))
def test_a_stated_result_is_right_if_it_is_the_value(expression: Expression, off_by: int) -> None:
    assume(isinstance(expression, Operation))
    try:
        value = value_of(expression) + off_by
    except ZeroDivisionError:
        return
    assume(value * 100 == int(value * 100) and abs(value) < 10**9)
    (equation,) = check_equations(f"{write(expression, 'plain')} = {number_text(value, commas=True)}")
    assert equation.is_right == (off_by == 0)


@pytest.mark.parametrize("flat", ["1 + 2 * 3 - 4 / 2", "10 - 3 - 2", "100 / 5 / 2", "2 * -3 + 1", "7 - 2 * (3 - 1) * 2"])
def test_signs_bind_as_in_python(flat: str) -> None:
    value = Fraction(eval(flat))  # noqa: S307 - a literal of this test
    assert [equation.is_right for equation in check_equations(f"{flat} = {value}")] == [True]
    assert [equation.is_right for equation in check_equations(f"{flat} = {value + 1}")] == [False]


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("788 * 9 = 7992", [False]),
        ("\\[ 16 + 23 = 49 \\text{ minutes} \\]", [False]),
        ("Made: 88 * 77 = 88 * 70 + 88 * 7 = 6160 + 616 = 6776", [True, True, True]),
        ("5 + 3 = 8 apples and then he buys 2 + 2 = 5 pears.", [True, False]),
        ("x = 5 + 3 = 9", [False]),
        ("The total is (5 + 3) * 2 = 17", [False]),
        ("(that is 5 + 3 = 8)", [True]),
        ("2) 5 + 3 = 8", [True]),
        ("1. 5 + 3 = 9", [False]),
        ("**Total: 5 + 3 = 8**", [True]),
        ("$48/2 = $<<48/2=24>>24", [True]),
        ("\\left( 5 + 3 \\right) \\div 2 = \\boxed{4}", [True]),
        ("\\begin{align} a &= 3 + 4 \\\\ &= 8 \\end{align}", [False]),
        ("3/4 of 20 = 15, and 20% of 50 + 5 = 15", [True, True]),
        ("20 / 100 = 20%", [True]),
        ("3 / 4 * 100 = 75%", [True]),
        ("20% of 50 = 11", [False]),
        ("3 x 5 = 15", [True]),
        ("12 dollars per hour * 3 hours = 37 dollars", [False]),
        ("100 +\n5 = 105", [True]),
        ("5 + 3\n= 9", [False]),
        # rounded
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3.4", [False]),
        ("3.5 * 3 = 10.4", [False]),
        ("7 / 2 = 3", [False]),
        ("10 / 3 \\approx 3", [True]),
        ("10 / 3 \u2248 4", [False]),
        # rounded percentages
        ("1 / 3 = 33%", [True]),
        ("2 / 3 = 66%", [True]),
        ("2 / 3 = 66.7%", [True]),
        ("66.67% = 2 * 1 / 3", [True]),
        ("2 / 3 * 100 = 67%", [True]),
        ("67% = 2 / 3 * 100", [True]),
        ("2 / 3 = \\boxed{67\\%}", [True]),
        ("1 / 3 \\approx 33%", [True]),
        ("45 / 60 * 100 = 75%", [True]),
        ("45 / 60 * 100 = 70.5%", [False]),
        ("45 / 60 = 74%", [False]),
        ("2 / 3 = 62.0%", [False]),
        ("1 / 3 = 35%", [False]),
        ("1 / 8 = 9.5%", [False]),
        ("62.0 = 2 / 3 * 100%", [False]),
        # words in LaTeX
        ("\\(25\\% \\text{ of } \\$2,000.00 = 0.25 \\times 2000 = \\$500.00\\)", [True, True]),
        ("\\(30\\% \\text{ of } 20 = 0.3 \\times 20 = 7\\)", [True, False]),
        ("2 \\text{ dozen} = 2 \\times 12 = 24 \\text{ cups}", [True]),
        ("5 \\text{ m} + 3 \\text{ m} = 9 \\text{ m}", [False]),
        ("5km + 3km = 9km", [False]),
        # conversions
        ("5 quarters = 5 * 25 = 125 pennies", [True]),
        ("5 quarters = 5 * 25 = 150 pennies", [False]),
        ("134 tons = 134 * 1000 tons = 134000 tons", [False, True]),
        # quotients with a remainder
        ("15 / 5 = 3 remainder 0", [True]),
        ("17 / 5 = 4 remainder 2", [False]),
        ("17 ÷ 5 = 4, remainder 2", [False]),
        ("5 + 3 = 9 apples and 4 pears", [False]),
        ("17 / 5 = 3 and then 2 + 2 = 4", [False, True]),
        ("17 / 5 = 3, which is rounded down", [False]),
    ],
)
def test_what_is_read(text: str, verdicts: list[bool]) -> None:
    assert [equation.is_right for equation in check_equations(text)] == verdicts


UNCERTAIN = (
    "3x + 5 = 50|x1 + 5 = 9|5^2 + 1 = 27|\\sqrt{16} + 2 = 7|2**3 + 1 = 8|5 + 3! = 12|half of 10 + 2 = 8|3 times 4 + 2 = 15|"
    "the sum of 3 and 4 + 1 = 9|2 dozen + 3 = 28|5 * 25 cents = $1.25|1 hour = 60 minutes|1/2 hour = 30 minutes|"
    "5 feet 3 inches + 1 = 64 inches|1,5 + 2 = 3,6|1,00,000 + 1 = 2|2:3 + 1 = 5|- 5 + 3 = 9|5 / 0 = 5|5 + 3 => 9|5 + = 9|"
    "2(3 + 4) = 15|12345678901234567890 + 1 = 2|The answer is \\boxed{42}.|a = 5|= 5 + 3|17 / 5 = 3 remainder 2|"
    "17 / 5 = 3 with remainder 2|17 ÷ 5 = 3, remainder 2|17 / 5 = 3 R 2|\\(17 \\div 5 = 3\\) with a remainder of \\(2\\)|"
    "$17 \\div 5 = 3$ remainder $2$|17 / 5 = 3 hours and 24 minutes|100 / 7 = 14 weeks and 2 days|10 / 3 = 3 and 1/3|"
    "17 \\div 5 = 3 \\text{ remainder } 2|17 / 5 = 3 \\quad \\text{(quotient)}|17 / 5 = 3 \\text{ hours and } 24 \\text{ minutes}|"
    "\\(2250 / 360 = 6 \\text{ turns with } 90 \\text{ degrees left}\\)|2ab = 75 * 5400|49 - 3ab = 6|5xy = 5 * 1/2|-3iz - 2iz = 3 - 2|"
    "2/3 = 0.\\overline{6}|f\\left(\\frac{-2}{13}\\right) = \\frac{11}{15}|4 hours = 4 * 60|8 batches = 5.5 * 8|"
)


@pytest.mark.parametrize("text", UNCERTAIN.split("|"))
def test_what_is_not_certain_is_left_out(text: str) -> None:
    assert check_equations(text) == ()


def test_operands_are_those_of_what_is_computed() -> None:
    found = check_equations("88 * 77 = 88 * 70 + 88 * 7 = 6776. Then 6776 - 0.5 = 6775.5")
    assert [equation.operands for equation in found] == [(88, 77), (), (6776, Fraction(1, 2))]
    assert numbers_in("She has $1,234.50 and 20% of 3 y1 2nd") == (Fraction("1234.5"), 20, 3, 2)


PIECES = "5|12|3.|1,000| | + |-|*| / | = |(|)|\\frac{|}|%| apples|.|, |\n|x|of| and | with a remainder|\\)"


@given(st.lists(st.sampled_from(PIECES.split("|")), max_size=40).map("".join), st.integers(0, 200))
def test_a_beginning_states_nothing_that_the_whole_does_not(text: str, length: int) -> None:
    found = check_equations(text[:length], is_whole=False)
    assert check_equations(text)[: len(found)] == found


@pytest.mark.parametrize(
    "unit", ["(", "-", "\n", "\n ", "x", "a-", "\\text{", "% ", "1/", "1 + 1 = 2 = ", "\\frac{1}{", "9", "=", " "]
)
def test_any_text_is_read_in_little_time(unit: str) -> None:
    text = unit * (2 * MAX_CHARACTERS // len(unit))
    began = time.process_time()
    for whole in (f"5 + 3 = {text}", f"{text} = 8"):
        check_equations(whole)
        check_equations(whole, is_whole=False)
    assert time.process_time() - began < 10

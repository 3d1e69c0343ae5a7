"""Numbers as people write them in answers: exact values, units, percent, and which decimals are roundings."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.grading.latex_text import tidy
from arbitrage_cli.grading.quantities import Quantity, read_number, read_quantity, same_quantity

integers = st.integers(-(10**12), 10**12)
naturals = st.integers(1, 10**6)


def quantity(text: str) -> Quantity:
    found = read_quantity(tidy(text))
    assert found is not None, text
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("018", 18),
        ("-18", -18),
        ("+18", 18),
        ("- 18", -18),
        ("--18", 18),
        ("1,234", 1234),
        ("1,234,567.5", Fraction(12345675, 10)),
        ("10 000", 10000),
        ("5.", 5),
        (".5", Fraction(1, 2)),
        ("-3.50", Fraction(-7, 2)),
        ("0.\\overline{3}", Fraction(1, 3)),
        ("1.2\\overline{34}", Fraction(1222, 990)),
        ("3/4", Fraction(3, 4)),
        ("-(1/3)", Fraction(-1, 3)),
        ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\frac{-3}{4}", Fraction(3, 4)),
        ("\\frac{\\frac{1}{2}}{3}", Fraction(1, 6)),
        ("2\\frac{1}{2}", Fraction(5, 2)),
        ("-2 1/2", Fraction(-5, 2)),
        ("2^{10}", 1024),
        ("2^10", 1024),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("10^{-3}", Fraction(1, 1000)),
        ("2^-1", Fraction(1, 2)),
        ("1.2 \\times 10^{5}", 120000),
        ("2 + 3*4 - 6/2", 11),
        ("2(3 + 4)", 14),
        ("12/3(2)", 8),
        ("(2)(3)", 6),
        ("8 \\div 2", 4),
        ("\\frac{16}{49}", Fraction(16, 49)),
        ("1/0 ", None),
        ("\\frac{1}{0}", None),
        ("0^{-1}", None),
    ],
)
def test_arithmetic_on_numbers_is_read_exactly(text: str, value: Fraction | int | None) -> None:
    """Every way to write a rational number gives its exact value; a division by zero gives none."""
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        "x",
        "2x",
        "1,23",
        "1,2345",
        "12,34",
        "1.2.3",
        "1 2",
        "2 + ",
        "(2",
        "2)",
        "{2)",
        "\\frac{1}",
        "\\frac12",
        "2^{1/2}",
        "2^",
        "4\\frac{3}{2}",
        "\\sqrt{4}",
        "3!",
        "1e5",
        "0x10",
        "1_000",
        "\u0663",
        "\u00b2",
        "nan",
        "inf",
        "\\fraction{1}{2}",
    ],
)
def test_anything_else_is_no_number(text: str) -> None:
    """Symbols, roots, half-written numbers and other scripts' digits are left for others to judge."""
    assert read_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}",
        "(9^9)^{99999}",
        "2^{65536}",
        "9" * 1001,
        "0." + "1" * 1001,
        "(" * 1000 + "1" + ")" * 1000,
        "-" * 2000 + "1" + "+",
        "\\frac{1}{" * 300 + "2" + "}" * 300,
        "2^{1000}*" * 200 + "1",
    ],
    ids=lambda text: text[:12],
)
def test_numbers_that_would_grow_are_not_computed(text: str) -> None:
    """Towers of powers, endless digits and deep brackets are refused at once."""
    began = time.process_time()
    assert read_number(text) is None
    assert time.process_time() - began < 0.5


@given(integers, naturals)
def test_a_fraction_has_one_value_however_it_is_written(numerator: int, denominator: int) -> None:
    """Reduced or not, with a slash or \\frac, with separators or without: the same value."""
    value = Fraction(numerator, denominator)
    assert read_number(f"{numerator}/{denominator}") == value
    assert read_number(f"\\frac{{{numerator}}}{{{denominator}}}") == value
    assert read_number(f"{3 * numerator:,}/{3 * denominator:,}") == value


@given(integers, st.integers(0, 6))
def test_a_decimal_is_exact(digits: int, places: int) -> None:
    """A decimal is the fraction that it says, not the nearest float."""
    sign, text = "-" * (digits < 0), str(abs(digits)).rjust(places + 1, "0")
    written = f"{sign}{text[: len(text) - places]}.{text[len(text) - places :]}"
    assert read_number(written) == Fraction(digits, 10**places)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("\\$18", "money", 18),
        ("-\\$1,234.50", "money", Fraction(-12345, 10)),
        ("$18", "money", 18),
        ("18 dollars", "money", 18),
        ("18\\$", "money", 18),
        ("\\$1.5 million", "money", 1500000),
        ("5.4 \\text{ cents}", "money", Fraction(54, 10)),
        ("€5", "euro", 5),
        ("5cm", "length", 5),
        ("5 \\mathrm{~cm}", "length", 5),
        ("36 (sq. inches)", "length^2", 36),
        ("36 \\text{ in}^2", "length^2", 36),
        ("36 square inches", "length^2", 36),
        ("2.5 (kilograms of sand)", "mass", Fraction(5, 2)),
        ("145^\\circ", "degree", 145),
        ("145°", "degree", 145),
        ("\\frac{270}7\\text{ degrees}", "degree", Fraction(270, 7)),
        ("9 (apples)", "", 9),
        ("350 (g)", "mass", 350),
        ("71 (times)", "", 71),
        ("5 \\text{ h}", "time", 5),
        ("9 apples", "", 9),
        ("9\\text{ apples}", "", 9),
        ("2 (cut-outs of Christmas trees)", "", 2),
        ("3 hundred", "", 300),
        ("6th", "", 6),
    ],
)
def test_number_with_a_unit(text: str, dimension: str, value: Fraction | int) -> None:
    """Currency, measures and nouns around a number are told apart from it."""
    found = quantity(text)
    assert (found.unit.dimension, found.value, found.is_percent) == (dimension, value, False)


@pytest.mark.parametrize(
    "text",
    [
        "2x",
        "2 x",
        "5m",
        "6 pi",
        "6xy",
        "6 xy",
        "5ab",
        "18apples",
        "3 or 4",
        "5 squared",
        "3 fourths",
        "5\\text{ not}",
        "3 \\text{ or more}",
    ],
)
def test_variables_and_conditions_are_no_unit(text: str) -> None:
    """What may be a variable, or says more than a unit, does not make a number of what stands before it."""
    assert read_quantity(tidy(text)) is None


@pytest.mark.parametrize("text", ["25%", "25\\%", "25 \\%", "25 percent", "25\\text{ percent}"])
def test_percent(text: str) -> None:
    """A percent sign is kept apart from the number."""
    assert quantity(text) == Quantity(Fraction(25), is_percent=True)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18.00"),
        ("18", "\\$18"),
        ("5.4 \\text{ cents}", "5.4"),
        ("0.5 dollars", "50 cents"),
        ("2 hours", "120 minutes"),
        ("1 \\text{ m}", "1"),
        ("1 \\text{ m}^2", "10000 \\text{ cm}^2"),
        ("9 (apples)", "9 \\text{ pieces}"),
        ("25\\%", "\\frac{1}{4}"),
        ("0.25", "25\\%"),
        ("25", "25\\%"),
        ("25\\%", "25"),
        ("12.5\\%", "12.5\\%"),
        ("3.333", "10/3"),
        ("3.333", "3.3333"),
        ("1.33", "\\frac{4}{3}"),
        ("0.67", "2/3"),
        ("-0.67", "-2/3"),
        ("0.66", "0.66"),
    ],
)
def test_equal_quantities(gold: str, answer: str) -> None:
    """Measures are converted, percentages are fractions, and a gold rounding is the fraction it can only come from."""
    assert same_quantity(quantity(gold), quantity(answer))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18.01"),
        ("18", "-18"),
        ("5 cents", "5 dollars"),
        ("5 \\text{ cm}", "5 \\text{ kg}"),
        ("30^\\circ", "30 \\text{ radians}"),
        ("5 \\text{ cm}", "5 \\text{ cm}^2"),
        ("0.5", "0.5\\%"),
        ("1", "1\\%"),
        ("25\\%", "2.5"),
        ("0.5\\%", "0.5"),
        ("10/3", "3.33"),
        ("10/3", "3.333333333"),
        ("3.333", "3.33"),
        ("3.333", "3.334"),
        ("0.46", "0.459"),
        ("0.46", "6/13"),
        ("0.67", "0.666"),
        ("0.67", "0.671"),
        ("5.7", "17/3"),
        ("2.50", "2.504"),
        ("7", "6.9999"),
        ("3.14", "3.1416"),
        ("0.33 dollars", "\\frac{100}{3} \\text{ dollars}"),
    ],
)
def test_different_quantities(gold: str, answer: str) -> None:
    """What is near is not equal: values are compared exactly, and no rounding is guessed."""
    assert not same_quantity(quantity(gold), quantity(answer))


@given(integers, naturals, integers, naturals)
def test_fractions_are_compared_exactly(a: int, b: int, c: int, d: int) -> None:
    """Two fractions are the same if and only if they are."""
    assert same_quantity(quantity(f"{a}/{b}"), quantity(f"{c}/{d}")) == (Fraction(a, b) == Fraction(c, d))


@given(st.integers(0, 10**7), st.integers(2, 6), integers, naturals)
def test_a_rounding_has_at_most_one_fraction(digits: int, places: int, numerator: int, denominator: int) -> None:
    """A fraction that is taken for a gold decimal rounds to it, and has a denominator that leaves no choice."""
    gold = quantity(f"{digits // 10**places}.{digits % 10**places:0{places}}")
    value = Fraction(numerator % (200 * denominator), denominator)
    near = Fraction(round(gold.value * denominator), denominator)
    for answer in (value, near):
        if same_quantity(gold, Quantity(answer)) and answer != gold.value:
            assert abs(answer - gold.value) * 2 <= Fraction(1, 10**places)
            assert answer.denominator <= math.isqrt(10**places)

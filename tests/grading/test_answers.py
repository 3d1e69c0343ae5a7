"""Our own comparison of answers: which are equal, which are different, and which are left to computer algebra."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbitrage_cli.grading.answers import MAX_LENGTH, Judgement, compare


def nobody(gold: str, answer: str) -> bool:
    """For answers that our own rules must decide."""
    pytest.fail(f"asked about {gold!r} and {answer!r}")


class Somebody:
    """Says what it was told to say, and keeps what it was asked."""

    def __init__(self, *, verdict: bool) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, str]] = []

    def __call__(self, gold: str, answer: str) -> bool:
        self.asked.append((gold, answer))
        return self.verdict


EQUAL = {
    "the same text": [
        ("x^2 + 1", "$x^2+1$"),
        ("\\frac{1}{x}", "\\dfrac{1}{x}"),
        ("\\text{even}", "even"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("1 \\pm \\sqrt{19}", "1\\pm\\sqrt{19}"),
        ("52_8", "52_{8}"),
        ("1,234", "1, 234"),
    ],
    "numbers": [
        ("1234", "1,234"),
        ("1,234", "1234.0"),
        ("\\frac{1}{2}", "0.5"),
        ("\\frac 59", "5/9"),
        ("7/2", "3\\frac{1}{2}"),
        ("18", "\\$18.00"),
        ("18", "18 apples"),
        ("18", "\\text{18 dollars}"),
        ("18", "\\mathbf{18.0}"),
        ("073", "73"),
        ("9 (apples)", "9"),
        ("9 (apples)", "9 \\text{ pieces}"),
        ("145^\\circ", "145"),
        ("50", "50\\%"),
        ("2^{10}", "1024"),
        (".0000672", "6.72 \\times 10^{-5}"),
        ("3.333 (minutes)", "\\frac{10}{3}"),
    ],
    "numbers with units": [
        ("0.46 (dollars)", "46 cents"),
        ("36 (sq. inches)", "36 \\text{ in}^2"),
        ("30^\\circ", "30 degrees"),
    ],
    "letters": [("\\text{(E)}", "E"), ("\\text{(E)}", "\\textbf{(e)}"), ("(B)", "B."), ("E", "(E)")],
    "words": [
        ("Yes", "yes"),
        ("Red", "RED"),
        ("Mrs. Hilt", "\\text{mrs hilt}"),
        ("The 60th caller.", "60th caller"),
        ("3:30 p.m.", "3:30 PM"),
        ("They are equal", "\\text{they are equal}"),
        ("Cesar's toothbrush", "cesar\u2019s toothbrush"),
    ],
    "ratios": [("5:6", "5 to 6"), ("9:10", "\\frac{9}{10}"), ("3:4", "3 to 4"), ("3:4", "0.75")],
    "all 2 parts": [
        ("(1,2)", "( 1 , 2.0 )"),
        ("[0, 1)", "[0,\\frac{2}{2})"),
        ("8, -2", "(8,-2.0)"),
        ("(1,101)", "(1, 101.0)"),
        ("x=1, y=2", "1, 2.0"),
    ],
    "all 2 parts, in any order": [
        ("1,-2", "-2, 1"),
        ("\\{1,2\\}", "2, 1"),
        ("1,3", "1 and 3.0"),
        ("1,3", "3 or 1"),
        ("\\pm 2", "2, -2"),
        ("x = \\pm 2", "x=-2 \\text{ or } x=2"),
        ("$69$,$84$", "84, 69"),
        ("(1,2), (3,4)", "(3,4),(1,2)"),
        ("100,7", "7, 100"),
        ("x=1, y=2", "y=2, x=1.0"),
        ("(0,9) \\cup (9,36)", "(9, 36) \\cup (0, 9)"),
        ("1,234, 5", "5 and 1234"),
    ],
}

DIFFERENT = {
    "numbers": [("3", "4"), ("10/3", "3.33"), ("18", "-18"), ("0.46", "0.459"), ("1,234", "1.234"), ("1", "1\\%")],
    "numbers with units": [("5.4 \\text{ cents}", "5.4 \\text{ dollars}"), ("5 \\text{ cm}", "5 \\text{ cm}^2")],
    "letters": [("\\text{(E)}", "D"), ("\\text{(E)}", "12"), ("\\text{(A)}", "\\text{(A)(B)}")],
    "words": [
        ("Yes", "No"),
        ("Yes", "1"),
        ("\\text{even}", "2k"),
        ("18", "eighteen"),
        ("Bryan", "Bryan Smith"),
        ("3:30 p.m.", "3:30"),
    ],
    "ratios": [("5:6", "6:5"), ("5:6", "\\frac{6}{5}"), ("5:45", "1:9")],
    "other brackets": [("(0,1)", "[0,1]"), ("(0,1)", "(0,1]"), ("\\{0,1\\}", "(0,1)"), ("0,1", "[0,1]"), ("(0,1)", "[0,2]")],
    "part 2": [("(1,2)", "(1,3)"), ("(1,2)", "(1,-2)")],
    "part 1": [("(1,2)", "(2,1)"), ("[1,2]", "[0,2]"), ("x=1, y=2", "2, 1")],
    "names": [("x=1", "y=1.0")],
    "2 parts, not 3": [("1,2,3", "1,2"), ("(1,2,3)", "(1,2)")],
    "1 answer, not 3": [("1,2,3", "1"), ("1,2,3", "x")],
    "2 answers, not 1": [("5", "5, 6"), ("5", "\\pm 5"), ("5", "5 \\text{ or } 6")],
    "no 2": [("1,2", "1,3")],
    "no x=1": [("x=1, y=2", "x=2, y=1")],
    "numbers in a base": [("52_8", "52"), ("52_8", "52_9"), ("52_8", "53_8")],
    "an equation and no equation": [("5", "x^2+y^2=5"), ("x+y=3", "3"), ("5", "2+2=5")],
    "no expression": [("\\sqrt{2}", "\\sqrt{2"), ("\\sqrt{2}", "")],
}


@pytest.mark.parametrize(("rule", "gold", "answer"), [(rule, *pair) for rule, pairs in EQUAL.items() for pair in pairs])
def test_equal_answers(rule: str, gold: str, answer: str) -> None:
    """Another spelling of the gold answer is equal, by our own rules, and the rule is told."""
    assert compare(gold, answer, nobody) == Judgement(True, rule)


@pytest.mark.parametrize(("rule", "gold", "answer"), [(rule, *pair) for rule, pairs in DIFFERENT.items() for pair in pairs])
def test_different_answers(rule: str, gold: str, answer: str) -> None:
    """Another answer is different, by our own rules, and the rule is told."""
    assert compare(gold, answer, nobody) == Judgement(False, rule)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "x = 5"),
        ("k=1", "1"),
        ("5", "\\text{Area} = 5"),
        ("5", "Answer = 5"),
        ("x=5", "x = 10/2 = 5"),
        ("10/3", "x = \\frac{10}{3} \\approx 3.33"),
        ("10/3", "\\frac{10}{3} \\approx 3.33"),
        ("4", "2 + 2 = 4"),
        ("m_{\\max}=7", "m = 7.0"),
        ("\\angle B E A_{1}=90", "90^\\circ"),
        ("(1,2)", "(x, y) = (1, 2)"),
        ("[0,1]", "x \\in [0, 1.0]"),
        ("\\{5\\}", "5"),
        ("5", "\\{5\\}"),
        ("x=5", "x=5.0"),
    ],
)
def test_names_of_values_are_left_away(gold: str, answer: str) -> None:
    """A value is the same with its name and without, in a chain of equations its end counts, and of a rounding what was rounded."""
    assert compare(gold, answer, nobody).is_equal


@pytest.mark.parametrize(("gold", "answer"), [("x=3", "y=3"), ("a_1=3", "a_2=3"), ("f(x)=3", "g(x)=3")])
def test_other_names_of_a_number_are_other_answers(gold: str, answer: str) -> None:
    """The line x = 3 is not the line y = 3: different names are not left away."""
    assert compare(gold, answer, nobody) == Judgement(False, "names")


def test_equations_of_different_names_are_asked_whole() -> None:
    """x = 2y may be y = x/2: computer algebra tells."""
    same = Somebody(verdict=True)
    assert compare("x = 2y", "y = \\frac{x}{2}", same).is_equal
    assert same.asked == [("x = 2y", "y = \\frac{x}{2}")]


@pytest.mark.parametrize(
    ("gold", "answer", "asked"),
    [
        ("\\sqrt{8}", "2\\sqrt{2}", ("\\sqrt{8}", "2\\sqrt{2}")),
        ("$2n-2$", "$2(n-1)$", ("2n-2", "2(n-1)")),
        ("f(x)=2 x", "2x", ("2 x", "2x")),
        ("16\\sqrt{3}", "8\\sqrt{12} \\text{ cm}^2", ("16\\sqrt{3}", "8\\sqrt{12}")),
        ("(1, \\sqrt{4})", "(1, x)", ("\\sqrt{4}", "x")),
        ("(1,2)", "1 < x < 2", ("(1,2)", "1 < x < 2")),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "(1,2)", ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "(1,2)")),
        ("y=2x+1", "2x-y+1=0", ("y=2x+1", "2x-y+1=0")),
        ("3", "\\sqrt{9}", ("3", "\\sqrt{9}")),
    ],
)
def test_what_no_rule_decides_is_asked(gold: str, answer: str, asked: tuple[str, str]) -> None:
    """Roots, symbols, matrices and inequalities go to computer algebra, without their names and units; its word is the verdict."""
    for verdict in (True, False):
        same = Somebody(verdict=verdict)
        assert compare(gold, answer, same).is_equal == verdict
        assert same.asked == [asked]


def test_parts_of_a_list_are_asked_one_by_one() -> None:
    """Of two lists in any order only the pairs that no rule decides are asked."""
    asked = []

    def same(gold: str, answer: str) -> bool:
        asked.append((gold, answer))
        return (gold, answer) == ("\\sqrt{8}", "2\\sqrt{2}")

    assert compare("1, \\sqrt{8}", "2\\sqrt{2}, 1.0", same) == Judgement(True, "all 2 parts, in any order")
    assert asked == [("1", "2\\sqrt{2}"), ("\\sqrt{8}", "2\\sqrt{2}")]


def test_whoever_is_asked_may_have_no_verdict() -> None:
    """An error of the one that is asked comes out as it is: nothing is decided in its place."""

    def fails(gold: str, answer: str) -> bool:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        compare("\\sqrt{8}", "2\\sqrt{2}", fails)


@pytest.mark.parametrize(
    ("gold", "unit", "answer", "is_equal"),
    [
        ("90", "^{\\circ}", "90 \\text{ degrees}", True),
        ("5", "km", "5000 m", False),  # a bare m is a variable
        ("5", "km", "5000 \\text{ m}", True),
        ("5", "km", "5", True),
        ("5", "\\mathrm{~cm}^{2}", "5 \\text{ cm}", False),
        ("5", "apples", "5 pears", True),
        ("5 cents", "dollars", "5 cents", True),
        ("5", "???", "5.0", True),
    ],
)
def test_unit_that_is_given_apart(gold: str, unit: str, answer: str, is_equal: bool) -> None:
    """The gold answer's unit is its own if its text has none; an answer need not give it, but may give no other."""
    assert compare(gold, answer, Somebody(verdict=False), unit).is_equal == is_equal


def test_long_answers_are_only_the_same_text() -> None:
    """An answer of a megabyte is the gold answer if it is its text, and else it is too long to compare."""
    digits = "9" * 1_000_000
    assert compare(digits, f" {digits} ", nobody) == Judgement(True, "the same text")
    assert compare("3", digits, nobody) == Judgement(False, "the answer has 1,000,000 characters, too many to compare")
    assert compare(digits, "3", nobody) == Judgement(False, "the gold answer has 1,000,000 characters, too many to compare")


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        "(1,",
        "((1,2),",
        "{",
        "\\{1,",
        "[1,2],",
        "\\pm",
        "\\text{",
        "\\cup(0,1)",
        "A ",
        "a",
        "x_",
        "AB",
        "'",
        "=",
        "x=",
        "1,",
        "1:",
        "-",
        "\\in",
        "\\approx",
        " and ",
        ".",
        "\\frac",
        "2^",
    ],
)
@pytest.mark.parametrize("gold", ["3", "1,2,3", "(1,2)", "x=2y", "even", "\\{1\\}"])
def test_hostile_answers_take_little_time(piece: str, gold: str) -> None:
    """Whatever is repeated up to the longest answer that is compared, the verdict is "different", and soon."""
    began = time.process_time()
    assert not compare(gold, piece * (MAX_LENGTH // len(piece)), Somebody(verdict=False)).is_equal
    assert time.process_time() - began < 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_texts_can_be_compared(gold: str, answer: str) -> None:
    """No pair of texts is an error, and a text is always equal to itself."""
    compare(gold, answer, Somebody(verdict=False))
    assert compare(gold, gold, nobody).is_equal


@given(st.lists(st.fractions(min_value=-99, max_value=99, max_denominator=99), min_size=2, max_size=5))
def test_lists_are_equal_in_any_order_and_points_only_in_theirs(values: list[Fraction]) -> None:
    """A list is equal to its reverse; a point only if its coordinates are."""
    texts = [f"\\frac{{{value.numerator}}}{{{value.denominator}}}" for value in values]
    backwards = [f"{value.numerator}/{value.denominator}" for value in reversed(values)]
    assert compare(", ".join(texts), ", ".join(backwards), nobody).is_equal
    is_palindrome = values == values[::-1]
    assert compare(f"({','.join(texts)})", f"({','.join(backwards)})", nobody).is_equal == is_palindrome

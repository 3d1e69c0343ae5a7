r"""Finds and checks equations in a text, such as the wrong equation `788 * 9 = 7992`.

The parser reads numbers (decimals, thousands commas, `%`), `+ - * / ( )` in plain, Unicode and LaTeX form, `\frac{}{}`, and
chains such as `a = b = c`. It ignores currency signs, units and `\text{}`. It skips expressions that may be misread:
variables (`2ab = 6`), powers, repeating decimals, words that imply arithmetic (`half of 10 + 2`), unit conversions
(`1/2 hour = 30 minutes`, `4 hours = 4 * 60`), and quotients that a remainder follows (`17 / 5 = 3 remainder 2`,
`17 / 5 = 3 hours and 24 minutes`). Values are exact fractions. Parsing takes linear time and never evaluates code.
"""

import math
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from arbitrage_cli.types import Trace, frozen

Value = Fraction | int

MAX_CHARACTERS = 4096  # parsed characters of a text
MAX_TOKENS = 100  # on one side of an equation
MAX_DIGITS = 18  # in a number
TOLERANCE = Fraction(1, 50)  # relative, for approximate equations

_EQUAL = re.compile(r"=|\u2248|\\approx")
# Words in LaTeX that are read as outside of it: `25\% \text{ of } 80`, `3 \text{ hours and } 24 \text{ minutes}`
_JOINING_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{([A-Za-z ]*\b(?:and|of|remainder|with)\s*)\}")
_NAMED_QUOTIENT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*\(?quotient\)?\s*\}")
_FRACTION_OF = re.compile(r"(%|\d/\d+|\})\s+of\s+(?=\\?\$?\d)")  # 20% of 50, 3/4 of 20
_REMAINDER = "remainder"
_BEFORE_REMAINDER = (_REMAINDER, f"with {_REMAINDER}", f"with a {_REMAINDER}")
_AFTER_QUOTIENT = r"[ $]*+(?:[,;]|\\[)\]])[ (]*+"  # in `3, remainder 2` and `\(17 / 5 = 3\) with a remainder of 2`
_QUOTIENT = re.compile(rf"(?<=\d)(?={_AFTER_QUOTIENT}(?:{'|'.join(_BEFORE_REMAINDER)}))", re.IGNORECASE)
_UNFINISHED_QUOTIENT = re.compile(rf"(?<=\d)(?={_AFTER_QUOTIENT}([A-Za-z ]*+)\Z)")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+", re.ASCII)
_TOKEN = re.compile(
    r"""
    (?P<skip>[^\S\n]+|\\?[$]|[€£&]|\\[,;!\ ]|\\(?:left|right|quad)(?![a-z])|(?:\n|\\\\)(?=[ ]*+(?:&[ ]*+)?=)|\*\*(?=\s|[A-Z]|$))
    |(?P<break>\n|\\[\[\]()\\]|\\(?:begin|end)\{\w+\*?\}|<=|>=|=>|->|!=|[<>\u2264\u2265\u2192;:?]|[.,](?!\d))
    |(?P<equal>=|\u2248|\\approx(?![a-z]))
    |(?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar)(?![a-z]))
    |(?P<number>\.?[0-9][0-9,.]*(?::[0-9])?)
    |(?P<operator>[-+*/\u2212\u2013\u00d7\u00f7\u00b7]|\\(?:times|cdot|div)(?![a-z])|(?<=[\d\s)])[xX](?=\s*[$(]?[0-9]))
    |(?P<open>\(|\[|\{|\\boxed\s*\{)
    |(?P<close>[)\]}])
    |(?P<fraction>\\[dt]?frac(?=\s*\{))
    |(?P<percent>\\?%)
    |(?P<name>[^\W\d_]++(?:\d\w*|(?=(?:\\left)?\()))
    |(?P<word>\\(?:text|mathrm|mbox)\s*\{[^{}\n]*\}|[^\W\d_]+(?:['\u2019-][^\W\d_]+)*)
    |(?P<unknown>\\[A-Za-z]+|.)
    """,
    re.VERBOSE,
)
_SIGNS = dict.fromkeys(("\u00d7", "\u00b7", "x", "X", "\\times", "\\cdot"), "*")
_SIGNS |= {"\u2212": "-", "\u2013": "-", "\\div": "/", "\u00f7": "/"}
_LEVELS: tuple[Mapping[str, Callable[[Any, Any], Value]], ...] = (
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": Fraction},
)
_COMPUTING = (  # words that change the value of an adjacent number
    "of times twice thrice half double triple third thirds quarter quarters plus minus divided multiplied squared cubed than "
    "dozen dozens hundred thousand million billion k percent cent cents pair pairs score th st nd rd"
)
_COMPUTES = frozenset(_COMPUTING.split())
_AFTER_DIGITS = "km cm mm kg mg lb lbs oz ml ft in yd mi hr hrs min sec mph am pm gb mb kb kwh th st nd rd"  # no variables
_SHORT_UNITS = frozenset(_AFTER_DIGITS.split())
_CONTINUES = _COMPUTES | {"and", "per", "by", "over", "to", "from", "between"}  # no new expression begins after these words


@frozen
class Equation:
    """Two values that a text claims to be equal.

    `is_right` allows for rounding. If the sign means "approximately equal", a small difference is also allowed. `operands`
    contains the numbers on the left side. In a chain, where the previous equation's right side is this left side, it is
    empty.
    """

    left: Fraction
    right: Fraction
    is_right: bool
    operands: tuple[Value, ...]

    @property
    def error(self) -> float:
        """The difference between the sides divided by the larger side, or 0 if the equation is right."""
        return 0.0 if self.is_right else float(abs(self.left - self.right) / max(abs(self.left), abs(self.right)))


class _Token(NamedTuple):
    kind: str
    text: str = ""


class _Side(NamedTuple):
    """An expression.

    `places` is the number of decimal places of a single number, with two more for a percentage: 1 for `0.5`, and 3 for
    `12.5%`. It is None for any other expression. `has_more` is true if the text states another part of the value after it,
    such as a remainder.
    """

    value: Fraction
    numbers: tuple[Value, ...]
    units: frozenset[str]
    places: int | None
    has_more: bool


class _AmbiguousError(Exception):
    pass


@lru_cache(maxsize=1 << 10)
def check_equations(text: str, *, is_whole: bool = True) -> tuple[Equation, ...]:
    """Return the equations in a text, in order.

    If `is_whole` is false, the last equation is skipped if it may be incomplete.
    """
    if not _EQUAL.search(text):
        return ()
    if is_whole and len(text) <= MAX_CHARACTERS:
        tokens = list(_tokens(text))
    else:
        tokens = _without_last_side(list(_tokens(_beginning(text[:MAX_CHARACTERS]))))
    groups = groupby(tokens, lambda token: token.kind == "break")
    return tuple(equation for is_break, group in groups if not is_break for equation in _equations(list(group)))


def steps_with_wrong_equations(trace: Trace) -> list[int]:
    """Return the numbers, from 1, of the kept steps of the answer that contain a wrong equation."""
    kept = [decision.kept for decision in trace.decisions]
    return [
        number
        for number, step in enumerate(kept, start=1)
        if step.phase == "answer" and not all(one.is_right for one in check_equations(step.text, is_whole=step.is_whole))
    ]


def numbers_in(text: str) -> tuple[Value, ...]:
    return tuple(_number(token.text) for token in _tokens(text[:MAX_CHARACTERS]) if token.kind == "number")


def _number(text: str) -> Value:
    digits = text.replace(",", "")
    return Fraction(digits) if "." in digits else int(digits)


def _tokens(text: str) -> Iterator[_Token]:
    text = _JOINING_TEXT.sub(r" \1 ", text)
    text = _NAMED_QUOTIENT.sub(f" {_REMAINDER} ", text)
    text = _FRACTION_OF.sub(r"\1 * ", text)
    text = _QUOTIENT.sub(f" {_REMAINDER}", text)
    last_kind = "break"
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        piece = match.group()
        is_inside_expression = piece == "\n" and last_kind == "operator"
        if kind == "skip" or is_inside_expression:
            continue
        is_bullet = kind == "operator" and last_kind == "break" and text[match.end() : match.end() + 1].isspace()
        is_after_digit = text[max(match.start() - 1, 0) : match.start()].isdigit()
        if kind == "number":
            tokens = _number_tokens(piece)
        elif kind in ("unknown", "repeating") or is_bullet or (is_after_digit and _are_variables(piece)):
            tokens = [_Token("unknown")]
        else:
            tokens = [_Token(kind, _SIGNS.get(piece, piece))]
        yield from tokens
        last_kind = tokens[-1].kind


def _are_variables(piece: str) -> bool:
    """Return whether a word after a digit is a product of variables, as in `2ab`, and no unit."""
    return piece.isalpha() and piece.islower() and 2 <= len(piece) <= 3 and piece not in _SHORT_UNITS


def _number_tokens(piece: str) -> list[_Token]:
    """Return a number token, followed by a break token if a comma or full stop follows the number."""
    number = piece.rstrip(".,")
    is_readable = len(number) <= MAX_DIGITS and _NUMBER.fullmatch(number)
    token = _Token("number", number) if is_readable else _Token("unknown")
    return [token] if number == piece else [token, _Token("break")]


def _beginning(text: str) -> str:
    """Return the beginning of a text without its last punctuation. A number that a remainder may follow is marked."""
    match = _UNFINISHED_QUOTIENT.search(text)
    if match and any(words.startswith(match[1].lower()) for words in _BEFORE_REMAINDER):
        text = f"{text[: match.start()]} {_REMAINDER}{text[match.start() :]}"
    return text.rstrip(".,:")


def _without_last_side(tokens: list[_Token]) -> list[_Token]:
    """Return the tokens before the last equals sign. If a break follows this sign, return all tokens."""
    for index in reversed(range(len(tokens))):
        if tokens[index].kind in ("equal", "break"):
            return tokens[:index] if tokens[index].kind == "equal" else tokens
    return tokens


def _equations(tokens: Sequence[_Token]) -> Iterator[Equation]:
    """Yield the equations between adjacent sides of a chain, unless both sides are single numbers."""
    places = [-1, *(index for index, token in enumerate(tokens) if token.kind == "equal"), len(tokens)]
    ends = [_ends(tokens[start + 1 : end]) for start, end in pairwise(places)]
    has_percent = any(token.kind == "percent" for token in tokens)
    for index, ((_, left), (right, _)) in enumerate(pairwise(ends)):
        if left and right and max(len(left.numbers), len(right.numbers)) > 1:
            is_rough = tokens[places[index + 1]].text != "="
            shifts = (0, 2, -2) if has_percent else (0,)  # `3 / 4 * 100 = 75%` is right as well
            is_right = any(_are_equal(left, right, shift, is_rough) for shift in shifts)
            if is_right or _is_comparable(left, right):
                in_chain = index and left is ends[index][0]
                yield Equation(left.value, right.value, is_right, () if in_chain else left.numbers)


def _is_comparable(left: _Side, right: _Side) -> bool:
    """Return whether different values mean a wrong equation, because neither a unit nor a remainder explains the difference."""
    if right.has_more and right.value == math.floor(left.value):
        return False
    if left.units & right.units:
        return True
    is_conversion = len(left.numbers) == 1 < len(right.numbers) and left.value in right.numbers  # 5 quarters = 5 * 25
    return not left.units or not (right.units or is_conversion)


def _are_equal(left: _Side, right: _Side, shift: int, is_rough: bool) -> bool:
    """Return whether the left side times 10**shift equals the right side."""
    a = left.value * Fraction(10) ** shift
    b = right.value
    is_near = is_rough and abs(a - b) <= TOLERANCE * max(abs(a), abs(b))
    return a == b or is_near or _is_rounded(a, right, 0, is_rough) or _is_rounded(b, left, shift, is_rough)


def _is_rounded(exact: Fraction, stated: _Side, shift: int, is_rough: bool) -> bool:
    """Return whether `stated` times 10**shift equals `exact` after rounding or truncation to the places of `stated`.

    Rounding to an integer is accepted only if `is_rough` is true. Rounding to a whole percentage is always accepted.
    """
    if stated.places is None or not (stated.places or is_rough):
        return False
    unit = Fraction(10) ** (shift - stated.places)
    value = stated.value * Fraction(10) ** shift
    excess = abs(exact) - abs(value)
    return exact % unit != 0 and exact * value >= 0 and (abs(excess) * 2 <= unit or 0 <= excess < unit)


def _ends(tokens: Sequence[_Token]) -> tuple[_Side | None, _Side | None]:
    """Return the first and the last expression on a side of an equation, which usually are the same expression."""
    first, *others = _pieces(tokens)
    start = _read(first)
    if start and others and _is_mixed(first, others[0]):
        start = start._replace(has_more=True)
    return start, _read(others[-1]) if others else start


def _is_mixed(first: Sequence[_Token], second: Sequence[_Token]) -> bool:
    """Return whether two pieces are the parts of one value, such as `3 hours and 24 minutes` or `3 and 1/3`."""
    return first[-1].text.lower() in ("and", "with") and not any(token.text in ("+", "-", "*") for token in second)


def _pieces(tokens: Sequence[_Token]) -> list[list[_Token]]:
    """Split a side of an equation where a new expression begins: after words, and at unmatched parentheses."""
    unmatched = _unmatched(tokens)
    depth = 0
    pieces: list[list[_Token]] = [[]]
    for index, token in enumerate(tokens):
        if index in unmatched:
            pieces.append([])
            continue
        piece = pieces[-1]
        if not depth and piece and piece[-1].kind == "word" and token.kind in ("number", "open", "fraction"):
            pieces.append([_Token("unknown")] if _continues(piece) else [])
        depth += (token.kind == "open") - (token.kind == "close")
        pieces[-1].append(token)
    return pieces


def _continues(piece: Sequence[_Token]) -> bool:
    """Return whether the next number belongs to this piece, for example after `half of`, `the sum of 3 and` or `5 feet`."""
    last = piece[-1].text.lower()
    if last == "and" and all(token.kind == "word" for token in piece):
        return False
    return last in _CONTINUES or (len(piece) > 1 and piece[-2].kind == "number")


def _unmatched(tokens: Sequence[_Token]) -> set[int]:
    unmatched: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind == "close" and unmatched and tokens[unmatched[-1]].kind == "open":
            unmatched.pop()
        elif token.kind in ("open", "close"):
            unmatched.append(index)
    return set(unmatched)


def _read(tokens: Sequence[_Token]) -> _Side | None:
    if not tokens or len(tokens) > MAX_TOKENS:
        return None
    left = deque(tokens)
    try:
        value = Fraction(_value(left))
    except (_AmbiguousError, IndexError, ZeroDivisionError):
        return None
    texts = [token.text for token in tokens if token.kind == "number"]
    units = frozenset(token.text.lower().rstrip("s") for token in tokens if token.kind == "word")
    percents = sum(token.kind == "percent" for token in tokens)
    places = len(texts[0].partition(".")[2]) + 2 * percents if len(texts) == 1 else None
    has_more = _REMAINDER in units
    return None if left else _Side(value, tuple(map(_number, texts)), units - {_REMAINDER}, places, has_more)


def _value(tokens: deque[_Token], level: int = 0) -> Value:
    """Parse an expression and return its value: a sum (level 0) of products (level 1) of factors."""
    if level == len(_LEVELS):
        return _factor(tokens)
    value = _value(tokens, level + 1)
    while tokens and tokens[0].text in _LEVELS[level]:
        operation = _LEVELS[level][tokens.popleft().text]
        value = operation(value, _value(tokens, level + 1))
    return value


def _factor(tokens: deque[_Token]) -> Value:
    token = tokens.popleft()
    value: Value
    if token.text == "-":
        return -_factor(tokens)
    if token.kind == "fraction":
        value = Fraction(_group(tokens.popleft(), tokens)) / _group(tokens.popleft(), tokens)
    else:
        value = _number(token.text) if token.kind == "number" else _group(token, tokens)
    while tokens and tokens[0].kind in ("word", "percent"):
        unit = tokens.popleft()
        if unit.kind == "percent":
            value *= Fraction(1, 100)
        elif len(unit.text) == 1 or unit.text.lower() in _COMPUTES:
            raise _AmbiguousError
    return value


def _group(opening: _Token, tokens: deque[_Token]) -> Value:
    if opening.kind != "open":
        raise _AmbiguousError
    value = _value(tokens)
    if tokens.popleft().kind != "close":
        raise _AmbiguousError
    return value

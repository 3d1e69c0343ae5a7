"""Numbers as people write them in answers, exactly: 1,234 · 2\\frac{1}{2} · 3/4 · 2^{10} · 12.5\\% · \\$18 · 5.4\\text{ cents}.

A number is a `Fraction`, never a float. Text is expected as `latex_text.tidy` leaves it. Knows no symbols (no \\sqrt, no \\pi,
no x) and evaluates nothing that could grow without bound: what it cannot read is None, for others to judge.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType

MAX_DIGITS = 1000
"""Digits of a number that is read as one."""

_MAX_BITS = 1 << 16  # of a power
_MAX_DEPTH = 20  # of brackets

_LITERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?![0-9])|\.[0-9]+"
_TOKEN = re.compile(
    rf"\s*(?:(?P<repeating>[0-9]*\.[0-9]*\\overline\{{[0-9]+\}})|(?P<literal>{_LITERAL})|(?P<mark>\\frac(?![a-zA-Z])|[-+*/^(){{}}]))"
)
_OPERATORS = re.compile(r"\\(?:cdot|times|div)(?![a-zA-Z])")
_DECIMAL = re.compile(r"[-+]?\s*[0-9, ]*\.([0-9]+)")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts: for a known measure its dimension and its size in that; for anything else the dimension is ""."""

    dimension: str = ""
    size: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, whether it is followed by a percent sign, its unit, and how many decimals it was written with (if it was)."""

    value: Fraction
    is_percent: bool = False
    unit: Unit = Unit()
    decimals: int | None = None


# --- units

_SIZES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "length": {
            **dict.fromkeys(["mm", "millimeter", "millimetre"], "0.001"),
            **dict.fromkeys(["cm", "centimeter", "centimetre"], "0.01"),
            **dict.fromkeys(["m", "meter", "metre"], "1"),
            **dict.fromkeys(["km", "kilometer", "kilometre"], "1000"),
            **dict.fromkeys(["in", "inch", "inche"], "0.0254"),
            **dict.fromkeys(["ft", "foot", "feet"], "0.3048"),
            **dict.fromkeys(["yd", "yard"], "0.9144"),
            **dict.fromkeys(["mi", "mile"], "1609.344"),
        },
        "time": {
            **dict.fromkeys(["s", "sec", "second"], "1"),
            **dict.fromkeys(["min", "minute"], "60"),
            **dict.fromkeys(["h", "hr", "hour"], "3600"),
            "day": "86400",
            "week": "604800",
        },
        "month": {"month": "1", "year": "12"},
        "mass": {
            **dict.fromkeys(["mg", "milligram"], "0.001"),
            **dict.fromkeys(["g", "gram"], "1"),
            **dict.fromkeys(["kg", "kilogram"], "1000"),
        },
        "weight": {**dict.fromkeys(["oz", "ounce"], "1"), **dict.fromkeys(["lb", "pound"], "16")},
        "volume": {
            **dict.fromkeys(["ml", "milliliter", "millilitre"], "1"),
            **dict.fromkeys(["l", "liter", "litre"], "1000"),
        },
        "money": {**dict.fromkeys(["dollar", "usd"], "1"), "cent": "0.01"},
        "euro": {"euro": "1", "€": "1"},
        "pound sterling": {"£": "1"},
        "speed": {"mph": "1"},
        "degree": {"degree": "1"},
        "radian": {"radian": "1", "rad": "1"},
    }
)
_UNITS: Mapping[str, Unit] = MappingProxyType(
    {name: Unit(dimension, Fraction(size)) for dimension, sizes in _SIZES.items() for name, size in sizes.items()}
)
_SCALES: Mapping[str, int] = MappingProxyType(
    {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
)
_NOT_UNITS = frozenset(
    {"squared", "cubed", "factorial", "halves", "thirds", "fourths", "fifths", "sixths", "sevenths", "eighths", "ninths"}
    | {"tenths", "hundredths", "thousandths", "not"}
    | {"and", "or", "if", "to", "for", "when", "where", "plus", "minus", "over", "mod", "is", "are", "pi", "sqrt"}
    | {"log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "exp", "inf", "infinity", "theta", "alpha", "beta", "gamma"}
)
_ORDINALS = frozenset({"st", "nd", "rd", "th"})

_CURRENCY = re.compile(r"([-+]?)\s*(?:(\\\$|USD)|(€|£))\s*(?=[-+.0-9\\])")
_DEGREES = re.compile(r"\^\{\\circ\}$")
_POWER = r"(?:\^\{?(?P<power>[23])\}?)?"
_WORDS = r"[A-Za-z][A-Za-z .'\-/]*"
_IN_TEXT = re.compile(rf"\\text\{{\(?(?P<words>{_WORDS})\)?\}}{_POWER}$")
_IN_BRACKETS = re.compile(rf"(?<=[0-9)}}])(?P<space> *)\((?P<words>{_WORDS}){_POWER}\)$")
_BARE = re.compile(rf"(?<=[0-9)}}%])(?P<space> *)(?P<words>{_WORDS}){_POWER}$")
_SHORTEST_WORD = 4  # letters of a bare word that is no product of variables


@dataclass(frozen=True, slots=True)
class Counted:
    """A text taken apart: what stands before its unit, the unit, and the factor of a word such as `million`."""

    text: str
    unit: Unit = Unit()
    is_percent: bool = False
    scale: int = 1


def split_unit(text: str) -> Counted:
    """A text without the unit at its end, the currency sign at its beginning, or the percent sign.

    A bare letter, or short letters that are no known unit, are variables and no unit: 2x, 5ab.
    """
    if found := _CURRENCY.match(text):
        counted = _split_words(found[1] + text[found.end() :])
        return replace(counted, unit=_UNITS["dollar" if found[2] else found[3]])
    return _split_words(text)


def _split_words(text: str) -> Counted:
    found = _IN_TEXT.search(text) or _IN_BRACKETS.search(text) or _BARE.search(text)
    words = " ".join(found["words"].replace(".", " ").lower().split()) if found else ""
    if not found or not found.start() or not _is_unit(words, found):
        return _split_sign(text)
    counted = _split_sign(text[: found.start()].rstrip())
    first, _, rest = words.partition(" ")
    scale = _SCALES.get(first, 1)
    unit = counted.unit if counted.unit.dimension else known_unit(rest if scale > 1 else words, found["power"] or "")
    return Counted(counted.text, unit, counted.is_percent or first in ("percent", "percentage"), scale)


def _split_sign(text: str) -> Counted:
    if found := _DEGREES.search(text):
        return Counted(text[: found.start()].rstrip(), _UNITS["degree"])
    if text.endswith("%"):
        return Counted(text[:-1].rstrip(), is_percent=True)
    if text.endswith("\\$"):
        return Counted(text[:-2].rstrip(), _UNITS["dollar"])
    return Counted(text)


def _is_unit(words: str, found: re.Match[str]) -> bool:
    first = re.split(r"[ /\-]", words)[0]
    if first in _NOT_UNITS or words.startswith("times "):
        return False
    is_known = bool(known_unit(words).dimension)
    if found.re is _IN_TEXT:
        return True
    if found.re is _IN_BRACKETS:
        return len(words) > 1 or (is_known and bool(found["space"]))
    if is_known:
        return len(words) > 1
    return first in _SCALES or words in _ORDINALS or bool(found["space"] and len(first) >= _SHORTEST_WORD)


def known_unit(words: str, power: str = "") -> Unit:
    """The measure that words such as `sq inches` or `kilograms of sand` name; `Unit()` if none that is known."""
    names = words.split(" of ")[0].split()
    exponent = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}.get(names[0], 1) if names else 1
    names = names[1:] if exponent > 1 else names
    exponent = int(power) if power else exponent
    if len(names) != 1:
        return Unit()
    unit = _UNITS.get(names[0]) or _UNITS.get(names[0].removesuffix("s"))
    if unit is None:
        return Unit()
    return unit if exponent == 1 else Unit(f"{unit.dimension}^{exponent}", unit.size**exponent)


# --- numbers


def read_quantity(text: str) -> Quantity | None:
    """The number that the whole text is, with or without a percent sign or a unit; None if it is anything else."""
    counted = split_unit(text)
    value = read_number(counted.text)
    if value is None:
        return None
    decimal = _DECIMAL.fullmatch(counted.text) if counted.scale == 1 else None
    return Quantity(value * counted.scale, counted.is_percent, counted.unit, len(decimal[1]) if decimal else None)


def read_number(text: str) -> Fraction | None:
    """The exact value of arithmetic on numbers: + - * / ^, brackets, \\frac, mixed numbers. None if it is anything else."""
    tokens: list[str] = []
    text = _OPERATORS.sub(lambda found: "/" if found[0] == "\\div" else "*", text).rstrip()
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if not token or len(token[0]) > MAX_DIGITS:
            return None
        tokens.append(token[0].strip())
        position = token.end()
    try:
        return _Arithmetic(tokens).value()
    except (_NotANumberError, ZeroDivisionError):
        return None


class _NotANumberError(ValueError):
    """The text is not arithmetic on numbers, or its value is too large to write down."""


class _Arithmetic:
    """Reads arithmetic by recursive descent: one method for each level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def value(self) -> Fraction:
        value = self._sum()
        if self._next < len(self._tokens):
            raise _NotANumberError
        return value

    def _look(self, ahead: int = 0) -> str:
        place = self._next + ahead
        return self._tokens[place] if place < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._look()
        self._next += 1
        return token

    def _expect(self, token: str) -> None:
        if self._take() != token:
            raise _NotANumberError

    def _sum(self) -> Fraction:
        value = self._product()
        while self._look() in ("+", "-"):
            value = _bounded(value + self._product() if self._take() == "+" else value - self._product())
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while (look := self._look()) in ("*", "/", "("):
            if look != "(":  # 2(3 + 4)
                self._take()
            factor = self._power() if look == "(" else self._signed()
            value = _bounded(value / factor if look == "/" else value * factor)
        return value

    def _signed(self) -> Fraction:
        sign = 1
        while self._look() in ("+", "-"):
            sign = -sign if self._take() == "-" else sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if self._look() != "^":
            return base
        self._take()
        exponent = self._group() if self._look() == "{" else self._signed_literal()
        if exponent.denominator != 1:
            raise _NotANumberError  # a root
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > _MAX_BITS:
            raise _NotANumberError
        return Fraction(base**exponent.numerator)

    def _signed_literal(self) -> Fraction:
        sign = -1 if self._look() == "-" else 1
        if sign < 0:
            self._take()
        return sign * _literal(self._take())

    def _atom(self) -> Fraction:
        if self._look() in ("(", "{"):
            return self._group()
        if self._look() == "\\frac":
            return self._fraction()
        whole = _literal(self._take())
        return whole + self._part_of_mixed() if whole.denominator == 1 else whole

    def _group(self) -> Fraction:
        closing = {"(": ")", "{": "}"}.get(self._take())
        self._depth += 1
        if closing is None or self._depth > _MAX_DEPTH:
            raise _NotANumberError
        value = self._sum()
        self._expect(closing)
        self._depth -= 1
        return value

    def _fraction(self) -> Fraction:
        self._expect("\\frac")
        return _bounded(self._group() / self._group())

    def _part_of_mixed(self) -> Fraction:
        """What a whole number is followed by in a mixed number, as 1/2 in `3 1/2` and `3\\frac{1}{2}`; else 0."""
        if self._look() == "\\frac":
            part = self._fraction()
        elif self._look().isascii() and self._look().isdigit() and self._look(1) == "/":
            numerator = _literal(self._take())
            self._expect("/")
            part = numerator / _literal(self._take())
        else:
            return Fraction(0)
        if not 0 < part < 1:
            raise _NotANumberError
        return part


def _literal(token: str) -> Fraction:
    """An integer or a decimal, perhaps a repeating one."""
    token = token.replace(",", "").replace(" ", "")
    start, _, repeated = token.partition("\\overline")
    if not start[:1].isdigit() and start[:1] != ".":
        raise _NotANumberError
    value = Fraction(start if start.strip(".") else "0")
    if repeated:
        decimals = len(start.partition(".")[2])
        digits = repeated.strip("{}")
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**decimals)
    return value


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 2 * _MAX_BITS:
        raise _NotANumberError
    return value


# --- equality


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Whether an answer is the number that the gold answer is.

    - Known measures are converted: 50 cents is 0.5 dollars, 5 cents is not 5 dollars. A unit that only one of them has, or
      that is not known, counts for nothing.
    - 25\\% is 1/4. 25\\% is also 25 (the sign was in the question), but only above 1, where a bare number can only be meant
      as a percentage.
    - Values are compared exactly, but see `rounds_to`.
    """
    if gold.unit.dimension and answer.unit.dimension:
        if gold.unit.dimension != answer.unit.dimension:
            return False
        answer = replace(answer, value=answer.value * answer.unit.size / gold.unit.size)
    if gold.is_percent != answer.is_percent:
        percentage, number = (gold.value, answer.value) if gold.is_percent else (answer.value, gold.value)
        return percentage == 100 * number or (percentage == number and abs(number) > 1)
    return gold.value == answer.value or rounds_to(gold, answer)


_MAX_ROUNDED = 18  # decimals of a gold answer that is looked at as a rounding


def rounds_to(gold: Quantity, answer: Quantity) -> bool:
    """Whether the gold decimal is the rounding of one simple fraction, and the answer that fraction or a longer rounding of it.

    A gold answer of 3.333 was 10/3 before someone rounded it; so 10/3, 3.3333 and 3.33333 are right, 3.33 and 3.334 are not.
    Simple is a fraction with a denominator up to the square root of 10^d for d decimals, d at least 2: any two of those
    differ by at least 10^-d, so at most one of them rounds to the gold answer and nothing is guessed. A fraction that a
    decimal can be equal to does not count: 0.459 is never 0.46. Nor does it work the other way: for a gold answer of
    10/3, 3.33 is wrong.
    """
    if gold.decimals is None or not 2 <= gold.decimals <= _MAX_ROUNDED:
        return False
    simple = gold.value.limit_denominator(math.isqrt(10**gold.decimals))
    ends: bool = 10 ** (2 * _MAX_ROUNDED) % simple.denominator == 0
    if ends or not _is_rounding(gold.value, gold.decimals, simple):
        return False
    if answer.value == simple:
        return True
    return (
        answer.decimals is not None
        and answer.decimals > gold.decimals
        and _is_rounding(answer.value, answer.decimals, simple)
    )


def _is_rounding(rounded: Fraction, decimals: int, value: Fraction) -> bool:
    return abs(rounded - value) <= Fraction(1, 2 * 10**decimals)

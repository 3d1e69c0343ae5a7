"""Compares an answer with the gold answer as text, plain numbers and units, without evaluating expressions.

In doubtful cases, answers are treated as different, because a false match is worse than a missed match.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 1000  # characters; longer answers are compared as plain text


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict and the rule that led to it. If `is_equal` is None, computer algebra must compare `gold` and `answer`."""

    is_equal: bool | None
    rule: str
    gold: str = ""
    answer: str = ""


def compare(gold: str, answer: str, unit: str = "") -> Comparison:
    """Compare an answer with the gold answer. `unit` applies if the text of the gold answer contains no unit."""
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return Comparison(gold.strip() == answer.strip(), "long text")
    gold, answer = normalise(gold), normalise(answer)
    if bool(_RELATION.search(gold)) != bool(_RELATION.search(answer)):
        gold, answer = _without_names(gold), _without_names(answer)
    (gold_value, gold_unit), (value, answer_unit) = _split_unit(gold), _split_unit(answer)
    if unit and not gold_unit.dimension:
        gold_unit = _split_unit(normalise(f"1 {unit}"))[1]
    gold_number, number = _parse_number(gold_value), _parse_number(value)
    if gold_number is not None and number is not None:
        return Comparison(_is_same_quantity(gold_number, gold_unit, number, answer_unit), "numbers")
    if gold_number is None and _is_words(gold):
        return Comparison(_fold_words(gold) == _fold_words(answer), "text")
    if gold_unit.dimension and answer_unit.dimension and gold_unit != answer_unit:
        return Comparison(False, "units")
    if _squeeze(gold_value) == _squeeze(value):
        return Comparison(True, "text")
    is_unbalanced = any(text.count("{") != text.count("}") for text in (gold_value, value))
    if not value or is_unbalanced or ("=" in gold_value) != ("=" in value):
        return Comparison(False, "no comparable expression")
    return Comparison(None, "math-verify", gold_value, value)


_CHARACTERS = str.maketrans(
    dict(zip("\u2212\u2013\u2018\u2019\u2032~\u00a0\u2009\u202f\t\r\n", "--'''       ", strict=True))
    | {"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u221a": "\\sqrt ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\0": ""}
    | {"\u00b0": "^{\\circ}", "\u00b2": "^{2}", "\u00b3": "^{3}", "\u00a2": " cents", "\u00b1": "\\pm ", "\u200b": ""}
)
_SPELLINGS = (
    (r"(?<=[0-9])(?:,\\!|\\[,!;: ]|\{,\})(?=[0-9]{3}(?![0-9]))", ","),  # 10{,}000
    (r"^( *-? *)\$(?= *[-.0-9][^$]*$)", r"\1\\$"),  # a single dollar sign is money
    (r"\\(?:left|right|displaystyle|boxed|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[()\[\]!]|\*\*|(?<!\\)\$", ""),  # math delimiters
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])", " "),
    (r"\\(?:text(?:bf|it|rm|normal)|math(?:rm|bf)|boldsymbol|mbox) *(?=\{)", r"\\text"),
    (r" ?\^ *(?:\{ *\\circ *\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^{\\circ}"),
    (r"\\(%|max|min)", r"\1"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac *([0-9a-zA-Z]|\\pi)", r"\\frac{\1}"),
    (r"(\\frac *\{[^{}]*\}) *([0-9a-zA-Z]|\\pi)", r"\1{\2}"),
    (r"([0-9]) ?(?:to|:|\\text\{ ?(?:to|:) ?\}) ?(?=[0-9])", r"\1:"),  # 5 to 6
    (r"^[ =*]+|[ .,;:*]+$", ""),
    (r" +", " "),
    (r"^(?:\\text)?\{([^{}]*[0-9][^{}]*)\}$", r"\1"),
    (r"^(-?) ?\\\$ ?(.+?)(?:(?: |\\text\{)+per [a-z ]+\}?)?$|^(.+?) ?\\\$$", r"\1\2\3 \\text{dollar}"),
    (r" ?\^\{\\circ\}$", r" \\text{degree}"),
    (r" ?%$", r" \\text{percent}"),
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ATOM = r"(?:\\text\{[^{}]*\}|\\?[A-Za-z]+)'*(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]))?"
_NAME = rf"(?:(?:\\angle )?{_ATOM}(?: {_ATOM}){{0,5}})?(?:\( ?{_ATOM}(?: ?, ?{_ATOM}){{0,5}} ?\))?"
_ARITHMETIC = r"(?:[-+*/^0-9.,(){} ]|\\(?:times|cdot|div|frac))+"
_NAMED = re.compile(rf"(^|[,;] ?|(?:and|or) ?\}}? ?)(?:{_NAME}|{_ARITHMETIC}) ?(?:=|\\(?:in|approx)(?![a-z])) ?")
_RELATION = re.compile(r"=|\\(?:in|approx)(?![a-z])")


def normalise(text: str) -> str:
    """Normalize an answer: remove math delimiters, and write `\\frac` for its variants and `\\text` for upright fonts."""
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _SPELLINGS:
        text = re.sub(pattern, replacement, text)
    return text


def _squeeze(text: str) -> str:
    """Remove insignificant spaces and braces from a normalized text. Use the result only to test equality."""
    text = re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", _TEXT.sub(r"\1", text))
    return re.sub(r"\{([0-9A-Za-z])\}", r"\1", text)


def _without_names(text: str) -> str:
    """Return `5` for `x = 5`, `2 + 3 = 5` and `5 \\approx 4.99`, and `1, -2` for `x = 1, x = -2`. Keep other equations."""
    text = re.sub(r"(?<=[0-9)}]) ?\\approx(?![a-z]).*", "", text)
    for _ in range(3):  # x = 12/3 = 8/2 = 4
        text = _NAMED.sub(r"\1", text)
    return text


def _is_words(text: str) -> bool:
    """Return whether a text consists of words. Up to three letters are treated as a product, except in `\\text`."""
    bare = _TEXT.sub(r"\1", text)
    word = r"[^\W\d_]" if bare != text else r"[^\W\d_]{4}|\b[A-Z][a-z]|^(?:yes|no)$|\d:\d\d"
    return bool(re.fullmatch(r"[\w .,'\"&:()-]+", bare) and re.search(word, bare))


def _fold_words(text: str) -> str:
    return re.sub(r"^(?:the|an?) |[^\w:]", "", _TEXT.sub(r"\1", text).casefold())


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's dimension ("" if unknown), and the unit's size relative to the base unit of the dimension."""

    dimension: str = ""
    size: Fraction = Fraction(1)


_MEASURES: Mapping[str, str] = {
    "length": "mm .001 millimeter .001 cm .01 centimeter .01 m 1 meter 1 km 1000 kilometer 1000 in .0254 inch .0254 "
    "inche .0254 ft .3048 foot .3048 feet .3048 yd .9144 yard .9144 mi 1609.344 mile 1609.344",
    "time": "s 1 sec 1 second 1 min 60 minute 60 h 3600 hr 3600 hour 3600 day 86400 week 604800",
    "mass": "mg .001 g 1 gram 1 kg 1000 kilogram 1000 oz 28.349523125 ounce 28.349523125 lb 453.59237 pound 453.59237",
    "volume": "ml .001 milliliter .001 l 1 liter 1",
    "money": "dollar 1 cent .01",
    "angle": "degree 1 radian 57.2957795",
    "percent": "percent .01 percentage .01",
}
_UNITS: Mapping[str, Unit] = {
    name: Unit(dimension, Fraction(size))
    for dimension, listed in _MEASURES.items()
    for name, size in re.findall(r"(\S+) (\S+)", listed)
}
_NOT_A_UNIT = re.compile(
    r"(?:squared|cubed|half|halves|thirds|(?:four|fif|six|seven|eigh|nin|ten|hundred)ths|and|or|not|if|to|for|when|plus|minus|over|"
    r"mod|is|are|remainder|more|less|theta|alpha|beta|sin|cos|tan|log|sqrt)\b"
)
_WORDS = r" *[A-Za-z][A-Za-z .'/-]*"
_UNIT = re.compile(
    rf"(?P<before>.+?)(?: ?\\text\{{\(?(?P<text>{_WORDS})\)?\}}|(?<=[0-9)}}])(?P<space> ?)(?P<bracket>\(?)(?P<bare>{_WORDS})\)?)"
    r"(?:\^\{?(?P<power>[23])\}?)?"
)
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])")
_FRACTION = re.compile(r" ?\\frac ?\{ ?(-?[0-9.]+) ?\}\{ ?([0-9.]+) ?\}")
_DECIMAL = r"[0-9]+\.?[0-9]*|\.[0-9]+"
_NUMBER = re.compile(rf"([-+]?) ?(?:([0-9]+) (?=.*/))?(-?(?:{_DECIMAL}))(?: ?([/:]) ?({_DECIMAL}))?")


def _split_unit(text: str) -> tuple[str, Unit]:
    """Split a text into value and unit. Letters next to a number, as in 2x or 5ab, are variables."""
    if not (found := _UNIT.fullmatch(text)):
        return text, Unit()
    words = re.sub("[. ]+", " ", found["text"] or found["bare"]).strip().lower()
    measure = _measure(words, found["power"])
    is_noun = found["text"] or (found["space"] and (found["bracket"] or re.search("[a-z]{3}", words)))
    is_unit = (is_noun or (measure.dimension and len(words) > 1)) and not _NOT_A_UNIT.match(words)
    return (found["before"], measure) if is_unit else (text, Unit())


def _measure(words: str, power: str | None) -> Unit:
    """Return the unit for words such as `sq inches` or `kilograms of sand`."""
    *before, name = words.partition(" of ")[0].split()
    exponent = int(power or {"square": 2, "sq": 2, "cubic": 3}.get(" ".join(before), 1))
    unit = _UNITS.get(name) or _UNITS.get(name.removesuffix("s"), Unit())
    if exponent == 1:
        return Unit() if before else unit
    return Unit(unit.dimension and f"{unit.dimension}^{exponent}", unit.size**exponent)


def _parse_number(text: str) -> Fraction | None:
    """Parse an integer, decimal, fraction, mixed number, or ratio in lowest terms."""
    text = _THOUSANDS.sub(lambda found: re.sub("[, ]", "", found[0]), text)
    if not (found := _NUMBER.fullmatch(_FRACTION.sub(r" \1/\2", text).strip())):
        return None
    sign, whole, top, mark, bottom = found.groups()
    if bottom and not Fraction(bottom):
        return None
    value = Fraction(top) / Fraction(bottom or 1)
    if mark == ":" and str(value.numerator) != top:  # a time of day: 5:45
        return None
    return (Fraction(whole or 0) + value) * (-1 if sign == "-" else 1)


def _is_same_quantity(gold: Fraction, gold_unit: Unit, answer: Fraction, answer_unit: Unit) -> bool:
    """Compare two quantities. Units are ignored if a unit is unknown or if one quantity has no unit.

    25% equals 1/4 and 25, but 0.5% does not equal 0.5.
    """
    are_equal = gold * gold_unit.size == answer * answer_unit.size
    dimensions = gold_unit.dimension, answer_unit.dimension
    if all(dimensions) or not any(dimensions):
        return are_equal and dimensions[0] == dimensions[1]
    is_percentage = "percent" in dimensions
    return (gold == answer and (abs(gold) > 1 or not is_percentage)) or (are_equal and is_percentage)

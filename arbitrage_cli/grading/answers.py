"""Whether an answer is the gold answer: our own comparison, by text, letters, numbers, ratios, names, words, parts and units.

What none of these rules decides (roots, symbols, matrices, inequalities) is asked of a function that the caller gives, a
pair of LaTeX expressions at a time. Pure functions on text; nothing is evaluated. Knows no model, no data set and no computer
algebra. Where a rule has to choose, a wrong "equal" is worse than a wrong "different".
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from arbitrage_cli.grading.latex_text import (
    brackets_open,
    closes_at_end,
    depth_of_brackets,
    flat,
    plain,
    split_outside_brackets,
    tidy,
)
from arbitrage_cli.grading.quantities import read_number, read_quantity, same_quantity, split_unit

MAX_LENGTH = 2000
"""Characters of an answer that is compared; a longer one can only be the same text."""

_MAX_ASKED = 500
_MAX_BRACKETS = 20
_MAX_DEPTH = 8  # of names, units and groups within each other
_MAX_PARTS = 50

Same = Callable[[str, str], bool]
"""Whether a gold expression (first) and an answer (second), both LaTeX, are the same. May raise: then nothing is decided."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether the answer is the gold answer, and by which rule, in words for a bracket: `3 is not 4 (numbers)`."""

    is_equal: bool
    rule: str


def compare(gold: str, answer: str, same: Same, unit: str = "") -> Judgement:
    """Judges an answer. `unit` is the gold answer's, where the data set gives it apart."""
    if gold.strip() == answer.strip():
        return Judgement(True, "the same text")
    for text, whose in ((answer, "answer"), (gold, "gold answer")):
        if len(text) > MAX_LENGTH:
            return Judgement(False, f"the {whose} has {len(text):,} characters, too many to compare")
    return _compare(_with_unit(tidy(gold), unit.strip()), tidy(answer), same, 0)


def _with_unit(gold: str, unit: str) -> str:
    quantity = read_quantity(gold)
    if not unit or quantity is None or quantity.unit.dimension:
        return gold
    together = tidy(f"{gold} {unit}" if unit[0] in "\\^$" else f"{gold} \\text{{{unit}}}")
    return together if read_quantity(together) else gold


def _compare(gold: str, answer: str, same: Same, depth: int) -> Judgement:
    if depth > _MAX_DEPTH:
        return Judgement(False, "nested too deep to compare")
    for rule in (_by_text, _by_letter, _by_number, _by_ratio):
        if judgement := rule(gold, answer):
            return judgement
    for deeper_rule in (_by_name, _by_words, _by_parts, _by_unit):
        if judgement := deeper_rule(gold, answer, same, depth + 1):
            return judgement
    return _ask(gold, answer, same)


# --- whole texts: each rule gives a judgement, or None where it does not apply

_LETTER = re.compile(r"\(?([A-Z])\)?[.:]?")
_ANY_LETTER = re.compile(_LETTER.pattern, re.IGNORECASE)
_RATIO = re.compile(r"([1-9][0-9]{0,99}) ?(?::|to|\\text\{(?:to|:)\}|\\colon) ?([1-9][0-9]{0,99})")
_ONLY_WORDS = re.compile(r"[A-Za-z\u00c0-\u024f0-9 .,'\"&:\-]+")
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{4,}|\b[A-Z][a-z]+\b|^(?:yes|no)$|[0-9]:[0-9]{2}")


def _by_text(gold: str, answer: str) -> Judgement | None:
    return Judgement(True, "the same text") if flat(gold) == flat(answer) else None


def _by_letter(gold: str, answer: str) -> Judgement | None:
    """Choices: E, (E), \\text{(E)}."""
    wanted, given = _LETTER.fullmatch(plain(gold)), _ANY_LETTER.fullmatch(plain(answer))
    if wanted is None or wanted[1] == gold:  # a bare letter may be a variable
        return Judgement(True, "letters") if wanted and given and wanted[1] == given[1] else None
    return Judgement(given is not None and wanted[1] == given[1].upper(), "letters")


def _by_number(gold: str, answer: str) -> Judgement | None:
    wanted, given = read_quantity(gold), read_quantity(answer)
    if wanted is None or given is None:
        return None
    has_units = bool(wanted.unit.dimension and given.unit.dimension)
    return Judgement(same_quantity(wanted, given), "numbers with units" if has_units else "numbers")


def _by_ratio(gold: str, answer: str) -> Judgement | None:
    """A ratio in lowest terms is also the fraction. One that is not is a time of day (5:45) and only equal to itself."""
    wanted, given = _RATIO.fullmatch(gold), _RATIO.fullmatch(answer)
    if not wanted:
        return None
    first, second = int(wanted[1]), int(wanted[2])
    if given:
        return Judgement((first, second) == (int(given[1]), int(given[2])), "ratios")
    number = read_number(answer)
    if number is None or math.gcd(first, second) > 1:
        return None
    return Judgement(number == Fraction(first, second), "ratios")


def _is_words(text: str) -> bool:
    """Whether a text is no mathematics. Short letters without \\text may be."""
    unwrapped = plain(text)
    is_text = unwrapped != text and re.search("[A-Za-z]{2}", unwrapped)
    return bool(_ONLY_WORDS.fullmatch(unwrapped) and (is_text or _WORD.search(unwrapped)))


def _words(text: str) -> str:
    """A text without capitals, punctuation and a first article."""
    words = re.sub(r"['\"]|(?<![0-9])[.,]|[.,](?![0-9])", "", plain(text).casefold())
    words = " ".join(re.sub(r"(?<=[^\W0-9])-(?=[^\W0-9])", " ", words).split())
    words = re.sub(r"(?<=[0-9]) (?=[ap]m\b)", "", words)
    return re.sub(r"^(?:the|an?) (?=.)", "", words)


def _by_words(gold: str, answer: str, same: Same, depth: int) -> Judgement | None:
    if _is_words(gold):
        return Judgement(_words(gold) == _words(answer), "words")
    return Judgement(False, "words") if _is_words(answer) and not re.search("[0-9]", answer) else None


# --- names: x = 5, f(x) = 2x, (a, b) = (1, 2), x \in [0, 1]

_GREEK = "alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|chi|psi|omega|ell"
_ATOM = (
    rf"(?:(?:[A-Za-z]{{4,}}|[A-Z][A-Za-z]+|[A-Za-z]|\\(?:{_GREEK}))(?![A-Za-z])|\\text\{{[A-Za-z ]+\}})"
    r"'*(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]))?"
)
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle)(?![a-zA-Z]) ?)?{_ATOM}(?: ?{_ATOM}){{0,5}}(?: ?\( ?{_ATOM}(?: ?, ?{_ATOM}){{0,5}} ?\))?"
    rf"|\( ?{_ATOM}(?: ?, ?{_ATOM}){{1,9}} ?\)"
)
_PRODUCT = re.compile(r"[a-z](?: [a-z])+")
_MAX_NAME = 60
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|.)")
_GIVES = re.compile(r"=|\\in(?![a-zA-Z])|\\approx(?![a-zA-Z])")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|equiv|sim)(?![a-zA-Z])")


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    value: str


def _named(text: str) -> _Named | None:
    """A value and what it is called. The name of a calculation (2 + 2 = 4, 10/3 \\approx 3.33) is ""."""
    first, *sides = (side.strip() for side in _GIVES.split(text))
    if not sides or (len(sides) > 1 and len(_split(text)) > 1):
        return None
    if _is_name(first):
        is_rounded = "\\approx" in text.partition("=")[2]
        return _Named(flat(first), sides[0] if is_rounded else sides[-1])
    if "\\approx" in text:
        return _Named("", first or sides[0])
    values = {quantity.value if (quantity := read_quantity(side)) else None for side in (first, *sides)}
    return _Named("", sides[-1]) if len(values) == 1 and None not in values else None


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and bool(_NAME.fullmatch(text)) and not _PRODUCT.fullmatch(text)


def _may_be_same_name(one: str, other: str) -> bool:
    """Equal, or not told, or one of them with a subscript that the other lacks: m and m_{max}."""
    if not one or not other or one == other:
        return True
    return ("_" in one) != ("_" in other) and _SUBSCRIPT.sub("", one) == _SUBSCRIPT.sub("", other)


def _by_name(gold: str, answer: str, same: Same, depth: int) -> Judgement | None:
    """A name is left away where the other side has none, or the same. Equations are left as they are."""
    wanted, given = _named(gold), _named(answer)
    if wanted and given:
        if _may_be_same_name(wanted.name, given.name):
            return _compare(wanted.value, given.value, same, depth)
        are_constant = read_quantity(wanted.value) is not None and read_quantity(given.value) is not None
        return Judgement(False, "names") if are_constant else None
    if given and not _RELATION.search(gold):
        return _compare(gold, given.value, same, depth)
    if wanted and not _RELATION.search(answer):
        return _compare(wanted.value, answer, same, depth)
    return None


# --- parts: lists, sets, points and intervals, unions

_SEPARATOR = re.compile(r" ?(?:[,;]|\\text\{(?:, ?)?(?:and|or)\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])) ?")
_UNION = re.compile(r" ?\\cup(?![a-zA-Z]) ?")
_IN_NUMBER = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_WIDE_SEPARATOR = re.compile(r", |;|\b(?:and|or)\b")
_HELD = "\0"  # stands for the comma of 1,234 while a list is split; no tidy text has it


@dataclass(frozen=True, slots=True)
class _Group:
    """Parts that belong together. Only of `ordered` ones are the brackets told, for a point is no interval."""

    kind: Literal["list", "set", "union", "ordered"]
    parts: Sequence[str]
    brackets: str = ""


def _read_group(text: str) -> _Group | None:
    if len(parts := split_outside_brackets(text, _UNION)) > 1:
        return _Group("union", parts)
    if len(parts := _split(text)) > 1 or "\\pm" in text:
        signed = [sign for part in parts for sign in _both_signs(part)]
        return _Group("list", signed) if len(signed) > 1 else None
    if text.startswith("\\{") and text.endswith("\\}") and closes_at_end(text):
        return _Group("set", [sign for part in _split(text[2:-2]) for sign in _both_signs(part)])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and closes_at_end(text) and len(parts := _split(text[1:-1])) > 1:
        return _Group("ordered", parts, text[0] + text[-1])
    return None


def _split(text: str) -> list[str]:
    """The parts of a list. Where others are wider, a comma as in 1,234 is part of a number."""
    held = _IN_NUMBER.sub(_HELD, text) if _WIDE_SEPARATOR.search(text) else text
    return [part.replace(_HELD, ",") for part in split_outside_brackets(held, _SEPARATOR)]


def _both_signs(text: str) -> list[str]:
    if text.count("\\pm") != 1 or "\\mp" in text:
        return [text]
    return [re.sub(r"\\pm ?", sign, text) for sign in "+-"]


def _by_parts(gold: str, answer: str, same: Same, depth: int) -> Judgement | None:
    wanted, given = _read_group(gold), _read_group(answer)
    if wanted and given:
        return _groups(wanted, given, same, depth)
    if wanted:
        return _group_and_one(wanted, gold, answer, lambda part: _compare(part, answer, same, depth), "1 answer, not {}")
    if given:
        return _group_and_one(given, answer, gold, lambda part: _compare(gold, part, same, depth), "{} answers, not 1")
    return None


def _group_and_one(
    group: _Group, whole: str, other: str, compare_part: Callable[[str], Judgement], rule: str
) -> Judgement | None:
    """{5} is 5; 1,234 may be one number; a list is no single answer; for others (a matrix, an inequality) this does not tell."""
    if group.kind == "set" and len(group.parts) == 1:
        return compare_part(group.parts[0])
    is_number = read_quantity(whole) is not None
    is_told = group.kind == "list" or read_quantity(other) is not None
    return Judgement(False, rule.format(len(group.parts))) if is_told and not is_number else None


def _groups(wanted: _Group, given: _Group, same: Same, depth: int) -> Judgement | None:
    if max(len(wanted.parts), len(given.parts)) > _MAX_PARTS:
        return Judgement(False, "too many parts to compare")
    kinds = {wanted.kind, given.kind}
    if kinds <= {"list", "set"}:
        names = {named.name for part in wanted.parts if (named := _named(part))}
        is_named = len(names) == len(wanted.parts) and not any(map(_named, given.parts))
        return (_in_order if is_named else _in_any_order)(wanted.parts, given.parts, same, depth)
    if wanted.brackets == given.brackets and kinds == {"ordered"}:
        return _in_order(wanted.parts, given.parts, same, depth)
    if kinds == {"list", "ordered"} and "()" in (wanted.brackets, given.brackets):
        return _in_order(wanted.parts, given.parts, same, depth)
    if kinds == {"union"} or (kinds == {"union", "list"} and all(map(_RELATION.search, given.parts))):
        judgement = _in_any_order(wanted.parts, given.parts, same, depth)
        return judgement if judgement.is_equal else None  # the same set may be cut in other places
    return Judgement(False, "other brackets")


def _in_order(wanted: Sequence[str], given: Sequence[str], same: Same, depth: int) -> Judgement:
    if len(wanted) != len(given):
        return Judgement(False, f"{len(given)} parts, not {len(wanted)}")
    for place, (gold, answer) in enumerate(zip(wanted, given, strict=True), 1):
        if not _compare(gold, answer, same, depth).is_equal:
            return Judgement(False, f"part {place}")
    return Judgement(True, f"all {len(wanted)} parts")


def _in_any_order(wanted: Sequence[str], given: Sequence[str], same: Same, depth: int) -> Judgement:
    if len(wanted) != len(given):
        return Judgement(False, f"{len(given)} parts, not {len(wanted)}")
    left = list(given)
    for gold in wanted:
        found = next((answer for answer in left if _compare(gold, answer, same, depth).is_equal), None)
        if found is None:
            return Judgement(False, f"no {gold}")
        left.remove(found)
    return Judgement(True, f"all {len(wanted)} parts, in any order")


# --- units of what is no plain number: 16\sqrt{3} \text{ cm}^2


def _by_unit(gold: str, answer: str, same: Same, depth: int) -> Judgement | None:
    wanted, given = split_unit(gold), split_unit(answer)
    is_bare = (wanted.text, given.text) == (gold, answer)
    if is_bare or wanted.is_percent != given.is_percent or wanted.scale != given.scale:
        return None
    if wanted.unit.dimension and given.unit.dimension and wanted.unit != given.unit:
        return Judgement(False, "units")
    return _compare(wanted.text, given.text, same, depth)


# --- the rest

_IN_BASE = re.compile(r"[0-9] ?_")


def _ask(gold: str, answer: str, same: Same) -> Judgement:
    if ("=" in gold) != ("=" in answer):
        return Judgement(False, "an equation and no equation")
    if _IN_BASE.search(gold) or _IN_BASE.search(answer):
        return Judgement(False, "numbers in a base")
    if not answer or any(brackets_open(text, "{", "}") for text in (gold, answer)):
        return Judgement(False, "no expression")
    if len(answer) > _MAX_ASKED or depth_of_brackets(answer) > _MAX_BRACKETS:
        return Judgement(False, "too long or too deep to compute with")
    return Judgement(same(gold, answer), "math-verify")

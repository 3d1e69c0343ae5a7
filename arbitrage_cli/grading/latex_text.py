"""Answers in one form: plain ASCII signs, one spelling of each LaTeX command, no mathematics delimiters, no trailing full stop.

Works on text alone, in time in proportion to its length. Knows nothing of what an answer means.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-")
    | dict.fromkeys("\u2018\u2019\u2032", "'")
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("~\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\t\r\n", " ")
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\0", "")
    | {"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div ", "\u00b1": "\\pm "}
    | {"\u221a": "\\sqrt ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u222a": "\\cup ", "\u2208": "\\in "}
    | {"\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2248": "\\approx "}
    | {"\u00b0": "^{\\circ}", "\u00b2": "^{2}", "\u00b3": "^{3}", "\uff05": "%"}
    | {"\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}"}
    | {"\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}"}
)
_SPELLINGS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(["dfrac", "tfrac", "cfrac"], "\\frac")
    | dict.fromkeys(["textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "mathrm", "mbox", "hbox"], "\\text")
    | {"leq": "\\le ", "leqslant": "\\le ", "geq": "\\ge ", "geqslant": "\\ge ", "neq": "\\ne ", "lt": "<", "gt": ">"}
    | {"lbrace": "\\{", "rbrace": "\\}", "quad": " ", "qquad": " "}
    | dict.fromkeys([size + side for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r")], "")
    | dict.fromkeys(
        [
            "left",
            "right",
            "displaystyle",
            "textstyle",
            "limits",
            "mathbf",
            "boldsymbol",
            "bm",
            "boxed",
            "fbox",
            "ensuremath",
        ],
        "",
    )
)
_SIGNS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys("()[]!", "") | dict.fromkeys(",;:> ", " ") | {"%": "%"}  # \( \) \[ \] \! and spaces
)
_COMMAND = re.compile(r"\\(?:([a-zA-Z]+) *|(.))")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,\\!|\\[,!;: ]|\{,\})(?=[0-9]{3}(?![0-9]))")
_DEGREES = re.compile(r"\^ *(?:\{ *\\circ *\}|\\circ(?![a-zA-Z]) *)|\\degree(?![a-zA-Z]) *")
_TEXT = re.compile(r"\\text *\{ *([^{}]{0,200})\}")
_TEXT_IN_TEXT = re.compile(r"\\text\{(\\text\{[^{}]{0,200}\})\}")
_NUMBER_IN_TEXT = re.compile(r"^\\text\{([^{}]*[0-9][^{}]*)\}$")
_NUMERATOR = re.compile(r"\\frac *([0-9a-zA-Z])")
_DENOMINATOR = re.compile(r"(\\frac *\{[^{}]{0,200}\}) *([0-9a-zA-Z])")
_BRACKET = re.compile(r"\\[{}]|[(\[{]|[)\]}]")

_MAX_WRAPPED = 4  # braces around a whole text that are taken off


def tidy(text: str) -> str:
    """The text in the form that `quantities` and `answers` read: `\\dfrac12\\,\\mathrm{ cm}.` is `\\frac{1}{2} \\text{cm}`."""
    text = _THOUSANDS.sub(",", text.translate(_CHARACTERS))
    text = _COMMAND.sub(_one_spelling, _without_dollars(text))
    text = text.replace("**", "").replace("`", "").replace(">=", "\\ge ").replace("<=", "\\le ").replace("!=", "\\ne ")
    text = _DEGREES.sub(r"^{\\circ}", text)
    text = _TEXT.sub(lambda found: f"\\text{{{found[1].strip()}}}", text)
    text = _TEXT_IN_TEXT.sub(r"\1", text)
    text = text.replace("\\text{}", "").replace("\\text{%}", "%").replace("{,}", ",")
    text = _DENOMINATOR.sub(r"\1{\2}", _NUMERATOR.sub(r"\\frac{\1}", text))
    text = " ".join(text.split()).strip(" *").rstrip(" .,;:*")
    for _ in range(_MAX_WRAPPED):
        if text.startswith("{") and closes_at_end(text):
            text = text[1:-1].strip()
    return _NUMBER_IN_TEXT.sub(r"\1", text)


def _one_spelling(found: re.Match[str]) -> str:
    name, sign = found.groups()
    return _SPELLINGS.get(name, found[0]) if name else _SIGNS.get(sign, found[0])


def _without_dollars(text: str) -> str:
    """Without the dollar signs that enclose mathematics. One that stands alone before a number is money: `\\$`."""
    if len(re.findall(r"(?<!\\)\$", text)) % 2 and (found := re.match(r"( *-? *)\$(?= *[-.0-9])", text)):
        text = found[1] + "\\$" + text[found.end() :]
    return re.sub(r"(?<!\\)\$", "", text)


def plain(text: str) -> str:
    """A tidy text without its \\text{}."""
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text)


def flat(text: str) -> str:
    """A tidy text without the spaces, braces and plus signs that change nothing; for comparing only."""
    text = re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", plain(text))
    return re.sub(r"\{([0-9A-Za-z])\}", r"\1", text).replace("+\\infty", "\\infty")


def split_outside_brackets(text: str, separator: re.Pattern[str]) -> list[str]:
    """What stands between separators that are in no bracket, without blanks. A separator may itself have balanced brackets."""
    parts, start, depth = [], 0, 0
    for mark in re.finditer(f"({separator.pattern})|{_BRACKET.pattern}", text):
        if mark[1] is None:
            depth += brackets_open(mark[0])
        elif depth == 0:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def closes_at_end(text: str) -> bool:
    """Whether the bracket that a text begins with is closed by its last character; any bracket closes any other: [0, 1)."""
    depth = 0
    for mark in _BRACKET.finditer(text):
        depth += brackets_open(mark[0])
        if depth == 0:
            return mark.end() == len(text)
    return False


def depth_of_brackets(text: str) -> int:
    """How many brackets of a text are within each other at most."""
    depth = deepest = 0
    for mark in _BRACKET.finditer(text):
        depth += brackets_open(mark[0])
        deepest = max(deepest, depth)
    return deepest


def brackets_open(text: str, opening: str = "([{", closing: str = ")]}") -> int:
    """How many more brackets a text opens than it closes."""
    return sum(map(text.count, opening)) - sum(map(text.count, closing))

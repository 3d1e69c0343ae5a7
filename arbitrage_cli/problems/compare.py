"""Compares an answer with the gold answer as text and as plain numbers. All other answers are left to
math-verify.

`normalise` corrects what math-verify misreads: thousands, mixed numbers, upright fonts, units in brackets, and names.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 1000  # characters; longer answers are compared as plain text


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two answers are equal, and the rule that decided it. If `is_equal` is None, computer algebra must compare `gold` and `answer`."""

    is_equal: bool | None
    rule: str
    gold: str = ""
    answer: str = ""


def compare(gold: str, answer: str) -> Comparison:
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return Comparison(gold.strip() == answer.strip(), "long text")
    gold, answer = normalise(gold), normalise(answer)
    if ("=" in gold) != ("=" in answer):
        gold, answer = (_NAME.sub("", text) for text in (gold, answer))
    if _NUMBER.fullmatch(gold) and _NUMBER.fullmatch(answer):
        return Comparison(Fraction(gold) == Fraction(answer), "numbers")
    if _is_words(gold):
        return Comparison(_fold(gold) == _fold(answer), "text")
    if _squeeze(gold) == _squeeze(answer):
        return Comparison(True, "text")
    return Comparison(None, "math-verify", gold, answer)


_CHARACTERS = str.maketrans(
    dict(zip("\u2212\u2013\u2018\u2019\u2032~\u00a0\u2009\u202f\t\r\n", "--'''       ", strict=True))
    | {"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u221a": "\\sqrt ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\0": ""}
    | {"\u00b0": "^{\\circ}", "\u00b2": "^{2}", "\u00b3": "^{3}", "\u00b1": "\\pm ", "\u200b": ""}
)
_WORDS = r"(?!(?:or|and|if|to|for|plus|minus|mod|[ap]\.? ?m)\b)[A-Za-z](?:[A-Za-z .'/-]*[A-Za-z.])?"
_UNIT = rf"(?:\\text\{{ ?{_WORDS} ?\}}(?:\^\{{?[23]\}}?)?|\({_WORDS}\)|(?<= )(?=[A-Za-z]{{3}}|[cmk]m$|kg$|ft$){_WORDS})"
_SPELLINGS = (
    (r"(?<=[0-9])(?:,\\!|\\[,!;: ]|\{,\})(?=[0-9]{3}(?![0-9]))", ","),  # 10{,}000
    (r"\\(?:left|right|displaystyle|boxed|[bB]igg?[lr]?)(?![a-zA-Z])", ""),
    (r"(?<!\\)\\[()\[\]!]|\*\*|\\?\$", ""),  # math delimiters and dollars
    (r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])", " "),
    (r"\\(?:text(?:bf|it|rm|normal)|math(?:rm|bf)|boldsymbol|mbox) *(?=\{)", r"\\text"),
    (r"\\(max|min)(?![a-z])", r"\1"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"([0-9]) ?(?:to|:|\\text\{ ?(?:to|:) ?\}) ?(?=[0-9]+$)", r"\1:"),  # 5 to 6
    (r"^[ =*]+|[ .,;:*]+$", ""),
    (r" +", " "),
    (r"^(?:\\text)?\{([^{}]*[0-9][^{}]*)\}$", r"\1"),
    (r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ)$", ""),
    (r" percent(?:age)?$", r"\\%"),
    (rf"(?<=[0-9)}}i]) ?{_UNIT}$", ""),  # 9 (apples), 5 \\text{cm}^2
    (r"(?<=[0-9]),(?=[0-9]{3}(?:,[0-9]{3})*$)", ""),
    (r"^(-?)([0-9]+) ([0-9]+)/([0-9]+)$", r"\1(\2+\\frac{\3}{\4})"),  # 3 1/2
)
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SYMBOL = r"(?:\\text\{[^{}]*\}|\\?[A-Za-z]+)(?:_(?:\{[^{}]*\}|\w))?(?:\([^()]*\))?"
_NAME = re.compile(rf"^(?:(?:{_SYMBOL}|(?:[-+*/^0-9.,(){{}} ]|\\(?:times|cdot|div|frac))+) ?= ?)+")


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


def _is_words(text: str) -> bool:
    """Return whether a text consists of words. Up to three letters are treated as a product, except in `\\text`."""
    bare = _TEXT.sub(r"\1", text)
    word = r"[^\W\d_]" if bare != text else r"[^\W\d_]{4}|\b[A-Z][a-z]|^(?:yes|no)$|\d:\d\d [ap]"
    is_quantity = re.match(r"-?[0-9.]+(?!\w|:)", text)
    return not is_quantity and bool(re.fullmatch(r"[\w .,'\"&:()-]+", bare) and re.search(word, bare))


def _fold(text: str) -> str:
    return re.sub(r"^(?:the|an?) |[^\w:]", "", _TEXT.sub(r"\1", text).casefold())

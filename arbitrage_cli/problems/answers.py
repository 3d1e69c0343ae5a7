"""Finds the final answer in a solution, parses gold answers, and compares answers as text and as plain numbers.

All other comparisons are left to math-verify. `normalise` corrects what math-verify misreads: thousands separators, mixed
numbers, upright fonts, units in brackets, and variable names.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from arbitrage_cli.types import Fields, frozen

_MARKS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed_answer(text: str) -> str | None:
    """Return the content of the last `\\boxed{...}` that is complete and not blank.

    If boxes are nested, the outer box is used.
    """
    boxes: list[tuple[int, int]] = []  # start and end of each complete box's content
    opened: list[int | None] = []  # per open brace, the start of its box's content; None for a brace without a box
    for mark in _MARKS.finditer(text):
        found = mark.group()
        if found.startswith("\\boxed"):
            opened.append(mark.end())
        elif found == "{":
            opened.append(None)
        elif found == "}" and opened:
            start = opened.pop()
            if start is not None:
                boxes.append((start, mark.start()))
    contents = (text[start:end].strip() for start, end in reversed(boxes))
    return next(filter(None, contents), None)


@frozen
class Extracted:
    """The final answer of a solution, and a description of the place where it was found or expected."""

    answer: str | None
    how: str


IN_BOX = "the last \\boxed{}"
LAST_NUMBER = "the last number"
_PHRASE = r"\bthe (?:final |correct )?answer(?: is\b| ?:)|\bfinal answer(?: is\b| ?:)|^[ *#]*answer ?:|^####"
_OPTION_PHRASE = r"\b(?:correct|right|best) (?:answer|option|choice|answer choice)(?: is\b| ?:)"
_BEFORE_ANSWER, _BEFORE_OPTION = (
    re.compile(f"(?:{phrase})[ *_:]*", re.IGNORECASE | re.MULTILINE) for phrase in (_PHRASE, f"{_PHRASE}|{_OPTION_PHRASE}")
)
# A sign, or the point of .5, does not follow a word or a number, as in 5-3, step.5 and 1.2.3.
_SIGN = r"(?:(?<![0-9A-Za-z)}\]])[-\u2212\u2013](?:(?<!\$.)\\?\$)?)?"
_POINT = r"(?<![0-9A-Za-z.)}\]])\."
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_SUPERSCRIPT = "[\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
_EXPONENT = rf"(?:\^\{{[-\u2212]?[0-9]+\}}|\^[-\u2212]?[0-9]+|{_SUPERSCRIPT})"
_TIMES = r" ?(?:\\times|\\cdot|[\u00d7\u00b7*x]) ?"
# An exponent belongs to the number before it, as in 10^3. Otherwise, as in cm^2, it is skipped.
_NUMBER = re.compile(
    rf"{_EXPONENT}|(?P<number>{_SIGN}(?:\\[dt]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}"
    rf"|(?:(?<![0-9A-Za-z.)}}\]])[0-9]+(?:\.[0-9]+)?|{_POINT}[0-9]+)[eE][-+\u2212]?[0-9]{{1,3}}(?![0-9A-Za-z])"
    rf"|(?:{_INTEGER}(?:\.[0-9]+)?|{_POINT}[0-9]+)(?:(?:{_TIMES}10)?{_EXPONENT}|(?:/[0-9]+)?(?:\\?%)?)))"
)
_ENCLOSED = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<!\b[ap]\.m)[.!?](?=\s|$)")
_MAX_SENTENCE = 1000  # characters
_MAX_SEARCHED = 50_000  # characters at the end of a text without a box


def final_answer(text: str) -> Extracted:
    """Return the last box that is not blank.

    Without a box, return the text after the last "the answer is", or the last number.
    """
    if (boxed := boxed_answer(text)) is not None:
        return Extracted(boxed, IN_BOX)
    text = text[-_MAX_SEARCHED:]
    if stated := next(_statements(text, _BEFORE_ANSWER), None):
        return stated
    if numbers := [found["number"] for found in _NUMBER.finditer(text) if found["number"]]:
        return Extracted(numbers[-1], LAST_NUMBER)
    return Extracted(None, 'no \\boxed{}, "the answer is" or number')


def stated_choices(text: str) -> Iterator[str]:
    """Yield the texts that follow phrases such as "the answer is" and "the correct option is", the last one first."""
    yield from (str(found.answer) for found in _statements(text[-_MAX_SEARCHED:], _BEFORE_OPTION))


def _statements(text: str, phrases: re.Pattern[str]) -> Iterator[Extracted]:
    for phrase in reversed(list(phrases.finditer(text))):
        if sentence := _sentence_at(text, phrase.end()):
            yield Extracted(sentence, f'after "{phrase[0].strip(" *_:").lower()}"')


def stated_answer(text: str) -> str | None:
    """Return the answer that a solution states in a box, after "the answer is", or as its whole text.

    The last number of another text, as in "see equation 2", is not stated.
    """
    final = final_answer(text)
    is_stated = final.how != LAST_NUMBER or final.answer == text.strip(" \n$*.")
    return final.answer if is_stated else None


def _sentence_at(text: str, start: int) -> str:
    rest = text[start : start + _MAX_SENTENCE].lstrip()
    if enclosed := _ENCLOSED.match(rest):
        return next(filter(None, enclosed.groups()), "").strip()
    line = rest.split("\n", 1)[0]
    end = _SENTENCE_END.search(line)
    return line[: end.start() if end else None].strip(" *_`")


def gold_answer(gold: Fields) -> str | None:
    """Parse `Item.gold`. The answer may be text, a number, a list, or a worked solution of GSM8K that ends in `#### 18`.

    If several answers are required, they are separated by commas.
    """
    return ", ".join(_gold_texts(gold.get("answer"))) or None


def _gold_texts(value: object) -> list[str]:
    if isinstance(value, str):
        text = value.rpartition("####")[2].strip()  # drops GSM8K's worked solution
        return [text] if text else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [format(Decimal(repr(value)), "f").removesuffix(".0")]  # without an exponent
    if isinstance(value, list):
        return [text for part in value for text in _gold_texts(part)]
    return []


def shown(text: str, width: int = 60) -> str:
    """Return the text as one line of at most `width` characters, with unprintable characters escaped."""
    start = " ".join(text[: 4 * width].split())
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in start)
    return safe if len(safe) <= width and len(text) <= 4 * width else f"{safe[:width]}…"


# --- comparing

MAX_LENGTH = 1000  # characters; longer answers are compared as plain text


@frozen
class Comparison:
    """Whether two answers are equal, and the rule that decided it.

    If `is_equal` is None, computer algebra must compare `gold` and `answer`.
    """

    is_equal: bool | None
    rule: str
    gold: str = ""
    answer: str = ""


def compare(gold: str, answer: str) -> Comparison:
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return Comparison(gold.strip() == answer.strip(), "long text")
    gold, answer = _apart(gold, answer)
    if ("=" in gold) != ("=" in answer):
        gold, answer = (_NAME.sub("", text) for text in (gold, answer))
    if _PLAIN_NUMBER.fullmatch(gold) and _PLAIN_NUMBER.fullmatch(answer):
        return Comparison(Fraction(gold) == Fraction(answer), "numbers")
    if _is_words(gold):
        return Comparison(_fold(gold) == _fold(answer), "text")
    if _squeeze(gold) == _squeeze(answer):
        return Comparison(True, "text")
    return Comparison(None, "math-verify", gold, answer)


def _apart(gold: str, answer: str) -> tuple[str, str]:
    """Normalize both answers. A list of as many numbers as the gold answer has, such as `100,200`, stays a list."""
    wanted = _numbers(gold, ", ")
    for found in (_numbers(answer, ", "), _numbers(answer, ",")):
        if len(found) == len(wanted) > 1:
            return ", ".join(wanted), ", ".join(found)
    return normalise(gold), normalise(answer)


def _numbers(text: str, separator: str) -> list[str]:
    """Return the plain numbers of a list, or an empty list if the text contains anything else."""
    parts = [normalise(part) for part in text.split(separator)]
    return parts if all(_PLAIN_NUMBER.fullmatch(part) for part in parts) else []


_CHARACTERS = str.maketrans(
    dict(zip("\u2212\u2013\u2018\u2019\u2032~\u00a0\u2009\u202f\t\r\n", "--'''       ", strict=True))
    | {"\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u221a": "\\sqrt ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\0": ""}
    | {"\u00b0": "^{\\circ}", "\u00b1": "\\pm ", "\u200b": ""}
)
_DIGITS = str.maketrans("\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "-0123456789")
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
    (r"\^(-[0-9]+|[0-9]{2,})", r"^{\1}"),  # 10^-3 and 10^12, of which LaTeX raises only one character
    (r"(?<=[0-9]) ?[*x] ?(?=10\^)", r"\\times "),  # 1.5 x 10^3
    (r"^(?:\\text)?\{([^{}]*[0-9][^{}]*)\}$", r"\1"),
    (r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ)$", ""),
    (r" percent(?:age)?$", r"\\%"),
    (rf"(?<=[0-9)}}i]) ?{_UNIT}$", ""),  # 9 (apples), 5 \\text{cm}^2
    (r"(?<=[0-9]),(?=[0-9]{3}(?:,[0-9]{3})*$)", ""),
    (r"^(-?)([0-9]+) ([0-9]+)/([0-9]+)$", r"\1(\2+\\frac{\3}{\4})"),  # 3 1/2
)
_PLAIN_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SYMBOL = r"(?:\\text\{[^{}]*\}|\\?[A-Za-z]+)(?:_(?:\{[^{}]*\}|\w))?(?:\([^()]*\))?"
_NAME = re.compile(rf"^(?:(?:{_SYMBOL}|(?:[-+*/^0-9.,(){{}} ]|\\(?:times|cdot|div|frac))+) ?= ?)+")


def normalise(text: str) -> str:
    """Normalize an answer: remove math delimiters, and write `\\frac` for its variants and `\\text` for upright fonts."""
    text = re.sub(_SUPERSCRIPT, lambda found: f"^{{{found[0].translate(_DIGITS)}}}", text).translate(_CHARACTERS)
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

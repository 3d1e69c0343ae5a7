"""Finds the final answer in a solution, and parses gold answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Extracted:
    """The final answer of a solution, and a description of the place where it was found or expected."""

    answer: str | None
    how: str


IN_BOX = "the last \\boxed{}"
_PHRASE = re.compile(
    r"(?:\bthe (?:final |correct )?answer(?: is\b| ?:)|\bfinal answer(?: is\b| ?:)|^[ *#]*answer ?:|^####)[ *_:]*",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)}\]])-)?"
    r"(?:\\[dt]?frac\{-?[0-9]+\}\{[0-9]+\}|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?(?:\\?%)?)"
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
    for phrase in reversed(list(_PHRASE.finditer(text))):
        if sentence := _sentence_at(text, phrase.end()):
            return Extracted(sentence, f'after "{phrase[0].strip(" *_:").lower()}"')
    if numbers := _NUMBER.findall(text):
        return Extracted(numbers[-1], "the last number")
    return Extracted(None, 'no \\boxed{}, "the answer is" or number')


def _sentence_at(text: str, start: int) -> str:
    rest = text[start : start + _MAX_SENTENCE].lstrip()
    if enclosed := _ENCLOSED.match(rest):
        return next(filter(None, enclosed.groups()), "").strip()
    line = rest.split("\n", 1)[0]
    end = _SENTENCE_END.search(line)
    return line[: end.start() if end else None].strip(" *_`")


def gold_answer(gold: Mapping[str, Any]) -> str | None:
    """Parse `Item.gold`. The answer may be text, a number, a list, or a worked solution of GSM8K that ends in `#### 18`.

    If several answers are required, they are separated by commas.
    """
    return ", ".join(_gold_texts(gold.get("answer"))) or None


def _gold_texts(value: object) -> list[str]:
    if isinstance(value, str):
        text = value.rpartition("####")[2].strip()  # drops GSM8K's worked solution
        return [text] if text else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [repr(value).removesuffix(".0")]
    if isinstance(value, list):
        return [text for part in value for text in _gold_texts(part)]
    return []


def shown(text: str, width: int = 60) -> str:
    """Return the text as one line of at most `width` characters, with unprintable characters escaped."""
    start = " ".join(text[: 4 * width].split())
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in start)
    return safe if len(safe) <= width and len(text) <= 4 * width else f"{safe[:width]}…"

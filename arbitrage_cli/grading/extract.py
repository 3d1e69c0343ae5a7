"""Finds what is graded: the final answer in a solution, and the gold answer in a row of a data set.

Reads only the model's own text: a box in the problem does not count. `compare` and `grader` decide whether two answers are the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MARKS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxed_answer(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` that is not blank, braces balanced; None without one.

    Of nested boxes the outer one counts. One pass over any text.
    """
    boxes: list[tuple[int, int]] = []  # start and end of the content of each complete box
    opened: list[int | None] = []  # for each open brace the start of its box's content; None if it opens no box
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
    """The final answer of a solution and, in words, where it was found; without an answer, what was looked for."""

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
_LONGEST_SAID = 1000  # characters
_END_CHARACTERS = 50_000  # at the end of a text without a box; only these are searched


def final_answer(text: str) -> Extracted:
    """The last box that is not blank; else what follows the last "the answer is"; else the last number."""
    if (boxed := boxed_answer(text)) is not None:
        return Extracted(boxed, IN_BOX)
    text = text[-_END_CHARACTERS:]
    for phrase in reversed(list(_PHRASE.finditer(text))):
        if said := _said_after(text, phrase.end()):
            return Extracted(said, f'what follows "{phrase[0].strip(" *_:").lower()}"')
    if numbers := _NUMBER.findall(text):
        return Extracted(numbers[-1], "the last number")
    return Extracted(None, 'no \\boxed{}, no "the answer is", no number')


def _said_after(text: str, start: int) -> str:
    """The formula or the sentence that begins at `start`, without its full stop."""
    rest = text[start : start + _LONGEST_SAID].lstrip()
    if enclosed := _ENCLOSED.match(rest):
        return next(filter(None, enclosed.groups()), "").strip()
    line = rest.split("\n", 1)[0]
    end = _SENTENCE_END.search(line)
    return line[: end.start() if end else None].strip(" *_`")


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold answer of a problem: its text (None if the data have none) and its unit, if the data give it separately.

    Commas separate several answers in the text; an answer must then give all of them.
    """

    answer: str | None
    unit: str = ""


def gold_answer(row: Mapping[str, Any]) -> Gold:
    """The gold answer of a row, under `final_answer` or `answer`.

    It is text, a number, or a list of those: MATH's LaTeX, OlympiadBench's lists in dollar signs, GSM8K's `#### 18`.
    """
    texts = next(filter(None, (_gold_texts(row.get(name)) for name in ("final_answer", "answer"))), [])
    unit = row.get("unit")
    return Gold(", ".join(texts) or None, unit.strip() if isinstance(unit, str) else "")


def _gold_texts(value: object) -> list[str]:
    if isinstance(value, str):
        text = value.rpartition("####")[2].strip()  # GSM8K's worked solution comes before it
        return [text] if text else []
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [repr(value).removesuffix(".0")]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _gold_texts(part)]
    return []


def shown(text: str, width: int = 60) -> str:
    """A text as part of one line of at most `width` characters: no control characters, nothing that cannot be written."""
    start = " ".join(text[: 4 * width].split())
    safe = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in start)
    return safe if len(safe) <= width and len(text) <= 4 * width else f"{safe[:width]}…"

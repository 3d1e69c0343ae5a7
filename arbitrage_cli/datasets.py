"""Problems from text: one a line, or one JSON object a line.

Reads bytes lazily, so that a pipe is answered while it is still being written, and gives a bad line back as a `BadLine`
instead of failing, so that the others can go on. Knows no model and no file names.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from arbitrage_cli.types import Problem

MAX_LINE_BYTES = 1 << 20
_BEGINS_OBJECT = re.compile(r'\{\s*["}]')  # a set, as in {1, 2, 3}, does not


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a problem, and why. Lines count from 1."""

    number: int
    reason: str


class _UnusableError(ValueError):
    """Why a line is not a problem."""


def read_problems(stream: BinaryIO) -> Iterator[Problem | BadLine]:
    """The problems of a stream of UTF-8 text. JSONL if the first line that is not blank begins a JSON object, else plain text.

    A JSON object has its question under `problem` or `question`, and may have an `id` or `unique_id`; a problem without
    one is called after its line's number. Blank lines are skipped.
    """
    is_jsonl: bool | None = None
    for number, line in _lines(stream):
        try:
            text = _decode(line, number)
            if not text:
                continue
            if is_jsonl is None:
                if _is_json_list(text):
                    yield BadLine(number, "this looks like a JSON list; give one JSON object a line instead")
                    return
                is_jsonl = _BEGINS_OBJECT.match(text) is not None
            yield _from_json(text, number) if is_jsonl else make_problem(text, str(number))
        except _UnusableError as error:
            yield BadLine(number, str(error))


def make_problem(question: str, identifier: str) -> Problem:
    """A problem from a user's text. ValueError, with the reason, if it cannot be one."""
    question = question.strip()
    if not question:
        raise _UnusableError("the problem is empty")
    if "\0" in question:
        raise _UnusableError("the problem contains a NUL character")
    if len(question) > MAX_LINE_BYTES:
        raise _UnusableError(f"the problem is longer than {MAX_LINE_BYTES:,} characters")
    return Problem(identifier, question.encode("utf-8", errors="replace").decode())  # no lone surrogates


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, split at line feeds only. Of a line that is too long only so much is kept that this shows."""
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES + 2)
        if not line:
            return
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES + 2)
        yield number, line


def _decode(line: bytes, number: int) -> str:
    if len(line) > MAX_LINE_BYTES + 1:
        raise _UnusableError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise _UnusableError(f"not UTF-8 text (byte {error.start + 1} of the line)") from error


def _is_json_list(first_line: str) -> bool:
    return first_line[0] == "[" and first_line[1:].lstrip()[:1] in ("{", '"', "")


def _from_json(text: str, number: int) -> Problem:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep, or a number too long"
        raise _UnusableError(f"not valid JSON ({reason})") from error
    if not isinstance(row, dict):
        raise _UnusableError("not a JSON object")
    question = next((row[key] for key in ("problem", "question") if isinstance(row.get(key), str)), None)
    if question is None:
        raise _UnusableError('no text under "problem" or "question"')
    names = (row.get(key) for key in ("id", "unique_id"))
    identifiers = (
        name for name in names if type(name) is int or (isinstance(name, str) and name.strip())
    )  # true is no name
    return make_problem(question, str(next(identifiers, number)))

"""Reads problems from lines of text or JSON.

Lines are read lazily, so that each problem in a pipe is yielded before the next is written.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.thinking import without_thoughts
from arbitrage_cli.types import Message, Problem

T = TypeVar("T")

MAX_LINE_BYTES = 1 << 20

PROBLEM_FIELDS: Mapping[str, Sequence[str]] = {"question": ("problem", "question"), "id": ("id", "unique_id")}
"""The accepted field names, in order of precedence."""

_BEGINS_OBJECT = re.compile(r'\{\s*["}]')  # not a set such as {1, 2, 3}


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a valid problem. Lines are counted from 1."""

    number: int
    reason: str


class LineReader(Protocol):
    """An object that yields lines of bytes, such as a binary file."""

    def readline(self, limit: int, /) -> bytes: ...


class UnusableError(ValueError):
    """Raised if a line or row is not a valid problem."""


def read_problems(
    stream: LineReader,
    on_gap: Callable[[], None] = lambda: None,
    mapping: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Problem | BadLine]:
    """Yield a problem for each non-blank line of UTF-8 text.

    The input is treated as JSONL if its first non-blank line begins like a JSON object, or if `mapping` overrides the names in
    PROBLEM_FIELDS. The default id is the line number. `on_gap` is called if there are blank lines between lines of plain text.
    """
    is_json = True if mapping else None

    def parse(number: int, text: str, follows_gap: bool) -> Problem:
        nonlocal is_json
        if is_json is None:
            is_json = _BEGINS_OBJECT.match(text) is not None
            if not {cell.strip() for cell in text.split(",")}.isdisjoint(PROBLEM_FIELDS["question"]):
                raise UsageError("the input looks like a CSV table", "save it as FILE.csv, and use --input FILE.csv")
        if not is_json:
            if follows_gap:
                on_gap()
            return make_problem(text, str(number))
        return problem_in(_json_object(text), number, mapping)

    return _parsed(stream, parse)


def problem_in(row: Mapping[str, Any], number: int, mapping: Mapping[str, str]) -> Problem:
    """Return the problem in a row. `mapping` overrides the names in PROBLEM_FIELDS. The default id is the row's number."""
    require(row, mapping.values())
    question_names, id_names = (names_of_field(name, mapping, PROBLEM_FIELDS) for name in ("question", "id"))
    question = next((row[name] for name in question_names if isinstance(row.get(name), str)), None)
    if question is None:
        raise UnusableError(f"no text in {' or '.join(map(repr, question_names))}; found {names_of(row)}")
    return make_problem(question, find_id(row, id_names, number))


def names_of_field(field: str, mapping: Mapping[str, str], accepted: Mapping[str, Sequence[str]]) -> Sequence[str]:
    return (mapping[field],) if field in mapping else accepted[field]


def read_json_rows(stream: LineReader) -> Iterator[tuple[int, Mapping[str, Any]] | BadLine]:
    return _parsed(stream, lambda number, text, follows_gap: (number, _json_object(text)))


def make_problem(question: object, identifier: str) -> Problem:
    if not isinstance(question, str):
        raise UnusableError(f"expected a string, found {question!r:.60}")
    question = question.strip()
    if not question:
        raise UnusableError("the problem is empty")
    if "\0" in question:
        raise UnusableError("the problem contains a NUL character")
    if len(question) > MAX_LINE_BYTES:
        raise UnusableError(f"the problem is longer than {MAX_LINE_BYTES:,} characters")
    return Problem(identifier, encodable(question))


def make_conversation(messages: Sequence[tuple[str, str]], identifier: str) -> Problem:
    """Create a problem from (role, text) messages. Raises UnusableError unless the last message is the user's question."""
    system = [text for role, text in messages if role in ("system", "developer")]
    rest = messages[len(system) :]
    if any(role in ("system", "developer") for role, _ in rest):
        raise UnusableError("system messages must come before all others")
    *turns, last = _joined(rest) or [Message("assistant", "")]
    if last.role != "user":
        raise UnusableError('the last message must have the role "user"')
    question = make_problem(last.text, identifier).question
    return Problem(identifier, question, tuple(turns), "\n\n".join(system) if system else None)


def _joined(messages: Sequence[tuple[str, str]]) -> list[Message]:
    """Join consecutive messages of the same role, as most chat templates require, and remove thinking from answers."""
    joined: list[Message] = []
    for sender, text in messages:
        role: Literal["user", "assistant"] = "assistant" if sender == "assistant" else "user"
        before = f"{joined.pop().text}\n\n" if joined and joined[-1].role == role else ""
        joined.append(Message(role, before + (without_thoughts(text) if role == "assistant" else text)))
    return joined


def require(row: Mapping[str, Any], names: Iterable[str]) -> None:
    if absent := [name for name in names if name not in row]:
        raise UnusableError(f"no field '{encodable(absent[0]):.60}'; found {names_of(row)}")


def names_of(row: Mapping[str, Any]) -> str:
    return f"{encodable(', '.join(row)) or 'no fields':.60}"


def find_id(row: Mapping[str, Any], names: Sequence[str], number: int) -> str:
    values = (row.get(name) for name in names)
    usable = (value for value in values if type(value) is int or (isinstance(value, str) and value.strip()))
    return encodable(str(next(usable, number)))


def encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()


def _parsed(stream: LineReader, parse: Callable[[int, str, bool], T]) -> Iterator[T | BadLine]:
    """For each non-blank line, call `parse` with the line's number, its text, and whether blank lines precede it."""
    last = 0
    for number, line in enumerate(_cut_lines(stream), start=1):
        before = last
        try:
            text = _decode(line, number)
            if not text:
                continue
            last = number
            if not before and _is_json_list(text):
                yield BadLine(number, "found a JSON list; write one JSON object per line")
                return
            yield parse(number, text, 0 < before < number - 1)
        except UnusableError as error:
            last = number
            yield BadLine(number, str(error))


def _cut_lines(stream: LineReader) -> Iterator[bytes]:
    """Yield lines, split only at line feeds. A line over the limit is truncated to a length just above the limit."""
    while line := stream.readline(MAX_LINE_BYTES + 2):
        rest = line
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES + 2)
        yield line


def _decode(line: bytes, number: int) -> str:
    if len(line) > MAX_LINE_BYTES + 1:
        raise UnusableError(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UnusableError(f"not UTF-8 text (byte {error.start + 1} of the line)") from error


def _is_json_list(first_line: str) -> bool:
    return first_line[:1] == "[" and first_line[1:].lstrip()[:1] in ("{", '"', "")


def _json_object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply, or contains a number that is too long")
        raise UnusableError(f"not valid JSON ({reason})") from error
    if not isinstance(row, dict):
        raise UnusableError("not a JSON object")
    return row

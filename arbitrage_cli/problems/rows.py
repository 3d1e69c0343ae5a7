"""Reads problems from lines of text or JSON, and converts rows to a data set: problems with their correct answers.

Lines are read lazily, so that each problem in a pipe is yielded before the next is written. A single invalid row makes a data
set invalid.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.thinking import without_thoughts
from arbitrage_cli.types import Fields, Json, Message, Problem, frozen

T = TypeVar("T")
InputRow = Fields

FIELDS: Mapping[str, Sequence[str]] = {
    "question": ("problem", "question"),
    "id": ("id", "unique_id"),
    "answer": ("answer", "final_answer"),
    "level": ("level",),
}
"""The accepted field names, in order of precedence; the first field with a usable value is used."""
NO_MAPPING: Mapping[str, str] = {}

FORMAT = 'use CSV, parquet, or JSONL with an object such as {"question": "2 + 3?", "answer": "5"} on each line'
MAX_LINE_BYTES = 1 << 20
MAX_DATASET_ROWS = 1 << 18  # more than any data set of problems; a small parquet file may declare millions
MAX_QUOTED = 60  # characters of a file's text in a message

_BEGINS_OBJECT = re.compile(r'\{\s*["}]')  # not a set such as {1, 2, 3}


@frozen
class BadLine:
    """A line that is not a valid problem. Lines are counted from 1."""

    number: int
    reason: str


Oddity = Literal["gap", "answers"]
"""Lines that may not be what the user meant: blank lines, and answers that are not used."""


class LineReader(Protocol):
    """An object that yields lines of bytes, such as a binary file."""

    def readline(self, limit: int, /) -> bytes: ...


class UnusableError(ValueError):
    """Raised if a line or row is not a valid problem."""


@frozen
class Form:
    """A row format used by a task's data sets. The format matches rows that contain all `fields`.

    `read` returns a row's question and gold answer. `id` names the field that contains the problem's id.
    """

    task: str
    fields: frozenset[str]
    read: Callable[[InputRow], tuple[str, Json]]
    id: str = "id"


@frozen
class Item:
    """A problem and its gold answer. The gold answer is empty if the correct answer is unknown.

    By default, the gold answer contains `answer` (a string, a number, or a list of these).
    """

    problem: Problem
    gold: InputRow
    level: str | int | None = None


@frozen
class Dataset:
    """Problems in order. `task` comes from the `Form` of the rows. `revision` is the commit on the Hub."""

    name: str
    items: tuple[Item, ...]
    revision: str | None
    sha256: str
    task: str | None = None

    def sha256_of_first(self, count: int) -> str:
        return _sha256(self.items[:count])


# --- problems


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
    return Problem(identifier, _encodable(question))


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


# --- lines


def read_problems(
    stream: LineReader,
    note: Callable[[Oddity], None] = lambda oddity: None,
    mapping: Mapping[str, str] = NO_MAPPING,
    *,
    is_named_jsonl: bool = False,
) -> Iterator[Problem | BadLine]:
    """Yield a problem for each non-blank line of UTF-8 text.

    The input is treated as JSONL if its name says so, if its first non-blank line begins like a JSON object, or if `mapping`
    overrides the names in FIELDS. The default id is the line number. `note` is called for blank lines between lines of plain
    text, and for JSON objects with an answer.
    """
    is_json = True if mapping or is_named_jsonl else None

    def parse(number: int, text: str, follows_gap: bool) -> Problem:
        nonlocal is_json
        if is_json is None:
            is_json = _BEGINS_OBJECT.match(text) is not None
            if not {cell.strip() for cell in text.split(",")}.isdisjoint(FIELDS["question"]):
                raise UsageError("the input looks like a CSV table", "save it as FILE.csv, and use --input FILE.csv")
        if is_json:
            row = _json_object(text)
            if not set(FIELDS["answer"]).isdisjoint(row):
                note("answers")
            return _problem_in(row, number, mapping)
        if follows_gap:
            note("gap")
        return make_problem(text, str(number))

    return _parsed(stream, parse)


def read_json_rows(stream: LineReader) -> Iterator[tuple[int, InputRow] | BadLine]:
    return _parsed(stream, lambda number, text, follows_gap: (number, _json_object(text)))


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
            if not before and text[:1] == "[" and text[1:].lstrip()[:1] in ("{", '"', ""):
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


def _json_object(text: str) -> Json:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply, or contains a number that is too long")
        raise UnusableError(f"not valid JSON ({reason})") from error
    if not isinstance(row, dict):
        raise UnusableError("not a JSON object")
    return row


# --- data sets


def parse_mapping(text: str) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for part in text.split(","):
        field, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or field not in FIELDS or field in mapping:
            hint = f"use, for example, question=prompt,answer=gold; fields: {', '.join(FIELDS)}"
            raise UsageError(f"invalid mapping '{_short(text)}'", hint, option="mapping")
        mapping[field] = name
    return mapping


def make_dataset(
    name: str,
    rows: Iterable[tuple[int, InputRow] | BadLine],
    *,
    mapping: Mapping[str, str] = NO_MAPPING,
    revision: str | None = None,
    unit: Literal["line", "row"] = "line",
    needs_answers: bool = True,
    forms: Sequence[Form] = (),
) -> Dataset:
    """Convert numbered rows to a data set.

    `mapping` overrides the names in FIELDS. Without a mapping, all rows are read with the first form in `forms` that matches
    the first row. Raises UsageError for the first invalid row, such as one that lacks its question or a required answer or
    repeats an id, and if there are no rows or more than MAX_DATASET_ROWS.
    """
    items: dict[str, tuple[int, Item]] = {}
    form: Form | None = None
    for line in rows:
        if isinstance(line, BadLine):
            raise UsageError(f"{name}: {unit} {line.number}: {line.reason}", FORMAT)
        number, row = line
        if len(items) == MAX_DATASET_ROWS:
            raise UsageError(f"{name}: more than {MAX_DATASET_ROWS:,} problems", "split the file")
        if not items and not mapping:
            form = next((form for form in forms if form.fields <= row.keys()), None)
        try:
            item = _formed(row, number, form) if form else _item(row, number, mapping, needs_answers=needs_answers)
            first, _ = items.setdefault(item.problem.id, (number, item))
            if first != number:
                raise UnusableError(f"duplicate id '{_short(item.problem.id)}', already used in {unit} {first}")
        except UnusableError as error:
            hint = "correct the file, or name the fields with --map question=NAME,answer=NAME"
            if needs_answers:
                hint += "; without known answers, see `arbitrage guide benchmarks`"
            raise UsageError(f"{name}: {unit} {number}: {error}", hint) from error
    if not items:
        raise UsageError(f"{name}: no problems in the file", FORMAT)
    found = tuple(item for _, item in items.values())
    return Dataset(name, found, revision, _sha256(found), form.task if form else None)


def check_texts(row: InputRow, *names: str) -> None:
    for name in names:
        if not isinstance(row[name], str):
            raise UnusableError(f"{name}: expected a string")


def _formed(row: InputRow, number: int, form: Form) -> Item:
    _require(row, sorted(form.fields))
    question, gold = form.read(row)
    return Item(_numbered(question, row, number, {"id": form.id}), gold)


def _item(row: InputRow, number: int, mapping: Mapping[str, str], *, needs_answers: bool) -> Item:
    problem = _problem_in(row, number, mapping)
    answer, level = (_first(row, field, mapping, _has_value) for field in ("answer", "level"))
    if answer is None and needs_answers:
        raise UnusableError(f"no answer in {_either('answer', mapping)}; found {_names_of(row)}")
    if not (level is None or type(level) is int or isinstance(level, str)):
        raise UnusableError("the level is neither a string nor an integer")
    gold = {} if answer is None else {"answer": _answer(answer)}
    return Item(problem, gold, _encodable(level) if isinstance(level, str) else level)


def _problem_in(row: InputRow, number: int, mapping: Mapping[str, str]) -> Problem:
    _require(row, mapping.values())
    question = _first(row, "question", mapping, lambda value: isinstance(value, str))
    if question is None:
        raise UnusableError(f"no text in {_either('question', mapping)}; found {_names_of(row)}")
    return _numbered(question, row, number, mapping)


def _numbered(question: str, row: InputRow, number: int, mapping: Mapping[str, str]) -> Problem:
    """Return a problem with the row's id, or else with its number."""
    identifier = _first(row, "id", mapping, _is_id)
    return make_problem(question, _encodable(str(number if identifier is None else identifier)))


def _names(field: str, mapping: Mapping[str, str]) -> Sequence[str]:
    return (mapping[field],) if field in mapping else FIELDS[field]


def _first(row: InputRow, field: str, mapping: Mapping[str, str], is_usable: Callable[[Any], bool]) -> Any:
    """Return the field's first usable value, or None."""
    return next(filter(is_usable, map(row.get, _names(field, mapping))), None)


def _either(field: str, mapping: Mapping[str, str]) -> str:
    return " or ".join(f"'{_short(name)}'" for name in _names(field, mapping))


def _require(row: InputRow, names: Iterable[str]) -> None:
    if absent := [name for name in names if name not in row]:
        raise UnusableError(f"no field '{_short(_encodable(absent[0]))}'; found {_names_of(row)}")


def _names_of(row: InputRow) -> str:
    return _short(_encodable(", ".join(row)) or "no fields")


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(value.strip()))


def _has_value(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, float) and math.isnan(value))  # some programs write NaN for null


def _answer(value: Any) -> Any:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(_is_id(part) or (isinstance(part, float) and math.isfinite(part)) for part in parts):
        raise UnusableError("the answer is not a string, a number or a list of these")
    plain = [_encodable(part) if isinstance(part, str) else part for part in parts]
    return plain if isinstance(value, list) else plain[0]


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()


def _sha256(items: Iterable[Item]) -> str:
    rows = [[item.problem.id, item.problem.question, item.gold] for item in items]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."

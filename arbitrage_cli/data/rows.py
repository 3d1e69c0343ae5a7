"""Problems from text, one a line or one JSON object a line, and data sets: problems with their right answers.

Problems to solve are read lazily, so that a pipe is answered while it is still being written, and a bad line is given back
as a `BadLine` instead of failing, so that the others can go on. A data set is for measuring: it is whole, or an error.
Knows no model, opens no file, and does not know what an answer means.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, Protocol

from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Problem

MAX_LINE_BYTES = 1 << 20

FIELDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "question": ("problem", "question"),
        "answer": ("answer", "final_answer"),
        "id": ("id", "unique_id"),
        "level": ("level",),
    }
)
"""What is read from a row, and under which names: of those that have a value the first."""

ABOUT_THE_ANSWER = ("answer_type", "unit", "error", "is_multiple_answer")
"""Further fields, as OlympiadBench has them, that say how an answer is to be compared."""

MAX_SHOWN = 60  # characters of a text from a file in a message

_BEGINS_OBJECT = re.compile(r'\{\s*["}]')  # a set, as in {1, 2, 3}, does not


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a problem, and why. Lines count from 1."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """A problem with its right answer.

    `gold` holds the row's `answer`, whatever name it had there, as the row has it (a text, a number, or a list of those),
    and those of ABOUT_THE_ANSWER that have a value. `extra` is the rest of the row.
    """

    problem: Problem
    gold: Mapping[str, Any]
    level: str | int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSet:
    """Problems to measure with, in order. `revision` is the Hub's commit, `sha256` is over ids, questions and golds."""

    name: str
    items: tuple[Item, ...]
    revision: str | None
    sha256: str


Row = Mapping[str, Any]


class Lines(Protocol):
    """Whatever lines of bytes can be read from: a binary file, for one."""

    def readline(self, limit: int, /) -> bytes:
        """The next line, or as much of it as `limit` allows; empty at the end."""
        ...


class _UnusableError(ValueError):
    """Why a line is not a problem."""


def read_problems(stream: Lines) -> Iterator[Problem | BadLine]:
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
    return Problem(identifier, _encodable(question))


def json_rows(stream: BinaryIO) -> Iterator[tuple[int, Row] | BadLine]:
    """The JSON objects of a stream of UTF-8 text with one a line, each with its line's number. Blank lines are skipped."""
    is_first = True
    for number, line in _lines(stream):
        try:
            text = _decode(line, number)
            if not text:
                continue
            if is_first and _is_json_list(text):
                yield BadLine(number, "this looks like a JSON list; give one JSON object a line instead")
                return
            is_first = False
            yield number, _json_object(text)
        except _UnusableError as error:
            yield BadLine(number, str(error))


def parse_mapping(text: str) -> dict[str, str]:
    """`question=prompt,answer=gold`: the field to read each of FIELDS from. UsageError if the text is anything else."""
    mapping: dict[str, str] = {}
    for part in text.split(","):
        what, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name or what not in FIELDS or what in mapping:
            known = ", ".join(FIELDS)
            raise UsageError(f"'{_short(text)}' maps no fields", f"for example question=prompt,answer=gold; known: {known}")
        mapping[what] = name
    return mapping


def make_data_set(
    name: str,
    rows: Iterable[tuple[int, Row] | BadLine],
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    revision: str | None = None,
    unit: Literal["line", "row"] = "line",
) -> DataSet:
    """A data set of numbered rows. `mapping` says which field to read instead of those in FIELDS, and then no other.

    A problem without an id is called after its row's number. UsageError, naming the first bad row, if a row has no
    question or no answer, if an id comes twice, or if there is no row at all.
    """
    items: list[Item] = []
    bad: list[BadLine] = []
    numbers: dict[str, int] = {}
    for row in rows:
        if isinstance(row, BadLine):
            bad.append(row)
            continue
        number, content = row
        try:
            item = _item(content, number, mapping)
        except _UnusableError as error:
            bad.append(BadLine(number, str(error)))
            continue
        first = numbers.setdefault(item.problem.id, number)
        if first != number:
            bad.append(BadLine(number, f"its id '{_short(item.problem.id)}' is that of {unit} {first} too"))
        items.append(item)
    if bad:
        more = f" ({len(bad) - 1} more like this)" if len(bad) > 1 else ""
        raise UsageError(
            f"{name}: {unit} {bad[0].number}: {bad[0].reason}{more}",
            "a data set must be whole: correct the file, or say what to read: --map question=NAME,answer=NAME",
        )
    if not items:
        raise UsageError(f"{name}: there is no problem in it", "a data set has one JSON object a line, or is a parquet file")
    return DataSet(name, tuple(items), revision, _sha256(items))


def _lines(stream: Lines) -> Iterator[tuple[int, bytes]]:
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
    row = _json_object(text)
    question = next((row[key] for key in FIELDS["question"] if isinstance(row.get(key), str)), None)
    if question is None:
        raise _UnusableError('no text under "problem" or "question"')
    return make_problem(question, _identifier(row, FIELDS["id"], number))


def _json_object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep, or a number too long"
        raise _UnusableError(f"not valid JSON ({reason})") from error
    if not isinstance(row, dict):
        raise _UnusableError("not a JSON object")
    return row


def _identifier(row: Row, names: Sequence[str], number: int) -> str:
    """The row's own name, a text or a whole number (true is none), else its number."""
    values = (row.get(name) for name in names)
    usable = (value for value in values if type(value) is int or (isinstance(value, str) and value.strip()))
    return _encodable(str(next(usable, number)))


# --- a row of a data set


def _item(row: Row, number: int, mapping: Mapping[str, str]) -> Item:
    """The row's problem, answer and rest. _UnusableError, with the reason, if it lacks one of them."""
    absent = [name for name in mapping.values() if name not in row]
    if absent:
        raise _UnusableError(f"no field '{_short(absent[0])}'; it has {_names(row)}")
    names = {what: (mapping[what],) if what in mapping else usual for what, usual in FIELDS.items()}
    question = next((name for name in names["question"] if isinstance(row.get(name), str)), None)
    answer = next((name for name in names["answer"] if _is_value(row.get(name))), None)
    level = next((name for name in names["level"] if _is_value(row.get(name))), None)
    if question is None:
        raise _UnusableError(f"no text under {_either(names['question'])}; it has {_names(row)}")
    if answer is None:
        raise _UnusableError(f"no answer under {_either(names['answer'])}; it has {_names(row)}")
    about = [name for name in ABOUT_THE_ANSWER if _is_value(row.get(name))]
    used = {question, answer, level, *names["id"], *ABOUT_THE_ANSWER}
    return Item(
        make_problem(row[question], _identifier(row, names["id"], number)),
        {"answer": _answer(row[answer]), **{name: _plain(row[name], name) for name in about}},
        None if level is None else _level(row[level]),
        {name: value for name, value in row.items() if name not in used},
    )


def _is_value(value: Any) -> bool:
    """Whether there is anything: not null, not blank, and not the NaN that some programs write for null."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _answer(value: Any) -> Any:
    """A text, a number, or a list of them, as the row has it. _UnusableError if it is anything else."""
    parts = value if isinstance(value, list) and value else [value]
    if any(isinstance(part, bool) or not _is_value(part) for part in parts):
        raise _UnusableError("its answer is no text, no number, and no list of them")
    plain = [_plain(part, "answer") for part in parts]
    return plain if isinstance(value, list) else plain[0]


def _level(value: Any) -> str | int:
    if isinstance(value, str) or type(value) is int:
        return _encodable(value) if isinstance(value, str) else value
    raise _UnusableError("its level is neither a text nor a whole number")


def _plain(value: Any, name: str) -> str | float | bool:
    """A value that JSON has, too. _UnusableError if it is not."""
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _UnusableError(f"its {name} is no text, no number, and no list of them")


def _encodable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()  # no lone surrogates


def _sha256(items: Iterable[Item]) -> str:
    """Of the canonical JSON of [[id, question, gold], ...]: ASCII, keys sorted, no white space."""
    rows = [[item.problem.id, item.problem.question, item.gold] for item in items]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _names(row: Row) -> str:
    return _short(", ".join(row)) or "no fields"


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{_short(name)}'" for name in names)


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."

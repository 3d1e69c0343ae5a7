"""Converts rows to a data set: problems with their correct answers. A single invalid row makes the data set invalid."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems.lines import (
    PROBLEM_FIELDS,
    BadLine,
    UnusableError,
    encodable,
    find_id,
    make_problem,
    names_of,
    names_of_field,
    problem_in,
    require,
)
from arbitrage_cli.types import Problem

FIELDS: Mapping[str, Sequence[str]] = {**PROBLEM_FIELDS, "answer": ("answer", "final_answer"), "level": ("level",)}
"""The accepted field names, in order of precedence; the first field with a value is used."""

FORMAT = 'use parquet, or JSONL with an object such as {"question": "2 + 3?", "answer": "5"} on each line'
MAX_ROWS = 1 << 18  # more than any data set of problems; a small parquet file may declare millions
MAX_SHOWN = 60  # characters of a file's text in a message

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    """A row format used by a task's data sets. The format matches rows that contain all `fields`.

    `read` returns a row's question and gold answer. `id` names the field that contains the problem's id.
    """

    task: str
    fields: frozenset[str]
    read: Callable[[Row], tuple[str, dict[str, Any]]]
    id: str = "id"


@dataclass(frozen=True, slots=True)
class Item:
    """A problem and its gold answer. The gold answer is empty if the correct answer is unknown.

    By default, the gold answer contains `answer` (a string, a number, or a list of these).
    """

    problem: Problem
    gold: Row
    level: str | int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Problems in order. `task` comes from the `Form` of the rows. `revision` is the commit on the Hub."""

    name: str
    items: tuple[Item, ...]
    revision: str | None
    sha256: str
    task: str | None = None

    def sha256_of_first(self, count: int) -> str:
        return _sha256(self.items[:count])


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
    rows: Iterable[tuple[int, Row] | BadLine],
    *,
    mapping: Mapping[str, str] = MappingProxyType({}),
    revision: str | None = None,
    unit: Literal["line", "row"] = "line",
    needs_answers: bool = True,
    forms: Sequence[Form] = (),
) -> Dataset:
    """Convert numbered rows to a data set.

    `mapping` overrides the names in FIELDS. Without a mapping, all rows are read with the first form in `forms` that matches
    the first row. Raises UsageError if there are no rows or more than MAX_ROWS, if an id occurs twice, or if a row lacks its question or a
    required answer.
    """
    items: dict[str, tuple[int, Item]] = {}
    bad: list[BadLine] = []
    is_readable = False
    form: Form | None = None
    for line in rows:
        if isinstance(line, BadLine):
            bad.append(line)
            continue
        number, row = line
        if len(items) == MAX_ROWS:
            raise UsageError(f"{name}: more than {MAX_ROWS:,} problems", "split the file")
        is_readable = True
        if not items and not mapping:
            form = next((form for form in forms if form.fields <= row.keys()), None)
        try:
            item = _formed(row, number, form) if form else _item(row, number, mapping, needs_answers=needs_answers)
            first, _ = items.setdefault(item.problem.id, (number, item))
            if first != number:
                raise UnusableError(f"duplicate id '{_short(item.problem.id)}', already used in {unit} {first}")
        except UnusableError as error:
            bad.append(BadLine(number, str(error)))
    if bad:
        more = f" ({len(bad) - 1} more invalid {unit}s)" if len(bad) > 1 else ""
        hint = "correct the file, or name the fields with --map question=NAME,answer=NAME"
        if needs_answers:
            hint += "; without known answers, see `arbitrage guide benchmarks`"
        raise UsageError(f"{name}: {unit} {bad[0].number}: {bad[0].reason}{more}", hint if is_readable else FORMAT)
    if not items:
        raise UsageError(f"{name}: no problems in the file", FORMAT)
    found = tuple(item for _, item in items.values())
    return Dataset(name, found, revision, _sha256(found), form.task if form else None)


def _formed(row: Row, number: int, form: Form) -> Item:
    require(row, sorted(form.fields))
    question, gold = form.read(row)
    return Item(make_problem(question, find_id(row, (form.id,), number)), gold)


def _item(row: Row, number: int, mapping: Mapping[str, str], *, needs_answers: bool) -> Item:
    problem = problem_in(row, number, mapping)
    answer_names, level_names = (names_of_field(field, mapping, FIELDS) for field in ("answer", "level"))
    answer, level = (next(filter(_has_value, map(row.get, names)), None) for names in (answer_names, level_names))
    if answer is None and needs_answers:
        either = " or ".join(f"'{_short(name)}'" for name in answer_names)
        raise UnusableError(f"no answer in {either}; found {names_of(row)}")
    if not (level is None or type(level) is int or isinstance(level, str)):
        raise UnusableError("the level is neither a string nor an integer")
    gold = {} if answer is None else {"answer": _answer(answer)}
    return Item(problem, gold, encodable(level) if isinstance(level, str) else level)


def check_texts(row: Row, *names: str) -> None:
    for name in names:
        if not isinstance(row[name], str):
            raise UnusableError(f"{name}: expected a string")


def _has_value(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, float) and math.isnan(value))  # some programs write NaN for null


def _answer(value: Any) -> Any:
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(map(_is_answer, parts)):
        raise UnusableError("the answer is not a string, a number or a list of these")
    plain = [encodable(part) if isinstance(part, str) else part for part in parts]
    return plain if isinstance(value, list) else plain[0]


def _is_answer(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _sha256(items: Iterable[Item]) -> str:
    rows = [[item.problem.id, item.problem.question, item.gold] for item in items]
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."

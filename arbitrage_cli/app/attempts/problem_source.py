"""Reads the problems of `solve` from arguments, a file or standard input."""

import contextlib
import itertools
import os
import select
import stat
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from arbitrage_cli.app.attempts.selection import range_of
from arbitrage_cli.app.options import InputOptions
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import UsageError, os_errors
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import (
    BadLine,
    Form,
    Oddity,
    make_problem,
    parse_mapping,
    read_problems,
)
from arbitrage_cli.types import Problem, frozen

MAX_BAD_LINES = 20
"""The input is rejected if this many lines at its start are all invalid."""
CHUNK = 1 << 16  # bytes

_FORMAT = "use one problem per line, or JSONL; name its fields with --map question=NAME"
NOTES: Mapping[Oddity, str] = {
    "gap": "found a blank line: each line is read as a separate problem; to solve a problem of several lines, use "
    'arbitrage solve "$(cat FILE)"',
    "answers": "the answers in the input are ignored; to grade solutions, use arbitrage bench --dataset FILE",
}
TABLES = (".csv", ".parquet")
JSON_LINES = (".jsonl", ".ndjson")
InputLine = Problem | BadLine


@frozen
class Source:
    """The source of problems: arguments, a file or standard input. `forms` are those of the task's rows."""

    arguments: Sequence[str]
    options: InputOptions
    forms: Sequence[Form]


class Problems:
    """A command's problems, read on demand.

    `total` is the number of rows, if it is known. `ended` is true once all rows have been read.
    """

    def __init__(self, source: Source, display: Display, stack: contextlib.ExitStack) -> None:
        """Open the source. Raises UsageError if the source is missing, ambiguous or unreadable."""
        options = source.options
        if source.arguments and options.input_file is not None:
            raise UsageError("a problem argument and --input cannot be combined", "use one of them")
        self._mapping = parse_mapping(options.mapping) if options.mapping else {}
        self._places = range_of(options.limit) if options.limit else slice(None)
        self._display = display
        self._name = options.input_file or "standard input"
        self._noted = set[Oddity]()
        self._ids = Counter[str]()
        self._ahead: deque[InputLine] = deque()
        self._lines: LineSource | None = None
        self.ended = False
        self.total: int | None
        rows: Iterable[InputLine]
        if source.arguments and source.arguments != ["-"]:
            rows = [_from_argument(problem, number) for number, problem in enumerate(source.arguments, start=1)]
            self.total = len(rows)
        elif self._name.lower().endswith(TABLES):
            rows = self._rows_of_table(source.forms)
            self.total = len(rows)
        else:
            stream = _open_input("-" if source.arguments else options.input_file, stack)
            count = count_lines(stream)
            self.total = None if count is None else len(range(count)[self._places])
            rows = self._rows_of_stream(stream)
        self._rows = self._checked(rows)

    def _rows_of_table(self, forms: Sequence[Form]) -> list[Problem]:
        """Return the problems of a CSV or parquet file."""
        with contextlib.ExitStack() as stack:
            _open_input(self._name, stack)  # reports a missing file like any other input
        table = load_dataset(
            self._name,
            offline=True,
            mapping=self._mapping,
            needs_answers=False,
            forms=forms,
            max_rows=self._places.stop,
        )
        if any(item.gold for item in table.items):
            self._note("answers")
        return [item.problem for item in table.items[self._places]]

    def _rows_of_stream(self, stream: BinaryIO) -> Iterator[InputLine]:
        """Return the lines of a text or JSONL file, which are read on demand."""
        self._lines = LineSource(stream, self._name)
        is_named_jsonl = self._name.lower().endswith(JSON_LINES)
        problems = read_problems(self._lines, self._note, self._mapping, is_named_jsonl=is_named_jsonl)
        return itertools.islice(problems, self._places.start, self._places.stop)

    def rows(self) -> Iterator[InputLine]:
        """Yield the next rows, beginning with those at which `peek` has looked."""
        while True:
            row = self._ahead.popleft() if self._ahead else next(self._rows, None)
            if row is None:
                return
            yield row

    def peek(self) -> Iterator[InputLine]:
        """Yield the next rows, and keep them for `rows`."""
        for row in self._rows:
            self._ahead.append(row)
            yield row

    def look_ahead(self, most: int) -> int:
        """Read the first problem and other available problems, at most `most` in total. Return how many were read."""
        known = 0
        while known < most and not self.ended and (known == 0 or self._can_read):
            known += isinstance(next(self.peek(), None), Problem)
        return known

    def is_ready(self) -> bool:
        """Return whether the next problem or the end of the input can be read without waiting."""
        return bool(self._ahead) or self.ended or self._can_read

    @property
    def _can_read(self) -> bool:
        return self._lines is None or self._lines.is_ready

    def _checked(self, rows: Iterable[InputLine]) -> Iterator[InputLine]:
        num_rows = num_bad = 0
        for row in rows:
            num_rows += 1
            if isinstance(row, Problem):
                yield self._with_unique_id(row)
                continue
            num_bad += 1
            self._display.note(f"line {row.number}: {row.reason}; skipped")
            if num_bad == num_rows == MAX_BAD_LINES:
                raise UsageError(f"{self._name}: the first {num_rows} lines are all invalid", _FORMAT)
            yield row
        self.ended = True
        first = 1 + (self._places.start or 0)
        if num_rows == 0 and first > 1:
            hint = f"use a range that begins before line {first}"
            raise UsageError(f"the input ends before line {first}", hint, option="limit")
        if num_bad == num_rows:
            raise UsageError("the input contains no problem", _FORMAT)

    def _note(self, oddity: Oddity) -> None:
        if oddity not in self._noted:
            self._noted.add(oddity)
            self._display.note(NOTES[oddity])

    def _with_unique_id(self, problem: Problem) -> Problem:
        unique = problem.id
        while self._ids[unique]:
            self._ids[problem.id] += 1
            unique = f"{problem.id}-{self._ids[problem.id]}"
        self._ids[unique] += 1
        return replace(problem, id=unique)


class LineSource:
    """Reads lines from an unbuffered file or pipe, and detects whether the next line is available."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._descriptor, self._name = stream.fileno(), name
        self._held = bytearray()
        self._ended = False

    def readline(self, limit: int, /) -> bytes:
        """Return up to `limit` bytes of the next line, or b"" at the end. Raises UsageError if reading fails."""
        while not self._ended and b"\n" not in self._held[:limit] and len(self._held) < limit:
            self._receive()
        end = self._held.find(b"\n", 0, limit) + 1 or limit
        line = bytes(self._held[:end])
        del self._held[:end]
        return line

    @property
    def is_ready(self) -> bool:
        """Whether a non-blank line or the end of the input can be read without waiting."""
        while not (self._ended or self._has_line) and select.select([self._descriptor], [], [], 0)[0]:
            self._receive()
        return self._ended or self._has_line

    @property
    def _has_line(self) -> bool:
        return bool(self._held[: self._held.rfind(b"\n") + 1].strip())

    def _receive(self) -> None:
        with os_errors(UsageError, f"{self._name}: cannot be read", "check the input"):
            data = os.read(self._descriptor, CHUNK)
        self._held += data
        self._ended = not data


def count_lines(stream: BinaryIO) -> int | None:
    """Return the number of non-blank lines ahead, or None if the stream is not a regular file. Its position is kept."""
    descriptor = stream.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    if not status.st_size:  # a file in /proc may be unreadable
        return 0
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    count = sum(bool(line.strip()) for line in stream)
    os.lseek(descriptor, position, os.SEEK_SET)  # not stream.seek, which may only move within its buffer
    return count


def _from_argument(problem: str, number: int) -> Problem:
    with contextlib.suppress(OSError, ValueError):  # most problems are not valid paths
        if Path(problem).is_file():
            raise UsageError(f"'{problem}' is a file, not a problem", f"did you mean --input {problem}?")
    try:
        return make_problem(problem, str(number))
    except ValueError as error:
        raise UsageError(str(error), 'for example: arbitrage solve "What is 23 * 47 - 88?"') from error


def _open_input(name: str | None, stack: contextlib.ExitStack) -> BinaryIO:
    """Open a file, or standard input if the name is `-`. Without a name, standard input must be a pipe or a file."""
    if name is not None and name != "-":
        try:
            stream = stack.enter_context(Path(name).expanduser().open("rb"))
            if not _is_pipe_or_file(stream):
                raise ValueError("neither a file nor a pipe")
            return stream
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user; ValueError: a NUL
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{name}: cannot be read ({reason})", "check the --input path") from error
    if sys.stdin is None or (name is None and not _is_pipe_or_file(sys.stdin.buffer)):
        raise UsageError("no problem given", 'use arbitrage solve "..."; for several problems, use --input FILE or a pipe')
    return sys.stdin.buffer


def _is_pipe_or_file(stream: BinaryIO) -> bool:
    mode = os.fstat(stream.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)

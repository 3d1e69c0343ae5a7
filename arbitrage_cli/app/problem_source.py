"""Reads the problems of a command from an argument, a file or standard input, or selects them from a data set."""

import contextlib
import hashlib
import itertools
import os
import re
import select
import stat
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import BinaryIO

from arbitrage_cli.app.options import InputOptions, ProblemOptions, RunCode
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import MAX_SHOWN, ProgramsNotAllowedError, UsageError, os_errors
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.code import find_sandbox
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import (
    BadLine,
    Dataset,
    Form,
    Item,
    Oddity,
    make_dataset,
    make_problem,
    parse_mapping,
    read_problems,
)
from arbitrage_cli.problems.tasks import FORMS, Task, without_sandbox
from arbitrage_cli.types import Fields, Problem, frozen

MAX_BAD_LINES = 20
"""The input is rejected if this many lines at its start are all invalid."""
CHUNK = 1 << 16  # bytes
MAX_NAME = 60  # characters in each half of a folder name
DIGEST = 8  # characters of the checksum in a shortened name

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
        arguments, options = source.arguments, source.options
        input_file = options.input_file
        if arguments and input_file is not None:
            raise UsageError("a problem argument and --input cannot be combined", "give one of them")
        mapping = parse_mapping(options.mapping) if options.mapping else {}
        places = range_of(options.limit) if options.limit else slice(None)
        table = _read_table(input_file, mapping, source.forms, places.stop)
        self.ended = False
        self._noted = set[Oddity]()
        self._display, self._name = display, input_file or "standard input"
        self._ahead: deque[InputLine] = deque()
        self._ids = Counter[str]()
        self._lines: LineSource | None = None
        self._first = 1 + (places.start or 0)
        self.total: int | None
        rows: Iterable[InputLine]
        if arguments and arguments != ["-"]:
            rows = [_from_argument(problem, number) for number, problem in enumerate(arguments, start=1)]
            self.total = len(rows)
        elif table:
            if any(item.gold for item in table.items):
                self._note("answers")
            rows = [item.problem for item in table.items[places]]
            self.total = len(rows)
        else:
            stream = _open_input("-" if arguments else input_file, stack)
            count = count_lines(stream)
            self.total = None if count is None else len(range(count)[places])
            self._lines = LineSource(stream, self._name)
            is_named_jsonl = self._name.lower().endswith(JSON_LINES)
            problems = read_problems(self._lines, self._note, mapping, is_named_jsonl=is_named_jsonl)
            rows = itertools.islice(problems, places.start, places.stop)
        self._rows = self._checked(rows)

    def rows(self) -> Iterator[InputLine]:
        return iter(lambda: self._ahead.popleft() if self._ahead else next(self._rows, None), None)

    def peek(self) -> Iterator[InputLine]:
        """Yield the next rows, and keep them for `rows`."""
        for row in self._rows:
            self._ahead.append(row)
            yield row

    def look_ahead(self, most: int) -> int:
        """Read the first problem and other available problems, at most `most` in total. Return how many were read."""
        known = 0
        while known < most and not self.ended and (not known or self._can_read):
            known += sum(isinstance(row, Problem) for row in itertools.islice(self.peek(), 1))
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
        if not num_rows and self._first > 1:
            hint = f"use a range that begins before line {self._first}"
            raise UsageError(f"the input ends before line {self._first}", hint, option="limit")
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


def range_of(limit: str) -> slice:
    """Return the slice for a limit such as `10` (the first ten) or `10-20`. Raises UsageError if the limit is invalid."""
    found = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})", limit.strip())
    first, last = (int(found[1] or 1), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        hint = "use 10 for ten problems, or 10-20 for problems 10 to 20"
        raise UsageError(f"invalid limit '{limit}'", hint, option="limit")
    return slice(first - 1, last)


def _read_table(
    input_file: str | None, mapping: Mapping[str, str], forms: Sequence[Form], max_rows: int | None
) -> Dataset | None:
    """Return the data set from the first rows of a CSV or parquet file, or None for other files."""
    name = input_file or "-"
    if not name.lower().endswith(TABLES):
        return None
    with contextlib.ExitStack() as stack:
        _open_input(name, stack)  # reports a missing file like any other input
    return load_dataset(name, offline=True, mapping=mapping, needs_answers=False, forms=forms, max_rows=max_rows)


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


# --- problems of a data set


@frozen
class Selection:
    """A data set and the problems to solve."""

    dataset: Dataset
    items: Sequence[Item]
    is_sample: bool = False

    @property
    def title(self) -> str:
        if len(self.items) == len(self.dataset.items):
            return self.dataset.name
        return f"{self.dataset.name}, {'a sample of ' * self.is_sample}{len(self.items)} of {len(self.dataset.items)}"


def select_problems(options: ProblemOptions, *, seed: int, offline: bool, needs_answers: bool = True) -> Selection:
    mapping = parse_mapping(options.mapping) if options.mapping else {}
    dataset = load_dataset(options.dataset, offline=offline, mapping=mapping, needs_answers=needs_answers, forms=FORMS)
    if options.ids:
        return Selection(dataset, _with_ids(dataset.items, [name.strip() for name in options.ids.split(",")]))
    return Selection(dataset, _select(dataset.items, options.limit, seed), _is_sample(options.limit))


def _with_ids(items: Sequence[Item], wanted: Sequence[str]) -> Sequence[Item]:
    """Return the problems with these ids, in data set order. Raises UsageError for an unknown id."""
    known = {item.problem.id: item for item in items}
    for name in wanted:
        if name not in known:
            similar = get_close_matches(name[:MAX_SHOWN], known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"the first id is {next(iter(known), 'missing')}"
            raise UsageError(f"no problem has the id '{name[:MAX_SHOWN]}'", hint, option="ids")
    return [item for name, item in known.items() if name in wanted]


def _select(items: Sequence[Item], limit: str | None, seed: int) -> Sequence[Item]:
    """Return the problems to solve, in data set order. Raises UsageError if the selection is empty."""
    if limit is None:
        return items
    places = range_of(limit)
    selected = draw_sample(items, places.stop, seed) if _is_sample(limit) else items[places]
    if items and not selected:
        reason = f"'{limit}' selects nothing: there are only {formatting.count(len(items), 'problem')}"
        raise UsageError(reason, f"use a range within 1-{len(items)}", option="limit")
    return selected


def permitted(task: Task, run_code: RunCode | None) -> Task:
    """Return the task with the sandbox that `--run-code` selects.

    Raises ProgramsNotAllowedError if the task runs programs without permission; UsageError without bubblewrap.
    """
    if not task.runs_code:
        return task
    if run_code == "unprotected":
        return without_sandbox(task)
    find_sandbox()
    if run_code is None:
        hint = 'use --run-code, or set run-code = "sandboxed" in a settings file; for details, run arbitrage guide code'
        raise ProgramsNotAllowedError(f"task {task.name} runs model-written programs on this machine", hint)
    return task


def default_folder(dataset: str, models: Sequence[str], *, prefix: str = "", concurrency: int = 1) -> Path:
    """Return the default run folder, such as `runs/math500--mine`, or `runs/math500--mine--concurrency-8`."""
    names = [PurePath(name).name.removesuffix(".gguf") for name in models]
    suffix = "" if concurrency == 1 else f"--concurrency-{concurrency}"
    return Path("runs") / f"{prefix}{_file_name(PurePath(dataset).stem)}--{_file_name(*names)}{suffix}"


def _is_sample(limit: str | None) -> bool:
    return limit is not None and "-" not in limit


def sample_of(questions: Iterable[str | Fields], count: int, seed: int) -> Selection:
    """Select `count` of these questions, which may include answers. Raises UsageError if a question is invalid."""
    rows = (one if isinstance(one, Mapping) else {"question": one} for one in questions)
    dataset = make_dataset("questions", enumerate(rows, start=1), needs_answers=False, forms=FORMS)
    return Selection(dataset, draw_sample(dataset.items, count, seed), is_sample=True)


def draw_sample(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """Draw `count` problems, balanced across levels. For the same seed, a larger sample contains every smaller sample."""
    drawn = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item.problem.id}".encode()).digest())
    sizes, taken = Counter(item.level for item in items), Counter[str | int | None]()
    places: dict[str, float] = {}
    for item in drawn:
        places[item.problem.id] = (taken[item.level] + 0.5) / sizes[item.level]
        taken[item.level] += 1
    chosen = {item.problem.id for item in sorted(drawn, key=lambda item: places[item.problem.id])[:count]}
    return [item for item in items if item.problem.id in chosen]


def _file_name(*names: str) -> str:
    """Join names into a valid file name. A long name is truncated and made unique by a checksum."""
    plain = (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in names)
    whole = "-".join(filter(None, plain)) or "run"
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return whole if len(whole) <= MAX_NAME else f"{whole[: MAX_NAME - DIGEST]}-{digest}"

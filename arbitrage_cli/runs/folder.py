"""The folder of a run on disk: `run.json`, what it was made with, and `results.jsonl`, one row for each attempt.

A row that `append` has returned for survives a killed process and a power cut. Every row and run.json end in a checksum
of their own bytes. Opening a folder for writing sets an unfinished last row and damaged rows aside; a reader of a damaged
row gets an error that names file and line. Knows JSON objects; no model, no problem, no figure.

    run.json                   written whole or not at all, before the first row
    results.jsonl              one line a row, only appended to; replaced as a whole when answers are graded again
    results.jsonl.torn-N       the beginning of a row that was never finished
    results.jsonl.damaged-N    rows that are not what was written
    *.old-N                    what a fresh start replaced
    started.jsonl              problems that are being solved, or were when a process died
    lock                       locked by the process that writes here, and freed by the system when it ends
"""

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

from arbitrage_cli.errors import ArbitrageError, DamagedRunError, OutputError, UsageError
from arbitrage_cli.runs.started import StartedMarks
from arbitrage_cli.system.files import make_folder, sync_folder, write_all, write_atomically

SCHEMA = 1
"""Of rows and run.json: a folder of another schema is refused."""

RUN, RESULTS, STARTED, LOCK = "run.json", "results.jsonl", "started.jsonl", "lock"
BENCH, COLLECT = "bench", "collect"
"""The commands that make runs; their rows differ. run.json of a benchmark does not name its kind."""

"""Names of the files above, and of those that were being written when a process died."""
_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_SEAL = b',"checksum":"%08x"}'
_SEAL_LENGTH = len(_SEAL % 0)
_START_AGAIN = "restore it from a copy, or give --fresh to the command that made the run: it sets the old files aside"

Row = Mapping[str, Any]
T = TypeVar("T", bound=Row)
Key = tuple[str, int, str, float | str | None]
"""What a row is about: the problem's id, the number of the sample, policy and tau."""
Damages = Mapping[int, str]
"""Why a line of results.jsonl, counted from 1, is not what was written."""


class Rows(Sequence[dict[str, Any]]):
    """Rows as the lines that they were read from. Each is parsed when it is asked for: that takes a tenth of the memory."""

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self._lines = list(lines)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [_content(line) for line in self._lines[index]]
        return _content(self._lines[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(_content, self._lines)

    def add(self, line: bytes) -> None:
        """Add a row by its line."""
        self._lines.append(line)


@dataclass(frozen=True, slots=True)
class Contents:
    """run.json, and all rows in the order in which they were written."""

    run: dict[str, Any]
    rows: Rows


def key_of(row: Row) -> Key:
    """What the row is about. A later row of the same key replaces an earlier one."""
    return row["id"], row["sample"], row["policy"], row["tau"]


def latest(rows: Sequence[T]) -> Iterator[T]:
    """The row that counts for each key, in the order in which the keys first came."""
    places = {key_of(row): place for place, row in enumerate(rows)}
    return (rows[place] for place in places.values())


def statuses(rows: Iterable[Row]) -> dict[Key, str]:
    """The status of the row that counts for each key: done or error."""
    return {key_of(row): row["status"] for row in rows}


@dataclass(frozen=True, slots=True)
class Examined(Contents):
    """The contents that can be read, the lines that cannot, and the beginning of a row that was never finished."""

    damages: Damages
    tail: bytes


def examine(folder: Path, kind: str | None = None) -> Examined:
    """What is in a folder, damage included. Changes nothing, also while a run writes to it.

    UsageError if it holds no run, or one of another `kind`; DamagedRunError if run.json is damaged.
    """
    hint = f"name the folder of a run, as arbitrage {kind or BENCH} makes them below runs/"
    with _raising(UsageError, f"{folder}: cannot be read", hint):
        data = _read_bytes(folder / RESULTS)
        if not data and not (folder / RUN).exists():
            raise UsageError(f"{folder}: there is no run in this folder", hint)
        run = _read_run(folder, kind)
    lines, tail = _lines(data)
    return Examined(run, *_parse(lines), tail)


def read_run_folder(folder: Path, kind: str = BENCH) -> Contents:
    """The contents of a folder, for a reader. Errors as for `examine`, and DamagedRunError if a row is damaged."""
    found = examine(folder, kind)
    if found.damages:
        raise DamagedRunError(
            f"{folder / RESULTS}: {_listed(found.damages)}",
            "restore it from a copy, or repeat the command that made the run: it sets damaged rows aside and does them again",
        )
    return found


def encode(content: Row) -> bytes:
    """A JSON object with at least one field, and its checksum, as one line: ASCII, no NaN."""
    return _sealed(json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))) + b"\n"


class RunFolder(AbstractContextManager["RunFolder"]):
    """A run folder of which this process is the only writer, until it is closed.

    `path` is the folder; `run` and `rows` are its contents; `notes` say what was set aside when it was opened.
    """

    def __init__(self, folder: Path, *, kind: str = BENCH, fresh: bool = False) -> None:
        """Make the folder if need be, lock it, read it, and set aside what is damaged; if `fresh`, everything, by `save_run`.

        UsageError if it cannot be written to, another process writes to it, or it holds a run of another kind;
        DamagedRunError if run.json is damaged.
        """
        self.path = folder
        self._kind = kind
        self._results = folder / RESULTS
        self._descriptor: int | None = None
        self._started = StartedMarks(folder / STARTED)
        self._is_fresh = fresh
        self._again = "the same command without --fresh" if fresh else "the same command"
        self.notes: list[str] = []
        self.run: dict[str, Any] | None = None
        self.rows = Rows()
        with _raising(UsageError, f"{folder}: this folder cannot be used for a run", "give another one: --output FOLDER"):
            self._is_new = not folder.exists()
            make_folder(folder)
            self._lock: int | None = _lock(folder)
            try:
                self._open(fresh=fresh)
            except BaseException:
                self.close()
                raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the folder. One that was made for a run that never began is removed."""
        self._close_results()
        if self._lock is None:
            return
        with suppress(OSError):
            self._started.close()
        if self._is_new and self.run is None and not self.rows:
            with suppress(OSError):
                self._results.unlink(missing_ok=True)
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def save_run(self, run: Row) -> None:
        """Write run.json, whole or not at all. OutputError if that fails."""
        content = {key: value for key, value in run.items() if key != "checksum"}
        if self.run == content:
            return
        text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False)
        with self._writing(self.path / RUN):
            if (
                self._is_fresh and self.run is None
            ):  # not before: what was there is safe until there is something to put there
                self._set_all_aside()
                self._open_results()
            write_atomically(self.path / RUN, _sealed(text) + b"\n")
        self.run = content

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns. After an OutputError it is not there, and nothing may follow."""
        if self._descriptor is None:
            raise OutputError(f"{self._results}: an earlier row could not be written", f"{self._again} goes on from there")
        line = encode(row)
        self.end(row["id"])  # before: a mark that outlives its row would count a death
        start = os.fstat(self._descriptor).st_size
        try:
            with self._writing(self._results):
                write_all(self._descriptor, line)
                os.fsync(self._descriptor)
        except OutputError:
            # A second sync could succeed without writing what the first could not: so the row is taken back, not retried.
            with suppress(OSError):
                os.ftruncate(self._descriptor, start)
            self._close_results()
            raise
        self.rows.add(line.removesuffix(b"\n"))

    def begin(self, problem: str) -> None:
        """Mark that a problem is being solved. OutputError."""
        with self._writing(self.path / STARTED):
            self._started.begin(problem)

    def end(self, problem: str) -> None:
        """Take the mark back. A row does that by itself. OutputError."""
        with self._writing(self.path / STARTED):
            self._started.end(problem)

    @property
    def deaths(self) -> Mapping[str, int]:
        """How many processes have died while they solved a problem, by its id; none that is 0."""
        return self._started.deaths

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Replace all rows at once."""
        lines = list(map(encode, rows))
        with self._writing(self._results):
            write_atomically(self._results, b"".join(lines))
            self._open_results()
        self.rows = Rows(line.removesuffix(b"\n") for line in lines)

    # --- opening

    def _open(self, *, fresh: bool) -> None:
        for path in (self._results, self.path / RUN, self.path / STARTED):
            if path.is_symlink():
                raise UsageError(f"{path} is a symbolic link", "a run writes to files of its own: --output FOLDER")
        if fresh:
            self.notes += [f"{old} is set aside as {aside.name}" for old, aside in self._replaced()]
            return
        self._read()
        self._started.load()
        if self.deaths:
            count = f"{len(self.deaths)} problem{'s were' if len(self.deaths) > 1 else ' was'}"
            self.notes.append(f"{count} being solved when a process died; what is left of that is tried last, one at a time")
        self._open_results()

    def _set_all_aside(self) -> None:
        """The rows first: without them, run.json alone is only a run that never got far."""
        for old, aside in self._replaced():
            old.replace(aside)
        (self.path / STARTED).unlink(missing_ok=True)
        sync_folder(self.path)

    def _replaced(self) -> list[tuple[Path, Path]]:
        """What a fresh start replaces, and where that goes."""
        return [(path, _free_name(path, "old")) for path in (self._results, self.path / RUN) if path.exists()]

    def _read(self) -> None:
        data = _read_bytes(self._results)
        if data or (self.path / RUN).exists():
            self.run = _read_run(self.path, self._kind)
        lines, tail = _lines(data)
        self.rows, damages = _parse(lines)
        if tail:
            self._set_tail_aside(tail, len(data) - len(tail))
        if damages:
            self._set_damaged_aside(lines, damages)

    def _set_tail_aside(self, tail: bytes, length: int) -> None:
        """Keep the beginning of an unfinished last row, and cut the file back to its last whole row."""
        aside = _free_name(self._results, "torn")
        write_atomically(aside, tail)
        descriptor = os.open(self._results, _WRITE)
        try:
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.notes.append(f"{self._results}: an unfinished last row was moved to {aside.name}")

    def _set_damaged_aside(self, lines: Sequence[bytes], damages: Damages) -> None:
        aside = _free_name(self._results, "damaged")
        write_atomically(aside, b"".join(lines[number - 1] + b"\n" for number in damages))
        write_atomically(
            self._results, b"".join(line + b"\n" for number, line in enumerate(lines, 1) if number not in damages)
        )
        self.notes.append(f"{self._results}: {_listed(damages)}; moved to {aside.name}, to be done again")

    def _open_results(self) -> None:
        """Open the file to append to. The sync is for rows of an earlier writer that was killed before its own."""
        self._close_results()
        self._descriptor = os.open(self._results, _WRITE | os.O_APPEND | os.O_CREAT, 0o666)
        os.fsync(self._descriptor)
        sync_folder(self.path)

    def _writing(self, path: Path) -> AbstractContextManager[None]:
        hint = f"the rows before it are safe: when there is room, {self._again} goes on from there"
        return _raising(OutputError, f"{path}: cannot be written", hint)

    def _close_results(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


# --- text


def _sealed(text: str) -> bytes:
    """A JSON object with the checksum of its bytes as its last field."""
    body = text.encode().removesuffix(b"}").rstrip()
    return body + _SEAL % zlib.crc32(body)


def _unsealed(data: bytes) -> dict[str, Any]:
    """The object without its checksum; ValueError, with the reason, if the bytes are not what was written."""
    body, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if seal != _SEAL % zlib.crc32(body):
        raise ValueError("its checksum does not match: it was changed after it was written")
    return _content(data)


def _content(data: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(data)
    del content["checksum"]
    return content


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and what comes after the last line feed. Other line ends occur within texts, and end nothing."""
    *lines, tail = data.split(b"\n")
    return lines, tail


def _parse(lines: Sequence[bytes]) -> tuple[Rows, Damages]:
    """The rows, and the lines that are no rows."""
    rows = Rows()
    damages: dict[int, str] = {}
    done: dict[Key, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            _check_row(_unsealed(line), number, done)
        except KeyError as error:
            damages[number] = f"it has no {error}"
        except (ValueError, TypeError, RecursionError) as error:
            damages[number] = str(error)
        else:
            rows.add(line)
    return rows, damages


def _check_row(row: Row, number: int, done: dict[Key, int]) -> None:
    """ValueError, KeyError or TypeError for a row that cannot be one; a finished one is entered into `done` by its key."""
    first = done.get(key_of(row))
    if first is not None:
        raise ValueError(f"it repeats line {first}")
    if row["status"] not in ("done", "error"):
        raise ValueError(f"its status is {row['status']!r}, neither done nor error")
    if row["status"] == "done":
        done[key_of(row)] = number


def _listed(damages: Damages) -> str:
    """The first three lines with their reasons, and how many more there are."""
    first = [f"line {number}: {reason}" for number, reason in islice(damages.items(), 3)]
    return "; ".join([*first, *([f"{len(damages) - 3} more damaged rows"] if len(damages) > 3 else [])])


def _read_run(folder: Path, kind: str | None) -> dict[str, Any]:
    path = folder / RUN
    try:
        run = _unsealed(path.read_bytes().removesuffix(b"\n"))
    except FileNotFoundError as error:
        reason = f"{path} is missing, and {RESULTS} has rows: it is not known what they were made with"
        raise DamagedRunError(reason, _START_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path}: line 1: {error}", _START_AGAIN) from error
    if run.get("schema") != SCHEMA:
        raise UsageError(
            f"{path}: schema {run.get('schema')}; this version of arbitrage knows schema {SCHEMA}",
            "read it with the version that wrote it",
        )
    if kind and run.get("kind", BENCH) != kind:
        kinds = f"a run of arbitrage {run.get('kind', BENCH)}, not of arbitrage {kind}"
        raise UsageError(f"{folder}: this is {kinds}", f"give one that arbitrage {kind} made")
    return run


# --- files


def _lock(folder: Path) -> int:
    """The descriptor that holds the lock. UsageError if another process has it."""
    descriptor = os.open(folder / LOCK, _WRITE | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        hint = "wait for it, or give this one its own folder: --output"
        raise UsageError(f"{folder}: another process is writing to this run", hint) from error
    return descriptor


def _read_bytes(path: Path) -> bytes:
    """What the file holds; nothing if it is missing. OSError, also if its folder is a file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _free_name(path: Path, what: str) -> Path:
    """`results.jsonl.torn-1`, or the first number after it that is not taken."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.{what}-{number}")):
        number += 1
    return path.with_name(f"{path.name}.{what}-{number}")


@contextmanager
def _raising(kind: type[ArbitrageError], what: str, hint: str) -> Iterator[None]:
    """Turns an OSError into an error of this program: `what`, and what the system says."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what} ({error.strerror or error})", hint) from error

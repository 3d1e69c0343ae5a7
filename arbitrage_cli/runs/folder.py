"""The folder of a run on disk: `run.json`, what it was made with, and `results.jsonl`, one row for each attempt.

A row that `append` has returned for survives a killed process and a power cut. What lies in a folder is never believed
unseen: every row and run.json carry a checksum, a line that was only begun is set aside, and anything else that is not
as it was written is an error that names file and line. Knows JSON objects; no model, no problem, no figure.

    run.json                written whole or not at all, before the first row
    results.jsonl           one line a row, only ever added to; rewritten as a whole when it is repaired or graded anew
    results.jsonl.torn-N    the beginning of a row that was never finished
    results.jsonl.damaged-N, *.old-N   lines taken out by a repair; what a fresh start replaced
    lock                    locked by the process that writes here, and freed by the system when it ends
"""

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from arbitrage_cli.errors import DamagedRunError, OutputError, UsageError
from arbitrage_cli.system.files import sync_folder, write_all, write_atomically

SCHEMA = 1
"""Of rows and run.json: folders of another one are refused."""

RUN, RESULTS, LOCK = "run.json", "results.jsonl", "lock"
BENCH, COLLECT = "bench", "collect"
"""Who makes runs; their rows have little in common. run.json of a benchmark does not say that it is one."""
REPAIR_HINT = "if it cannot be restored from a copy: the command that made the run does the damaged rows again with --repair"

_ASIDE = re.compile(r"\.(torn|damaged|old)-\d+$")

Row = Mapping[str, Any]
Key = tuple[str, int, str, float | str | None]
"""What a row is about: the problem's id, the number of the sample, policy and tau."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A line of results.jsonl, counted from 1, that is not what was written, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What a run folder holds: run.json (None if there is none), and all rows in the order in which they were written."""

    run: dict[str, Any] | None
    rows: list[dict[str, Any]]


def key_of(row: Row) -> Key:
    """What the row is about. A later row of the same key replaces an earlier one."""
    return row["id"], row["sample"], row["policy"], row["tau"]


def latest(rows: Iterable[Row]) -> list[Row]:
    """The row that counts for each key, in the order in which the keys first came."""
    return list({key_of(row): row for row in rows}.values())


def read_run_folder(folder: Path, kind: str = BENCH) -> Contents:
    """What a folder holds, for who only looks: nothing is changed, and a run may be writing to it meanwhile.

    UsageError if there is no run of this kind in it, DamagedRunError if it was damaged.
    """
    with _explained(folder, "cannot be read", f"name the folder of a run, as arbitrage {kind} makes them below runs/"):
        if not (folder / RUN).exists() and not _read_bytes(folder / RESULTS):
            raise UsageError(f"{folder}: there is no run in this folder", f"arbitrage {kind} makes them, below runs/")
        run = _read_run(folder)
        _check_kind(folder, run, kind)
        lines, _ = _lines(_read_bytes(folder / RESULTS))
    rows, damages = _parse(lines)
    _refuse(folder, damages)
    return Contents(run, rows)


def is_file_of(folder: Path, path: Path) -> bool:
    """Whether a path is that of a file that a run keeps in its folder, be it there or not. Some systems know no capitals."""
    name = _ASIDE.sub("", path.name.casefold())
    return name in (RUN, RESULTS, LOCK) and path.parent.resolve() == folder.resolve()


def encode(content: Row) -> bytes:
    """A JSON object with its checksum as one line: ASCII, no NaN, and the same bytes for the same content."""
    return _canonical({**content, "checksum": _checksum(content)}) + b"\n"


class RunFolder:
    """A run folder of which this process is the only writer, until it is closed.

    `path` is the folder, `run` and `rows` are what it holds; `notes` tell of what was set aside to make it whole.
    """

    def __init__(self, folder: Path, *, kind: str = BENCH, fresh: bool = False, repair: bool = False) -> None:
        """Make the folder if need be, lock it, and read what it holds.

        `fresh` sets aside what is there and begins anew; `repair` takes damaged lines out. UsageError if it cannot be
        written to, another process does, or it holds a run of another kind; DamagedRunError.
        """
        self.path = folder
        self._kind = kind
        self._results = folder / RESULTS
        self._descriptor: int | None = None
        self._again = "the same command without --fresh" if fresh else "the same command"
        self.notes: list[str] = []
        self.run: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        with _explained(folder):
            self._made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock(folder)
            try:
                if fresh:
                    self._set_all_aside()
                self._read(repair=repair)
                self._open_results()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder back. One that was made for a run that never began is taken away again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._lock is None:
            return
        if self._made and self.run is None and not self.rows:
            with suppress(OSError):
                self._results.unlink(missing_ok=True)
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def save_run(self, run: Mapping[str, Any]) -> None:
        """Write run.json, whole or not at all. OutputError if it cannot be."""
        content = {key: value for key, value in run.items() if key != "checksum"}
        if self.run == content:
            return
        text = json.dumps({**content, "checksum": _checksum(content)}, indent=1, ensure_ascii=True, allow_nan=False)
        with _while_writing(self.path / RUN, self._again):
            write_atomically(self.path / RUN, text.encode() + b"\n")
        self.run = content

    def append(self, row: Row) -> None:
        """Add a row; when this returns it is on the disk. After an OutputError it is not there, and nothing may follow."""
        if self._descriptor is None:
            raise OutputError(f"{self._results}: an earlier row could not be written", f"{self._again} goes on from there")
        line = encode(row)
        begins = os.fstat(self._descriptor).st_size
        try:
            with _while_writing(self._results, self._again):
                write_all(self._descriptor, line)
                os.fsync(self._descriptor)
        except OutputError:
            self._give_up(begins)
            raise
        self.rows.append(dict(row))

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Put other rows in the place of all there are, at once."""
        with _while_writing(self._results, self._again):
            write_atomically(self._results, b"".join(map(encode, rows)))
            self._open_results()
        self.rows = [dict(row) for row in rows]

    def _give_up(self, begins: int) -> None:
        """After a write that failed, leave no part of the row; after a sync that failed, not even all of it.

        A second sync could succeed without writing what the first could not: so nothing is tried again.
        """
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, begins)
            os.close(self._descriptor)
            self._descriptor = None

    # --- opening

    def _set_all_aside(self) -> None:
        """The rows first: without them, run.json alone would only be a run that never got far."""
        for path in (self._results, self.path / RUN):
            if path.exists():
                aside = _free_name(path, "old")
                path.replace(aside)
                self.notes.append(f"{path} was set aside as {aside.name}")
        sync_folder(self.path)

    def _read(self, *, repair: bool) -> None:
        data = _read_bytes(self._results)
        self.run = _read_run(self.path) if data or (self.path / RUN).exists() else None
        _check_kind(self.path, self.run, self._kind)
        lines, tail = _lines(data)
        self.rows, damages = _parse(lines)
        if not repair:
            _refuse(self.path, damages)
        if tail:
            self._set_tail_aside(tail, len(data) - len(tail))
        if damages:
            aside = _free_name(self._results, "damaged")
            write_atomically(aside, b"".join(lines[damage.line - 1] + b"\n" for damage in damages))
            write_atomically(self._results, b"".join(map(encode, self.rows)))
            where = ", ".join(str(damage.line) for damage in damages)
            self.notes.append(f"{self._results}: damaged lines were moved to {aside.name} (line {where})")

    def _set_tail_aside(self, tail: bytes, length: int) -> None:
        """Keep what was begun of a last row, and cut the file back to its last whole one."""
        aside = _free_name(self._results, "torn")
        write_atomically(aside, tail)
        descriptor = os.open(self._results, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.notes.append(f"{self._results}: an unfinished last row was moved to {aside.name}")

    def _open_results(self) -> None:
        """Open the file to be added to. What is in it is on the disk from here on: the last writer may have been killed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._descriptor = os.open(self._results, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.fsync(self._descriptor)
        sync_folder(self.path)


# --- text


def _canonical(content: Row) -> bytes:
    return json.dumps(content, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def _checksum(content: Row) -> str:
    return f"{zlib.crc32(_canonical(content)):08x}"


def _lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and what comes after the last line feed. Other line ends stand in texts, and end nothing."""
    *lines, tail = data.split(b"\n")
    return lines, tail


def _parse(lines: Sequence[bytes]) -> tuple[list[dict[str, Any]], list[Damage]]:
    """The rows, and the lines that are none."""
    rows: list[dict[str, Any]] = []
    damages: list[Damage] = []
    done: dict[Key, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = _decode(line)
            first = done.get(key_of(row))
            if first is not None:
                raise ValueError(f"it repeats what line {first} has")
            if row["status"] not in ("done", "error"):
                raise ValueError(f"its status is neither done nor error but {row['status']!r}")
            if row["status"] == "done":
                done[key_of(row)] = number
        except KeyError as error:
            damages.append(Damage(number, f"it has no {error}"))
        except (ValueError, RecursionError, TypeError) as error:
            reason = "not valid JSON" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)
            damages.append(Damage(number, reason))
        else:
            rows.append(row)
    return rows, damages


def _decode(line: bytes) -> dict[str, Any]:
    """A line as it was written; ValueError, with the reason, if it was not written so."""
    try:
        content = json.loads(line.decode("ascii"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not ASCII") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    content.pop("checksum", None)
    if encode(content) != line + b"\n":
        raise ValueError("its checksum is another one: the line was changed after it was written")
    if content.get("schema") != SCHEMA:
        raise UsageError(
            f"{RESULTS}: rows of schema {content.get('schema')}; this version of arbitrage knows schema {SCHEMA}",
            "read it with the version that wrote it",
        )
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(folder: Path, damages: Sequence[Damage]) -> None:
    if not damages:
        return
    more = f" ({len(damages) - 1} more damaged lines)" if len(damages) > 1 else ""
    raise DamagedRunError(f"{folder / RESULTS}: line {damages[0].line}: {damages[0].reason}{more}", REPAIR_HINT)


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / RUN
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DamagedRunError(
            f"{path} is missing, and {RESULTS} has rows: what they were made with is not known",
            "restore it from a copy, or begin anew: the command that made them, with --fresh, sets the rows aside",
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged_run(path, "it is not valid JSON") from error
    if not isinstance(content, dict):
        raise _damaged_run(path, "it is not a JSON object")
    if content.pop("checksum", None) != _checksum(content):
        raise _damaged_run(path, "its checksum is another one: it was changed after it was written")
    if content.get("schema") != SCHEMA:
        raise UsageError(
            f"{path}: schema {content.get('schema')}; this version of arbitrage knows schema {SCHEMA}",
            "read it with the version that wrote it",
        )
    return content


def _check_kind(folder: Path, run: Mapping[str, Any] | None, wanted: str) -> None:
    kind = wanted if run is None else run.get("kind", BENCH)
    if kind != wanted:
        raise UsageError(
            f"{folder}: this is a run of arbitrage {kind}, not of arbitrage {wanted}",
            f"give one that arbitrage {wanted} made",
        )


def _damaged_run(path: Path, reason: str) -> DamagedRunError:
    return DamagedRunError(
        f"{path}: line 1: {reason}",
        "restore it from a copy, or begin anew: the command that made the run, with --fresh, sets what is there aside",
    )


# --- files


def _lock(folder: Path) -> int:
    """The descriptor that holds the lock: the system frees it with the process. UsageError if another process has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            f"{folder}: another process is writing to this run", "wait for it, or give this one its own folder: --output"
        ) from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _free_name(path: Path, what: str) -> Path:
    """`results.jsonl.torn-1`, or the first number after it that is not taken."""
    number = 1
    while path.with_name(f"{path.name}.{what}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{what}-{number}")


@contextmanager
def _explained(
    folder: Path, what: str = "this folder cannot be used for a run", hint: str = "give another one: --output FOLDER"
) -> Iterator[None]:
    """What the system says of a folder that cannot be used, before anything was done: a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder}: {what} ({error.strerror or error})", hint) from error


@contextmanager
def _while_writing(path: Path, again: str) -> Iterator[None]:
    """An OutputError that says what goes on: `again`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error})",
            f"the rows before it are safe: when there is room, {again} goes on from there",
        ) from error

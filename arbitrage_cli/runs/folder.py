"""Reads and writes run folders, in which `run.json` describes the run and `results.jsonl` has one row for each attempt.

Once `append` returns, the row survives a killed process and a power failure. Damaged rows are skipped with a warning. When a
folder is opened for writing, they are moved to another file, so that their attempts are repeated. An unfinished last line is
skipped without a warning by readers, because another process may still be writing it. Each row has the identity of its run, so
rows of another run, whose file was copied or whose run.json was replaced, are refused. For `solve -o FILE`, the rows are in
FILE, and the other files are in FILE.run.

    run.json                   replaced atomically; written before the first row
    results.jsonl              one row per line, append-only; replaced as a whole by --regrade
    results.jsonl.torn-N       damaged lines
    *.old-N                    files replaced by a fresh start
    started.jsonl              problems in progress, now or when a process died
    lock                       locked while a process writes to the folder
"""

import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from arbitrage_cli.errors import ArbitrageError, DamagedRunError, OutputError, UsageError, os_errors
from arbitrage_cli.numbers.formatting import count
from arbitrage_cli.runs.records import ADVISE, BENCH, RUN_SCHEMA, SOLVE, AttemptKey, Command, Kind, to_json
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.started import StartedMarks
from arbitrage_cli.system.files import (
    file_lock,
    make_folder,
    open_regular,
    read_regular,
    remove_unfinished,
    sync_folder,
    write_all,
    write_atomically,
)
from arbitrage_cli.types import Fields, Json, frozen

if TYPE_CHECKING:  # slow to import
    from filelock import FileLock

    from arbitrage_cli.runs.rows import Row
    from arbitrage_cli.runs.run import Run

RUN, RESULTS, STARTED, LOCK = "run.json", "results.jsonl", "started.jsonl", "lock"
NEW_RUN = "run.json.new"
MAX_RESULTS = 1 << 34  # bytes
MAX_LINE = 1 << 26

_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_ELSEWHERE = "use another --output"
_RESTORE = f"restore it from a backup, or {_ELSEWHERE}"
_START_AGAIN = (
    "restore it from a backup, or rerun the command that created the run with --fresh, which renames the old files"
)

R = TypeVar("R", bound="Row")

log = logging.getLogger("arbitrage.runs")


class BadRow(NamedTuple):
    """An invalid line with its 1-based number. The reason is empty for an unfinished line."""

    number: int
    line: bytes
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason or 'unfinished'}"


@frozen
class Contents:
    """The contents of run.json, and the file of rows. Each access to `rows` reads and validates them again."""

    run: "Run"
    path: Path

    @property
    def rows(self) -> Iterator[Any]:
        """The valid rows. Raises DamagedRunError if a line is too long, or belongs to another run."""
        bad = list[BadRow]()
        with os_errors(UsageError, f"{self.path}: cannot be read", "restore it from a backup"):
            for row in _validated(self.path, self.run):
                if not isinstance(row, BadRow):
                    yield row
                elif row.reason:
                    bad.append(row)
        if bad:
            log.warning("%s: %s; skipped", self.path, _listed(bad))

    @property
    def results(self) -> Iterator[Result]:
        """The results of the rows of a benchmark."""
        return map(Result.of, self.rows)


def run_to_resume(folder: Path, command: Command, results: Path | None = None) -> "Run | None":
    """Return the run that a command would resume, or None if the folder has no rows. `results` is as in `RunFolder`.

    Raises the same errors as `RunFolder`, and UsageError if the run is one of another command.
    """
    rows = results or folder / RESULTS
    with os_errors(UsageError, f"{results or folder}: cannot be used for a run", _ELSEWHERE):
        _refuse_links(folder, rows, folder / RUN)
        if not (rows.is_file() and rows.stat().st_size and (folder / RUN).exists()):
            return None
        run = _read_run(folder, BENCH if command == ADVISE else command)
    if run.command != command:
        raise _of_another_command(folder, command, run)
    return run


def file_to_resume(path: Path) -> "Run | None":
    """Return the run that wrote a file of results, or None if the file names no run. Raises the same errors as `RunFolder`."""
    return run_to_resume(folder_beside(path), SOLVE, path) if path.is_file() else None


def folder_beside(path: Path) -> Path:
    """Return the run folder of a file of results."""
    return path.with_name(f"{path.name}.run")


def has_run(folder: Path) -> bool:
    """Return whether a folder contains a run or parts of a run."""
    return any((folder / name).exists() for name in (RUN, RESULTS))


def read_run_folder(folder: Path, kind: str | None = BENCH) -> Contents:
    """Return the contents of a run folder. `kind` is None for a run of any kind.

    Raises UsageError if the folder contains no run, or a run of another kind; DamagedRunError if run.json is damaged.
    """
    hint = f"use a run folder; arbitrage {kind or BENCH} creates run folders in runs/"
    with os_errors(UsageError, f"{folder}: cannot be read", hint):
        _refuse_links(folder / RESULTS, folder / RUN)
        if not has_run(folder):
            raise UsageError(f"{folder}: contains no run", hint)
        return Contents(_read_run(folder, kind), folder / RESULTS)


def list_runs(folder: Path) -> list[Json]:
    """Return a record for each run of `bench` directly below `folder`, newest first.

    Raises UsageError if the folder is unreadable.
    """
    with os_errors(UsageError, f"{folder}: cannot be read", "use another folder"):
        found = [path for path in folder.iterdir() if has_run(path)] if folder.is_dir() else []
    return sorted(filter(None, map(_listing_record, found)), key=lambda record: record["age_seconds"])


def _listing_record(folder: Path) -> Json | None:
    """Return the record of a run of `bench`, or None for a run of another command."""
    newest = max((folder / name).stat().st_mtime for name in (RUN, RESULTS) if (folder / name).exists())
    record: Json = {"folder": str(folder), "age_seconds": max(0, round(time.time() - newest))}
    try:
        contents = read_run_folder(folder, None)
        run = contents.run
        if run.command != BENCH:
            return None
        statuses = {row.key: row.status for row in contents.rows}
    except ArbitrageError as error:
        return record | {"error": error.message}
    return record | {
        "dataset": run.dataset and run.dataset.name,
        "models": ", ".join(run.decided.names.values()),
        "policies": ", ".join(route.label for route in run.routes),
        "done": [*statuses.values()].count("done"),
        "planned": len(run.levels) * run.samples * len(run.routes),
    }


def encode(content: Fields) -> bytes:
    return to_json(content, separators=(",", ":")).encode() + b"\n"


class RunFolder(AbstractContextManager["RunFolder"]):
    """A run folder, locked for writing by this process until it is closed.

    `run` is run.json, or None in a new run. `statuses` maps each key to the status of its last row. `shown` is the path that
    the user gave: the folder, or the file with the rows.
    """

    def __init__(self, folder: Path, *, kind: Kind = BENCH, fresh: bool = False, results: Path | None = None) -> None:
        """Create or open the folder, lock it, and move damaged lines to another file.

        If `fresh` is true, `save_run` instead moves all existing files out of the way. `results` is the file with the rows, if
        it is not in the folder. Raises UsageError if the folder cannot be written to, is locked by another process, or
        contains a run of another kind; DamagedRunError if run.json is damaged.
        """
        self.path = folder
        self.shown = results or folder
        self.kind = kind
        self._results = results or folder / RESULTS
        self._descriptor: int | None = None
        self.started = StartedMarks(folder / STARTED)
        self._is_fresh = fresh
        self._again = "the same command without --fresh" if fresh else "the same command"
        self.run: Run | None = None
        self.statuses: dict[AttemptKey, str] = {}
        with os_errors(UsageError, f"{self.shown}: cannot be used for a run", _ELSEWHERE):
            _refuse_links(folder, self._results, folder / RUN, folder / STARTED)
            self._is_new = not (folder.exists() or self._results.exists())
            make_folder(folder)
            self._lock = _lock(folder)
            try:
                remove_unfinished(self._results, folder / RUN, folder / NEW_RUN, _free_name(self._results, "torn"))
                (folder / NEW_RUN).unlink(missing_ok=True)
                if not fresh:
                    self._open()
            except BaseException:
                self.close()
                raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the folder. If the folder was created for a run that never began, remove the folder."""
        self._close_results()
        if not self._lock.is_locked:
            return
        self.started.close()
        if self._is_new and self.run is None:
            with suppress(OSError):
                self._results.unlink(missing_ok=True)
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.release()

    @property
    def resumed(self) -> "Run | None":
        """The run to resume, or None if it has no rows yet."""
        return self.run if self.statuses else None

    @property
    def rows(self) -> Iterator[Any]:
        return Contents(self.run, self._results).rows if self.run else iter(())

    def save_run(self, run: "Run") -> None:
        if self.run == run:
            return
        data = to_json(run.to_dict(), indent=1).encode() + b"\n"
        with self._writing(self.path / RUN):
            if self._is_fresh and self.run is None:  # the old run is kept until a new run begins
                self._replace_run(data)
            else:
                write_atomically(self.path / RUN, data)
        self.run = run

    def _replace_run(self, data: bytes) -> None:
        write_atomically(self.path / NEW_RUN, data)  # first, because the disk may be full
        for old in (self._results, self.path / RUN):  # results.jsonl first: run.json alone is a valid run
            if old.exists():
                old.replace(_free_name(old, "old"))
        (self.path / STARTED).unlink(missing_ok=True)
        (self.path / NEW_RUN).replace(self.path / RUN)
        self._open_results()

    def append(self, row: R) -> R:
        """Add a row with the identity of the run, sync it to disk, and return it.

        Raises OutputError, without adding the row, if this or an earlier write fails.
        """
        row = self._of_this_run(row)
        if self._descriptor is None:
            raise OutputError(f"{self._results}: an earlier row could not be written", f"rerun {self._again} to resume")
        start = os.fstat(self._descriptor).st_size
        try:
            with self._writing(self._results):
                write_all(self._descriptor, encode(row.to_dict()))
                os.fsync(self._descriptor)
        except OutputError:
            # A second sync may succeed without writing the data that the first one lost, so the row is removed.
            with suppress(OSError):
                os.ftruncate(self._descriptor, start)
            self._close_results()
            raise
        self.statuses[row.key] = row.status
        return row

    def rewrite(self, rows: "Iterable[Row]") -> None:
        with self._writing(self._results):
            write_atomically(self._results, b"".join(encode(self._of_this_run(row).to_dict()) for row in rows))
            self._open_results()

    def _of_this_run(self, row: R) -> R:
        return row.model_copy(update={"run": self.run.id}) if self.run else row

    def _open(self) -> None:
        has_rows = self._results.exists() and self._results.stat().st_size
        if has_rows or (self.path / RUN).exists():
            self.run = _read_run(self.path, self.kind)
            self._set_damage_aside(self.run)
        self.started.load()
        if crashes := self.started.crashes:
            num = count(len(crashes), "problem")
            log.warning("llama.cpp crashed while solving %s; the remaining attempts run last, one at a time", num)
        self._open_results()

    def _set_damage_aside(self, run: "Run") -> None:
        bad = list[BadRow]()
        for row in _validated(self._results, run):
            if isinstance(row, BadRow):
                bad.append(row)
            else:
                self.statuses[row.key] = row.status
        if bad:
            aside = _free_name(self._results, "torn")
            numbers = {row.number for row in bad}
            write_atomically(aside, b"".join(row.line for row in bad))
            lines = enumerate(_lines(self._results), start=1)
            write_atomically(self._results, b"".join(line for number, line in lines if number not in numbers))
            log.warning("%s: %s; moved to %s; the attempts will be repeated", self._results, _listed(bad), aside.name)

    def _open_results(self) -> None:
        self._close_results()
        self._descriptor = os.open(self._results, _APPEND, 0o666)
        os.fsync(self._descriptor)  # an earlier writer may have been killed before it synced its rows
        sync_folder(self._results.parent)

    def _writing(self, path: Path) -> AbstractContextManager[None]:
        hint = f"earlier rows are safe: free disk space, then rerun {self._again} to resume"
        return os_errors(OutputError, f"{path}: cannot be written", hint)

    def _close_results(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _lines(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), open_regular(path, MAX_RESULTS) as stream:
        for number, line in enumerate(iter(partial(stream.readline, MAX_LINE), b""), start=1):
            if len(line) == MAX_LINE:
                raise DamagedRunError(f"{path}: line {number}: more than {MAX_LINE >> 20} MiB", _RESTORE)
            yield line


def _validated(path: Path, run: "Run") -> "Iterator[Row | BadRow]":
    """Yield the rows. Rows of problems or policies that are not part of the run are invalid.

    Raises DamagedRunError if a row belongs to another run.
    """
    from arbitrage_cli.runs.rows import read_row  # slow to import

    done: set[AttemptKey] = set()
    policies = {(route.policy, route.tau) for route in run.decided.routes}
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            yield BadRow(number, line, "contains NUL characters" if b"\0" in line else "")
            return
        try:
            row = read_row(line, run.kind)
            if row.run != run.id:
                raise _of_another_run(path, number, run)
            if row.key in done:
                raise ValueError("repeats an earlier row")
            is_input = run.kind == SOLVE  # whose problems run.json does not have; an invalid line has no policy
            if not (is_input or row.id in run.levels) or not (row.policy is None or (row.policy, row.tau) in policies):
                raise ValueError("its problem or policy is not in run.json")
        except ValueError as error:
            yield BadRow(number, line, str(error))
            continue
        if row.status == "done":
            done.add(row.key)
        yield row


def _listed(bad: Sequence[BadRow]) -> str:
    return "; ".join([*map(str, bad[:3]), *([f"{len(bad) - 3} more"] if len(bad) > 3 else [])])


def _read_run(folder: Path, kind: str | None) -> "Run":
    from arbitrage_cli.runs.run import read_run  # slow to import

    path = folder / RUN
    results = folder / RESULTS
    hint = _RESTORE if kind == SOLVE else _START_AGAIN
    try:
        data = read_regular(path)
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        if (schema := found.get("schema")) != RUN_SCHEMA:
            older = f"schema {schema} is not supported, expected {RUN_SCHEMA}"
            raise UsageError(f"{path}: {older}", "read it with the version of arbitrage that wrote it, or use another path")
        run = read_run(data)
    except FileNotFoundError as error:
        if results.exists() and not results.stat().st_size:
            raise UsageError(f"{folder}: the run has not started", "wait until it starts, or repeat its command") from error
        raise DamagedRunError(f"{path} is missing, but {RESULTS} contains rows", hint) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})", _RESTORE) from error
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path}: {error}", hint) from error
    if kind and run.kind != kind:
        raise _of_another_command(folder, kind, run)
    return run


def _of_another_run(path: Path, number: int, run: "Run") -> DamagedRunError:
    hint = _RESTORE if run.kind == SOLVE else _START_AGAIN
    return DamagedRunError(f"{path}: line {number} belongs to another run than {RUN}", hint)


def _of_another_command(folder: Path, expected: str, run: "Run") -> UsageError:
    return UsageError(
        f"{folder}: expected a run of arbitrage {expected}, found a run of arbitrage {run.command}",
        f"use a run of arbitrage {expected}, or another folder",
    )


def _lock(folder: Path) -> "FileLock":
    lock = file_lock(folder / LOCK)
    try:
        lock.acquire()
    except TimeoutError as error:
        hint = f"wait until it ends, or {_ELSEWHERE}"
        raise UsageError(f"{folder}: another process is writing to this run", hint) from error
    return lock


def _refuse_links(*paths: Path) -> None:
    """Raise UsageError if a path is a symbolic link, because writing would change a file elsewhere."""
    for path in paths:
        if path.is_symlink():
            raise UsageError(f"{path}: symbolic links are not supported", _ELSEWHERE)


def _free_name(path: Path, suffix: str) -> Path:
    names = (path.with_name(f"{path.name}.{suffix}-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))

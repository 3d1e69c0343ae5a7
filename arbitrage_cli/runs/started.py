"""Records the problems in progress on disk, to identify problems that crash the process.

Marks are not synced to disk, because they must survive a crash of the process but not a crash of the machine. If the process
crashes, for example in llama.cpp, Python's `faulthandler` appends a record. The crash is counted for every problem in
progress. If a process is killed from outside, for example by the out-of-memory killer, its problems are not suspected.
"""

import faulthandler
import json
import os
from contextlib import suppress
from pathlib import Path

from arbitrage_cli.errors import OutputError, os_errors
from arbitrage_cli.system.files import read_regular, write_all

MAX_CRASHES = 3  # the number of crashes after which a command does not retry a problem

_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND | os.O_CREAT
_CRASH = b"Fatal Python error"


class StartedMarks:
    """A file of marks that only this process writes. All methods raise OutputError if writing fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.crashes: dict[str, int] = {}
        """The number of crashes for each problem that was in progress when llama.cpp crashed."""
        self._in_flight: set[str] = set()
        self._descriptor: int | None = None

    def load(self) -> None:
        self.crashes = _read(self._path)

    def begin(self, problem: str) -> None:
        self._in_flight.add(problem)
        self._write(problem, self.crashes.get(problem, 0), runs=True)

    def end(self, problem: str) -> None:
        """Remove the mark of a problem whose row was written. The next command retries an abandoned problem once."""
        if problem in self._in_flight:
            self._in_flight.remove(problem)
            self.crashes.pop(problem, None)
            self._write(problem, None)
        elif self.crashes.get(problem, 0) >= MAX_CRASHES:
            self.crashes[problem] = MAX_CRASHES - 1
            self._write(problem, MAX_CRASHES - 1)

    def close(self) -> None:
        with suppress(OSError):
            if self._descriptor is not None:
                faulthandler.disable()
                self._rewrite(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None
            if not self.crashes:
                self._path.unlink(missing_ok=True)

    def _write(self, problem: str, count: int | None, *, runs: bool = False) -> None:
        hint = "earlier results are safe: free disk space, then rerun the same command to resume"
        with os_errors(OutputError, f"{self._path}: cannot be written", hint):
            if self._descriptor is None:
                self._descriptor = os.open(self._path, _WRITE, 0o666)
                self._rewrite(self._descriptor)
                faulthandler.enable(self._descriptor, all_threads=False)
            write_all(self._descriptor, _line(problem, count, runs))

    def _rewrite(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        write_all(descriptor, b"".join(_line(problem, count) for problem, count in self.crashes.items()))


def _line(problem: str, count: int | None, runs: bool = False) -> bytes:
    """Return a mark: a problem, its number of earlier crashes (None resets the number), and whether it is in progress."""
    return json.dumps([problem, count, runs]).encode() + b"\n"


def _read(path: Path) -> dict[str, int]:
    """Return the number of crashes for each problem that had one. If a mark is lost, at most one more crash occurs."""
    crashes: dict[str, int | None] = {}
    in_flight: set[str] = set()
    try:
        lines = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return {}
    for line in lines:
        if line.startswith(_CRASH):
            crashes |= {problem: (crashes[problem] or 0) + 1 for problem in in_flight}
            in_flight.clear()
        try:
            match json.loads(line):
                case [str(problem), int() | None as count, bool(runs)]:
                    (in_flight.add if runs else in_flight.discard)(problem)
                    crashes[problem] = count
        except (ValueError, RecursionError):
            continue
    return {problem: count for problem, count in crashes.items() if count}

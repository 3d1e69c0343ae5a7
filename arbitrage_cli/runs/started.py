"""Which problems were being solved when a process died: a mark on disk before each begins, taken back when it ends.

A mark is written and not synced: it must survive the process, not the machine. A crash (a segmentation fault, an abort in
llama.cpp) is recorded behind the marks by Python's `faulthandler`, and counted against the problems in flight. A process that
is killed from outside, for memory too, leaves no record: nothing is counted.
"""

import faulthandler
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.errors import OutputError
from arbitrage_cli.system.files import read_regular, write_all

GIVEN_UP = 3
"""Crashes after which a problem is not tried again by the same command."""

_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND | os.O_CREAT
_CRASH = b"Fatal Python error"


class StartedMarks:
    """The marks in one file, which this process alone writes. OutputError if that fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._crashes: dict[str, int] = {}
        self._in_flight: set[str] = set()
        self._descriptor: int | None = None

    def load(self) -> None:
        """Read what earlier processes have left."""
        self._crashes = _read(self._path)

    @property
    def crashes(self) -> Mapping[str, int]:
        """The problems at which a process died, by id, each with the number of crashes: 0 if it was only killed."""
        return MappingProxyType(self._crashes)

    def begin(self, problem: str) -> None:
        """The problem is about to be solved."""
        self._in_flight.add(problem)
        self._write("began", problem, self._crashes.get(problem, 0))

    def end(self, problem: str) -> None:
        """The problem has its row: of its solution, or because it was given up; then one more crash will do."""
        if problem in self._in_flight:
            self._in_flight.remove(problem)
            self._crashes.pop(problem, None)
            self._write("ended", problem, 0)
        elif self._crashes.get(problem, 0) >= GIVEN_UP:
            self._crashes[problem] = GIVEN_UP - 1
            self._write("known", problem, GIVEN_UP - 1)

    def leave(self, problem: str) -> None:
        """The problem is not being solved any more, and has no row yet: its crashes still count."""
        self._in_flight.discard(problem)
        if problem in self._crashes:
            self._write("known", problem, self._crashes[problem])
        else:
            self._write("ended", problem, 0)

    def close(self) -> None:
        """An orderly end: what was in flight did no harm."""
        with suppress(OSError):
            if self._descriptor is not None:
                faulthandler.disable()
                self._rewrite(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None
            if not self._crashes:
                self._path.unlink(missing_ok=True)

    def _write(self, what: str, problem: str, count: int) -> None:
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, _WRITE, 0o666)
                self._rewrite(self._descriptor)
                faulthandler.enable(self._descriptor, all_threads=False)
            write_all(self._descriptor, _line(what, problem, count))
        except OSError as error:
            hint = "what was written before is safe: when there is room, the same command goes on from there"
            raise OutputError(f"{self._path}: cannot be written ({error.strerror or error})", hint) from error

    def _rewrite(self, descriptor: int) -> None:
        """Leave only what is known of earlier processes."""
        os.ftruncate(descriptor, 0)
        write_all(descriptor, b"".join(_line("known", problem, count) for problem, count in self._crashes.items()))


def _line(what: str, problem: str, count: int) -> bytes:
    return json.dumps([what, problem, count]).encode() + b"\n"


def _read(path: Path) -> dict[str, int]:
    """The crashes of each problem at which a process died. Lines of other text are left out: they cost another crash, no row."""
    crashes: dict[str, int] = {}
    in_flight: set[str] = set()
    try:
        lines = read_regular(path).split(b"\n")
    except FileNotFoundError:
        return {}
    for line in lines:
        if line.startswith(_CRASH):
            crashes |= {problem: crashes[problem] + 1 for problem in in_flight}
            in_flight.clear()
        try:
            match json.loads(line):
                case ["ended", str(problem), int()]:
                    in_flight.discard(problem)
                    crashes.pop(problem, None)
                case ["known", str(problem), int(count)]:
                    in_flight.discard(problem)
                    crashes[problem] = count
                case ["began", str(problem), int(count)]:
                    in_flight.add(problem)
                    crashes[problem] = count
        except (ValueError, RecursionError):
            continue
    return crashes

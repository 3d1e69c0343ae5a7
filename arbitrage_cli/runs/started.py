"""Which problems were being solved when a process died: a mark on disk before each begins, taken back when it ends.

A mark is written and not synced: it must survive the process, not the machine. A line says how many processes have died, or
will have if this one does, while they solved a problem; a later line replaces it. Knows no row, and no reason.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.system.files import write_all

GIVEN_UP = 2
"""Deaths after which a problem is not tried again by the same command."""

_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND | os.O_CREAT


class StartedMarks:
    """The marks in one file, which this process alone writes. OSError if that fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._deaths: dict[str, int] = {}
        self._in_flight: set[str] = set()
        self._descriptor: int | None = None

    def load(self) -> None:
        """Read what earlier processes have left."""
        self._deaths = _read(self._path)

    @property
    def deaths(self) -> Mapping[str, int]:
        """How many processes have died while they solved a problem, by its id; none that is 0."""
        return MappingProxyType(self._deaths)

    def begin(self, problem: str) -> None:
        """The problem is about to be solved."""
        self._in_flight.add(problem)
        self._write(problem, self._deaths.get(problem, 0) + 1)

    def end(self, problem: str) -> None:
        """The problem has its row: of its solution, or because it was given up; then one more death will do."""
        if problem in self._in_flight:
            self._in_flight.remove(problem)
            self._deaths.pop(problem, None)
            self._write(problem, 0)
        elif self._deaths.get(problem, 0) >= GIVEN_UP:
            self._deaths[problem] = GIVEN_UP - 1
            self._write(problem, GIVEN_UP - 1)

    def close(self) -> None:
        """An orderly end: what was in flight did no harm."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            for problem, count in self._deaths.items():
                self._write(problem, count)
            os.close(self._descriptor)
            self._descriptor = None
        if not self._deaths:
            self._path.unlink(missing_ok=True)

    def _write(self, problem: str, count: int) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, _WRITE, 0o666)
        write_all(self._descriptor, json.dumps([count, problem]).encode() + b"\n")


def _read(path: Path) -> dict[str, int]:
    """The counts that are not 0. A line that is none is left out: it costs another death, and no row."""
    counts: dict[str, int] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            match json.loads(line):
                case [int(count), str(problem)]:
                    counts[problem] = count
        except (ValueError, RecursionError):
            continue
    return {problem: count for problem, count in counts.items() if count}

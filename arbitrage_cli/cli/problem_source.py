"""Where the problems of a command come from: an argument, a file, or standard input. Knows no model."""

import contextlib
import itertools
import os
import stat
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from arbitrage_cli.cli.arrivals import Arrivals
from arbitrage_cli.data.problems import BadLine, make_problem, read_problems
from arbitrage_cli.display.protocol import Display
from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Problem

MAX_BAD_LINES = 20
"""If none of so many first lines can be used, it is no file of problems."""


class Problems:
    """Where the problems come from: the command line, a file, or standard input. Counts those that could not be used.

    `is_single`: it is the one of the command line. `ended`: there are no more.
    """

    def __init__(self, problem: str | None, input_file: str | None, stack: contextlib.ExitStack) -> None:
        """Open the source. UsageError if there is none, or two, or it cannot be read."""
        if problem is not None and input_file is not None:
            raise UsageError("a problem and --input were both given", "give one of them")
        self.num_unusable = 0
        self.ended = False
        self._ahead: deque[Problem] = deque()
        self._usable: Iterator[Problem] = iter(())
        self.is_single = problem not in (None, "-")
        self._arrivals: Arrivals | None = None
        self._rows: Iterator[Problem | BadLine]
        if problem is not None and self.is_single:
            self._rows = iter([_from_argument(problem)])
        else:
            self._name = input_file or "standard input"
            self._arrivals = Arrivals(_open_input(input_file if problem is None else "-", stack))
            self._rows = read_problems(self._arrivals)

    def look_ahead(self, display: Display, most: int) -> int:
        """Read the first problem, and those after it that need not be waited for, `most` at most; returns how many.

        `display` shows lines that cannot be used. UsageError if there is nothing at all.
        """
        self._usable = self._use(display)
        self._ahead += itertools.islice(self._usable, 1)
        while self._ahead and len(self._ahead) < most and not self.ended and self._has_arrived():
            self._ahead += itertools.islice(self._usable, 1)
        return len(self._ahead)

    def __iter__(self) -> Iterator[Problem]:
        """The problems that can be used, those that were read ahead first."""
        while self._ahead:
            yield self._ahead.popleft()
        yield from self._usable

    def is_ready(self) -> bool:
        """Whether the next one is there, or the end: if not, getting the next problem means waiting for it."""
        return bool(self._ahead) or self.ended or self._has_arrived()

    @property
    def is_typed(self) -> bool:
        """Whether somebody types them in: they come one by one."""
        return self._arrivals is not None and self._arrivals.is_typed

    def _use(self, display: Display) -> Iterator[Problem]:
        """The problems that can be used; a bad line is reported and skipped."""
        num_rows = 0
        for row in self._readable():
            num_rows += 1
            if isinstance(row, BadLine):
                self.num_unusable += 1
                display.note(f"line {row.number}: {row.reason}; skipped")
                if self.num_unusable == num_rows == MAX_BAD_LINES:
                    raise UsageError(f"{self._name}: none of the first {num_rows} lines can be used", "give text or JSONL")
            else:
                yield row
        self.ended = True
        if not num_rows:
            raise UsageError("there is no problem in the input", "give one problem a line, or JSONL")

    def _has_arrived(self) -> bool:
        with self._explained():
            return self._arrivals is None or self._arrivals.is_ready

    def _readable(self) -> Iterator[Problem | BadLine]:
        with self._explained():
            yield from self._rows

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(f"{self._name}: cannot be read ({error.strerror})", "check where the problems are") from error


def _from_argument(problem: str) -> Problem:
    with contextlib.suppress(OSError, ValueError):  # most problems are no path at all
        if Path(problem).is_file():
            raise UsageError(f"'{problem}' is a file, not a problem", f"did you mean --input {problem}?")
    try:
        return make_problem(problem, "1")
    except ValueError as error:
        raise UsageError(str(error), 'for example: arbitrage solve "What is 23 * 47 - 88?"') from error


def _open_input(name: str | None, stack: contextlib.ExitStack) -> BinaryIO:
    """Standard input is read when asked for with `-`, or when it is a pipe or a file: anything else might never end."""
    if name not in (None, "-"):
        try:
            return stack.enter_context(Path(str(name)).expanduser().open("rb"))
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user; ValueError: a NUL
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"{name}: cannot be read ({reason})", "check the path given to --input") from error
    if sys.stdin is None or (name is None and not _is_pipe_or_file(sys.stdin.buffer)):
        raise UsageError("no problem given", 'give one: arbitrage solve "..."; or several: --input FILE, or a pipe')
    return sys.stdin.buffer


def _is_pipe_or_file(stream: BinaryIO) -> bool:
    mode = os.fstat(stream.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)

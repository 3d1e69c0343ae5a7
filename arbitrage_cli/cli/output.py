"""What commands show and ask: the standard streams, displays, log messages, JSON and tables.

Write errors of standard output become OutputError. Standard error never blocks a run.
"""

import contextlib
import ctypes
import io
import json
import logging
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from arbitrage_cli.app.protocol import Display
from arbitrage_cli.display.display import CommandDisplay, PlainScreen, Screen
from arbitrage_cli.display.text import is_drawable, one_line, show, write, writing
from arbitrage_cli.errors import OutputError, UsageError
from arbitrage_cli.types import frozen

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from arbitrage_cli.evaluation.metrics import RunFigures
    from arbitrage_cli.runs.results import Result
    from arbitrage_cli.runs.run import Run


@frozen
class OutputOptions:
    """The options for the output on standard error."""

    quiet: bool = False
    debug: bool = False


@frozen
class FigureOptions:
    """The options for tables of figures."""

    json_line: bool = False
    price: str | None = None


@contextlib.contextmanager
def command_display(options: OutputOptions) -> Iterator[Display]:
    """Open a command's display, which also shows log messages.

    The display updates live in a terminal. Otherwise, or with `--quiet`, progress is displayed as plain lines.
    """
    with contextlib.closing(_choose_display(options)) as display, _log_to(display, options):
        yield display


def _choose_display(options: OutputOptions) -> Display:
    screen: Screen = PlainScreen(sys.stderr)
    if is_drawable(sys.stderr) and not options.quiet:
        from arbitrage_cli.display.live import LiveScreen  # Rich is slow to import

        screen = LiveScreen(sys.stderr)
    verbosity = 2 if options.debug else 1
    if options.quiet:
        verbosity = 0
    return CommandDisplay(screen, sys.stdout, verbosity=verbosity)


@contextlib.contextmanager
def _log_to(display: Display, options: OutputOptions) -> Iterator[None]:
    shown: set[str] = set()

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (message := record.getMessage()) not in shown:
                shown.add(message)
                display.note(message)

    logger = logging.getLogger("arbitrage")
    handler = Notes(logging.DEBUG if options.debug else logging.WARNING)  # child loggers may pass on records below it
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def say(text: str, options: OutputOptions) -> None:
    """Write a line to standard error unless --quiet is used. Call this function after the display is closed."""
    if not options.quiet:
        show(sys.stderr, one_line(text) + "\n")


def is_confirmed(question: str) -> bool:
    """Ask a question in the terminal, and return whether the answer is yes.

    Outside a terminal, return False without asking.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return False
    show(sys.stderr, f"{one_line(question)} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def figures_of(run: "Run", results: "Iterable[Result]", options: FigureOptions) -> "RunFigures":
    from arbitrage_cli.costs.pair import parse_prices
    from arbitrage_cli.evaluation.metrics import figures  # NumPy is slow to import

    return figures(run, results, prices=parse_prices(options.price) if options.price else None)


def show_figures(run: "Run", results: "Iterable[Result]", options: FigureOptions, *, explains: bool = False) -> None:
    from arbitrage_cli.display import table
    from arbitrage_cli.display.facts import model_facts

    figures = figures_of(run, results, options)
    if options.json_line:
        write_json(figures.to_json())
    else:
        facts = [*model_facts(run), ("machine", run.decided.machine["cpu"])]
        table.write_table(figures, facts, sys.stdout, explains=explains)


def write_json(content: Any) -> None:
    write(sys.stdout, json.dumps(content, ensure_ascii=True, allow_nan=False) + "\n")


# --- the standard streams

PIPE_PATIENCE = 1000
"""Milliseconds to wait if the pipe of standard error is full."""


class Output(io.TextIOWrapper):
    """Standard output. Raises OutputError if the text cannot be written. Characters that cannot be encoded are escaped."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str, /) -> int:
        with writing():
            return super().write(text)

    def flush(self) -> None:
        with writing():
            super().flush()

    def give_back(self) -> None:
        """Detach from the wrapped stream, and drop data that cannot be written."""
        with contextlib.suppress(OutputError, ValueError):
            self.detach()


class ClosedOutput(io.TextIOBase):
    """A standard output that was closed before the program started. It rejects results."""

    def write(self, text: str, /) -> int:
        raise UsageError("standard output is closed", "redirect the results to a file: > FILE")


class NonblockingPipe(io.RawIOBase):
    """Writes standard error to a pipe. Text is dropped if nobody reads the pipe, so that a run never blocks.

    The first write to a full pipe waits up to `PIPE_PATIENCE` milliseconds. If nobody reads the pipe during this time, later
    text is dropped immediately until the pipe is read again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._patience = PIPE_PATIENCE
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: "ReadableBuffer", /) -> int:
        left = bytes(data)
        size = len(left)
        while left:
            if not self._room.poll(self._patience):
                self._patience = 0
                break
            self._patience = PIPE_PATIENCE
            left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]  # PIPE_BUF bytes never block after poll
        return size


def without_blocking(stream: TextIO) -> TextIO:
    """Return a stream that never blocks in place of a pipe or a socket; return any other stream unchanged."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # not a file
        return stream
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return stream
    raw = io.BufferedWriter(NonblockingPipe(stream.fileno()))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True, write_through=True)


def show_cursor() -> None:
    with contextlib.suppress(OSError, ValueError):
        if is_drawable(sys.stderr):
            os.write(sys.stderr.fileno(), b"\x1b[?25h")


@contextlib.contextmanager
def only_figures_on_stdout() -> Iterator[None]:
    """Redirect the standard output of C libraries to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with contextlib.suppress(OSError):  # standard error may be closed
            os.dup2(2, 1)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)

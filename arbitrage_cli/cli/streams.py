"""The standard streams of a command.

Write errors of standard output become OutputError. Standard error never blocks a run.
"""

import contextlib
import ctypes
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from arbitrage_cli.display.text import is_drawable, writing
from arbitrage_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PIPE_PATIENCE = 1000
"""Milliseconds to wait if the pipe of standard error is full."""


@contextlib.contextmanager
def command_streams() -> Iterator[None]:
    """Replace standard output with an `Output`, and standard error with a stream that never blocks.

    A closed stream becomes the null device, so that no other file gets its descriptor. Results that are written to a closed
    standard output are an error. Both streams are flushed at the end. Data that cannot be written is dropped, because Python
    would report an error at exit.
    """
    with contextlib.ExitStack() as stack:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # up to standard error
                pass
            os.close(descriptor)
        if sys.stdout is None:
            stack.callback(setattr, sys, "stdout", None)
            sys.stdout = ClosedOutput()
        elif isinstance(sys.stdout, io.TextIOWrapper):
            stack.callback(setattr, sys, "stdout", sys.stdout)
            sys.stdout = Output(sys.stdout)
            stack.callback(sys.stdout.give_back)
        stack.callback(setattr, sys, "stderr", sys.stderr)
        if sys.stderr is not None:
            sys.stderr = without_blocking(sys.stderr)
        else:
            sys.stderr = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        yield
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError, OutputError):
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())


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

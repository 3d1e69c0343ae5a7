"""Wraps standard output, whose write errors become OutputError, and standard error, which never blocks a run."""

import contextlib
import ctypes
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from arbitrage_cli.display.text import is_drawable, writing
from arbitrage_cli.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE = 1000
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


class Messages(io.RawIOBase):
    """Writes standard error to a pipe. Text is dropped if nobody reads the pipe, so that a run never blocks.

    The first write to a full pipe waits up to `PATIENCE` milliseconds. If nobody reads the pipe during this time, later text is
    dropped immediately until the pipe is read again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._patience = PATIENCE
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
            self._patience = PATIENCE
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
    raw = io.BufferedWriter(Messages(stream.fileno()))
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

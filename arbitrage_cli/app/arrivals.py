"""Lines of a file or a pipe, and whether the next one has arrived: a caller with other work need not wait for it.

Knows nothing of what a line contains. Reads the descriptor directly: a buffered stream does not show what it holds.
"""

import mmap
import os
import select
import stat
from typing import BinaryIO

from arbitrage_cli.errors import UsageError

CHUNK = 1 << 16  # bytes


def count_lines(stream: BinaryIO) -> int | None:
    """Lines from here on that are not blank; None if it is not a regular file. Reads nothing of the stream. OSError."""
    descriptor = stream.fileno()
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    if not status.st_size:
        return 0
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        data.seek(os.lseek(descriptor, 0, os.SEEK_CUR))
        return sum(bool(line.strip()) for line in iter(data.readline, b""))


class Arrivals:
    """Reads lines from a stream that nothing was read from before. `name` is for errors."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._descriptor, self._name = stream.fileno(), name
        self._held = bytearray()
        self._ended = False

    def readline(self, limit: int, /) -> bytes:
        """The next line with its line feed, or as much of it as `limit` allows; empty at the end. Waits for it. UsageError."""
        while not self._ended and b"\n" not in self._held[:limit] and len(self._held) < limit:
            self._receive()
        end = self._held.find(b"\n", 0, limit) + 1 or limit
        line = bytes(self._held[:end])
        del self._held[:end]
        return line

    @property
    def is_typed(self) -> bool:
        """Whether the lines come from a terminal."""
        return os.isatty(self._descriptor)

    @property
    def is_ready(self) -> bool:
        """Whether a line that is not blank, or the end, can be read without waiting. UsageError."""
        while not (self._ended or self._has_line) and select.select([self._descriptor], [], [], 0)[0]:
            self._receive()
        return self._ended or self._has_line

    @property
    def _has_line(self) -> bool:
        return bool(self._held[: self._held.rfind(b"\n") + 1].strip())

    def _receive(self) -> None:
        try:
            data = os.read(self._descriptor, CHUNK)
        except OSError as error:
            raise UsageError(f"{self._name}: cannot be read ({error.strerror})", "check where the problems are") from error
        self._held += data
        self._ended = not data

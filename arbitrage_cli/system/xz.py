"""Reads the lines of an untrusted xz file without unpacking more than a limit."""

import lzma
from collections.abc import Iterator
from typing import BinaryIO

from arbitrage_cli.system.files import CHUNK

MAX_LINES = 100_000
MAX_LINE = 1 << 24  # bytes
MAX_UNPACKED = 1 << 28  # bytes of all lines
MAX_MEMORY = 1 << 27  # bytes for unpacking; files of the highest preset need half of it


def read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines without their ends.

    Raises ValueError if the file is damaged, exceeds a limit, or contains data after its end.
    """
    unfinished, num_lines, num_bytes = b"", 0, 0
    for piece in _unpack(stream):
        num_bytes += len(piece)
        num_lines += piece.count(b"\n")
        if num_bytes > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED >> 20} MiB")
        if num_lines > MAX_LINES:
            raise ValueError(f"it has more than {MAX_LINES:,} lines")
        *lines, unfinished = (unfinished + piece).split(b"\n")
        if max(map(len, [*lines, unfinished])) > MAX_LINE:
            raise ValueError(f"a line has more than {MAX_LINE >> 20} MiB")
        yield from lines
    if unfinished:
        yield unfinished


def _unpack(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content in pieces of at most `CHUNK` bytes."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_MEMORY)
    try:
        while not unpacker.eof:
            packed = stream.read(CHUNK) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed:
                raise ValueError("it is incomplete")
            yield unpacker.decompress(packed, CHUNK)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error
    if unpacker.unused_data or stream.read(1):
        raise ValueError("it contains other data after the packed lines")

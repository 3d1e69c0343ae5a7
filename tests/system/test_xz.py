"""The lines of xz files: limits of what a small file may unpack to."""

import lzma
import tracemalloc
from io import BytesIO
from itertools import repeat

import pytest

from arbitrage_cli.system import xz


def packed(piece: bytes, count: int) -> BytesIO:
    packer = lzma.LZMACompressor(preset=0)
    return BytesIO(b"".join([*map(packer.compress, repeat(piece, count)), packer.flush()]))


def test_lines_are_those_that_were_packed() -> None:
    lines = [b"a", b"", b"long" * 3_000_000, b"without an end"]
    assert list(xz.read_lines(packed(b"\n".join(lines), 1))) == lines
    assert list(xz.read_lines(packed(b"a\n", 2))) == [b"a", b"a"]
    assert list(xz.read_lines(packed(b"", 1))) == []


@pytest.mark.parametrize(
    ("piece", "count", "reason"),
    [(b" " * (1 << 20), 40, "a line"), (b" " * (1 << 20) + b"\n", 300, "unpacks to"), (b"\n" * (1 << 20), 2, "lines")],
    ids=["line", "bytes", "lines"],
)
def test_small_file_that_unpacks_to_much_is_refused(piece: bytes, count: int, reason: str) -> None:
    file = packed(piece, count)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        for _ in xz.read_lines(file):
            pass
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 5 * xz.MAX_LINE

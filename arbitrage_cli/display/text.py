"""Sanitizes, aligns, wraps and writes text for terminals.

Text from models, problems and files is untrusted, so `safe` removes control characters.
"""

import os
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from arbitrage_cli.errors import OutputError, ReaderGoneError

WIDTH, NARROWEST = 79, 20  # maximum and minimum width of tables, in columns
MAX_LINE = 200  # characters

_CONTROL = ("Cc", "Cs")  # Unicode categories of control characters and lone surrogates
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(text: str) -> str:
    """Remove control characters except line feeds and tabs, lone surrogates, and bidirectional formatting characters."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # fast path for most texts
        return text
    return "".join(
        char for char in text if char in "\n\t" or (unicodedata.category(char) not in _CONTROL and char not in _BIDI)
    )


def one_line(text: str) -> str:
    """Return the text as one sanitized line with single spaces."""
    return " ".join(safe(text).split())


def first_line(text: str) -> str:
    """Return the first line of a text. An ellipsis marks omitted text."""
    line, _, rest = safe(text).strip().partition("\n")
    line = one_line(line)
    return line if len(line) <= MAX_LINE and not rest else f"{line[: MAX_LINE - 1].rstrip()}…"


def aligned(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[int] = (0,)) -> Iterator[str]:
    """Yield the lines of a table. Columns in `left` are left-aligned; all others are right-aligned."""
    lines, left = [headings, *rows], set(left)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        sized = enumerate(zip(cells, widths, strict=True))
        yield "  ".join(cell.ljust(width) if index in left else cell.rjust(width) for index, (cell, width) in sized).rstrip()


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}~"


def short_labels(labels: Sequence[str], room: int) -> list[str]:
    """Return distinct labels of at most `room` characters.

    To shorten a label, the number of a named tau is removed first, then characters near the middle. If the labels are still
    not distinct, they are truncated and numbered.
    """
    shown = [one_line(label) for label in labels]
    brief = [label.rpartition(" (")[0] or label if len(label) > room else label for label in shown]
    cuts = (
        [_without_middle(label, head, room) for label in names]
        for names in (brief, shown)
        for head in sorted(range(room), key=lambda head: abs(head - room // 2))
    )
    numbered = [
        _without_middle(f"{label}~{number}", room - 1 - len(str(number)), room) for number, label in enumerate(brief, 1)
    ]
    return next((cut for cut in cuts if len({*cut}) == len({*shown})), numbered)


def _without_middle(label: str, head: int, room: int) -> str:
    return label if len(label) <= room else f"{label[:head]}~{label[len(label) + head + 1 - room :]}"


def wrapped(text: str, width: int = WIDTH, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def is_drawable(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal that supports escape codes."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"  # Rich handles NO_COLOR


def width_of(stream: TextIO) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
        return min(WIDTH, max(NARROWEST, columns - 1)) if columns else WIDTH
    except (OSError, ValueError):  # not a terminal
        return WIDTH


def write(stream: TextIO, text: str) -> None:
    """Write and flush. Raises ReaderGoneError if the reader closed the pipe, or OutputError if writing fails."""
    with writing():
        stream.write(text)
        stream.flush()


def show(stream: TextIO, text: str) -> None:
    """Write and flush. Errors are ignored."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


@contextmanager
def writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise OutputError(f"results cannot be written ({error.strerror})", "free disk space, or use another file") from error

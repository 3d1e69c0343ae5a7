"""Text for a terminal: cleaned of what a terminal could obey, aligned, wrapped, and written.

Text from a model, a problem or a file is data: `safe` removes every control character from it.
"""

import os
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from arbitrage_cli.errors import OutputError, ReaderGoneError

WIDTH = 79
"""Of tables: they fit in 80 columns."""
NARROWEST = 20
"""Columns of the narrowest terminal that text is laid out for."""
MAX_LINE = 200  # characters of a text that is shown by its first line

_OBEYED = ("Cc", "Cs")  # Unicode categories: control characters, lone surrogates
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(text: str) -> str:
    """The text without control characters (line feed and tab stay), lone surrogates and writing-direction overrides."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # most are: this is faster than a look at every character
        return text
    return "".join(one for one in text if one in "\n\t" or (unicodedata.category(one) not in _OBEYED and one not in _BIDI))


def one_line(text: str) -> str:
    """`safe` text with all white space runs, line feeds included, as single spaces."""
    return " ".join(safe(text).split())


def first_line(text: str) -> str:
    """The first line of a text as `one_line`, with a sign if anything is missing."""
    line, _, rest = safe(text).strip().partition("\n")
    line = one_line(line)
    return line if len(line) <= MAX_LINE and not rest else f"{line[: MAX_LINE - 1].rstrip()}…"


def aligned(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[int] = (0,)) -> Iterator[str]:
    """A table's lines: the columns `left` to the left, all others to the right."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_the_left = set(left)
    for cells in lines:
        padded = (
            cell.ljust(width) if index in to_the_left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def shortened(text: str, width: int) -> str:
    """The text, or its beginning and a sign that something is missing."""
    return text if len(text) <= width else f"{text[: width - 1]}~"


def short_labels(labels: Sequence[str], room: int) -> list[str]:
    """The labels as far as there is room, and still different: a tau with a name loses its number, then all their middle.

    The cut is as near to the middle as it leaves them different; if none does, they are cut at the end and numbered.
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


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """A paragraph in lines of at most `width` columns."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def is_drawable(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that escape codes may be sent to. NO_COLOR removes colours, which Rich sees to."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def width_of(stream: TextIO) -> int:
    """The columns of a table there: `WIDTH`, or fewer in a narrow terminal."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
        return min(WIDTH, max(NARROWEST, columns - 1)) if columns else WIDTH
    except (OSError, ValueError):  # no terminal, or no file at all
        return WIDTH


def write(stream: TextIO, text: str) -> None:
    """Write and flush. ReaderGoneError if a pipe was closed at its other end, OutputError if it fails otherwise."""
    with writing():
        stream.write(text)
        stream.flush()


def show(stream: TextIO, text: str) -> None:
    """Write and flush a part of the view. What cannot be shown is dropped: only results must be written."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


@contextmanager
def writing() -> Iterator[None]:
    """Turns the system's errors about a stream into those of this program: see `write`."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise OutputError(f"results cannot be written ({error.strerror})", "free some space, or write elsewhere") from error

"""Sanitizes, aligns, wraps and writes text for terminals.

Text from models, problems and files is untrusted, so `safe` removes control characters.
"""

import os
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Self, TextIO

from arbitrage_cli.errors import OutputError, ReaderGoneError
from arbitrage_cli.types import ModelRole, frozen

WIDTH, NARROWEST = 79, 20  # maximum and minimum width of paragraphs and tables, in columns
COLORS: Mapping[ModelRole, str] = {"draft": "cyan", "target": "magenta", "check": "blue"}
ASCII = str.maketrans({"█": "#", "░": ".", "…": "~", "≤": "<="})  # for streams that cannot encode these characters

_CONTROL = ("Cc", "Cs")  # Unicode categories of control characters and lone surrogates
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


UNIT_SPACE = "\ue000"  # a private-use character, one column wide
_INSEPARABLE = re.compile(r"(?<=\d) (?=(?:s|min|h|tokens?|steps?)\b|[>≤] )|(?<=[>≤]) (?=-?\d)")


def safe(text: str) -> str:
    """Remove control characters except line feeds and tabs, lone surrogates, and bidirectional formatting characters."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # fast path for most texts
        return text
    return "".join(
        char for char in text if char in "\n\t" or (unicodedata.category(char) not in _CONTROL and char not in _BIDI)
    )


def role_name(role: str) -> str:
    """Return the name of a model's role for users."""
    return {"check": "checker", "prm": "PRM"}.get(role, role)


def one_line(text: str) -> str:
    """Return the text as one sanitized line with single spaces."""
    return " ".join(safe(text).split())


@frozen
class Line:
    """A sanitized line, or a block of lines. Its parts may have a style of Rich, such as "bold".

    Each row into which it is wrapped starts with `margin`, or each row but the first with `hanging`. In the region of a live
    screen, it takes at most `rows` rows.
    """

    parts: tuple[tuple[str, str], ...]
    margin: str = ""
    rows: int | None = None
    hanging: str = ""

    @classmethod
    def of(cls, *parts: str | tuple[str, str], margin: str = "", rows: int | None = None, hanging: str = "") -> Self:
        """Make a line of texts, or of texts with a style. Line feeds become spaces."""
        styled = ((part, "") if isinstance(part, str) else part for part in parts)
        cleaned = tuple((safe(text).expandtabs(4).replace("\n", " "), style) for text, style in styled)
        return cls(cleaned, margin, rows, hanging)

    @classmethod
    def block(cls, text: str, style: str = "", *, margin: str = "", rows: int | None = None) -> Self:
        """Make a block of a text's lines that are not blank."""
        lines = (line for line in safe(text).expandtabs(4).split("\n") if line.strip())
        return cls((("\n".join(lines), style),), margin, rows)

    def __str__(self) -> str:
        text = "".join(text for text, _ in self.parts)
        return "\n".join(f"{self.margin}{line}".rstrip() for line in text.split("\n"))


def aligned(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table. The first column is left-aligned; all others are right-aligned."""
    columns = list(zip(headings, *rows, strict=True))
    sides = "<" + ">" * len(columns)
    cells = [
        [f"{cell:{side}{max(map(len, column))}}" for cell in column] for side, column in zip(sides, columns, strict=False)
    ]
    return ["  ".join(line).rstrip() for line in zip(*cells, strict=True)]


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}~"


def wrapped(text: str, width: int = WIDTH, indent: int = 2) -> list[str]:
    """Wrap the text, but not between a number and its unit."""
    rows = textwrap.wrap(with_units(text), width, subsequent_indent=" " * indent, break_on_hyphens=False)
    return list(map(without_units, rows))


def with_units(text: str) -> str:
    """Replace each space inside `0.03 s` or `0.2 ≤ 0.3`, so that the text is not wrapped there."""
    return _INSEPARABLE.sub(UNIT_SPACE, text)


def without_units(text: str) -> str:
    """Undo `with_units`."""
    return text.replace(UNIT_SPACE, " ")


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


def write_lines(stream: TextIO, lines: Iterable[str]) -> None:
    write(stream, "".join(f"{line}\n" for line in lines))


def show(stream: TextIO, text: str) -> None:
    """Write and flush. Errors are ignored, and characters that the stream cannot encode are replaced."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "replace").decode(encoding)
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

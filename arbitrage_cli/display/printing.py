"""Prints paragraphs and tables. Rich wraps them at the width of the terminal."""

from collections.abc import Iterable, Sequence
from typing import Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arbitrage_cli.display.text import is_drawable, one_line, safe, width_of, write

WIDEST = 1 << 20  # columns, in which no table is narrowed


def print_to(stream: TextIO, *parts: RenderableType) -> None:
    """Print paragraphs and tables, with styles if the stream is a terminal. Raises the same errors as `write`."""
    is_styled = is_drawable(stream)
    colors: Literal["standard"] | None = "standard" if is_styled else None
    console = Console(width=width_of(stream), force_terminal=is_styled, color_system=colors)
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    write(stream, "".join(f"{line.rstrip()}\n" for line in capture.get().removesuffix("\n").split("\n")))


def paragraph(text: str, style: str = "") -> Text:
    return Text(one_line(text), style)


def pairs(rows: Iterable[tuple[str, str]], style: str = "", gap: int = 2) -> Table:
    """Make a table of names and texts, without headings."""
    table = Table.grid(padding=(0, gap, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(paragraph(name, style), paragraph(text, style))
    return table


def bullets(texts: Iterable[str]) -> Table:
    return pairs((("-", text) for text in texts), gap=1)


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], is_left: Iterable[bool] = ()) -> Table:
    """Make a table. By default, only the first column is left-aligned. Only this column may be wrapped, between words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    sides = ("left" if one else "right" for one in is_left or [index == 0 for index, _ in enumerate(headings)])
    for index, (heading, side, *cells) in enumerate(zip(headings, sides, *rows, strict=True)):
        width = max(len(line) for cell in (heading, *cells) for line in cell.split("\n"))
        least = width if index else max(len(word) for cell in (heading, *cells) for word in cell.split())
        table.add_column(paragraph(heading), "", min_width=least, no_wrap=index > 0, overflow="fold", justify=side)
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    return table


def fits(table: Table, stream: TextIO) -> bool:
    """Return whether a table fits in the width of a stream."""
    return Console(width=WIDEST).measure(table).minimum <= width_of(stream)

"""A region at the bottom of a terminal that is drawn over, below text that scrolls up and stays. Knows no record.

Not `rich.live`: that one miscounts its lines when the terminal gets narrower, and leaves copies behind. Each update is one
`write`.
"""

import os
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from arbitrage_cli.display.text import write

PLAIN = {"\N{FULL BLOCK}": "#", "\N{LIGHT SHADE}": ".", "\N{HORIZONTAL ELLIPSIS}": "~"}
"""Replacements, equally wide, for what a stream cannot write."""

UNKNOWN = "?"
SIGNS = {"\N{LESS-THAN OR EQUAL TO}": "<="}


class Region:
    """A few lines at the bottom that are drawn over, below text that stays. Hides the cursor while it is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._drawn: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal now. The terminal itself is asked: COLUMNS and LINES may be out of date."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = self._console.size
        return max(columns, 8), max(rows, 2)

    def update(self, above: Sequence[Text], lines: Sequence[Text]) -> None:
        """Print `above` for good, wrapped between words, and draw `lines` below it, each cut to one row."""
        columns, rows = self._console.size = self.size
        shown = [self._encodable(_cut(line, columns - 1)) for line in lines[: rows - 1]]
        with self._console.capture() as capture:
            for text in above:
                self._console.print(text)
            for index, line in enumerate(shown):
                self._console.print(line, end="\n" if index < len(shown) - 1 else "")
        hide, show = ("\x1b[?25l", "") if shown else ("", "\x1b[?25h" if self._drawn else "")
        write(self._stream, hide + self._erase(columns) + self._with_signs(capture.get()) + show)
        self._drawn = [line.plain for line in shown]

    def _encodable(self, line: Text) -> Text:
        """The line with one character for each that the stream cannot write: an escape would be wider."""
        if self._writes(line.plain):
            return line
        plain = [one if self._writes(one) else PLAIN.get(one, UNKNOWN) for one in line.plain]
        encodable = line.copy()
        encodable.plain = "".join(plain)
        return encodable

    def _with_signs(self, text: str) -> str:
        """Signs that the stream cannot write, spelled out; text that stays may get longer."""
        for sign, plain in SIGNS.items() if not self._writes(text) else ():
            text = text if self._writes(sign) else text.replace(sign, plain)
        return text

    def _writes(self, text: str) -> bool:
        try:
            text.encode(self._stream.encoding or "utf-8")
        except UnicodeEncodeError:
            return False
        return True

    def _erase(self, columns: int) -> str:
        """Go up to the region's first row, clearing row by row: tmux keeps what a clear-to-the-end wipes in its history.

        A terminal that got narrower has wrapped the region's lines since they were drawn.
        """
        if not self._drawn:
            return ""
        rows = sum(_num_rows(line, columns) for line in self._drawn)
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (rows - 1)


def _num_rows(line: str, columns: int) -> int:
    """Rows that a terminal needs for a line: it puts a wide character on the next row when half of it would not fit."""
    rows, column = 1, 0
    for character in line:
        width = cell_len(character)
        if column + width > columns:
            rows, column = rows + 1, 0
        column += width
    return rows


def _cut(line: Text, columns: int) -> Text:
    cut = line.copy()
    cut.truncate(columns, overflow="ellipsis")
    return cut

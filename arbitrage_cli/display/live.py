"""The live screen for terminals. Lines that stay scroll up, and a small region below them is redrawn."""

import io
import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from arbitrage_cli.display.text import Line, show
from arbitrage_cli.system.signals import noted_signals

REDRAW_SECONDS = 0.08
FALLBACK_SIZE = 80, 24


class LiveScreen:
    """A `Screen` on a terminal."""

    is_live, interval = True, REDRAW_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=_Terminal(stream), highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    @noted_signals()  # if a signal interrupts Rich, its console may show nothing more
    def draw(self, lines: Sequence[Line], region: Sequence[Line]) -> None:
        self._console.size = self._size
        rows = self._region_rows(region)
        if self._live and not rows:
            self._live.stop()
            self._live = None
        if lines:
            self._console.print(*(row for line in lines for row in self._wrapped(line)), sep="\n")
        if rows:
            self._live = self._live or self._started()
            self._live.update(Group(*rows), refresh=True)

    def _started(self) -> Live:
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live

    def _region_rows(self, region: Sequence[Line]) -> list[Text]:
        """Return the rows of the region, which leave one row of the terminal free.

        A line of one row is truncated. Of other lines, the last rows are shown if there is room.
        """
        columns, height = self._console.size
        room, rows = height - 1 - sum(line.rows == 1 for line in region), list[Text]()
        for line in region:
            if line.rows == 1:
                row = Text.assemble(line.margin, *line.parts)
                row.truncate(columns - 1, overflow="ellipsis")
                rows.append(row)
            elif (limit := min(room, line.rows or room)) > 0:
                last = self._wrapped(line)[-limit:]
                rows += last
                room -= len(last)
        return rows[: height - 1]

    def _wrapped(self, line: Line) -> list[Text]:
        width = max(self._console.width - 1 - len(line.margin), 4)
        return [Text.assemble(line.margin, row) for row in Text.assemble(*line.parts).wrap(self._console, width)]

    @property
    def _size(self) -> tuple[int, int]:
        try:  # not from COLUMNS and LINES, which may be out of date
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = FALLBACK_SIZE
        return max(columns, 8), max(rows, 2)


class _Terminal(io.StringIO):
    """A terminal for Rich. Errors of a terminal that was closed are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        show(self._stream, text)
        return len(text)

    def isatty(self) -> bool:
        return True

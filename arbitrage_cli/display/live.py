"""The live screen for terminals. Lines that stay scroll up, and a small region below them is redrawn."""

import io
import os
import termios
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from arbitrage_cli.display.text import Line, show, with_units, without_units
from arbitrage_cli.system.signals import noted_signals

REDRAW_SECONDS = 0.08
FALLBACK_SIZE = 80, 24
LOCAL_FLAGS = 3  # index in the attributes of a terminal


class LiveScreen:
    """A `Screen` on a terminal."""

    is_live = True
    interval = REDRAW_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=_Terminal(stream), highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._echo = _Echo(stream)

    @noted_signals()  # if a signal interrupts Rich, its console may show nothing more
    def draw(self, lines: Sequence[Line], region: Sequence[Line]) -> None:
        self._console.size = self._size
        rows = self._region_rows(region)
        if self._live and not rows:
            self._live.stop()
            self._live = None
            self._echo.restore()
        if lines:
            self._console.print(*(row for line in lines for row in self._wrapped(line)), sep="\n")
        if rows:
            self._echo.turn_off()
            self._live = self._live or self._started()
            self._live.update(Group(*rows), refresh=True)

    def _started(self) -> Live:
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live

    def _region_rows(self, region: Sequence[Line]) -> list[Text]:
        """Return the rows of the region, at most one fewer than the terminal has.

        A line of one row is truncated. Of other lines, the last rows are shown if there is room.
        """
        columns, height = self._console.size
        room = height - 1 - sum(line.rows == 1 for line in region)
        rows: list[Text] = []
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
        """Wrap a line at the width of the terminal, but not between a number and its unit."""
        width = max(self._console.width - 1 - len(line.margin or line.hanging), 4)
        text = Text.assemble(*line.parts)
        text.plain = with_units(text.plain)
        rows = text.wrap(self._console, width)
        for row in rows:
            row.plain = without_units(row.plain)
        margins = [line.margin, *[line.margin or line.hanging] * (len(rows) - 1)]
        return [Text.assemble(margin, row) for margin, row in zip(margins, rows, strict=True)]

    @property
    def _size(self) -> tuple[int, int]:
        try:  # not from COLUMNS and LINES, which may be out of date
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = 0, 0
        return max(columns or FALLBACK_SIZE[0], 8), max(rows or FALLBACK_SIZE[1], 2)  # terminals of unknown size have 0


class _Echo:
    """The echo of a terminal, which is turned off while there is a region.

    Typed characters would move the region's lines, so that they could not be erased. The characters are read later.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._attributes: list[Any] | None = None  # those of the terminal with its echo

    def turn_off(self) -> None:
        if self._attributes is None and (descriptor := self._foreground) is not None:
            attributes = termios.tcgetattr(descriptor)
            self._attributes = [*attributes]
            attributes[LOCAL_FLAGS] &= ~termios.ECHO
            termios.tcsetattr(descriptor, termios.TCSANOW, attributes)

    def restore(self) -> None:
        if self._attributes is not None and (descriptor := self._foreground) is not None:
            termios.tcsetattr(descriptor, termios.TCSANOW, self._attributes)
        self._attributes = None

    @property
    def _foreground(self) -> int | None:
        """The terminal's descriptor, or None for a process in the background, which would be stopped if it set attributes."""
        try:
            descriptor = self._stream.fileno()
            return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
        except (OSError, ValueError):
            return None


class _Terminal(io.StringIO):
    """A terminal for Rich. Errors of a terminal that was closed are ignored."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        show(self._stream, text)
        return len(text)

    def isatty(self) -> bool:
        return True

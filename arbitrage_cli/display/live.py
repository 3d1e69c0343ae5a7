"""The live display for terminals. Finished lines scroll up, and a small region below them is redrawn.

The lines describe problems (`live_solve`), attempts in a run (`live_run`), or requests to a server.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from rich.cells import chop_cells
from rich.console import Console
from rich.text import Text

from arbitrage_cli.app.protocol import RunProgress, ServerInfo, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.live_run import RunView
from arbitrage_cli.display.live_solve import SolveView
from arbitrage_cli.display.text import one_line, show, write
from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import RequestEnded

REDRAW_SECONDS = 0.08
PLAIN = str.maketrans({"█": "#", "░": ".", "…": "~", "≤": "<="})


class View(Protocol):
    """The content of a display. `region` returns the lines to redraw; `handle`, `end` and `close` return permanent lines."""

    def handle(self, event: Shown, columns: int, now: float) -> list[Text]: ...

    def may_wait(self, event: Shown) -> bool:
        """Return whether the event can wait for the next redraw because such events are frequent."""

    def region(self, columns: int, rows: int, now: float) -> list[Text]: ...

    def end(self) -> list[Text]: ...

    def close(self, columns: int) -> list[Text]: ...


class LiveDisplay:
    """A `Display` for a terminal on standard error."""

    def __init__(self, stream: TextIO, results: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._region = _Region(stream)
        self._results = results
        self._downloads = wording.Downloads(clock)
        self._clock = clock
        self._drawn = clock() - REDRAW_SECONDS
        self._stays: list[Text] = []
        self._view: View | None = None

    def loading(self, activity: str, fraction: float) -> None:
        if self._is_due or fraction >= 1:
            self._draw([Text(f"{fraction:4.0%} {one_line(activity)}", "dim")])

    def fetching(self, progress: FileProgress) -> None:
        if self._downloads.is_new(progress) or self._is_due:
            self._draw([Text(self._downloads.words(progress), "dim")])

    def note(self, text: str) -> None:
        self._stays.append(Text(one_line(text), "yellow"))
        self._draw_view()

    def remind(self, text: str) -> None:
        if wording.is_due(text):
            self.note(text)

    def begin(self, run: RunInfo | RunProgress | ServerInfo) -> None:
        if isinstance(run, RunProgress):
            self._view = RunView(run, self._clock())
        else:
            self._view = SolveView(run) if isinstance(run, RunInfo) else None
            self._stays += [Text(line, "dim") for line in wording.opening(run)]
        self._draw_view()

    def handle(self, event: Shown) -> None:
        if isinstance(event, RequestEnded):
            self._stays.append(Text(wording.request(event), "red" if event.finished.error else ""))
            self._draw_view()
        elif self._view is not None:
            self._stays += self._view.handle(event, self._region.size[0], self._clock())
            if self._is_due or not self._view.may_wait(event):
                self._draw_view()

    def end(self) -> None:
        if self._view is not None:
            self._stays += self._view.end()
            self._draw([])

    def result(self, text: str) -> None:
        self._draw([])
        write(self._results, text + "\n")

    def close(self) -> None:
        if self._view is not None:
            self._stays += self._view.close(self._region.size[0])
            self._view = None
        self._draw([])

    @property
    def _is_due(self) -> bool:
        return self._clock() - self._drawn >= REDRAW_SECONDS

    def _draw_view(self) -> None:
        self._draw(self._view.region(*self._region.size, self._clock()) if self._view else [])

    def _draw(self, region: Sequence[Text]) -> None:
        self._drawn = self._clock()
        stays, self._stays = self._stays, []
        self._region.update(stays, region)


class _Region:
    """A region at the bottom of a terminal that is redrawn below permanent lines.

    `rich.live` is not used, because it leaves copies of lines behind when the terminal gets narrower.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._drawn: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        try:  # not from COLUMNS and LINES, which may be out of date
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = self._console.size
        return max(columns, 8), max(rows, 2)

    def update(self, above: Sequence[Text], lines: Sequence[Text]) -> None:
        """Print `above` with word wrapping, and draw `lines` below. Each line in `lines` is truncated to one row."""
        columns, rows = self._console.size = self.size
        shown = lines[: rows - 1]
        for line in shown:
            line.truncate(columns - 1, overflow="ellipsis")
        with self._console.capture() as capture:
            for text in above:
                self._console.print(text)
            for index, line in enumerate(shown):
                self._console.print(line, end="\n" if index < len(shown) - 1 else "")
        before, after = ("\x1b[?25l", "") if shown else ("", "\x1b[?25h" if self._drawn else "")
        show(self._stream, before + self._erase(columns) + self._encodable(capture.get()) + after)
        self._drawn = [self._encodable(line.plain) for line in shown]

    def _encodable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        return text

    def _erase(self, columns: int) -> str:
        if not self._drawn:
            return ""
        rows = sum(max(1, len(chop_cells(line, columns))) for line in self._drawn)  # a narrower terminal wraps drawn lines
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (rows - 1)  # row by row: otherwise, tmux keeps the text in its history

"""The live display for terminals. Finished lines scroll up, and a small region below them is redrawn.

The lines describe problems (`live_solve`), attempts in a run (`live_run`), or requests to a server.
"""

import io
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from arbitrage_cli.app.protocol import RunProgress, ServerInfo, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.base import BaseDisplay, always, in_turn
from arbitrage_cli.display.live_run import RunView
from arbitrage_cli.display.live_solve import SolveView
from arbitrage_cli.display.text import one_line, show
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import RequestEnded

REDRAW_SECONDS = 0.08
FALLBACK_SIZE = 80, 24
PLAIN = str.maketrans({"█": "#", "░": ".", "…": "~", "≤": "<="})


class View(Protocol):
    """The content of a display. `region` returns the lines to redraw; `handle`, `end` and `close` return permanent lines."""

    def handle(self, event: Shown, columns: int, now: float) -> list[Text]: ...

    def may_wait(self, event: Shown) -> bool:
        """Return whether the event can wait for the next redraw because such events are frequent."""

    def region(self, columns: int, rows: int, now: float) -> list[Text]: ...

    def end(self) -> list[Text]: ...

    def close(self, columns: int) -> list[Text]: ...


class LiveDisplay(BaseDisplay):
    """A `Display` for a terminal on standard error."""

    def __init__(
        self,
        stream: TextIO,
        results: TextIO,
        *,
        is_due: Callable[[str], bool] = always,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(results, REDRAW_SECONDS, is_due=is_due, clock=clock)
        self._updated -= REDRAW_SECONDS  # the first line is shown at once
        self._region = _Region(stream)
        self._stays: list[Text] = []
        self._view: View | None = None

    @in_turn
    def loading(self, activity: str, fraction: float) -> None:
        if self._has_waited or fraction >= 1:
            self._show_work(f"{fraction:4.0%} {one_line(activity)}")

    @in_turn
    def note(self, text: str) -> None:
        self._stays.append(Text(one_line(text), "yellow"))
        self._draw_view()

    @in_turn
    def begin(self, run: RunInfo | RunProgress | ServerInfo) -> None:
        if isinstance(run, RunProgress):
            self._view = RunView(run, self._clock())
        else:
            self._view = SolveView(run) if isinstance(run, RunInfo) else None
            self._stays += [Text(line, "dim") for line in wording.opening(run)]
        self._draw_view()

    @in_turn
    def handle(self, event: Shown) -> None:
        if isinstance(event, RequestEnded):
            self._stays.append(Text(wording.request(event), "red" if event.finished.error else ""))
            self._draw_view()
        elif self._view is not None:
            self._stays += self._view.handle(event, self._region.size[0], self._clock())
            if self._has_waited or not self._view.may_wait(event):
                self._draw_view()

    @in_turn
    def end(self) -> None:
        if self._view is not None:
            self._stays += self._view.end()
            self._draw([])

    @in_turn
    def close(self) -> None:
        if self._view is not None:
            self._stays += self._view.close(self._region.size[0])
            self._view = None
        self._draw([])

    def _show_work(self, line: str) -> None:
        self._draw([Text(line, "dim")])

    def _clear(self) -> None:
        self._draw([])

    def _draw_view(self) -> None:
        self._draw(self._view.region(*self._region.size, self._clock()) if self._view else [])

    def _draw(self, region: Sequence[Text]) -> None:
        self._updated = self._clock()
        stays, self._stays = self._stays, []
        self._region.update(stays, region)


class _Screen(io.StringIO):
    """A stream that replaces characters that the terminal cannot show, and ignores errors of a terminal that is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
        show(self._stream, text)
        return len(text)

    def isatty(self) -> bool:
        return True

    @property
    def size(self) -> tuple[int, int]:
        try:  # not from COLUMNS and LINES, which may be out of date
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = FALLBACK_SIZE
        return max(columns, 8), max(rows, 2)


class _Region:
    """A region at the bottom of a terminal that is redrawn below permanent lines."""

    def __init__(self, stream: TextIO) -> None:
        self._screen = _Screen(stream)
        self._console = Console(file=self._screen, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self._screen.size

    def update(self, above: Sequence[Text], lines: Sequence[Text]) -> None:
        """Print `above` with word wrapping, and draw `lines` below. Each line in `lines` is truncated to one row."""
        columns, rows = self._console.size = self.size
        shown = lines[: rows - 1]
        for line in shown:
            line.truncate(columns - 1, overflow="ellipsis")
        if self._live and not shown:
            self._live.stop()
            self._live = None
        if above:
            self._console.print(*above, sep="\n")
        if shown:
            self._live = self._live or self._started()
            self._live.update(Group(*shown), refresh=True)

    def _started(self) -> Live:
        live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
        live.start()
        return live

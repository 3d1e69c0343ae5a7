"""The display of a command: it shows the lines of a view on a screen, one thread at a time."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from arbitrage_cli.app.protocol import RunProgress, ServerInfo, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.run_view import RunView
from arbitrage_cli.display.solve_view import SolveView
from arbitrage_cli.display.text import Line, show, write
from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Rating, RequestEnded, Writing, Wrote

LONG_PREFILL = 32  # tokens; the display shows a longer prefill at once
SLOW_PREFILL = 256  # tokens; a pipe may get a line about a longer prefill


class Screen(Protocol):
    """A stream for lines that stay. A live screen has a region below them, which each call replaces."""

    is_live: bool
    interval: float  # minimum seconds between reports about a long operation

    def draw(self, lines: Sequence[Line], region: Sequence[Line]) -> None: ...


class PlainScreen:
    """A pipe, a log or a dumb terminal, which receives plain lines."""

    is_live, interval = False, 5.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def draw(self, lines: Sequence[Line], region: Sequence[Line]) -> None:
        for line in lines:
            show(self._stream, f"{line}\n")


class CommandDisplay:
    """The `Display` of a command line.

    Verbosity 0 shows only notes and failures, 1 also problems, attempts and requests, and 2 also steps, the models and the
    policy. While `serve` shows a request, another thread may log a warning, so every method that draws holds the lock.
    """

    def __init__(
        self,
        screen: Screen,
        results: TextIO,
        *,
        verbosity: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.RLock()
        self._screen = screen
        self._results = results
        self._verbosity = 2 if screen.is_live else verbosity
        self._has_details = verbosity > 1
        self._clock = clock
        self._updated = -math.inf if screen.is_live else clock()  # a live screen shows the first line at once
        self._view: SolveView | RunView | None = None

    def loading(self, activity: str, name: str, fraction: float | None = None) -> None:
        is_partial = fraction is not None and 0.0 < fraction < 1.0  # a model of which all is read is not yet ready
        text = wording.loading(activity, name, fraction if is_partial else None)
        self._show_work(text, at_once=self._screen.is_live and not is_partial)

    def fetching(self, progress: FileProgress) -> None:
        is_end = progress.done in (0, progress.total) and progress.activity != "hashing"  # of most files, in no time
        self._show_work(wording.fetching(progress), at_once=is_end)

    def note(self, text: str) -> None:
        self._show([Line.of((text, "yellow"))])

    def tell(self, text: str) -> None:
        if self._verbosity:
            self.note(text)

    def begin(self, run: RunInfo | RunProgress | ServerInfo) -> None:
        with self._lock:
            self._view = None
            if isinstance(run, RunProgress):
                self._view = RunView(run, self._clock(), shows_attempts=self._verbosity > 0 and not self._screen.is_live)
            elif isinstance(run, RunInfo):
                self._view = SolveView(run, self._verbosity)
            texts = wording.opening(run, has_details=self._has_details) if self._verbosity else []
            self._show([Line.of((text, "dim")) for text in texts])

    def handle(self, event: Shown) -> None:
        with self._lock:
            lines = self._view.handle(event, self._clock()) if self._view else []
            if isinstance(event, RequestEnded) and self._verbosity:
                lines = [Line.of((wording.request(event), "red" if event.finished.error and not event.end else ""))]
            if isinstance(event, Writing) and self._is_slow(event):
                self._show_work(wording.prefill(event))
            if lines or (self._screen.is_live and (not _may_wait(event) or self._has_waited)):
                self._show(lines)

    def end(self) -> None:
        with self._lock:
            self._screen.draw(self._view.end(self._clock()) if self._view else [], [])

    def result(self, text: str) -> None:
        with self._lock:
            self._screen.draw([], [])
            write(self._results, text + "\n")

    def close(self) -> None:
        with self._lock:
            self._screen.draw(self._view.close() if self._view else [], [])
            self._view = None

    def _is_slow(self, event: Writing) -> bool:
        """Return whether a prefill may take so long that a pipe, whose lines are whole steps, gets a line about it."""
        shows_steps = isinstance(self._view, SolveView) and self._view.shows_steps
        return shows_steps and not self._screen.is_live and event.num_unread > SLOW_PREFILL

    @property
    def _has_waited(self) -> bool:
        return self._clock() - self._updated >= self._screen.interval

    def _show(self, lines: Sequence[Line]) -> None:
        """Show lines that stay, and redraw the region."""
        with self._lock:
            self._updated = self._clock()
            self._screen.draw(lines, self._view.region(self._updated) if self._view and self._screen.is_live else [])

    def _show_work(self, text: str, *, at_once: bool = False) -> None:
        """Show a line about a long operation, such as a download, unless the last such line is recent."""
        with self._lock:
            if self._verbosity and (at_once or self._has_waited):
                self._updated = self._clock()
                lines = [Line.of((text, "dim"), rows=1)]
                if self._screen.is_live:
                    self._screen.draw([], lines)
                else:
                    self._screen.draw(lines, [])


def _may_wait(event: Shown) -> bool:
    """Return whether the event can wait for the next redraw, because such events are frequent."""
    return isinstance(event, Wrote | Rating) or (isinstance(event, Writing) and event.num_unread <= LONG_PREFILL)

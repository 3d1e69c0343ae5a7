"""A stream that is an emulated terminal, and a live display on it."""

import io
import os

import pyte
import pytest
from cli import decide, make_trace, scrollback

from arbitrage_cli.app.protocol import RunProgress
from arbitrage_cli.display.display import CommandDisplay
from arbitrage_cli.display.live import REDRAW_SECONDS, LiveScreen
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Decision, ModelRole, Started, Trace, Writing, Wrote


class Screen(io.StringIO):
    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.num_writes = 0
        self._show(columns, rows)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2  # what a display asks for the size of: see `make_screen`

    def write(self, text: str) -> int:
        self.num_writes += bool(text)
        self._stream.feed(text.replace("\n", "\r\n"))  # as the terminal's driver does
        return super().write(text)

    @property
    def text(self) -> str:
        return scrollback(self.screen)

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line]

    def _show(self, columns: int, rows: int) -> None:
        self.size = os.terminal_size((columns, rows))
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000)
        self._stream = pyte.Stream(self.screen)


def make_screen(monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> Screen:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen(columns, rows)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: screen.size)
    return screen


def is_struck(screen: pyte.Screen, text: str) -> bool:
    for row, line in enumerate(screen.display):
        start = line.find(text)
        if start >= 0:
            return all(screen.buffer[row][column].strikethrough for column in range(start, start + len(text)))
    raise AssertionError(f"{text!r} is not on the screen:\n" + "\n".join(screen.display))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class View:
    """A live display on an emulated screen, its clock, and the results it wrote."""

    def __init__(self, screen: Screen, run: RunInfo | RunProgress) -> None:
        self.screen = screen
        self.results = io.StringIO()
        self.clock = Clock()
        self.display = CommandDisplay(LiveScreen(screen), self.results, clock=self.clock)
        self.display.begin(run)

    def start(self, question: str = "What is 2 + 2?") -> Trace:
        trace = make_trace(question=question)
        self.display.handle(Started(trace))
        return trace

    def write(self, trace: Trace, model: ModelRole, *pieces: str, num_unread: int = 1) -> None:
        """Write these pieces of a step, with time for a redraw between them."""
        self.display.handle(Writing(trace, model, num_unread))
        for piece in pieces:
            self.clock.now += REDRAW_SECONDS * 1.01
            self.display.handle(Wrote(trace, model, piece))

    def decide(self, trace: Trace, decision: Decision) -> None:
        self.display.handle(decide(trace, decision))

"""What the plain and the live display have in common: downloads, reminders, results, and one lock for all threads."""

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TextIO, TypeVar, cast

from arbitrage_cli.display.text import write
from arbitrage_cli.display.wording import Downloads
from arbitrage_cli.model_files.checksums import FileProgress

Method = TypeVar("Method", bound=Callable[..., None])


def in_turn(method: Method) -> Method:
    """Let one thread draw at a time: while `serve` shows a request, another thread may log a warning."""

    @functools.wraps(method)
    def run(self: "BaseDisplay", *arguments: Any) -> None:
        with self.lock:
            method(self, *arguments)

    return cast("Method", run)


def always(reminder: str) -> bool:
    return True


class BaseDisplay(ABC):
    """A `Display` that shows the progress of long work at most once per `interval` seconds, and reminders that are due."""

    def __init__(
        self,
        results: TextIO,
        interval: float,
        *,
        is_due: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self.lock = threading.RLock()
        self._results = results
        self._interval = interval
        self._is_due = is_due
        self._clock = clock
        self._updated = clock()
        self._downloads = Downloads(clock)

    @property
    def _has_waited(self) -> bool:
        return self._clock() - self._updated >= self._interval

    @in_turn
    def fetching(self, progress: FileProgress) -> None:
        if self._downloads.is_new(progress) or progress.done == progress.total or self._has_waited:
            self._show_work(self._downloads.words(progress))

    @in_turn
    def remind(self, text: str) -> None:
        if self._is_due(text):
            self.note(text)

    @in_turn
    def result(self, text: str) -> None:
        self._clear()
        write(self._results, text + "\n")

    @abstractmethod
    def note(self, text: str) -> None: ...

    @abstractmethod
    def _show_work(self, line: str) -> None:
        """Show a line about long work, such as a download."""

    @abstractmethod
    def _clear(self) -> None:
        """Remove lines that do not stay."""

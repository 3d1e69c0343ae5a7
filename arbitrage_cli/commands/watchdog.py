"""Notices that an attempt hangs where no exception reaches it: in a computation of C code that does not come back."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from arbitrage_cli.benchmark import Attempt


class Watchdog:
    """Calls `give_up`, from a thread of its own, for an attempt that goes on for `seconds`; None: for none.

    Between `ended` and the next `began` it sleeps, so what it does and what is done with a result do not meet.
    """

    def __init__(self, seconds: float | None, give_up: Callable[[Attempt], None]) -> None:
        self._seconds = seconds
        self._give_up = give_up
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended()

    def began(self, attempt: Attempt) -> None:
        """An attempt is taken up."""
        if self._seconds is None:
            return
        self._timer = threading.Timer(self._seconds, self._bark, (attempt,))
        self._timer.daemon = True
        self._timer.start()

    def ended(self) -> None:
        """The attempt is over. Does not return if it was just given up."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None

    def _bark(self, attempt: Attempt) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._give_up(attempt)

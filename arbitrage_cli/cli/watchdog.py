"""Notices that an attempt hangs where no exception reaches it: in a computation of C code that does not come back."""

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from arbitrage_cli.evaluation.benchmark import Attempt
from arbitrage_cli.runs.folder import Key


class Watchdog:
    """Calls `give_up`, from a thread of its own, once an attempt goes on for `seconds`; None: for none.

    It is given all attempts that go on: which of them hangs cannot be known, and none of them gets any further. While
    somebody is `undisturbed`, nothing is given up.
    """

    def __init__(self, seconds: float | None, give_up: Callable[[Sequence[Attempt]], None]) -> None:
        self._seconds = seconds
        self._give_up = give_up
        self._going_on: dict[Key, tuple[Attempt, threading.Timer]] = {}
        self.undisturbed = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for attempt, _ in list(self._going_on.values()):
            self.ended(attempt)

    def began(self, attempt: Attempt) -> None:
        """An attempt is taken up."""
        if self._seconds is None:
            return
        with self.undisturbed:
            self._watch(attempt, time.perf_counter() + self._seconds)

    def ended(self, attempt: Attempt) -> None:
        """The attempt is over. Does not return if it was just given up."""
        with self.undisturbed:
            _, timer = self._going_on.pop(attempt.key, (attempt, None))
        if timer:
            timer.cancel()

    def _watch(self, attempt: Attempt, until: float) -> None:
        timer = threading.Timer(until - time.perf_counter(), self._bark, (attempt, until))
        timer.daemon = True
        self._going_on[attempt.key] = attempt, timer
        timer.start()

    def _bark(self, attempt: Attempt, until: float) -> None:
        with self.undisturbed:
            if attempt.key not in self._going_on:
                return
            if time.perf_counter() < until:
                self._watch(attempt, until)
            else:
                self._give_up([one for one, _ in self._going_on.values()])

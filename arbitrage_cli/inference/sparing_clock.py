"""A clock for a thread's CPU time that reads this time as seldom as possible, because a reading takes up to 30 µs."""

import math
import threading
import time
from collections.abc import Callable

MAX_AGE = 5e-4  # seconds


class SparingClock:
    """Returns the CPU time of the calling thread in seconds.

    For MAX_AGE seconds after a reading, the time since the reading is measured with a faster wall clock. The result is
    therefore up to MAX_AGE ahead of the thread's CPU time, but differences add up correctly. The result never decreases within
    a thread.
    """

    def __init__(
        self, read: Callable[[], float] = time.thread_time, wall_clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._read, self._wall_clock = read, wall_clock
        self._thread: int | None = None
        self._reading = 0.0
        self._read_at = self._last = -math.inf

    def __call__(self) -> float:
        if self._thread != threading.get_ident():
            self._thread = threading.get_ident()
            self._read_at = self._last = -math.inf
        age = self._wall_clock() - self._read_at
        if age >= MAX_AGE:
            self._reading, age = self._read(), 0.0
            self._read_at = self._wall_clock()
        self._last = max(self._last, self._reading + age)
        return self._last


def sparing(clock: Callable[[], float]) -> Callable[[], float]:
    """Return a SparingClock in place of a thread's CPU time. Other clocks are fast."""
    return SparingClock(clock) if clock is time.thread_time else clock

"""What signals do to a run beside ending it: kept back where they would break something; a clock that Ctrl-Z stops too.

Knows no command and no model.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_stops: tuple[float, float | None] = (0.0, None)
"""Seconds for which the process was stopped so far, and since when it is being stopped now."""


def running_seconds() -> float:
    """The clock of whatever is measured: it stands still while the process is stopped by `stop`."""
    while True:
        stops = _stops
        now = time.perf_counter()
        if stops is _stops:  # else the process was stopped in between
            seconds, since = stops
            return (now if since is None else since) - seconds


def stop(number: int) -> None:
    """Stop the process by this signal, whose handler is the system's, until it is told to go on."""
    global _stops
    seconds, since = _stops[0], time.perf_counter()
    _stops = seconds, since
    signal.raise_signal(number)
    _stops = seconds + time.perf_counter() - since, None


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The signals that ask the run to end, noted meanwhile, and raised again for whoever handles them after it.

    Python runs signal handlers between its own instructions, so also within a callback from C: an exception out of one
    is lost there. A callback looks at the list instead, and asks the C code to stop.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda number, frame: noted.append(number))
        yield noted
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for caught in noted:
            signal.raise_signal(caught)

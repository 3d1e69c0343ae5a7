"""Holds back signals where they would break something. Knows no command and no model."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the signals that ask the run to end (SIGINT, SIGTERM), and raise them again afterwards.

    Python runs signal handlers between its instructions, so also in a callback from C: an exception that a handler raises
    there is lost. A callback reads the list instead, and asks the C code to stop.
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

"""Holds back signals where they would break something, but only the first of each."""

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask the run to end."""


def handle_once(number: int, handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle a signal once. The next one ends the process, with glibc even within C code, where no handler of Python's runs."""
    signal.signal(number, handler)
    rearm = getattr(ctypes.CDLL(None), "sysv_signal", None)
    if rearm:
        current = ctypes.pythonapi.PyOS_getsig
        current.restype = ctypes.c_void_p
        rearm(number, ctypes.c_void_p(current(number)))


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note the signals that ask the run to end, and raise them again afterwards. A second one ends the process at once.

    Python runs signal handlers between its instructions, so also in a callback from C: an exception that a handler raises
    there is lost. A callback reads the list instead, and asks the C code to stop.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:
            handle_once(number, lambda number, frame: noted.append(number))
        yield noted
    finally:
        for number, handler in ours.items():
            handle_once(number, handler)
        for caught in noted:
            signal.raise_signal(caught)

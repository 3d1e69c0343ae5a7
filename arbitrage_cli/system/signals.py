"""Handles Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z.

On the first signal, the run is saved and stopped. A second signal ends the run immediately.
"""

import ctypes
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption(BaseException):
    """Raised for a signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible(on_signal: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Raise `Interruption` for signals that end a run, after calling `on_signal`. Ctrl-Z also calls `on_signal`."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        on_signal()
        raise Interruption(number)

    def suspend(number: int, frame: FrameType | None) -> None:
        on_signal()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, suspend)

    previous = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGTSTP)}
    # Signals that were ignored from the start stay ignored, as Ctrl-C is for background jobs of a script.
    handled = [number for number, handler in previous.items() if handler != signal.SIG_IGN]
    try:
        for number in handled:
            if number == signal.SIGTSTP:
                signal.signal(number, suspend)
            else:
                handle_once(number, interrupt)
    except ValueError:  # outside the main thread, where the host program handles signals
        handled = []
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


def handle_once(number: int, handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle one signal. The next signal kills the process. With glibc, this also works while C code is running."""
    signal.signal(number, handler)
    if (rearm := _sysv_signal()) is not None:
        current = ctypes.pythonapi.PyOS_getsig
        current.restype = ctypes.c_void_p
        rearm(number, ctypes.c_void_p(current(number)))


@functools.cache  # looking it up takes longer than computing a batch of a tiny model
def _sysv_signal() -> Callable[..., object] | None:
    """Return glibc's function that sets a handler for one signal, or None in other C libraries."""
    return getattr(ctypes.CDLL(None), "sysv_signal", None)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list, and raise the signals again at the end. A second signal kills the process.

    Callbacks from C code should check the list, because an exception from a signal handler would be lost in a callback.
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
        for number, handler in ours.items():  # the handlers in this module handle one signal
            restore = handle_once if getattr(handler, "__module__", "") == __name__ else signal.signal
            restore(number, handler)
        for caught in noted:
            signal.raise_signal(caught)

"""Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z: the first signal ends a run so that it is saved, a second one ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from arbitrage_cli.display.text import is_drawable
from arbitrage_cli.system.held_signals import ENDING, handle_once


class Interruption(BaseException):
    """A signal asks the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Signals that ask the run to end raise an `Interruption`, so that the terminal is restored; Ctrl-Z shows the cursor before it stops."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        _show_cursor()
        raise Interruption(number)

    def suspend(number: int, frame: FrameType | None) -> None:
        _show_cursor()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, suspend)

    previous = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGTSTP)}
    # What was ignored from the start stays so, as Ctrl-C is for the background jobs of a script.
    handled = [number for number, handler in previous.items() if handler != signal.SIG_IGN]
    try:
        for number in handled:
            if number == signal.SIGTSTP:
                signal.signal(number, suspend)
            else:
                handle_once(number, interrupt)
    except ValueError:  # not the main thread: the host program has the signals
        handled = []
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])


@contextlib.contextmanager
def draining(drain: Callable[[], bool]) -> Iterator[None]:
    """The first signal that asks the run to end calls `drain`, so that what was begun is finished; the next ones work as usual.

    So does the first if `drain` returns that nothing was begun. A thread waits for it: if it reached another one, it would end a
    computation in C, or nobody would hear of it. So this must begin before any other thread does. What is ignored stays so.
    """
    is_draining, is_over = threading.Event(), threading.Event()
    heeded = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
    if not heeded:
        yield
        return

    def wait() -> None:
        number = signal.sigwait(heeded)
        if is_over.is_set():
            return
        is_draining.set()
        was_begun = drain()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heeded)  # they reach the main thread through this one
        if not was_begun:
            os.kill(os.getpid(), number)
        is_over.wait()

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    waiting = threading.Thread(target=wait, name="signals", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        is_over.set()
        if not is_draining.is_set():
            signal.pthread_kill(waiting.ident or 0, heeded[0])  # it waits for one
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _show_cursor() -> None:
    """The live view hides it."""
    with contextlib.suppress(OSError, ValueError):
        if is_drawable(sys.stderr):
            os.write(sys.stderr.fileno(), b"\x1b[?25h")

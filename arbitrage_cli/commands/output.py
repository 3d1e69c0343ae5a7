"""Which display a command writes to, and how log messages get there. Knows no model."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from arbitrage_cli.errors import UsageError
from arbitrage_cli.reporters import Display
from arbitrage_cli.reporters.plain import PlainDisplay


def is_drawable(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that escape codes may be sent to."""
    if stream is None or not stream.isatty():
        return False
    return os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def choose_display(*, quiet: bool, verbose: bool) -> Display:
    """The live view needs a terminal that can be drawn on, and a user who did not decline it."""
    if sys.stdout is None:
        raise UsageError("standard output is closed, so there is nowhere to write results", "send it somewhere: > FILE")
    if quiet or not is_drawable(sys.stderr):
        return PlainDisplay(sys.stderr, sys.stdout, verbosity=0 if quiet else 2 if verbose else 1)
    from arbitrage_cli.reporters.live import LiveDisplay  # Rich is slow to import: only where it is drawn with

    return LiveDisplay(sys.stderr, sys.stdout)


@contextlib.contextmanager
def log_to(display: Display, *, verbose: bool, debug: bool) -> Iterator[None]:
    """Send log messages to the display: warnings always, more with --verbose, llama.cpp's own with --debug."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            display.note(record.getMessage())

    logger = logging.getLogger("arbitrage")
    handler = Notes(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

"""The interface of displays, which show a command's progress, and the records passed to them.

A display writes to standard error; only results go to standard output. A display receives records and events, but never
models or files.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

from arbitrage_cli.model_files.checksums import FileProgress
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import ServingEvent, frozen


@frozen
class Standing:
    """A policy's progress: attempt counts, and the total seconds of the finished attempts."""

    label: str
    planned: int
    tried: int
    done: int
    correct: int
    seconds: float


@frozen
class RunProgress:
    """The progress of a run, which stops at `ends`. `finished` and `planned` count attempts."""

    title: str
    finished: int
    planned: int
    standings: Sequence[Standing]
    ends: float = math.inf


@frozen
class AttemptStarted:
    """The start of an attempt."""

    problem: str
    label: str


@frozen
class AttemptEnded:
    """The end of an attempt. `verdict` is the grade or "error", and `detail` is the answer or the error message."""

    problem: str
    label: str
    verdict: str
    detail: str
    seconds: float | None
    progress: RunProgress


@frozen
class ServerInfo:
    """A running server and the model names that it accepts."""

    url: str
    names: Sequence[str]
    run: RunInfo


Shown = ServingEvent | AttemptStarted | AttemptEnded


class Display(Protocol):
    """The display of one command. `close` restores the terminal and may be called more than once."""

    def loading(self, activity: str, name: str, fraction: float | None = None) -> None:
        """Show an activity, such as `loading draft`, and the name of its model or server until the next activity begins.

        `fraction` is the completed part, from 0 to 1, or None if it is unknown.
        """

    def fetching(self, progress: FileProgress) -> None:
        """Show that a model file is being downloaded or checked."""

    def note(self, text: str) -> None:
        """Show a line, such as a warning or an error about one problem."""

    def tell(self, text: str) -> None:
        """Show a line that is not a warning, unless the display is quiet."""

    def begin(self, run: RunInfo | RunProgress | ServerInfo) -> None: ...
    def handle(self, event: Shown) -> None: ...
    def end(self) -> None: ...

    def result(self, text: str) -> None:
        """Write a line to standard output without disturbing the progress display."""

    def close(self) -> None: ...


class LogDisplay:
    """A display for Python callers, which only logs notes."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def note(self, text: str) -> None:
        self._log.warning("%s", text)

    tell = note

    def _ignore(self, *args: Any, **options: Any) -> None: ...

    loading = fetching = begin = handle = end = result = close = _ignore

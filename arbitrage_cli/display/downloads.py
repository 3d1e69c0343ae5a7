"""How a download is shown: a bar in a terminal, plain lines elsewhere, and the words for both. Knows no network."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from arbitrage_cli.display.text import is_drawable, one_line
from arbitrage_cli.model_files.hub import FileProgress, OnProgress

LINE_SECONDS = 5.0
"""A plain line about the same file comes only after so long."""

Clock = Callable[[], float]


def size_words(size: float) -> str:
    """Bytes in the unit that suits them: 4.9 GB, 380 MB, 12 kB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if unit == "GB" else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"


class Pace:
    """Words for how far files are, with the time left at the pace since each was begun."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[str, str] | None = None
        self._start = (0.0, 0)

    def words(self, progress: FileProgress) -> str:
        """For example: downloading model.gguf, 1.2 GB of 4.9 GB, 0:03:20 left."""
        now = self._clock()
        if self._begun != (progress.activity, progress.file):
            self._begun = (progress.activity, progress.file)
            self._start = (now, progress.done)
        seconds, gained = now - self._start[0], progress.done - self._start[1]
        sizes = f"{size_words(progress.done)} of {size_words(progress.total)}"
        words = f"{progress.activity} {one_line(progress.file)}, {sizes}"
        if seconds < 1 or gained <= 0:
            return words
        left = int((progress.total - progress.done) * seconds / gained)
        return f"{words}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"


class Lines:
    """Plain lines: when a file is begun, when it is whole, and now and then between. No escape byte."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._clock, self._pace = stream, clock, Pace(clock)
        self._shown: tuple[str, str] | None = None
        self._last = 0.0

    def __call__(self, progress: FileProgress) -> None:
        now, words = self._clock(), self._pace.words(progress)
        what = (progress.activity, progress.file)
        if what != self._shown or progress.done == progress.total or now - self._last >= LINE_SECONDS:
            self._shown, self._last = what, now
            self._stream.write(f"{words}\n")
            self._stream.flush()


@contextlib.contextmanager
def shown(*, quiet: bool) -> Iterator[OnProgress]:
    """Shows downloads on stderr while the body runs."""
    if quiet:
        yield lambda progress: None
    elif is_drawable(sys.stderr):
        with _bar() as watch:
            yield watch
    else:
        yield Lines(sys.stderr)


@contextlib.contextmanager
def _bar() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Bars(*columns, console=Console(file=sys.stderr)) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def watch(progress: FileProgress) -> None:
            key = (progress.activity, progress.file)
            if key not in tasks:
                tasks[key] = bars.add_task(f"{progress.activity} {one_line(progress.file)}", total=progress.total)
            bars.update(tasks[key], completed=progress.done)

        yield watch

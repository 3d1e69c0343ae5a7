"""The view of a benchmark or a collection, as a table of the policies. It turns events into permanent lines.

`region` returns the lines that a live display redraws below them.
"""

import math
from collections.abc import Sequence
from datetime import timedelta

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, RunProgress, Shown, Standing
from arbitrage_cli.display import wording
from arbitrage_cli.display.step_in_progress import StepInProgress
from arbitrage_cli.display.text import Line, aligned, one_line
from arbitrage_cli.numbers import formatting

BAR = 24  # characters


class RunView:
    """A view of a benchmark or collection: a table of the policies and the current attempt. Failures stay."""

    def __init__(self, progress: RunProgress, now: float, *, shows_attempts: bool) -> None:
        self._progress = progress
        self._num_before = progress.finished
        self._shows_attempts = shows_attempts
        self._began = now
        self._in_flight: dict[str, str] = {}  # policies by problem
        self._step = StepInProgress()
        self._last = ""

    def handle(self, event: Shown, now: float) -> list[Line]:
        if isinstance(event, AttemptStarted):
            self._in_flight[event.problem] = event.label
            self._step = StepInProgress()
        elif isinstance(event, AttemptEnded):
            self._in_flight.pop(event.problem, None)
            self._progress = event.progress
            self._last = wording.outcome(event) if self._has_limit else wording.attempt(event)
            if self._shows_attempts:
                counted = f"{self._counts}, {self._last}" if self._has_limit else f"{self._counts} {self._last}"
                return [Line.of(wording.joined(counted, self._time_left(now)))]
            return [Line.of((self._last, "bold red"))] if event.verdict == "error" else []
        else:
            self._step.update(event, now)
        return []

    def region(self, now: float) -> list[Line]:
        clock = str(timedelta(seconds=int(now - self._began))).removeprefix("0:")
        share = self._progress.finished / self._progress.planned if self._progress.planned else 1.0
        full = round(BAR * share)
        bar = ("  " + "█" * full, "green"), ("░" * (BAR - full), "dim")
        progress = wording.joined(self._counts, self._time_left(now))
        head = Line.of((progress, "bold"), f"  {clock}  {self._progress.title}", *bar, rows=1)  # the end may be cut
        last = [Line.of((f"  last: {self._last}", "dim"), rows=1)] if self._last else []
        return [head, *_standing_lines(self._progress.standings), self._attempt_line, *last]

    def end(self, now: float) -> list[Line]:
        return []

    def close(self) -> list[Line]:
        return []

    @property
    def _has_limit(self) -> bool:
        """Whether the run ends at a time limit, so that not all attempts may be made."""
        return math.isfinite(self._progress.ends)

    @property
    def _counts(self) -> str:
        standings = self._progress.standings
        if self._has_limit and standings:
            return f"problem {max(row.tried for row in standings)} of at most {standings[0].planned}"
        return f"{self._progress.finished}/{self._progress.planned}"

    def _time_left(self, now: float) -> str:
        """Return the estimate from the mean time of the attempts so far, but at most the time until the limit."""
        finished = self._progress.finished - self._num_before
        left = self._progress.planned - self._progress.finished
        estimate = left * (now - self._began) / finished if finished and left else None
        if self._has_limit:
            estimate = min(math.inf if estimate is None else estimate, max(0.0, self._progress.ends - now))
        return wording.time_left(estimate)

    @property
    def _attempt_line(self) -> Line:
        if not self._in_flight:
            return Line.of(rows=1)
        several = len(self._in_flight) > 1
        problem, label = list(self._in_flight.items())[-1]
        attempt = f"{formatting.count(len(self._in_flight), 'problem')} at once" if several else problem
        step = self._step.head if self._step.writer and not several else []
        return Line.of(f"  {attempt}, {label}", *step, rows=1)


def _standing_lines(standings: Sequence[Standing]) -> list[Line]:
    is_graded = any(row.correct for row in standings)
    cells = {
        "done": [f"{row.tried}/{row.planned}" for row in standings],
        "right": [f"{row.correct / row.tried:.0%}" if is_graded and row.tried else "" for row in standings],
        "s each": [formatting.number(row.seconds / row.done) if row.done and row.seconds else "" for row in standings],
        "failed": [str(row.tried - row.done) if row.tried > row.done else "" for row in standings],
    }
    shown = {heading: column for heading, column in cells.items() if any(column)}
    labels = [one_line(row.label) for row in standings]
    texts = aligned(["", *shown], zip(labels, *shown.values(), strict=True))
    styles = ["dim", *("red" if row.tried > row.done else "" for row in standings)]
    return [Line.of((text, style), margin="  ", rows=1) for text, style in zip(texts, styles, strict=True)]

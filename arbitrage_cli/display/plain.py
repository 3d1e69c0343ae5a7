"""The plain display for pipes, logs and dumb terminals: lines without escape codes.

A single problem is shown step by step. If there are many problems, attempts or requests, each is shown in one line.
"""

import time
from collections.abc import Callable
from typing import TextIO

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, RunProgress, ServerInfo, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.base import BaseDisplay, always, in_turn
from arbitrage_cli.display.explanation import step_lines
from arbitrage_cli.display.text import first_line, one_line, safe, show
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.runs.summary import tally_of
from arbitrage_cli.types import Checked, Decided, Event, Finished, RequestEnded, Started

LOADING_SECONDS = 5.0  # minimum time between progress lines of a download or a model that is loaded


class PlainDisplay(BaseDisplay):
    """A `Display` of plain lines. Verbosity 0 shows only notes and failures, 1 also problems, and 2 also steps."""

    def __init__(
        self,
        stream: TextIO,
        results: TextIO,
        *,
        verbosity: int = 1,
        is_due: Callable[[str], bool] = always,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(results, LOADING_SECONDS, is_due=is_due, clock=clock)
        self._stream = stream
        self._verbosity = verbosity
        self._run: RunInfo | None = None
        self._began = 0.0
        self._totals = wording.Totals()

    @in_turn
    def loading(self, activity: str, fraction: float) -> None:
        if self._has_waited:
            self._show_work(f"{one_line(activity)}: {fraction:.0%}")

    @in_turn
    def note(self, text: str) -> None:
        self._write(one_line(text))

    @in_turn
    def begin(self, run: RunInfo | RunProgress | ServerInfo) -> None:
        if isinstance(run, RunInfo):
            self._run, self._began = run, self._clock()
        for line in wording.opening(run):
            self._say(line)

    @in_turn
    def handle(self, event: Shown) -> None:
        if isinstance(event, AttemptEnded):
            progress = event.progress
            left = progress.seconds_left if progress.finished < progress.planned else None
            estimate = "" if left is None else f"; about {formatting.duration(left)} left"
            self._say(f"{progress.finished}/{progress.planned} {wording.attempt(event)}{estimate}")
        elif isinstance(event, RequestEnded):
            self._say(wording.request(event))
        elif self._run and not isinstance(event, AttemptStarted):
            self._totals.add(event)
            self._show(event, self._run)
            if note := self._totals.slowness(self._run):
                self.note(note)

    @in_turn
    def end(self) -> None:
        if self._run and self._run.num_problems != 1:
            self._say(self._totals.text)

    def close(self) -> None: ...

    def _clear(self) -> None: ...

    def _show_work(self, line: str) -> None:
        self._updated = self._clock()
        self._say(line)

    def _show(self, event: Event, run: RunInfo) -> None:
        has_steps = self._verbosity > 1 or run.num_problems == 1 or run.explain
        if isinstance(event, Started) and has_steps:
            self._say(f"problem {one_line(event.trace.problem.id)}: {first_line(event.trace.problem.question)}")
        elif isinstance(event, Checked) and has_steps:
            self._show_check(event, run)
        elif isinstance(event, Decided) and has_steps:
            self._show_decision(event, run)
        elif isinstance(event, Finished) and wording.failure(event):
            self._write(wording.failure(event))
        elif isinstance(event, Finished):
            self._show_finished(event, run)

    def _show_check(self, event: Checked, run: RunInfo) -> None:
        of = f"problem {one_line(event.trace.problem.id)}, " if run.concurrency > 1 else ""
        for model, text in wording.discarded(event.trace):
            self._say(f"{of}{model}")
            self._say_text(text, "    ")
        self._say(of + wording.checked(event.trace, run))

    def _show_decision(self, event: Decided, run: RunInfo) -> None:
        decision = event.decision
        kept, discarded = decision.kept, decision.discarded
        if kept.phase == "think" and not run.shows_thoughts:
            return
        numbers = wording.comparison(decision, run)
        facts = [
            "thought" if kept.phase == "think" else "",
            kept.model,
            decision.choice or "",
            numbers and f"{run.policy} {numbers}",
            wording.size(kept),
        ]
        is_same = wording.is_same(decision)
        if discarded:
            facts.append(f"({'the same text' if is_same else 'discarded'}: {discarded.model}, {wording.size(discarded)})")
        of = f"problem {one_line(event.trace.problem.id)}, " if run.concurrency > 1 else ""
        self._say(f"{of}step {event.index + 1}: " + " ".join(filter(None, facts)))
        if discarded and not is_same:
            self._say_text(discarded.text, "  - ")
        self._say_text(kept.text, "  + " if discarded and not is_same else "    ")
        for line in step_lines(event.trace, event.index, run) if run.explain else ():
            self._say(line)

    def _show_finished(self, finished: Finished, run: RunInfo) -> None:
        figures = tally_of(finished)
        found = run.answer(finished.trace)
        facts = [
            f"answer {wording.in_one_line(found)}" if found else "no answer found",
            wording.ending(finished),
            wording.thinking(finished.trace),
            wording.summary(figures),
            f"{figures.seconds:.2f} s",
            wording.price(run.bill(finished)),
        ]
        if run.num_problems not in (None, 1):
            facts.append(wording.progress(self._totals, run, self._clock() - self._began))
        self._say(one_line(f"problem {finished.trace.problem.id}: " + "; ".join(filter(None, facts))))

    def _say_text(self, text: str, margin: str) -> None:
        for line in safe(text).split("\n"):
            if line.strip():
                self._say(margin + line)

    def _say(self, line: str) -> None:
        if self._verbosity:
            self._write(line)

    def _write(self, line: str) -> None:
        show(self._stream, safe(line).replace("\t", " ") + "\n")

"""Plain lines for pipes, logs and dumb terminals: no escape byte, no line ever rewritten.

One problem is told step by step; of many, one line each, unless asked for more.
"""

import time
from typing import TextIO

from arbitrage_cli.display import one_line, safe, wording, write
from arbitrage_cli.runs.records import RunInfo, answer
from arbitrage_cli.runs.summary import Tally, tally
from arbitrage_cli.types import Decided, Event, Finished, ModelRole, Started

PROGRESS_SECONDS = 5.0
"""Loading is mentioned again only after so long."""


class PlainDisplay:
    """A `Display` of lines. `verbosity`: 0 notes only, 1 the usual, 2 every step of every problem."""

    def __init__(self, stream: TextIO, results: TextIO, *, verbosity: int = 1) -> None:
        self._stream = stream
        self._results = results
        self._verbosity = verbosity
        self._run: RunInfo | None = None
        self._last_progress = time.monotonic()

    def loading(self, role: ModelRole, source: str, fraction: float) -> None:
        now = time.monotonic()
        if self._verbosity and now - self._last_progress >= PROGRESS_SECONDS:
            self._last_progress = now
            self._say(f"loading {role} {one_line(source)}: {fraction:.0%}")

    def begin(self, run: RunInfo) -> None:
        self._run = run
        if self._verbosity:
            for line in wording.models(run):
                self._say(line)
            self._say(wording.rule(run))
            if run.is_toy:
                self._say(f"{wording.TOY_NOTICE} {wording.REAL_MODELS_HINT}")

    def handle(self, event: Event) -> None:
        if isinstance(event, Finished) and wording.failure(event):
            self._say(wording.failure(event))
            return
        if not self._verbosity or self._run is None:
            return
        tells_steps = self._verbosity > 1 or self._run.num_problems == 1
        if isinstance(event, Started) and tells_steps:
            self._say(f"problem {one_line(event.trace.problem.id)}: {one_line(event.trace.problem.question)}")
        elif isinstance(event, Decided) and tells_steps:
            self._say_decision(event, self._run)
        elif isinstance(event, Finished):
            self._say_finished(event, self._run)

    def end(self, figures: Tally, num_solved: int, num_failed: int) -> None:
        if self._verbosity and self._run and self._run.num_problems != 1:
            self._say(wording.total(figures, num_solved, num_failed))

    def note(self, text: str) -> None:
        self._say(one_line(text))

    def result(self, text: str) -> None:
        write(self._results, text + "\n")

    def close(self) -> None:
        """Nothing is left to be undone."""

    def _say_decision(self, event: Decided, run: RunInfo) -> None:
        decision = event.decision
        kept, discarded = decision.kept, decision.discarded
        facts = [kept.model, decision.verdict or "", wording.comparison(decision, run), wording.size(kept)]
        if discarded:
            facts.append(f"(discarded: {discarded.model}, {wording.size(discarded)})")
        of = f"problem {one_line(event.trace.problem.id)}, " if run.concurrency > 1 else ""
        self._say(f"{of}step {len(event.trace.decisions)}: " + " ".join(fact for fact in facts if fact))
        if discarded:
            self._say_text(discarded.text, "  - ")
        self._say_text(kept.text, "  + " if discarded else "    ")

    def _say_text(self, text: str, margin: str) -> None:
        for line in safe(text).split("\n"):
            if line.strip():
                self._say(margin + line)

    def _say_finished(self, finished: Finished, run: RunInfo) -> None:
        figures = tally(finished.trace.decisions).rated(finished.reward_cost)
        found = answer(finished.trace)
        facts = [
            f"answer {found}" if found else "no boxed answer",
            wording.ending(finished),
            wording.acceptance(figures),
            wording.tokens(figures),
            wording.speeds(figures),
            wording.time(finished, figures, run),
        ]
        self._say(f"problem {one_line(finished.trace.problem.id)}: " + one_line("; ".join(fact for fact in facts if fact)))

    def _say(self, line: str) -> None:
        write(self._stream, safe(line).replace("\t", " ") + "\n")

"""The view of problems that are solved. It turns events into permanent lines.

`region` returns the lines that a live display redraws below them.
"""

from collections.abc import Iterable, Iterator

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.decisions import MARGIN, decision_lines
from arbitrage_cli.display.step_in_progress import StepInProgress
from arbitrage_cli.display.text import Line, one_line, role_name, shortened
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.records import RunInfo, tally_of
from arbitrage_cli.types import Checked, Decided, Event, Finished, Problem, RequestEnded, Started, Trace, Wrote

DRAFT_ROWS, TEXT_ROWS = 3, 6
MAX_QUESTION = 200  # characters


class SolveView:
    """A view of problems that are being solved."""

    def __init__(self, run: RunInfo, verbosity: int) -> None:
        self._run = run
        self._is_quiet = verbosity == 0
        self.shows_steps = verbosity > 1 or (verbosity == 1 and (run.num_problems == 1 or run.explain is not None))
        self._steps: dict[Trace, StepInProgress] = {}
        self._totals = wording.Totals()
        self._began: float | None = None

    def handle(self, event: Shown, now: float) -> list[Line]:
        if isinstance(event, AttemptStarted | AttemptEnded | RequestEnded):
            return []
        if not isinstance(event, Wrote):  # by far the most frequent event, which changes no totals
            self._count(event, now)
        lines: Iterable[Line] = ()
        match event:
            case Started():
                self._steps[event.trace] = StepInProgress()
                lines = self._title(event.trace.problem)
            case Checked():
                lines = self._check_lines(event)
            case Decided():
                self._steps[event.trace] = StepInProgress(event.index + 2)
                prefix = self._prefix(event.trace.problem) if self._run.concurrency > 1 else ""
                lines = decision_lines(event.trace, event.index, self._run, prefix)
            case Finished():
                self._steps.pop(event.trace, None)
                return self._last_lines(event, now)
            case _:
                self._steps[event.trace].update(event, now)
        return list(lines) if self.shows_steps else []

    def _count(self, event: Event, now: float) -> None:
        if isinstance(event, Started) and self._run.num_problems == 1:  # in a chat, the figures are those of one question
            self._totals = wording.Totals()
            self._began = None
        self._totals.add(event)
        if self._began is None:
            self._began = now

    def region(self, now: float) -> list[Line]:
        if not self._steps:
            return []
        progress = self._progress(now)
        summary = wording.summary(self._totals.figures)
        if self._run.concurrency > 1:
            at_once = f"{formatting.count(len(self._steps), 'problem')} at once"
            counts = Line.of((wording.joined(at_once, progress), "bold"), rows=1)
            return [counts, Line.of((summary, "dim"), rows=1)] if summary else [counts]
        (step,) = self._steps.values()
        figures = Line.of((wording.joined(progress, summary), "dim"), margin=MARGIN, rows=1)
        if step.writer is None:  # the region stays between two steps
            return [figures]
        lines = [Line.of(*step.head, (f"  {now - step.began:.1f} s", "dim"), rows=1)]
        if step.draft_text.strip():
            lines.append(Line.block(step.draft_text, "dim strike", margin=MARGIN, rows=DRAFT_ROWS))
        if step.text.strip():
            lines.append(Line.block(step.text, "dim" if step.is_thought else "", margin=MARGIN, rows=TEXT_ROWS))
        return [*lines, figures]

    def end(self, now: float) -> list[Line]:
        if self._is_quiet or self._run.num_problems == 1:
            return []
        return [Line.of(), Line.of((self._totals.text(self._elapsed(now)), "bold"))]

    def close(self) -> list[Line]:
        """Return the unfinished steps."""
        lines: list[Line] = []
        for trace, step in self._steps.items():
            if self.shows_steps and step.writer and step.text:
                head = f"{self._prefix(trace.problem)}{role_name(step.writer)} was writing:"
                lines += [Line.of((head, "dim")), Line.block(step.text, "dim", margin=MARGIN)]
        return lines

    def _progress(self, now: float) -> str:
        """Return the seconds so far of the only problem, or how many problems are done."""
        seconds = self._elapsed(now)
        planned = self._run.num_problems
        if planned == 1:
            return f"{seconds:.0f} s"
        finished = self._totals.finished
        done = self._run.num_done + self._totals.finished
        if planned is None:
            return f"{done} finished"
        left = (planned - done) * seconds / finished if finished and done < planned else None
        return wording.joined(f"{done}/{planned}", wording.time_left(left))

    def _elapsed(self, now: float) -> float:
        return 0.0 if self._began is None else now - self._began

    def _prefix(self, problem: Problem) -> str:
        return "" if self._run.num_problems == 1 else f"problem {one_line(problem.id)}: "

    def _title(self, problem: Problem) -> list[Line]:
        return [
            Line.of(),
            Line.of((self._prefix(problem) or "problem: ", "bold"), shortened(one_line(problem.question), MAX_QUESTION)),
        ]

    def _check_lines(self, event: Checked) -> Iterator[Line]:
        """Yield the solutions that are not kept, or only the answers before thinking, and the result of the comparison."""
        prefix = self._prefix(event.trace.problem) if self._run.concurrency > 1 else ""
        if self._run.has_quick_answers:
            yield from (Line.of((f"  {prefix}{line}", "dim")) for line in wording.quick_answers(event.check))
            yield Line.of((f"  {prefix}{wording.checked(event.check, before_thinking=True)}", "bold"))
            return
        for model, text in wording.discarded(event.check):
            yield Line.of((f"  {prefix}{model}", "dim"))
            yield Line.block(text, "dim", margin=MARGIN)
        yield Line.of((f"  {prefix}{wording.checked(event.check)}", "bold"))

    def _last_lines(self, finished: Finished, now: float) -> list[Line]:
        """Return the answer or the failure of a problem, and notes about it."""
        lines: list[Line] = []
        trace = finished.trace
        figures = tally_of(finished)
        facts = [
            wording.times(figures, finished.target_alone_seconds),
            wording.thinking(trace),
            wording.summary(figures),
            wording.price(self._run.bill(finished)),
        ]
        if failure := wording.failure(finished):
            lines.append(Line.of((failure, "bold red")))
        elif not self._is_quiet:
            progress = "" if self._run.num_problems in (None, 1) else self._progress(now)
            about = wording.joined(*facts, progress)
            lines.append(Line.of((self._prefix(trace.problem), "bold"), *self._answer(finished), (about, "dim")))
            lines += self._doubts(trace)
        return lines

    def _doubts(self, trace: Trace) -> Iterator[Line]:
        """Yield reasons why the answer may be wrong."""
        if steps := self._run.wrong_equations(trace):
            yield Line.of((f"{self._prefix(trace.problem)}{wording.wrong_equations(steps)}", "yellow"))
        for warning in self._run.warnings(trace.problem):
            yield Line.of((f"{self._prefix(trace.problem)}{warning}", "yellow"))

    def _answer(self, finished: Finished) -> list[tuple[str, str]]:
        """Return the answer and the limit that the solution reached, unless only an answer follows on the same terminal."""
        found = self._run.find_answer(finished.trace.text)
        ending = wording.ending(finished)
        if found and not ending and self._run.answers_follow and self._run.concurrency == 1:
            return []
        can_be_computed = any(map(str.isdigit, finished.trace.problem.question))  # unlike "What is the capital of France?"
        parts = [("no answer found", "yellow")] if self._run.needs_answer and can_be_computed else []
        if found:
            parts = [("answer ", "bold"), (wording.in_one_line(found), "bold green")]
        if ending:
            parts.append((f" ({ending})" if parts else ending, "yellow"))
        return [*parts, ("; ", "dim")] if parts else []

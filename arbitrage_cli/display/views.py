"""The views of problems that are solved, and of a run's attempts.

A view turns events into permanent lines. `region` returns the lines that a live display redraws below them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import unified_diff
from itertools import islice

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, RunProgress, Shown, Standing
from arbitrage_cli.display import wording
from arbitrage_cli.display.text import Line, aligned, one_line, role_name, shortened
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.equations import steps_with_wrong_equations
from arbitrage_cli.runs.records import RunInfo, tally_of
from arbitrage_cli.types import (
    Attribution,
    Checked,
    Decided,
    Finished,
    ModelRole,
    Problem,
    Rating,
    RequestEnded,
    Started,
    Trace,
    Writing,
    Wrote,
)

DRAFT_ROWS, TEXT_ROWS = 3, 6
UNKNOWN_QUESTION = (
    "the built-in models can only solve exercises like those in the data set builtin; this question is not one of them, so "
    "the answer is probably wrong"
)
MAX_QUESTION, MAX_THOUGHT = 200, 160  # characters
BAR = 24  # characters
MARGIN = "     "
DIFF_HEADER = 3  # lines before the changes
CHANGES = {" ": "", "-": "red strike", "+": "bold green"}  # the marks distinguish them without styles, too
COLORS: dict[ModelRole, str] = {"draft": "cyan", "target": "magenta", "check": "blue"}
MAX_FEATURES = 5  # features named in an explanation
CHOICES = {"accept": "green", "escalate": "yellow", None: ""}


@dataclass(slots=True)
class _StepInProgress:
    number: int = 1
    writer: ModelRole | None = None
    text: str = ""
    draft_text: str = ""  # while the target rewrites the step
    num_tokens: int = 0
    num_unread: int = 0  # prompt tokens, until the first token is written
    is_scored: bool = False
    is_thought: bool = False
    began: float = 0.0

    def update(self, event: Shown, now: float) -> None:
        if isinstance(event, Wrote):
            if event.model == self.writer:  # two models may write at once: one of them is shown
                self.text += event.text
                self.num_tokens += 1
        elif isinstance(event, Rating):
            self.is_scored = True
        elif isinstance(event, Writing):
            if event.model != self.writer or self.num_tokens:  # otherwise the prefill continues
                self.draft_text = self.text if (self.writer, event.model) == ("draft", "target") else ""
                self.writer = event.model
                self.text = ""
                self.num_tokens = 0
                self.is_thought = event.trace.phase == "think"
                self.is_scored = False
                self.began = now
            self.number = len(event.trace.decisions) + 1
            self.num_unread = event.num_unread

    @property
    def head(self) -> list[tuple[str, str]]:
        """The number of the step, its writer, and what the writer does."""
        writer = (f"{role_name(self.writer):<6}", COLORS[self.writer]) if self.writer else ("", "")
        return [(f"{self.number:>3}  ", "bold"), writer, (f"  {self._state:<10}", "dim")]

    @property
    def _state(self) -> str:
        if self.is_scored:
            return "scoring"
        if self.num_unread > 1 and not self.num_tokens:
            return f"prefill {self.num_unread} tokens"
        return formatting.count(self.num_tokens, "token")


class SolveView:
    """A view of problems that are being solved."""

    def __init__(self, run: RunInfo, verbosity: int) -> None:
        self._run = run
        self._is_quiet = verbosity == 0
        self.shows_steps = verbosity > 1 or (verbosity == 1 and (run.num_problems == 1 or run.explain is not None))
        self._steps: dict[Trace, _StepInProgress] = {}
        self._totals = wording.Totals()
        self._began: float | None = None
        self._has_unknown = False

    def handle(self, event: Shown, now: float) -> list[Line]:
        if isinstance(event, Wrote):  # by far the most frequent event
            self._steps[event.trace].update(event, now)
            return []
        if isinstance(event, AttemptStarted | AttemptEnded | RequestEnded):
            return []
        if isinstance(event, Started) and self._run.num_problems == 1:  # in a chat, the figures are those of one question
            self._totals = wording.Totals()
            self._began = None
        self._totals.add(event)
        self._began = now if self._began is None else self._began
        if isinstance(event, Started):
            self._steps[event.trace] = _StepInProgress()
            return self._title(event.trace.problem) if self.shows_steps else []
        if isinstance(event, Finished):
            self._steps.pop(event.trace, None)
            return self._last_lines(event, now)
        if isinstance(event, Checked):
            return [*self._check_lines(event)] if self.shows_steps else []
        if isinstance(event, Decided):
            self._steps[event.trace] = _StepInProgress(event.index + 2)
            of = self._of(event.trace.problem) if self._run.concurrency > 1 else ""
            return [*decision_lines(event.trace, event.index, self._run, of)] if self.shows_steps else []
        self._steps[event.trace].update(event, now)
        return []

    def region(self, now: float) -> list[Line]:
        if not self._steps:
            return []
        progress = self._progress(now)
        summary = wording.summary(self._totals.figures)
        if self._run.concurrency > 1:
            counts = wording.joined(f"{formatting.count(len(self._steps), 'problem')} at once", progress)
            return [Line.of((text, style), rows=1) for text, style in ((counts, "bold"), (summary, "dim")) if text]
        (step,) = self._steps.values()
        figures = Line.of((wording.joined(progress, summary), "dim"), margin=MARGIN, rows=1)
        if step.writer is None:  # the region stays between two steps
            return [figures]
        blocks = [
            (step.draft_text, "dim strike", DRAFT_ROWS),
            (step.text, "dim" if step.is_thought else "", TEXT_ROWS),
        ]
        head = Line.of(*step.head, (f"  {now - step.began:.1f} s", "dim"), rows=1)
        texts = [Line.block(*block[:2], margin=MARGIN, rows=block[2]) for block in blocks if block[0].strip()]
        return [head, *texts, figures]

    def end(self, now: float) -> list[Line]:
        if self._is_quiet or self._run.num_problems == 1:
            return []
        return [Line.of(), Line.of((self._totals.text(self._elapsed(now)), "bold"))]

    def close(self) -> list[Line]:
        """Return the unfinished steps."""
        lines: list[Line] = []
        for trace, step in self._steps.items():
            if self.shows_steps and step.writer and (written := step.text):
                head = f"{self._of(trace.problem)}{role_name(step.writer)} was writing:"
                lines += [Line.of((head, "dim")), Line.block(written, "dim", margin=MARGIN)]
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

    def _of(self, problem: Problem) -> str:
        return "" if self._run.num_problems == 1 else f"problem {one_line(problem.id)}: "

    def _title(self, problem: Problem) -> list[Line]:
        return [
            Line.of(),
            Line.of((self._of(problem) or "problem: ", "bold"), shortened(one_line(problem.question), MAX_QUESTION)),
        ]

    def _check_lines(self, event: Checked) -> Iterator[Line]:
        """Yield the solutions that are not kept, and the result of the comparison."""
        of = self._of(event.trace.problem) if self._run.concurrency > 1 else ""
        for model, text in wording.discarded(event.check):
            yield Line.of((f"  {of}{model}", "dim"))
            yield Line.block(text, "dim", margin=MARGIN)
        yield Line.of((f"  {of}{wording.checked(event.check)}", "bold"))

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
            lines.append(Line.of((self._of(trace.problem), "bold"), *self._answer(finished), (about, "dim")))
            lines += self._doubts(trace)
        return lines

    def _doubts(self, trace: Trace) -> Iterator[Line]:
        """Yield reasons why the answer may be wrong. If several questions are unknown, the note names the first."""
        if steps := steps_with_wrong_equations(trace):
            yield Line.of((f"{self._of(trace.problem)}{wording.wrong_equations(steps)}", "yellow"))
        is_one = self._run.num_problems == 1
        if (is_one or not self._has_unknown) and not self._run.is_known(trace.problem.question):
            self._has_unknown = True
            yield Line.of((f"{self._of(trace.problem)}{UNKNOWN_QUESTION}", "yellow"))

    def _answer(self, finished: Finished) -> list[tuple[str, str]]:
        """Return the answer and the limit that the solution reached, unless only an answer follows on the same terminal."""
        found = self._run.find_answer(finished.trace.text)
        ending = wording.ending(finished)
        if found and not ending and self._run.answers_follow and self._run.concurrency == 1:
            return []
        answer = (
            [("answer ", "bold"), (wording.in_one_line(found), "bold green")] if found else [("no answer found", "yellow")]
        )
        return [*answer, (f" ({ending})" if ending else "", "yellow"), ("; ", "dim")]


def decision_lines(trace: Trace, index: int, run: RunInfo, of: str = "") -> Iterator[Line]:
    """Yield a line about the decision at an index, the text of the step, and its explanation, if there is one."""
    decision = trace.decisions[index]
    kept, discarded = decision.kept, decision.discarded
    color = CHOICES[decision.choice]
    is_same = wording.is_same(decision)
    draft = f", {discarded.model} {wording.size(discarded)}" if discarded else ""
    facts = [
        (f"  {decision.choice or '':<8}", color),
        (f"  {wording.bar(decision, run)}", color),
        (f"  {wording.comparison(decision, run)}{'  same text' * is_same}", ""),
        (f"  {wording.size(kept)}{draft}", "dim"),
    ]
    shown = [fact for fact in facts if fact[0].strip()]
    yield Line.of((f"{of}{index + 1:>3}  ", "bold"), (f"{kept.model:<6}", COLORS[kept.model]), *shown, hanging=MARGIN)
    if kept.phase == "think":
        yield Line.block(shortened(kept.text.strip(), MAX_THOUGHT), "dim", margin=MARGIN)
    elif discarded is None or is_same:
        yield Line.block(kept.text, margin=MARGIN)
    else:
        yield from _changes(discarded.text, kept.text)
    if run.explain and (attribution := run.explain(trace, index)):
        yield Line.of((log_odds(attribution), "dim"), margin=MARGIN)
    if run.explain and kept.differences:
        differences = "; ".join(map(wording.difference, kept.differences))
        yield Line.block(f"kept {differences}", "dim", margin=MARGIN)


def log_odds(attribution: Attribution) -> str:
    shown = [("an average step", attribution.average_step)]
    shown += [(name.replace("_", " "), value) for name, value in attribution.features[:MAX_FEATURES]]
    # The rest is computed from rounded terms, so that the shown terms add up.
    rest = round(attribution.log_odds, 2) - sum(round(value, 2) for _, value in shown)
    if len(attribution.features) > MAX_FEATURES:
        shown.append(("all other features", rest))
    return f"log-odds {attribution.log_odds:+.2f}: " + "; ".join(f"{value:+.2f} {words}" for words, value in shown)


class RunView:
    """A view of a benchmark or collection: a table of the policies and the current attempt. Failures stay."""

    def __init__(self, progress: RunProgress, now: float, *, shows_attempts: bool) -> None:
        self._progress = progress
        self._num_before = progress.finished
        self._shows_attempts = shows_attempts
        self._began = now
        self._in_flight: dict[str, str] = {}  # policies by problem
        self._step = _StepInProgress()
        self._last = ""

    def handle(self, event: Shown, now: float) -> list[Line]:
        if isinstance(event, AttemptStarted):
            self._in_flight[event.problem] = event.label
            self._step = _StepInProgress()
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
        head = Line.of((self._progress.title, "bold"), f"  {clock}  {progress}", *bar, rows=1)
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
        """Return the time until the limit or, without a limit, the estimate from the mean time of the attempts so far."""
        if self._has_limit:
            return wording.time_left(max(0.0, self._progress.ends - now))
        finished = self._progress.finished - self._num_before
        left = self._progress.planned - self._progress.finished
        estimate = left * (now - self._began) / finished if finished and left else None
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


def _changes(before: str, after: str) -> Iterator[Line]:
    """Yield the lines of the second text, with deleted lines struck through and new lines in bold."""
    changes = unified_diff(before.splitlines(), after.splitlines(), n=len(before), lineterm="")
    for line in islice(changes, DIFF_HEADER, None):
        if line[1:].strip():
            yield Line.of((line[1:], CHANGES[line[0]]), margin=f"   {line[0]} ")

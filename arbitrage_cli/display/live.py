"""The live view of a terminal: finished steps scroll up and stay, a small region below shows the step being written.

Of several problems at once every finished step is told with its problem, and the region has one row for each of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from arbitrage_cli.display import one_line, safe, wording, write
from arbitrage_cli.display.region import Region
from arbitrage_cli.runs.records import RunInfo, answer
from arbitrage_cli.runs.summary import Tally, tally
from arbitrage_cli.types import Decided, Decision, Event, Finished, ModelRole, Rating, Started, Trace, Writing, Wrote

REDRAW_SECONDS = 0.08
MAX_STREAM_LINES = 6
MAX_PROBLEMS = 8  # in flight that have a row each
INDENT = 5

COLORS: dict[ModelRole, str] = {"draft": "cyan", "target": "magenta"}


@dataclass(slots=True)
class _Solution:
    """What is known of a problem in flight: its place in the region, its steps so far, and the one being written."""

    identifier: str
    place: int
    step_number: int = 1
    figures: Tally = field(default_factory=Tally)
    writer: ModelRole | None = None
    text: str = ""
    draft_text: str = ""  # while the target writes it anew
    num_tokens: int = 0
    num_unread: int = 0
    is_rated: bool = False
    began: float = 0.0

    @property
    def doing(self) -> str:
        """How far the step is."""
        if self.is_rated:
            return "being rated"
        is_reading = self.num_unread > 1 and not self.num_tokens
        return f"reading {self.num_unread} tokens" if is_reading else f"{self.num_tokens} tokens"


class LiveDisplay:
    """A `Display` for a terminal on stderr."""

    def __init__(self, stream: TextIO, results: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._region = Region(stream)
        self._results = results
        self._clock = clock
        self._drawn = -REDRAW_SECONDS
        self._run: RunInfo | None = None
        self._above: list[Text] = []
        self._solutions: dict[Trace, _Solution] = {}
        self._figures = Tally()
        self._num_finished = 0

    # --- the Display protocol

    def loading(self, role: ModelRole, source: str, fraction: float) -> None:
        if self._is_due or fraction >= 1:
            self._draw([Text(f"loading {fraction:4.0%} {role} {one_line(source)}", "dim")])

    def begin(self, run: RunInfo) -> None:
        self._run = run
        for line in [*wording.models(run), wording.rule(run)]:
            self._above.append(Text(line, "dim"))
        if run.is_toy:
            self._above.append(Text(f"{wording.TOY_NOTICE} {wording.REAL_MODELS_HINT}", "yellow"))
        self._draw([])

    def handle(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start_problem(event)
        elif isinstance(event, Wrote):
            solution = self._solutions[event.trace]
            solution.text += event.text
            solution.num_tokens += 1
        elif isinstance(event, Writing):
            self._start_writing(event, self._solutions[event.trace])
        elif isinstance(event, Decided):
            self._show_decision(event, self._solutions[event.trace])
        elif isinstance(event, Rating):
            self._solutions[event.trace].is_rated = True
        else:
            self._show_finished(event)
        if self._is_due or not (self._is_shared or isinstance(event, Wrote | Rating)):
            self._draw(self._lines())

    def end(self, figures: Tally, num_solved: int, num_failed: int) -> None:
        if self._run and self._run.num_problems != 1:
            self._above += [Text(""), Text(wording.total(figures, num_solved, num_failed), "bold")]
            self._draw([])

    def note(self, text: str) -> None:
        self._above.append(Text(one_line(text), "yellow"))
        self._draw(self._lines())

    def result(self, text: str) -> None:
        self._draw([])
        write(self._results, text + "\n")

    def close(self) -> None:
        for solution in self._solutions.values():
            if solution.writer and solution.text:
                told = f"  {self._of(solution.identifier)}{solution.writer} was writing:"
                self._above += [Text(told, "dim"), *self._block(solution.text, "dim")]
        self._solutions.clear()
        self._draw([])

    # --- events

    def _start_problem(self, event: Started) -> None:
        problem = event.trace.problem
        taken = {solution.place for solution in self._solutions.values()}
        place = next(number for number in range(len(taken) + 1) if number not in taken)
        self._solutions[event.trace] = _Solution(one_line(problem.id), place)
        title = "Problem" if self._run and self._run.num_problems == 1 else f"Problem {one_line(problem.id)}"
        self._above += [Text(""), Text.assemble((f"{title}  ", "bold"), one_line(problem.question))]

    def _start_writing(self, event: Writing, solution: _Solution) -> None:
        if event.model == solution.writer and not solution.num_tokens:  # it goes on reading
            solution.num_unread = event.num_unread
            return
        solution.draft_text = solution.text if event.model == "target" and solution.writer == "draft" else ""
        solution.writer, solution.text, solution.is_rated = event.model, "", False
        solution.num_tokens, solution.num_unread, solution.began = 0, event.num_unread, self._clock()

    def _show_decision(self, event: Decided, solution: _Solution) -> None:
        decision = event.decision
        solution.figures = solution.figures.add(decision)
        self._figures = self._figures.add(decision)
        solution.step_number = len(event.trace.decisions) + 1
        solution.writer, solution.draft_text, solution.text, solution.is_rated = None, "", "", False
        self._above.append(self._decision_line(solution.identifier, len(event.trace.decisions), decision))
        if decision.discarded:  # the marks tell them apart where strike cannot be seen
            self._above += self._block(decision.discarded.text, "dim strike", "-")
        self._above += self._block(decision.kept.text, "", "+" if decision.discarded else " ")

    def _show_finished(self, event: Finished) -> None:
        self._solutions.pop(event.trace, None)
        self._num_finished += 1
        figures = tally(event.trace.decisions).rated(event.reward_cost)
        found, failure = answer(event.trace), wording.failure(event)
        if failure:
            self._above.append(Text(failure, "bold red"))
        else:
            headline = Text.assemble((f"{self._of(one_line(event.trace.problem.id))}answer ", "bold"))
            headline.append(one_line(found) if found else "none in a box", "bold green")
            if wording.ending(event):
                headline.append(f"  ({wording.ending(event)})", "yellow")
            self._above.append(headline)
        facts = (wording.acceptance(figures), wording.tokens(figures), wording.speeds(figures))
        if not event.trace.decisions:
            return
        self._above.append(Text("; ".join(filter(None, facts)), "dim"))
        if self._run:
            self._above.append(Text(wording.time(event, figures, self._run), "dim"))

    # --- drawing

    @property
    def _is_shared(self) -> bool:
        """Whether several problems are solved at once."""
        return self._run is not None and self._run.concurrency > 1

    def _of(self, identifier: str) -> str:
        """Which problem something belongs to, where that is not plain."""
        return f"Problem {identifier}  " if self._is_shared else ""

    def _block(self, text: str, style: str, mark: str = " ") -> list[Text]:
        return _rows(text, self._region.size[0], style, mark)

    def _decision_line(self, identifier: str, number: int, decision: Decision) -> Text:
        kept = decision.kept
        line = Text.assemble((f"{self._of(identifier)}{number:>3}  ", "bold"), (f"{kept.model:<6}", COLORS[kept.model]))
        if decision.verdict:
            line.append(f"  {decision.verdict:<8}", "green" if decision.verdict == "accept" else "yellow")
        if self._run:
            line.append(f"  {wording.comparison(decision, self._run)}".rstrip())
        line.append(f"  {wording.size(kept)}", "dim")
        if decision.discarded:
            line.append(f"  (discarded: {wording.size(decision.discarded)})", "dim")
        return line

    def _lines(self) -> list[Text]:
        """The region."""
        if self._run and self._is_shared:
            return self._shared_lines(self._run.concurrency)
        solution = next(iter(self._solutions.values()), None)
        return self._writing_lines(solution) if solution else []

    def _shared_lines(self, concurrency: int) -> list[Text]:
        """One row for each problem in flight, always in the same place, and the tally of all problems so far."""
        if not self._solutions:
            return []
        columns, rows = self._region.size
        by_place = {solution.place: solution for solution in self._solutions.values()}
        shown = max(1, min(concurrency, MAX_PROBLEMS, rows - 3))
        width = max(cell_len(solution.identifier) for solution in by_place.values())
        lines = [_problem_line(by_place.get(place), width, columns) for place in range(shown)]
        head = f"{len(by_place)} problems at once"
        head += f", {shown} of them shown" if len(by_place) > shown else ""
        return [Text(f"{head}; {self._num_finished} finished", "bold"), *lines, Text(self._tally_line(self._figures), "dim")]

    def _writing_lines(self, solution: _Solution) -> list[Text]:
        """Who writes which step, the end of its text, the tally of the problem so far."""
        if solution.writer is None:
            return []
        columns, rows = self._region.size
        head = Text.assemble((f"{solution.step_number:>3}  ", "bold"), (f"{solution.writer:<6}", COLORS[solution.writer]))
        head.append(f"  {solution.doing}  {self._clock() - solution.began:.1f} s", "dim")
        room = max(0, rows - 2)  # below the head, and above the last row, which stays free
        stream_room = min(MAX_STREAM_LINES, room)
        draft_room = stream_room // 2 if solution.draft_text else 0
        body = _last_rows(solution.draft_text, columns, draft_room, "dim strike")
        body += _last_rows(solution.text, columns, stream_room - len(body), "")
        return [head, *body, *_rows(self._tally_line(solution.figures), columns, "dim")[: room - len(body)]]

    def _tally_line(self, figures: Tally) -> str:
        if not figures.drafted_steps and not figures.target_steps:
            return wording.tokens(figures)
        return "; ".join(filter(None, (wording.acceptance(figures), wording.tokens(figures), wording.speeds(figures))))

    @property
    def _is_due(self) -> bool:
        """Whether what comes often is worth drawing again."""
        return self._clock() - self._drawn >= REDRAW_SECONDS

    def _draw(self, lines: Sequence[Text]) -> None:
        self._drawn = self._clock()
        above, self._above = self._above, []
        self._region.update(above, lines)


def _problem_line(solution: _Solution | None, width: int, columns: int) -> Text:
    """A problem in flight in one row: who writes which step, and the end of its text. Empty where no problem is."""
    if solution is None:
        return Text("")
    line = Text(f"  {solution.identifier}{' ' * (width - cell_len(solution.identifier))}  {solution.step_number:>3}  ")
    if solution.writer:
        line.append(f"{solution.writer:<6}", COLORS[solution.writer])
        line.append(f"  {solution.doing:<10}", "dim")
    room = columns - cell_len(line.plain) - 3
    text = Text(one_line(solution.text[-columns:]))
    while room > 0 and cell_len(text.plain) > room:
        text = text[1:]
    return line.append("  ").append_text(text) if room > 0 else line


def _rows(text: str, columns: int, style: str, mark: str = " ") -> list[Text]:
    """A step's text as indented rows, wrapped between words; blank lines go. `mark` is a character of the indentation."""
    width = max(columns - INDENT - 1, 4)
    console = Console(width=width, highlight=False, markup=False)
    lines = [line for line in safe(text).expandtabs(4).split("\n") if line.strip()]
    return [Text.assemble(f"   {mark} ", row) for line in lines for row in Text(line, style).wrap(console, width)]


def _last_rows(text: str, columns: int, rows: int, style: str) -> list[Text]:
    """The end of a text that is being written, in at most `rows` rows."""
    if rows <= 0:
        return []
    return _rows(text[-columns * (rows + 1) :], columns, style)[-rows:]

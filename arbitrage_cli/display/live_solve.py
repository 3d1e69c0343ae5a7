"""The live view of problems that are being solved: finished steps scroll up, and the region shows the current step.

If several problems are solved at once, the region has a row for each problem.
"""

from dataclasses import dataclass
from difflib import SequenceMatcher

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.explanation import step_lines
from arbitrage_cli.display.text import first_line, one_line, safe
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.runs.summary import tally, tally_of
from arbitrage_cli.types import (
    Checked,
    Decided,
    Decision,
    Finished,
    ModelRole,
    Rating,
    RequestEnded,
    Started,
    Trace,
    Writing,
    Wrote,
)

MAX_STREAM_LINES = 6
THOUGHT_ROWS = 2
FOOTER_ROWS = 2
MAX_PROBLEMS = 8  # rows of problems in flight
INDENT = 5
COLORS: dict[ModelRole, str] = {"draft": "cyan", "target": "magenta", "check": "blue"}


@dataclass(slots=True)
class _Solution:
    """The current step of a problem."""

    identifier: str
    row: int  # in the region
    step_number: int = 1
    writer: ModelRole | None = None
    text: str = ""
    draft_text: str = ""  # while the target rewrites the step
    num_tokens: int = 0
    num_unread: int = 0
    is_rated: bool = False
    is_thought: bool = False
    began: float = 0.0

    @property
    def state(self) -> str:
        if self.is_rated:
            return "scoring"
        is_prefill = self.num_unread > 1 and not self.num_tokens
        return f"prefill {self.num_unread} tokens" if is_prefill else formatting.count(self.num_tokens, "token")

    def start_step(self, event: Writing, now: float) -> None:
        """Start a step, unless the event only reports prefill progress."""
        if event.model != self.writer or self.num_tokens:
            self.draft_text = self.text if event.model == "target" and self.writer == "draft" else ""
            self.writer, self.text, self.num_tokens = event.model, "", 0
            self.is_rated, self.is_thought, self.began = False, event.trace.phase == "think", now
        self.num_unread = event.num_unread


class SolveView:
    """A view of problems that are being solved."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._solutions: dict[Trace, _Solution] = {}
        self._totals = wording.Totals()
        self._is_shared = run.concurrency > 1
        self._began: float | None = None

    def handle(self, event: Shown, columns: int, now: float) -> list[Text]:
        if isinstance(event, AttemptStarted | AttemptEnded | RequestEnded):
            return []
        self._totals.add(event)
        self._began = now if self._began is None else self._began
        if isinstance(event, Started):
            return self._start_problem(event)
        if isinstance(event, Finished):
            self._solutions.pop(event.trace, None)
            slowness = self._totals.slowness(self._run)
            return [*self._finished_lines(event), *([Text(slowness, "yellow")] if slowness else [])]
        if isinstance(event, Checked):
            return self._check_lines(event.trace, columns)
        return self._update(event, self._solutions[event.trace], columns, now)

    def may_wait(self, event: Shown) -> bool:
        return self._is_shared or isinstance(event, Wrote | Rating)

    def region(self, columns: int, rows: int, now: float) -> list[Text]:
        seconds = now - (now if self._began is None else self._began)
        if self._is_shared:
            return self._shared_lines(columns, rows, seconds)
        for trace, solution in self._solutions.items():
            return _writing_lines(solution, self._footer(trace, seconds), columns, rows, now)
        return []

    def end(self) -> list[Text]:
        if self._run.num_problems == 1:
            return []
        return [Text(""), Text(self._totals.text, "bold")]

    def close(self, columns: int) -> list[Text]:
        lines: list[Text] = []
        for solution in self._solutions.values():
            if solution.writer and solution.text:
                lines.append(Text(f"  {self._of(solution.identifier)}{solution.writer} was writing:", "dim"))
                lines += _rows(solution.text, columns, "dim")
        return lines

    def _start_problem(self, event: Started) -> list[Text]:
        problem = event.trace.problem
        taken = {solution.row for solution in self._solutions.values()}
        row = next(number for number in range(len(taken) + 1) if number not in taken)
        self._solutions[event.trace] = _Solution(one_line(problem.id), row)
        title = "Problem" if self._run.num_problems == 1 else f"Problem {one_line(problem.id)}"
        return [Text(""), Text.assemble((f"{title}  ", "bold"), first_line(problem.question))]

    def _update(
        self, event: Writing | Wrote | Rating | Decided, solution: _Solution, columns: int, now: float
    ) -> list[Text]:
        if isinstance(event, Wrote) and event.model != solution.writer:
            pass  # two models may write at once, and the view shows one of them
        elif isinstance(event, Wrote):
            solution.text += event.text if self._run.shows_thoughts or not solution.is_thought else ""
            solution.num_tokens += 1
        elif isinstance(event, Writing):
            solution.start_step(event, now)
        elif isinstance(event, Rating):
            solution.is_rated = True
        else:
            next_step = event.index + 2
            self._solutions[event.trace] = _Solution(solution.identifier, solution.row, next_step)
            return self._decision_lines(solution.identifier, event, columns)
        return []

    def _check_lines(self, trace: Trace, columns: int) -> list[Text]:
        """Return the solutions that are not kept, and the result of the comparison."""
        lines: list[Text] = []
        for model, text in wording.discarded(trace):
            lines += [Text(f"  {self._of(one_line(trace.problem.id))}{model}", "dim"), *_rows(text, columns, "dim")]
        return [*lines, Text(f"  {self._of(one_line(trace.problem.id))}{wording.checked(trace, self._run)}", "bold")]

    def _decision_lines(self, identifier: str, event: Decided, columns: int) -> list[Text]:
        decision = event.decision
        kept, discarded = decision.kept, decision.discarded
        head = self._head(f"{self._of(identifier)}{event.index + 1:>3}  ", decision, columns)
        if kept.phase == "think":
            if not self._run.shows_thoughts:
                return []
            body = _rows(kept.text, columns, "dim")
            if (hidden := len(body) - THOUGHT_ROWS) > 1:
                body[THOUGHT_ROWS:] = [Text(f"{' ' * INDENT}… {hidden} more lines of thinking", "dim")]
        elif discarded is None or wording.is_same(decision):
            body = _rows(kept.text, columns, "")
        else:
            body = _changed_rows(discarded.text, kept.text, columns)
        explanation = step_lines(event.trace, event.index, self._run, max(columns - 1, 10)) if self._run.explain else ()
        return [head, *body, *(Text(line, "dim") for line in explanation)]

    def _head(self, number: str, decision: Decision, columns: int) -> Text:
        kept, discarded = decision.kept, decision.discarded
        color = "green" if decision.choice == "accept" else "yellow"
        writer = Text.assemble((number, "bold"), (f"{kept.model:<6}", COLORS[kept.model]))
        writer.append(f"  {decision.choice:<8}" if decision.choice else "", color)
        numbers = Text(f"  {wording.comparison(decision, self._run)}".rstrip() + "  same text" * wording.is_same(decision))
        size = Text(f"  {wording.size(kept)}", "dim")
        bar = Text(f"  {wording.bar(decision, self._run)}".rstrip(), color)
        draft = Text(f", draft {discarded.num_tokens} {discarded.seconds:.2f} s" if discarded else "", "dim")
        room = columns - 1 - writer.cell_len - numbers.cell_len
        for part in (size, bar, draft):
            if part.cell_len > room:
                part.truncate(0)
            room -= part.cell_len
        return Text.assemble(writer, bar, numbers, size, draft)

    def _finished_lines(self, event: Finished) -> list[Text]:
        failure = wording.failure(event)
        headline = Text(failure, "bold red") if failure else self._answer_line(event)
        if not event.trace.decisions:
            return [headline]
        figures = tally_of(event)
        bill = wording.price(self._run.bill(event))
        facts = (f"{figures.seconds:.2f} s", wording.thinking(event.trace), wording.summary(figures), bill)
        fact = Text("; ".join(filter(None, facts)), "dim")
        has_answer = not failure and self._run.answer(event.trace) and not wording.ending(event)
        return [fact] if has_answer and self._run.answers_follow and not self._is_shared else [headline, fact]

    def _answer_line(self, event: Finished) -> Text:
        found, ending = self._run.answer(event.trace), wording.ending(event)
        line = Text.assemble((f"{self._of(one_line(event.trace.problem.id))}answer ", "bold"))
        line.append(wording.in_one_line(found) if found else "none found", "bold green")
        return line.append(f"  ({ending})", "yellow") if ending else line

    def _of(self, identifier: str) -> str:
        return f"Problem {identifier}  " if self._is_shared else ""

    def _footer(self, trace: Trace, seconds: float) -> str:
        if self._run.num_problems == 1:
            facts = (f"{seconds:.0f} s", wording.thinking(trace), wording.summary(tally(trace.decisions)))
            return "; ".join(filter(None, facts))
        return f"{wording.progress(self._totals, self._run, seconds)}; {wording.summary(self._totals.figures)}"

    def _shared_lines(self, columns: int, rows: int, seconds: float) -> list[Text]:
        if not self._solutions:
            return []
        by_row = {solution.row: solution for solution in self._solutions.values()}
        shown = max(1, min(self._run.concurrency, MAX_PROBLEMS, rows - 3))
        width = max(cell_len(solution.identifier) for solution in by_row.values())
        lines = [_problem_line(by_row.get(row), width, columns) for row in range(shown)]
        some = f", {shown} of them shown" if len(by_row) > shown else ""
        head = f"{formatting.count(len(by_row), 'problem')} at once{some}"
        finished = Text(f"{head}; {wording.progress(self._totals, self._run, seconds)}", "bold")
        return [finished, *lines, Text(wording.summary(self._totals.figures), "dim")]


def _writing_lines(solution: _Solution, footer: str, columns: int, rows: int, now: float) -> list[Text]:
    if solution.writer is None:
        return []
    head = Text.assemble((f"{solution.step_number:>3}  ", "bold"), (f"{solution.writer:<6}", COLORS[solution.writer]))
    head.append(f"  {solution.state}  {now - solution.began:.1f} s", "dim")
    room = max(0, rows - 2)  # without the head and the last row
    stream_room = min(MAX_STREAM_LINES, room)
    body = _last_rows(solution.draft_text, columns, stream_room // 2 if solution.draft_text else 0, "dim strike")
    body += _last_rows(solution.text, columns, stream_room - len(body), "dim" if solution.is_thought else "")
    return [head, *body, *_rows(footer, columns, "dim")[: min(FOOTER_ROWS, room - len(body))]]


def _problem_line(solution: _Solution | None, width: int, columns: int) -> Text:
    if solution is None:
        return Text("")
    line = Text(f"  {solution.identifier}{' ' * (width - cell_len(solution.identifier))}  {solution.step_number:>3}  ")
    if solution.writer:
        line.append(f"{solution.writer:<6}", COLORS[solution.writer])
        line.append(f"  {solution.state:<10}", "dim")
    room = columns - cell_len(line.plain) - 3
    text = Text(one_line(solution.text[-columns:]))
    while room > 0 and cell_len(text.plain) > room:
        text = text[1:]
    return line.append("  ").append_text(text) if room > 0 else line


def _rows(text: str, columns: int, style: str, mark: str = " ") -> list[Text]:
    """Wrap text into rows without blank lines, indented by a margin that contains `mark`."""
    width = max(columns - INDENT - 1, 4)
    console = Console(width=width, highlight=False, markup=False)
    whole = Text(safe(text).expandtabs(4), style)
    lines = [line for line in whole.split("\n") if line.plain.strip()]
    return [Text.assemble(f"   {mark} ", row) for line in lines for row in line.wrap(console, width)]


def _changed_rows(before: str, after: str, columns: int) -> list[Text]:
    """Return the rows of the second text, with deleted lines struck through and new lines in bold."""
    old, new = before.splitlines(), after.splitlines()
    rows: list[Text] = []
    for kind, start, end, new_start, new_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        added = "\n".join(new[new_start:new_end])
        if kind == "equal":
            rows += _rows(added, columns, "")
        else:  # the marks distinguish the texts in terminals without strike-through
            rows += _rows("\n".join(old[start:end]), columns, "red strike", "-") + _rows(added, columns, "bold green", "+")
    return rows


def _last_rows(text: str, columns: int, rows: int, style: str) -> list[Text]:
    return _rows(text[-columns * (rows + 1) :], columns, style)[-rows:] if rows > 0 else []

"""The live view of a terminal: finished steps scroll up and stay, a small region below shows the step being written.

The region is drawn by `Region`, not by `rich.live`: that one loses count of its lines when the terminal gets narrower
while it is shown, and leaves copies behind. Everything written goes through one `write` per update.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from arbitrage_cli.reporters import one_line, safe, wording, write
from arbitrage_cli.runs import RunInfo, answer
from arbitrage_cli.summary import Tally, tally
from arbitrage_cli.types import Decided, Decision, Event, Finished, ModelRole, Started, Writing, Wrote

REDRAW_SECONDS = 0.08
MAX_STREAM_LINES = 6
INDENT = 5

COLORS: dict[ModelRole, str] = {"draft": "cyan", "target": "magenta"}


class Region:
    """A few lines at the bottom that are drawn over, below text that stays. Hides the cursor while it is shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._drawn: list[str] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal now. Asked of the terminal itself: COLUMNS and LINES may be out of date."""
        try:
            columns, rows = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, rows = self._console.size
        return max(columns, 8), max(rows, 2)

    def update(self, above: Sequence[Text], lines: Sequence[Text]) -> None:
        """Print `above` for good, wrapped between words, and draw `lines` below it, each cut to one row."""
        columns, rows = self._console.size = self.size
        shown = [_cut(line, columns - 1) for line in lines[: rows - 1]]
        with self._console.capture() as capture:
            for text in above:
                self._console.print(text)
            for index, line in enumerate(shown):
                self._console.print(line, end="\n" if index < len(shown) - 1 else "")
        hide, show = ("\x1b[?25l", "") if shown else ("", "\x1b[?25h" if self._drawn else "")
        write(self._stream, hide + self._erase(columns) + capture.get() + show)
        self._drawn = [line.plain for line in shown]

    def _erase(self, columns: int) -> str:
        """Go up to where the region began, clearing row by row: tmux keeps what a clear-to-the-end wipes in its history.

        A terminal that got narrower has wrapped the region's lines since they were drawn.
        """
        if not self._drawn:
            return ""
        rows = sum(_num_rows(line, columns) for line in self._drawn)
        return "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (rows - 1)


def _num_rows(line: str, columns: int) -> int:
    """Rows that a terminal needs for a line: it puts a wide character on the next row when half of it would not fit."""
    rows, column = 1, 0
    for character in line:
        width = cell_len(character)
        if column + width > columns:
            rows, column = rows + 1, 0
        column += width
    return rows


def _cut(line: Text, columns: int) -> Text:
    cut = line.copy()
    cut.truncate(columns, overflow="ellipsis")
    return cut


class LiveDisplay:
    """A `Display` for a terminal on stderr."""

    def __init__(self, stream: TextIO, results: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._region = Region(stream)
        self._results = results
        self._clock = clock
        self._drawn = -REDRAW_SECONDS
        self._run: RunInfo | None = None
        self._above: list[Text] = []
        self._draft_text = ""  # of the step at hand, while the target writes it anew
        self._writer: ModelRole | None = None
        self._stream_text = ""
        self._num_tokens = 0
        self._num_unread = 0
        self._began = 0.0
        self._step_number = 1
        self._figures = Tally()

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
        if isinstance(event, Wrote):
            self._stream_text += event.text
            self._num_tokens += 1
            if self._is_due:
                self._draw(self._writing_lines())
            return
        if isinstance(event, Started):
            self._start_problem(event)
        elif isinstance(event, Writing):
            self._start_writing(event)
        elif isinstance(event, Decided):
            self._show_decision(event)
        else:
            self._show_finished(event)
        self._draw(self._writing_lines())

    def end(self, figures: Tally, num_solved: int, num_failed: int) -> None:
        if self._run and self._run.num_problems != 1:
            self._above += [Text(""), Text(wording.total(figures, num_solved, num_failed), "bold")]
            self._draw([])

    def note(self, text: str) -> None:
        self._above.append(Text(one_line(text), "yellow"))
        self._draw(self._writing_lines())

    def result(self, text: str) -> None:
        self._draw([])
        write(self._results, text + "\n")

    def close(self) -> None:
        if self._writer and self._stream_text:
            self._above += [Text(f"  {self._writer} was writing:", "dim"), *self._block(self._stream_text, "dim")]
        self._writer = None
        self._draw([])

    # --- events

    def _start_problem(self, event: Started) -> None:
        problem = event.trace.problem
        self._step_number, self._figures = 1, Tally()
        title = "Problem" if self._run and self._run.num_problems == 1 else f"Problem {one_line(problem.id)}"
        self._above += [Text(""), Text.assemble((f"{title}  ", "bold"), one_line(problem.question))]

    def _start_writing(self, event: Writing) -> None:
        if event.model == self._writer and not self._num_tokens:  # it goes on reading
            self._num_unread = event.num_unread
            return
        self._draft_text = self._stream_text if event.model == "target" and self._writer == "draft" else ""
        self._writer, self._stream_text = event.model, ""
        self._num_tokens, self._num_unread, self._began = 0, event.num_unread, self._clock()

    def _show_decision(self, event: Decided) -> None:
        decision = event.decision
        self._figures = self._figures.add(decision)
        self._step_number = len(event.trace.decisions) + 1
        self._writer, self._draft_text, self._stream_text = None, "", ""
        self._above.append(self._decision_line(len(event.trace.decisions), decision))
        if decision.discarded:  # the marks tell them apart where strike cannot be seen
            self._above += self._block(decision.discarded.text, "dim strike", "-")
        self._above += self._block(decision.kept.text, "", "+" if decision.discarded else " ")

    def _show_finished(self, event: Finished) -> None:
        self._writer, self._stream_text = None, ""
        figures = tally(event.trace.decisions)
        found, failure = answer(event.trace), wording.failure(event)
        if failure:
            self._above.append(Text(failure, "bold red"))
        else:
            headline = Text.assemble(("answer ", "bold"), (one_line(found) if found else "none in a box", "bold green"))
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

    def _block(self, text: str, style: str, mark: str = " ") -> list[Text]:
        return _rows(text, self._region.size[0], style, mark)

    def _decision_line(self, number: int, decision: Decision) -> Text:
        kept = decision.kept
        line = Text.assemble((f"{number:>3}  ", "bold"), (f"{kept.model:<6}", COLORS[kept.model]))
        if decision.verdict:
            line.append(f"  {decision.verdict:<8}", "green" if decision.verdict == "accept" else "yellow")
        if self._run:
            line.append(f"  {wording.comparison(decision, self._run)}".rstrip())
        line.append(f"  {wording.size(kept)}", "dim")
        if decision.discarded:
            line.append(f"  (discarded: {wording.size(decision.discarded)})", "dim")
        return line

    def _writing_lines(self) -> list[Text]:
        """The region: who writes which step, the end of its text, the tally of the problem so far."""
        if self._writer is None:
            return []
        columns, rows = self._region.size
        seconds = self._clock() - self._began
        head = Text.assemble((f"{self._step_number:>3}  ", "bold"), (f"{self._writer:<6}", COLORS[self._writer]))
        is_reading = self._num_unread > 1 and not self._num_tokens
        doing = f"reading {self._num_unread} tokens" if is_reading else f"{self._num_tokens} tokens"
        head.append(f"  {doing}  {seconds:.1f} s", "dim")
        room = max(0, rows - 2)  # below the head, and above the last row, which stays free
        stream_room = min(MAX_STREAM_LINES, room)
        draft_room = stream_room // 2 if self._draft_text else 0
        body = _last_rows(self._draft_text, columns, draft_room, "dim strike")
        body += _last_rows(self._stream_text, columns, stream_room - len(body), "")
        return [head, *body, *_rows(self._tally_line(), columns, "dim")[: room - len(body)]]

    def _tally_line(self) -> str:
        if not self._figures.drafted_steps and not self._figures.target_steps:
            return wording.tokens(self._figures)
        parts = (wording.acceptance(self._figures), wording.tokens(self._figures), wording.speeds(self._figures))
        return "; ".join(filter(None, parts))

    @property
    def _is_due(self) -> bool:
        """Whether what comes with every token is worth drawing again."""
        return self._clock() - self._drawn >= REDRAW_SECONDS

    def _draw(self, lines: Sequence[Text]) -> None:
        self._drawn = self._clock()
        above, self._above = self._above, []
        self._region.update(above, lines)


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

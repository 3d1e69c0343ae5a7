"""Solves problems and outputs the results in order, optionally to a file from which the command can resume.

The file is JSONL: one record per input line, in the order in which the problems end. If a problem failed, the next command
tries it again after all other problems. Until that command ends, the file contains both records, and the later record counts.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.attempts.attempts import Attempt, InOrder
from arbitrage_cli.app.attempts.loop import Loop, Stopwatch
from arbitrage_cli.app.attempts.problem_source import InputLine, Problems, Source
from arbitrage_cli.app.attempts.run_record import run_of, with_loaded
from arbitrage_cli.app.attempts.stored_run import offering_to_resume
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import OutputError, ProblemError, UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.runs.folder import RUN, RunFolder, folder_beside
from arbitrage_cli.runs.records import SOLVE
from arbitrage_cli.runs.rows import SolutionLine, SolutionRow
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Fields, Finished, Problem, frozen

SolveRecord = SolutionRow | SolutionLine
LineOf = Callable[[Fields], str | None]
"""Formats a record for standard output, or returns None to omit it."""
InputPlace = tuple[str, str | None]  # an input line: its id and problem
ANOTHER = "use another file: --output FILE.jsonl"
OTHER_FORMATS = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
MAX_SHOWN = 60  # characters of a value in a message
LONG_LOADING = 3.0  # seconds of loading that are worth a hint


@frozen
class Destination:
    """The destination of results, and the settings of the display.

    Without a `path`, no file is written. If `answers_follow` is true, the answers are written to the terminal of the display.
    If `notes_unanswered` is true, a note says that a solution has no answer.
    """

    path: Path | None
    line_of: LineOf
    answers_follow: bool = False
    explains: bool = False
    notes_unanswered: bool = False


@frozen
class _Line:
    """The line of a result for standard output, and a note if the line lacks an answer. Either may be None."""

    text: str | None
    note: str | None


def solve_problems(
    open_session: OpenSession, source: Source, destination: Destination, display: Display, concurrency: int
) -> "Solutions":
    """Solve problems, and write the results. At most `concurrency` problems are read ahead."""
    with contextlib.ExitStack() as stack:
        problems = Problems(source, display, stack)
        folder = stack.enter_context(_open_file(destination.path)) if destination.path else None
        solutions = stack.enter_context(Solutions(problems, display, destination, folder))
        solutions.solve_missing(open_session, concurrency)
    return solutions


def loading_hint(loading: float, solving: float) -> str | None:
    """Return a hint if loading the models took long, and longer than solving the problems. Both are in seconds."""
    if loading < max(LONG_LOADING, solving):
        return None
    times = f"loading the models took {formatting.duration(loading)}, the answers {formatting.duration(solving)}"
    return f"{times}; to keep the models loaded between questions, use arbitrage chat or arbitrage serve"


def _open_file(path: Path) -> RunFolder:
    """Open or create a file of results with its run folder. Raises UsageError if `solve -o` did not write the file."""
    if path.suffix.lower() in OTHER_FORMATS:
        hint = f"{ANOTHER}; to write only answers, use --format text > FILE"
        raise UsageError(f"{path}: records are written as JSONL, not as {path.suffix[1:]}", hint, option="output_file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder", f"create it, or {ANOTHER}", option="output_file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a regular file, so the command could not be resumed later", ANOTHER)
    folder = folder_beside(path)
    if path.exists() and path.stat().st_size and not (folder / RUN).exists():
        message = f"{path}: the file is not empty, but {folder / RUN}, written by arbitrage solve -o, is missing"
        raise UsageError(message, ANOTHER)
    return RunFolder(folder, kind=SOLVE, results=path)


class Solutions(AbstractContextManager["Solutions"]):
    """Writes the lines of results in problem order and counts all results, new results and errors.

    `num_unanswered` counts the lines that were written and are empty.
    """

    def __init__(self, problems: Problems, display: Display, destination: Destination, folder: RunFolder | None) -> None:
        self.num_done = self.num_new = self.num_failed = self.num_unanswered = 0
        self._problems, self._display, self._destination, self._folder = problems, display, destination, folder
        self._in_order = InOrder[_Line]()
        self._stored: dict[InputPlace, tuple[str, _Line]] = {}  # status and line, in the order of the last attempts
        for row in folder.rows if folder else ():
            self._stored.pop(place := _place_in(row), None)
            self._stored[place] = row.status, self._line_of(row)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OutputError):  # an output error is already being raised
            self._write(self._in_order.rest())

    def solve_missing(self, open_session: OpenSession, concurrency: int) -> None:
        """Solve the problems that have no result. If every problem has a result, no models are loaded.

        Raises UsageError if the file contains results of other problems or settings, and the same errors as `Session` and
        `Scheduler.run`.
        """
        problems = self._problems
        num_known = self._match_earlier() + problems.look_ahead(concurrency)
        if not num_known and self._folder is None:
            list(self._unsolved())
            return
        max_concurrency = num_known if problems.ended else None
        with open_session(self._display, max_concurrency=max_concurrency) as session:
            run = run_of(session, self._folder) if self._folder else None
            began = time.monotonic()
            if num_known:
                session.load()
            loaded = time.monotonic()
            if self._folder and run:
                self._folder.save_run(with_loaded(run, session))
            with offering_to_resume(session, self._folder):
                if num_known:
                    self._solve_with(session)
                    if hint := loading_hint(loaded - began, time.monotonic() - loaded):
                        self._display.tell(hint)
                else:
                    list(self._unsolved())
        self._remove_replaced()

    def _solve_with(self, session: Session) -> None:
        info = replace(
            session.run_info(num_problems=self._problems.total),
            num_done=sum(status == "done" for status, _ in self._stored.values()),
            answers_follow=self._destination.answers_follow,
            explain=session.explain(session.route) if self._destination.explains else None,
        )
        self._display.begin(info)
        if self._destination.explains and not session.route.policy.needs_router:
            self._display.note(f"--explain has no effect with policy {session.route.policy.name}")
        flow = session.flow(session.route)

        def row(attempt: Attempt, finished: Finished, timing: Stopwatch) -> SolutionRow | None:
            """Return the row of a result that counts. Interrupted problems have none, so that a resumed run solves them."""
            if self._folder and finished.error and not isinstance(finished.error, ProblemError):
                return None
            return SolutionRow.of(finished, info)

        loop = Loop(
            scheduler=lambda one: session.models.scheduler(one.route),
            flow=lambda one, trace: flow(trace),
            limits=session.limits,
            row=row,
            display=self._display,
            store=self._folder,
            conditions=session.conditions,
            kept=self._count,
            is_ready=self._problems.is_ready,
        )
        for _ in loop.run(Attempt(Item(problem, {}), 0, session.route) for problem in self._unsolved()):
            self._write(self._in_order.ready())
        self._display.end()

    def _unsolved(self) -> Iterator[Problem]:
        """Yield the problems without a result, then those that failed. Add other results and invalid lines in their places."""
        failed: dict[InputPlace, Problem] = {}
        for line in self._problems.rows():
            self._in_order.expect(place := _place_of(line))
            status, earlier = self._stored.get(place, (None, None))
            if earlier and (status == "done" or not isinstance(line, Problem)):
                self.num_done += 1
                self.num_failed += status == "error"
                self._put(place, earlier)
            elif not isinstance(line, Problem):
                self._add_unusable(SolutionLine.unusable(line.number, line.reason))
            elif status:
                failed[place] = line
            else:
                yield line
        yield from (failed[place] for place in self._stored if place in failed)

    def _add_unusable(self, row: SolutionLine) -> None:
        with noted_signals():  # a result on the disk must be counted
            if self._folder:
                row = self._folder.append(row)
            self._count(row)
        self._write(self._in_order.ready())

    def _match_earlier(self) -> int:
        """Read ahead to the last line that has a result in the file, and count the problems that are missing or failed.

        Raises UsageError if the file contains results of other problems.
        """
        others = {place: status for place, (status, _) in self._stored.items()}
        ids = {identifier for identifier, problem in others if problem is not None}
        num_new = num_unsolved = 0
        for line in self._problems.peek() if others else ():
            status = others.pop(_place_of(line), None)
            num_new += status is None
            num_unsolved += status != "done" and isinstance(line, Problem)
            if not others or (status is None and isinstance(line, Problem) and line.id in ids):
                break
        if others and num_new and self._folder:
            other = f"found a result for problem '{next(iter(others))[0][:MAX_SHOWN]}', which is not in the input"
            raise UsageError(f"{self._folder.shown}: {other}", f"use the same input and --limit, or {ANOTHER}")
        return num_unsolved

    def _remove_replaced(self) -> None:
        """Remove the errors of problems that were tried again."""
        was_retried = any(status == "error" and problem for (_, problem), (status, _) in self._stored.items())
        if self._folder and was_retried and (rows := {_place_in(row): row for row in self._folder.rows}):
            self._folder.rewrite(rows.values())

    def _count(self, row: SolveRecord) -> None:
        self.num_done += 1
        self.num_new += 1
        self.num_failed += row.status == "error"
        self._in_order.put(_place_in(row), self._line_of(row))

    def _line_of(self, row: SolveRecord) -> _Line:
        text = self._destination.line_of(row.to_dict())
        is_noted = self._destination.notes_unanswered and text == "" and not row.error
        return _Line(text, f"problem {row.id}: the solution has no answer" if is_noted else None)

    def _put(self, place: InputPlace, line: _Line) -> None:
        self._in_order.put(place, line)
        self._write(self._in_order.ready())

    def _write(self, lines: Iterable[_Line]) -> None:
        for line in lines:
            if line.text is None:
                continue
            self._display.result(line.text)
            self.num_unanswered += not line.text
            if line.note:
                self._display.note(line.note)


def _place_of(line: InputLine) -> InputPlace:
    return (line.id, line.question) if isinstance(line, Problem) else (str(line.number), None)


def _place_in(result: SolveRecord) -> InputPlace:
    return result.id, result.problem

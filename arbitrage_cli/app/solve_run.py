"""Solves problems and outputs the results in order, optionally to a file from which the command can resume.

The file is JSONL: one record per input line. Records are appended as problems end, and put in input order at the end of the
command. If a problem failed, the next command tries it again after all other problems. Until that command ends, the file
contains both records, and the later record counts.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from arbitrage_cli.app.executor import give_up, marked
from arbitrage_cli.app.manifest import add_loaded, make_manifest, resume, with_fingerprint
from arbitrage_cli.app.options import InputOptions, resume_command
from arbitrage_cli.app.problem_source import InputLine, Problems
from arbitrage_cli.app.protocol import Display, offering_to_resume
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.session import Session, open_session
from arbitrage_cli.app.solution import InOrder
from arbitrage_cli.app.spec import Run, Spec
from arbitrage_cli.app.stored_run import open_run
from arbitrage_cli.costs.memory import MOST
from arbitrage_cli.errors import OutputError, ProblemError, UsageError
from arbitrage_cli.inference.scheduler import Job
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.folder import RUN, Rows, RunFolder, latest
from arbitrage_cli.runs.records import SOLVE, RunInfo, tau_in_json
from arbitrage_cli.runs.rows import SolutionLine, SolutionRow
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Finished, Limits, Problem

Record = SolutionRow | SolutionLine
LineOf = Callable[[Mapping[str, Any]], str | None]
"""Formats a record for standard output, or returns None to omit it."""
Place = tuple[str, str | None]  # an input line: its id and problem
ANOTHER = "use another file: --output FILE.jsonl"
OTHER_FORMATS = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
MAX_SHOWN = 60  # characters of a value in a message


def solve_problems(
    request: Request,
    problem: str | None,
    source: InputOptions,
    path: Path | None,
    display: Display,
    line_of: LineOf,
    describe: Callable[[RunInfo], RunInfo],
) -> "Solutions":
    """Solve problems from an argument, a file or standard input, and write the results to `path` if it is set."""
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, source, request.task.forms, display, stack)
        folder = stack.enter_context(_open_file(path, display)) if path else None
        solutions = stack.enter_context(Solutions(problems, display, line_of, path, folder))
        solutions.solve(request, describe)
    return solutions


def _open_file(path: Path, display: Display) -> AbstractContextManager[RunFolder]:
    """Open or create a file of results with its run folder. Raises UsageError if `solve -o` did not write the file."""
    if path.suffix.lower() in OTHER_FORMATS:
        hint = f"{ANOTHER}; to write only answers, use --format text > FILE"
        raise UsageError(f"{path}: records are written as JSONL, not as {path.suffix[1:]}", hint, option="output_file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a regular file, so the command could not be resumed", ANOTHER)
    folder = path.with_name(f"{path.name}.run")
    if path.exists() and path.stat().st_size and not (folder / RUN).exists():
        message = f"{path}: the file is not empty, but {folder / RUN}, written by arbitrage solve -o, is missing"
        raise UsageError(message, ANOTHER)
    return open_run(folder, display, kind=SOLVE, results=path)


class Solutions(AbstractContextManager["Solutions"]):
    """Writes the lines of results in problem order and counts all results, new results and errors."""

    def __init__(
        self, problems: Problems, display: Display, line_of: LineOf, path: Path | None, folder: RunFolder | None
    ) -> None:
        self.num_done = self.num_new = self.num_failed = 0
        self._problems, self._display, self._line_of, self._path, self._folder = problems, display, line_of, path, folder
        self._in_order = InOrder[str | None]()
        self._crashes, self._rows = (folder.started.crashes, folder.rows) if folder else ({}, Rows())
        self._solved: dict[Place, None] = {}  # the lines whose results in the file are kept, in input order
        self._failed: dict[Place, Problem | None] = {}  # the problems that failed, in the order of their last attempts
        self._places: dict[Place, None] = {}  # all lines so far, in input order

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OutputError):  # an output error is already being raised
            self._write(self._in_order.rest())

    def solve(self, request: Request, describe: Callable[[RunInfo], RunInfo]) -> None:
        """Solve the problems that have no result. If every problem has a result, no models are loaded.

        `describe` extends the run description passed to the display. Raises UsageError if the file contains results of other
        problems or settings, and the same errors as `Session` and `Scheduler.run`.
        """
        problems = self._problems
        num_known = self._match_earlier() + problems.look_ahead(2 if request.concurrency == "1" else MOST)
        if not num_known and self._folder is None:
            list(self._unsolved())
            return
        earlier = self._folder.earlier if self._folder else None
        most = 1 if problems.is_typed else max(1, num_known) if problems.ended else MOST
        with open_session(request, self._display, earlier, most=most) as session:
            manifest = self._manifest(session.spec)
            if num_known:
                session.load()
            if self._folder:
                self._folder.save_run(add_loaded(manifest, session.models))
            with offering_to_resume(self._display, lambda error: self._how_to_resume(request, error)):
                if num_known:
                    self._solve(session, describe)
                else:
                    list(self._unsolved())
        self._put_in_order()

    def _solve(self, session: Session, describe: Callable[[RunInfo], RunInfo]) -> None:
        run = describe(replace(session.run_info(num_problems=self._problems.total), num_done=len(self._solved)))
        self._display.begin(run)
        route, limits = session.spec.route, session.spec.limits
        jobs = map(partial(Job, make_flow=session.flow(route), limits=limits), self._unsolved(run, limits))
        events = session.scheduler(route).run(jobs, self._is_ready)
        if self._folder:
            events = marked(self._folder.started, events)
        with contextlib.closing(events):
            for event in events:
                self._display.handle(event)
                if isinstance(event, Finished):
                    self._finish(event, run)
        self._display.end()

    def _how_to_resume(self, request: Request, error: BaseException) -> str:
        """Return a note on how to resume, or "" if nothing can be resumed or standard output is closed."""
        if self._folder:
            done = formatting.count(len(self._folder.statuses), "result")
            return f"{done} saved in {self._path}; to resume: {resume_command(request.options.command)}"
        if self._problems.is_single or self._problems.is_typed or not self.num_done or isinstance(error, OutputError):
            return ""
        done = formatting.count(self.num_done, "result")
        return f"{done} went to standard output; to be able to resume, use -o FILE.jsonl"

    def _finish(self, event: Finished, run: RunInfo) -> None:
        """Store and show a problem's result. The file omits interrupted problems, so that a resumed run solves them."""
        if self._folder is None or event.error is None or isinstance(event.error, ProblemError):
            self._add(SolutionRow.of(event, run))

    def _unsolved(self, run: RunInfo | None = None, limits: Limits | None = None) -> Iterator[Problem]:
        """Yield the problems without a result, then those that failed. Add other results and invalid lines in their places.

        If a problem crashed the process several times, add a result with an error instead.
        """
        earlier = _in_order(latest(self._rows), self._solved)
        for line in self._problems.rows():
            self._places[place := _place_of(line)] = None
            self._in_order.expect(place)
            if place in self._solved:
                self._add(next(earlier), is_new=False)
            elif not isinstance(line, Problem):
                self._add(SolutionLine.unusable(line.number, line.reason))
            elif run and limits and self._folder and self._crashes.get(line.id, 0) >= MAX_CRASHES:
                self._add(SolutionRow.of(give_up(line, limits, self._folder.started), run))
            elif place in self._failed:
                self._failed[place] = line
            else:
                yield line
        yield from filter(None, self._failed.values())

    def _is_ready(self) -> bool:
        """Return whether another problem may start. A problem that crashed the process runs alone."""
        return not any(count < MAX_CRASHES for count in self._crashes.values()) and self._problems.is_ready()

    def _match_earlier(self) -> int:
        """Read ahead to the last line that has a result in the file, and count the lines that are missing or failed.

        Raises UsageError if the file contains results of other problems.
        """
        others: dict[Place, str] = {}
        for row in self._rows:
            others.pop(place := _place_in(row), None)  # the last attempt counts
            others[place] = row.status
        self._failed = {place: None for place, status in others.items() if status == "error"}
        ids = {identifier for identifier, problem in others if problem is not None}
        num_missing = num_unsolved = 0
        for line in self._problems.peek() if others else ():
            status = others.pop(place := _place_of(line), None)
            if status == "done" or (status and not isinstance(line, Problem)):
                self._solved[place] = None
            num_missing += status is None
            num_unsolved += place not in self._solved
            if not others or (status is None and isinstance(line, Problem) and line.id in ids):
                break
        if others and num_missing:
            other = f"found the result of a problem that is not in the input, '{next(iter(others))[0][:MAX_SHOWN]}'"
            raise UsageError(f"{self._path}: {other}", f"use the same input and --limit, or {ANOTHER}")
        return num_unsolved

    def _manifest(self, spec: Spec) -> Run:
        if self._folder is None or self._path is None:
            return {}
        route, earlier = spec.route, self._folder.earlier
        details = {"kind": SOLVE, "route": {"policy": route.policy.name, "tau": tau_in_json(route.tau)}}
        run = with_fingerprint(make_manifest(spec) | details)
        return resume(earlier, run, self._path) if earlier else run

    def _put_in_order(self) -> None:
        """Put the file's results in input order, and remove the errors of problems that were tried again."""
        if self._folder:
            places = [*map(_place_in, self._folder.rows)]
            if places != (ordered := [*dict.fromkeys([*self._places, *places])]):
                self._folder.rewrite(_in_order(latest(self._folder.rows), ordered))

    def _add(self, result: Record, *, is_new: bool = True) -> None:
        self._in_order.put(_place_in(result), self._line_of(result.to_dict()))
        with noted_signals():  # a result on the disk must be counted
            if self._folder and is_new:
                self._folder.append(result)
            self.num_done += 1
            self.num_new += is_new
            self.num_failed += result.status == "error"
        self._write(self._in_order.ready())

    def _write(self, lines: Iterable[str | None]) -> None:
        for line in lines:
            if line is not None:
                self._display.result(line)


def _place_of(line: InputLine) -> Place:
    return (line.id, line.question) if isinstance(line, Problem) else (str(line.number), None)


def _place_in(result: Record) -> Place:
    return result.id, result.problem


def _in_order(results: Iterator[Record], places: Iterable[Place]) -> Iterator[Record]:
    """Yield the results in the order of their places. Only results that come too early are held in memory."""
    held: dict[Place, Record] = {}
    for place in places:
        while place not in held:
            result = next(results)
            held[_place_in(result)] = result
        yield held.pop(place)

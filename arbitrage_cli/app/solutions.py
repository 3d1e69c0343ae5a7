"""Solves problems and outputs the results in order, optionally to a file from which the command can resume."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from arbitrage_cli.app.executor import give_up, marked
from arbitrage_cli.app.manifest import record_settings, refuse_change
from arbitrage_cli.app.options import InputOptions, resuming
from arbitrage_cli.app.problem_source import InputLine, Problems
from arbitrage_cli.app.protocol import Display, offering_to_resume
from arbitrage_cli.app.session import Session
from arbitrage_cli.app.setup import Resolved, Setup, resolve
from arbitrage_cli.app.solution import InOrder
from arbitrage_cli.app.solution_file import ANOTHER, Record, SolutionFile
from arbitrage_cli.data.problems import BadLine
from arbitrage_cli.errors import OutputError, ProblemError, UsageError
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.runs.records import RunInfo, record, tau_in_json, to_json, unusable_record
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.stats import rounding
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.tuning.memory import MOST
from arbitrage_cli.types import Event, Finished, Limits, Problem, Started

MAX_SHOWN = 60  # characters of a value in a message


def solve_problems(
    setup: Setup,
    problem: str | None,
    source: InputOptions,
    path: Path | None,
    display: Display,
    show: Callable[[Record], None],
    describe: Callable[[RunInfo], RunInfo],
) -> "Solutions":
    """Solve problems from an argument, a file or standard input, and write the results to `path` if it is set."""
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, source, setup.task.forms, display, stack)
        file = stack.enter_context(SolutionFile(path)) if path else None
        solutions = stack.enter_context(Solutions(display, show, file))
        solutions.solve(setup, problems, describe)
    return solutions


class Solutions(AbstractContextManager["Solutions"]):
    """Passes results to `show` in problem order and counts all results, earlier results and errors."""

    def __init__(self, display: Display, show: Callable[[Record], None], file: SolutionFile | None) -> None:
        self.num_done = self.num_earlier = self.num_failed = 0
        self._display, self._show, self._file = display, show, file
        self._in_order = InOrder[Record]()
        self._crashes = file.started.crashes if file else {}

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OutputError):  # an output error is already being raised
            for result in self._in_order.rest() if self._file is None else ():
                self._pass_on(result)

    def solve(self, setup: Setup, problems: Problems, describe: Callable[[RunInfo], RunInfo]) -> None:
        """Solve the problems that have no result. Models are loaded only if there are such problems.

        `describe` extends the run description passed to the display. Raises UsageError if the file contains results of other
        problems or settings, and the same errors as `Session` and `Scheduler.run`.
        """
        self.num_earlier = self._take_earlier(problems, setup)
        num_known = problems.look_ahead(2 if setup.concurrency == "1" else MOST)
        if not num_known:
            deque(problems.usable(self._add_unusable), maxlen=0)
            return
        with Session(setup, self._display) as session:
            self._check(session.resolved)
            session.choose_concurrency(most=1 if problems.is_typed else num_known if problems.ended else MOST)
            session.load()
            run = describe(replace(session.run_info(num_problems=problems.total), num_done=self.num_earlier))
            with offering_to_resume(self._display, lambda error: self._how_to_resume(setup, problems, error)):
                self._solve(session, problems, run)

    def _solve(self, session: Session, problems: Problems, run: RunInfo) -> None:
        self._display.begin(run)
        events = self._events(session.scheduler(session.setup.route), problems, run, session.resolved.limits)
        with contextlib.closing(events):
            for event in events:
                self._display.handle(event)
                if isinstance(event, Started):
                    self._in_order.started(event.trace)
                elif isinstance(event, Finished):
                    self._finish(event, run)
        self._display.end()

    def _how_to_resume(self, setup: Setup, problems: Problems, error: BaseException) -> str:
        """Return a note about the results and how to resume; "" if nothing can be resumed or standard output is closed."""
        done = rounding.count(self.num_done, "result")
        if self._file:
            return f"{done} saved in {self._file.path}; to resume: {resuming(setup.options.command)}"
        if problems.is_single or problems.is_typed or not self.num_done or isinstance(error, OutputError):
            return ""
        return f"{done} went to standard output; to be able to resume, use -o FILE.jsonl"

    def _finish(self, event: Finished, run: RunInfo) -> None:
        """Store and show a problem's result. The file omits interrupted problems, so that a resumed run solves them."""
        if self._file is None or event.error is None or isinstance(event.error, ProblemError):
            self._in_order.finished(event.trace, record(event, run))
            self._pass_on_ready()

    def _add_unusable(self, line: BadLine) -> None:
        self._in_order.add(unusable_record(line.number, line.reason))
        self._pass_on_ready()

    def _events(
        self, scheduler: Scheduler, problems: Problems, run: RunInfo, limits: Limits
    ) -> Generator[Event, None, None]:
        usable = problems.usable(self._add_unusable)
        if self._file is None:
            return scheduler.run(usable, problems.is_ready)
        attempted = self._without_given_up(usable, run, limits)
        return marked(self._file.started, scheduler.run(attempted, lambda: self._is_ready(problems)))

    def _without_given_up(self, problems: Iterable[Problem], run: RunInfo, limits: Limits) -> Iterator[Problem]:
        """Yield the problems. If a problem crashed the process several times, add a result with an error instead."""
        for problem in problems:
            if self._file and self._crashes.get(problem.id, 0) >= MAX_CRASHES:
                self._file.started.begin(problem.id)  # the result is final, so its crashes are forgotten
                self._in_order.add(record(give_up(problem, limits, self._file.started), run))
                self._pass_on_ready()
            else:
                yield problem

    def _is_ready(self, problems: Problems) -> bool:
        """Return whether another problem may start now. Problems that crashed the process are solved one at a time."""
        return not any(count < MAX_CRASHES for count in self._crashes.values()) and problems.is_ready()

    def _take_earlier(self, problems: Problems, setup: Setup) -> int:
        """Show the results in the file, skip their problems, and return how many there are. Servers are not contacted yet."""
        if self._file is None:
            return 0
        settings: Mapping[str, Any] = next((row["settings"] for row in self._file.records() if row.get("settings")), {})
        thought = "think_tokens" in settings and settings["think_tokens"] is None
        count, current = 0, _settings_of(resolve(setup, setup.sources, lambda role: thought))
        for earlier, row in zip(self._file.records(), problems.rows(), strict=False):
            count += 1
            place = f"{self._file.path}: line {count}"
            if not _is_result_of(earlier, row):
                raise UsageError(
                    f"{place}: found the result of another problem, '{str(earlier['id'])[:MAX_SHOWN]}'", ANOTHER
                )
            _check_settings(earlier, current, place)
        for earlier in itertools.islice(self._file.records(), count):
            self._count(earlier)
            self._show(earlier)
        return count

    def _check(self, resolved: Resolved) -> None:
        """Raise UsageError if the results in the file have different settings, now that the server settings are known."""
        for count, earlier in enumerate(self._file.records() if self._file else (), start=1):
            _check_settings(earlier, _settings_of(resolved), f"{self._file.path if self._file else ''}: line {count}")

    def _pass_on_ready(self) -> None:
        for result in self._in_order.ready():
            self._pass_on(result)

    def _pass_on(self, result: Record) -> None:
        with noted_signals():  # a result on the disk must be counted
            if self._file:
                self._file.append(to_json(result))
            self._count(result)
        self._show(result)

    def _count(self, result: Record) -> None:
        self.num_done += 1
        self.num_failed += result["error"] is not None


def _is_result_of(result: Record, row: InputLine) -> bool:
    if isinstance(row, BadLine):
        return result["problem"] is None and result["id"] == str(row.number)
    return (result["id"], result["problem"]) == (row.id, row.question)


def _settings_of(resolved: Resolved) -> Mapping[str, Any]:
    """Return the settings that affect solutions, keyed by their names in records."""
    setup, route, sampler = resolved.setup, resolved.setup.route, resolved.sampler
    return {
        "policy": route.policy.name,
        "tau": tau_in_json(route.tau),
        "draft": setup.sources.get("draft"),
        "target": setup.sources.get("target"),
        "temperature": sampler.temperature,
        "seed": sampler.seed,
        **record_settings(setup, route, resolved.limits, sampler),
    }


def _check_settings(result: Record, current: Mapping[str, Any], place: str) -> None:
    """Raise UsageError if a result was made with different settings. The concurrency may differ: it does not affect results."""
    if settings := result.get("settings"):
        names = [name for name in {**current, **settings} if name != "concurrency"]
        before = {name: {**result, **settings}.get(name) for name in names}
        hint = f"{ANOTHER}; or use the original settings"
        refuse_change(place, before, {name: current.get(name) for name in names}, hint)

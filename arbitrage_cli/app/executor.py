"""Runs the remaining attempts of `bench` and `collect`, storing a row for each.

If the process crashes while it solves a problem, a resumed run retries the problem last and alone. After several crashes, the
problem is recorded as an error.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from arbitrage_cli.app.benchmark import Attempt, Began, Ended, RunEvent
from arbitrage_cli.app.manifest import make_manifest, problem_facts, resume, with_fingerprint, with_grown
from arbitrage_cli.app.options import resume_command
from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display, RunProgress
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Session
from arbitrage_cli.app.spec import Run, Spec
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import Key
from arbitrage_cli.runs.rows import AttemptRow, CollectedRow
from arbitrage_cli.runs.started import MAX_CRASHES, StartedMarks
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Finished, Limits, Problem, Started, Trace

T = TypeVar("T")


class Progress(Protocol):
    """Counts the finished attempts of a run."""

    def add(self, attempt: Attempt, row: Any) -> None: ...
    def now(self) -> RunProgress: ...


@dataclass(frozen=True, slots=True)
class Remaining:
    """The attempts without a result. Attempts at problems that crashed the process are made alone or given up."""

    given_up: Sequence[Attempt]
    together: Sequence[Attempt]
    alone: Sequence[Attempt]

    @property
    def batches(self) -> Iterator[Sequence[Attempt]]:
        """Yield batches of attempts, in order. Attempts in the same batch may run concurrently."""
        yield from ([self.together] if self.together else [])
        yield from ([attempt] for attempt in self.alone)

    @property
    def all(self) -> list[Attempt]:
        return [*self.given_up, *self.together, *self.alone]


def remaining(attempts: Sequence[Attempt], statuses: Mapping[Key, str], crashes: Mapping[str, int]) -> Remaining:
    """Return the attempts that have no row, followed by the attempts that ended in an error."""
    missing = [attempt for attempt in attempts if attempt.key not in statuses]
    todo = missing + [attempt for attempt in attempts if statuses.get(attempt.key) == "error"]
    crashed = [
        replace(attempt, block=len(attempts) + index)
        for index, attempt in enumerate(todo)
        if attempt.item.problem.id in crashes
    ]
    return Remaining(
        [attempt for attempt in crashed if crashes[attempt.item.problem.id] >= MAX_CRASHES],
        [attempt for attempt in todo if attempt.item.problem.id not in crashes],
        [attempt for attempt in crashed if crashes[attempt.item.problem.id] < MAX_CRASHES],
    )


def prepare(
    session: Session,
    selected: Selection,
    folder: RunFolder,
    attempts: Sequence[Attempt],
    *,
    samples: int = 1,
    warnings: Sequence[str] = (),
    **details: Any,
) -> tuple[Remaining, Run]:
    """Return the remaining attempts and the manifest. Raises UsageError if an earlier run has other settings."""
    todo = remaining(attempts, folder.statuses, folder.started.crashes)
    run = make_manifest(session.spec)
    run["sampling"]["samples"], run["warnings"] = samples, [*warnings]
    ids, grader = [item.problem.id for item in selected.items], session.spec.task.grader_version()
    run = with_fingerprint({**run, **problem_facts(selected.dataset, ids), "grader": grader, **details})
    if folder.rows and folder.run:
        run = resume(with_grown(folder.run, selected.dataset), run, folder.path)
    return todo, run


def give_up(problem: Problem, limits: Limits, started: StartedMarks) -> Finished:
    error = ProblemError(f"skipped, because the process crashed {MAX_CRASHES} times while solving this problem")
    started.end(problem.id)
    return Finished(Trace(problem, limits), error)


def marked(started: StartedMarks, events: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield the events. While a problem is being solved, a mark is stored on disk."""
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Started):
                started.begin(event.trace.problem.id)
            elif isinstance(event, Finished):
                started.end(event.trace.problem.id)
            yield event


@dataclass(frozen=True, slots=True)
class Executor:
    """Runs attempts, storing and displaying each row as soon as its attempt finishes.

    Only rows for which `is_kept` returns True are stored.
    """

    store: RunFolder
    display: Display
    progress: Progress
    is_kept: Callable[[Any], bool]

    def run(
        self,
        todo: Remaining,
        solve: Callable[[Sequence[Attempt]], Generator[RunEvent, None, None]],
        row_of: Callable[[Attempt, Finished], AttemptRow | CollectedRow],
        limits: Limits,
    ) -> None:
        """Run the remaining attempts. `solve` runs a batch; `row_of` returns the row of an attempt that is given up."""
        self.display.begin(self.progress.now())
        for attempt in todo.given_up:
            self.keep(attempt, row_of(attempt, give_up(attempt.item.problem, limits, self.store.started)))
        for batch in todo.batches:
            with contextlib.closing(marked(self.store.started, solve(batch))) as events:
                for event in events:
                    self._follow(event)

    def keep(self, attempt: Attempt, row: AttemptRow | CollectedRow) -> None:
        with noted_signals():  # a row is both stored and counted, or neither
            if is_kept := self.is_kept(row):
                self.store.append(row)
                self.progress.add(attempt, row)
        ended = _ended(attempt, row, self.progress.now())
        self.display.handle(ended if is_kept else replace(ended, verdict="stopped"))

    def _follow(self, event: RunEvent) -> None:
        if isinstance(event, Began):
            attempt = event.attempt
            self.display.handle(AttemptStarted(attempt.item.problem.id, attempt.route.label))
        elif isinstance(event, Ended):
            self.keep(event.attempt, event.row)
        else:
            self.display.handle(event)


def how_to_resume(num_safe: int, planned: int, what: str, path: Path, spec: Spec) -> str:
    """Return a note that counts the stored results and shows how to resume the run. Return "" if nothing is stored yet."""
    command = resume_command(spec.request.options.command)
    return f"{num_safe} of {planned} {what} are saved in {path}; to resume: {command}" if num_safe else ""


def _ended(attempt: Attempt, row: AttemptRow | CollectedRow, progress: RunProgress) -> AttemptEnded:
    verdict, detail, seconds = "error", row.error or "", row.seconds
    if isinstance(row, CollectedRow):
        if row.status == "done":
            verdict, detail = "done", formatting.count(len(row.states), "state")
    else:
        seconds = row.wall_seconds
        if row.grade:
            verdict, detail = row.grade.value, row.grade.answer or ""
    return AttemptEnded(row.id, attempt.route.label, verdict, detail, seconds, progress)

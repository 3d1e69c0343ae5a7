"""Makes the missing attempts of a command and stores a row for each. All commands that store results use this loop.

If the process crashes while it solves a problem, the next command solves the problem last and alone. After several crashes,
the problem is recorded as an error.
"""

import contextlib
import itertools
import shlex
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Any, Protocol

from arbitrage_cli.app.manifest import add_loaded, make_manifest, problem_facts, resume, with_fingerprint, with_grown
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display, RunProgress, Standing
from arbitrage_cli.app.session import Session
from arbitrage_cli.app.spec import Run, Spec
from arbitrage_cli.errors import ArbitrageError, ProblemError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import Key, tau_in_json
from arbitrage_cli.runs.results import SampleKey
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Event, Finished, Limits, Started, Trace


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to solve a problem. Problems of one `block` may be solved at once."""

    item: Item
    sample: int
    route: Route
    block: int = 0

    @property
    def id(self) -> str:
        return self.item.problem.id

    @property
    def key(self) -> Key:
        return self.id, self.sample, self.route.policy.name, tau_in_json(self.route.tau)


class Solver(Protocol):
    """Makes attempts and describes them in rows."""

    def solve(self, attempts: Iterator[Attempt], /) -> Generator[Event, None, None]:
        """Make attempts with one scheduler. An attempt is taken from the iterator when the scheduler has a free slot."""

    def row(self, attempt: Attempt, finished: Finished, /) -> Any: ...


class Planner(Protocol):
    """The part of a command that knows which rows it needs."""

    def is_kept(self, finished: Finished, row: Any, /) -> bool:
        """Return whether a row is stored."""

    def kept(self, attempt: Attempt, row: Any, /) -> None:
        """Count a row that was stored."""

    def show(self, attempt: Attempt, row: Any, /, *, is_kept: bool) -> None: ...


def missing(attempts: Sequence[Attempt], statuses: Mapping[Key, str]) -> list[Attempt]:
    """Return the attempts that have no row, followed by the attempts that ended in an error."""
    new = [attempt for attempt in attempts if attempt.key not in statuses]
    return new + [attempt for attempt in attempts if statuses.get(attempt.key) == "error"]


@dataclass(slots=True)
class Loop:
    """Makes attempts, and stores each row as soon as its attempt ends. Without a `store`, rows are only shown."""

    solver: Solver
    planner: Planner
    store: RunFolder | None
    display: Display
    limits: Limits
    in_flight: dict[str, Attempt] = field(default_factory=dict)

    def run(self, attempts: Iterable[Attempt]) -> None:
        """Make attempts. Consecutive attempts with the same block, sample and route run together."""
        crashes = dict(self.store.started.crashes) if self.store else {}
        alone = list[Attempt]()
        for _, batch in itertools.groupby(attempts, key=lambda one: (one.block, one.sample, one.route)):
            self._solve(self._unless_crashed(batch, crashes, alone))
        for attempt in alone:
            self._solve(iter([attempt]))

    def end(self, attempt: Attempt, finished: Finished) -> None:
        """Store and show the result of an attempt."""
        if self.store:
            self.store.started.end(attempt.id)
        row = self.solver.row(attempt, finished)
        with noted_signals():  # a row is both stored and counted, or neither
            if is_kept := self.planner.is_kept(finished, row):
                if self.store:
                    self.store.append(row)
                self.planner.kept(attempt, row)
        self.planner.show(attempt, row, is_kept=is_kept)

    def _unless_crashed(
        self, attempts: Iterable[Attempt], crashes: Mapping[str, int], alone: list[Attempt]
    ) -> Iterator[Attempt]:
        for attempt in attempts:
            if attempt.id not in crashes:
                yield attempt
            elif crashes[attempt.id] < MAX_CRASHES:
                alone.append(attempt)
            else:
                error = ProblemError(f"skipped, because the process crashed {MAX_CRASHES} times while solving this problem")
                self.end(attempt, Finished(Trace(attempt.item.problem, self.limits), error))

    def _solve(self, attempts: Iterator[Attempt]) -> None:
        with contextlib.closing(self.solver.solve(map(self._taken, attempts))) as events:
            for event in events:
                attempt = self.in_flight[event.trace.problem.id]
                if isinstance(event, Started):
                    if self.store:
                        self.store.started.begin(attempt.id)
                    self.display.handle(AttemptStarted(attempt.id, attempt.route.label))
                self.display.handle(event)
                if isinstance(event, Finished):
                    self.end(attempt, event)
                    del self.in_flight[attempt.id]

    def _taken(self, attempt: Attempt) -> Attempt:
        self.in_flight[attempt.id] = attempt
        return attempt


class Progress:
    """Counts the attempts of each route and estimates the time left. Each route has `planned` attempts; `left` are missing."""

    def __init__(self, title: str, routes: Sequence[Route], planned: int, left: int) -> None:
        self._title, self._planned, self._left = title, planned, left
        self._concurrency, self._began, self._finished = 1, perf_counter(), 0
        self._tried: dict[Route, set[SampleKey]] = {route: set() for route in routes}
        self._done: dict[Route, dict[SampleKey, float]] = {route: {} for route in routes}  # seconds
        self._correct = Counter[Route]()

    def start(self, concurrency: int) -> None:
        """Measure the time from now on. `concurrency` attempts are made at once."""
        self._concurrency, self._began = concurrency, perf_counter()

    def add(self, attempt: Attempt, row: Any, *, is_new: bool = True) -> None:
        """Count the row of an attempt. `is_new` is false for an attempt of an earlier command."""
        route, key = attempt.route, (attempt.id, attempt.sample)
        self._tried[route].add(key)
        if row.status == "done":
            self._done[route][key] = row.took
            self._correct[route] += row.verdict[0] == "correct"
        self._left -= is_new
        self._finished += is_new

    def now(self, most: float = inf) -> RunProgress:
        """Return the progress. `most` limits the estimated time left, in seconds."""
        total, left = self._planned * len(self._tried), self._seconds_left
        left = None if left is None else min(left, most)
        return RunProgress(self._title, total - self._left, total, list(map(self._standing, self._tried)), left)

    def _standing(self, route: Route) -> Standing:
        done, target = self._done[route], next((self._done[one] for one in self._done if one.policy.name == "target"), {})
        shared = done.keys() & target.keys()
        own = sum(done[key] for key in shared)
        speedup = sum(target[key] for key in shared) / own if own and self._concurrency == 1 else None
        counts = self._planned, len(self._tried[route]), len(done), self._correct[route]
        return Standing(route.label, *counts, sum(done.values()), speedup)

    @property
    def _seconds_left(self) -> float | None:
        """The estimated time left, from the mean time of the attempts so far. Attempts in progress count as half done."""
        begun = min(self._concurrency - 1, self._left) / 2
        each = (perf_counter() - self._began) / (self._finished + begun) if self._finished else None
        return each and each * (self._left - begun)


class StoredRun:
    """A run in a folder: the attempts of this command, those that are missing, and the progress.

    `name` is that of the command. `manifest` is written to run.json. Raises UsageError if the folder contains a run with other
    settings.
    """

    name: str

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        attempts: Sequence[Attempt],
        **details: Any,
    ) -> None:
        self.session, self.folder, self.attempts = session, folder, attempts
        self.todo = missing(attempts, folder.statuses)
        self.manifest = run_json(session.spec, folder, selected, **details)
        routes, by_key = session.spec.routes, {attempt.key: attempt for attempt in attempts}
        self._progress = Progress(f"{self.name} {selected.title}", routes, len(attempts) // len(routes), len(self.todo))
        for row in folder.rows:
            self.count(row)
            if row.status == "done" and row.key in by_key:
                self._progress.add(by_key[row.key], row, is_new=False)

    def count(self, row: Any) -> None:
        """Note the content of a row in the folder."""

    @property
    def progress(self) -> RunProgress:
        return self._progress.now()

    @property
    def num_errors(self) -> int:
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)

    def begin(self, solver: Solver) -> Loop:
        """Write run.json, show the progress, and return the loop in which `solver` makes attempts."""
        session = self.session
        protections = list(session.spec.task.protections)
        self.folder.save_run({**add_loaded(self.manifest, session.models), "protections": protections})
        self._progress.start(session.concurrency)
        session.display.begin(self.progress)
        return Loop(solver, self, self.folder, session.display, session.spec.limits)

    def is_kept(self, finished: Finished, row: Any) -> bool:
        return True

    def kept(self, attempt: Attempt, row: Any) -> None:
        self.count(row)
        self._progress.add(attempt, row)

    def show(self, attempt: Attempt, row: Any, *, is_kept: bool) -> None:
        verdict, detail = row.verdict
        shown = verdict if is_kept else "stopped"
        self.session.display.handle(AttemptEnded(row.id, attempt.route.label, shown, detail, row.took, self.progress))


def run_json(spec: Spec, folder: RunFolder, selected: Selection | None = None, **details: Any) -> Run:
    """Return the content of run.json. Raises UsageError if an earlier run in the folder has other settings."""
    run, earlier = make_manifest(spec) | details, folder.earlier
    if selected:
        ids, grader = [item.problem.id for item in selected.items], spec.task.grader_version()
        run = {**run, **problem_facts(selected.dataset, ids), "grader": grader}
        earlier = with_grown(earlier, selected.dataset) if earlier else None
    run = with_fingerprint(run)
    return resume(earlier, run, folder.shown) if earlier else run


@contextlib.contextmanager
def offering_to_resume(session: Session, folder: RunFolder | None) -> Iterator[None]:
    """Show how to resume a run if it is interrupted for any reason."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ArbitrageError):  # a closed output stream is reported by its own error
            session.display.close()  # first, because a second Ctrl-C would leave the cursor hidden
            if folder and folder.statuses:
                saved = formatting.count(len(folder.statuses), "result")
                command = shlex.join(part for part in session.spec.request.options.command if part != "--fresh")
                session.display.note(f"{saved} saved in {folder.shown}; to resume: {command}")
        raise

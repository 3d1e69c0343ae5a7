"""Makes the missing attempts of a command, and stores and shows a row for each. All commands that keep rows use this loop.

If llama.cpp crashes while it solves a problem, the next command solves the problem last and alone. After several crashes, the
problem is recorded as an error.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display, RunProgress, Standing
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import Clock, Deadline
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Refusals, Scheduler
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import AttemptKey, tally_of, tau_in_json
from arbitrage_cli.runs.results import SampleKey
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Fields, Finished, Limits, Started, Trace, frozen


class RunCounts:
    """The counts of a run, of which each route has `planned` attempts. The run stops at `ends`. `label` names a route."""

    def __init__(
        self,
        title: str,
        routes: Sequence[Route],
        planned: int,
        ends: float = math.inf,
        label: Callable[[Route], str] = lambda route: route.label,
    ) -> None:
        self._title, self._planned, self._ends, self.label = title, planned, ends, label
        self._ended: dict[Route, dict[SampleKey, tuple[float | None, bool]]] = {route: {} for route in routes}
        """The seconds of each attempt, or None if it failed, and whether its answer is correct."""

    def add(self, route: Route, row: Any) -> None:
        seconds = row.took if row.status == "done" else None
        self._ended[route][row.id, row.sample] = seconds, row.verdict[0] == "correct"

    def now(self) -> RunProgress:
        standings = list(map(self._standing, self._ended))
        finished = sum(standing.tried for standing in standings)
        return RunProgress(self._title, finished, self._planned * len(standings), standings, self._ends)

    def _standing(self, route: Route) -> Standing:
        ended = self._ended[route].values()
        done = [seconds for seconds, _ in ended if seconds is not None]
        return Standing(self.label(route), self._planned, len(ended), len(done), sum(right for _, right in ended), sum(done))


@frozen
class Attempt:
    """One attempt to solve a problem, in at most `seconds`. Problems of one `block` may be solved at once.

    `is_alone` is true if llama.cpp crashed while it solved the problem.
    """

    item: Item
    sample: int
    route: Route
    block: int = 0
    seconds: float | None = None
    is_alone: bool = False

    @property
    def id(self) -> str:
        return self.item.problem.id

    @property
    def key(self) -> AttemptKey:
        return self.id, self.sample, self.route.policy.name, tau_in_json(self.route.tau)


def missing(attempts: Sequence[Attempt], statuses: Mapping[AttemptKey, str]) -> list[Attempt]:
    """Return the attempts that have no row, followed by the attempts that ended in an error."""
    new = [attempt for attempt in attempts if attempt.key not in statuses]
    return new + [attempt for attempt in attempts if statuses.get(attempt.key) == "error"]


@dataclass(slots=True)
class Stopwatch:
    """The time of an attempt, in seconds. `router_seconds` is the time in which the policy scored steps and decided."""

    timer: Clock = time.perf_counter
    seconds: float = 0.0
    router_seconds: float = 0.0
    program_seconds: float | None = None  # outside the models and the policy
    _began: tuple[float, float] = (0.0, 0.0)

    def begin(self, now: float, timed: float) -> None:
        self._began = now, timed

    def end(self, finished: Finished, now: float, timed: float) -> None:
        model_seconds = tally_of(finished).seconds
        self.seconds = now - self._began[0]
        self.program_seconds = max(0.0, timed - self._began[1] - model_seconds - self.router_seconds)

    def follow(self, flow: Flow) -> Flow:
        """Yield a flow's requests, and measure the time from each response to the next request."""
        with contextlib.closing(flow):
            answer: Any = None
            while True:
                began = self.timer()
                try:
                    request = flow.send(answer)
                except StopIteration:
                    return
                finally:
                    self.router_seconds += self.timer() - began
                answer = yield request


@dataclass(slots=True)
class Loop:
    """Makes attempts, and stores each row as soon as its attempt ends.

    `row` makes the row of an attempt, or None if the attempt counts as not made. `kept` is called with each row. `counts`,
    if given, are shown. `conditions` are those of all rows. Without a `store`, no row is stored. Sample k uses the seed of
    `sampler` + k. `clock` measures the attempts, and `timer` the time that the program itself takes.
    """

    scheduler: Callable[[Attempt], Scheduler]
    flow: Callable[[Attempt, Trace], Flow]
    limits: Limits
    row: Callable[[Attempt, Finished, Stopwatch], Any]
    display: Display
    store: RunFolder | None = None
    conditions: Fields = field(default_factory=dict)
    sampler: Sampler = Sampler()  # noqa: RUF009 - frozen
    kept: Callable[[Any], object] = lambda row: None
    counts: RunCounts | None = None
    is_ready: Callable[[], bool] = lambda: True
    clock: Clock = time.perf_counter
    timer: Clock = time.perf_counter
    in_flight: dict[str, Attempt] = field(default_factory=dict)
    _timings: dict[str, Stopwatch] = field(default_factory=dict)
    _refusals: Refusals = field(default_factory=Refusals)

    def run(self, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
        """Make attempts, and yield each attempt when its row is kept.

        Consecutive attempts with the same block, sample and route run together.
        """
        if self.counts:
            self.display.begin(self.counts.now())
        crashes = dict(self.store.started.crashes) if self.store else {}
        alone = list[Attempt]()
        for _, batch in itertools.groupby(attempts, key=lambda one: (one.block, one.sample, one.route)):
            yield from self._solve(self._unless_crashed(batch, crashes, alone))
        for attempt in alone:
            yield from self._solve(iter([attempt]))

    def end(self, attempt: Attempt, finished: Finished) -> None:
        """Store, count and show the result of an attempt."""
        if self.store:
            self.store.started.end(attempt.id)
        timing = self._timings.pop(attempt.id) if attempt.id in self._timings else Stopwatch()
        row = self.row(attempt, finished, timing)
        if row is not None:
            if conditions := {**self.conditions, **({"alone": True} if attempt.is_alone else {})}:
                row = row.model_copy(update={"conditions": conditions})
            with noted_signals():  # a row is both stored and counted, or neither
                if self.store:
                    self.store.append(row)
                self.kept(row)
                if self.counts:
                    self.counts.add(attempt.route, row)
        if self.counts:
            (verdict, detail), took = row.verdict if row else ("stopped", ""), row.took if row else None
            shown = AttemptEnded(attempt.id, self.counts.label(attempt.route), verdict, detail, took, self.counts.now())
            self.display.handle(shown)

    def _unless_crashed(
        self, attempts: Iterable[Attempt], crashes: Mapping[str, int], alone: list[Attempt]
    ) -> Iterator[Attempt]:
        for attempt in attempts:
            if attempt.id not in crashes:
                yield attempt
            elif crashes[attempt.id] < MAX_CRASHES:
                alone.append(replace(attempt, is_alone=True))
            else:
                error = ProblemError(f"skipped, because the process crashed {MAX_CRASHES} times while solving this problem")
                self.end(attempt, Finished(Trace(attempt.item.problem, self.limits), error))

    def _solve(self, attempts: Iterator[Attempt]) -> Iterator[Attempt]:
        if (first := next(attempts, None)) is None:
            return
        jobs = map(self._job, itertools.chain([first], attempts))
        events = self.scheduler(first).run(jobs, self.is_ready, self._refusals)
        now = timed = 0.0
        with contextlib.closing(events):
            while True:
                began, timer_began = self.clock(), self.timer()
                event = next(events, None)
                timed += self.timer() - timer_began
                now += self.clock() - began  # without the time in which a row is made, stored and shown
                if event is None:
                    return
                attempt = self.in_flight[event.trace.problem.id]
                if isinstance(event, Started):
                    self._timings[attempt.id].begin(now, timed)
                    if self.store:
                        self.store.started.begin(attempt.id)
                    label = self.counts.label(attempt.route) if self.counts else attempt.route.label
                    self.display.handle(AttemptStarted(attempt.id, label))
                self.display.handle(event)
                if isinstance(event, Finished):
                    self._timings[attempt.id].end(event, now, timed)
                    self.end(attempt, event)
                    del self.in_flight[attempt.id]
                    yield attempt

    def _job(self, attempt: Attempt) -> Job:
        self.in_flight[attempt.id] = attempt
        timing = self._timings[attempt.id] = Stopwatch(self.timer)

        def make_flow(trace: Trace) -> Flow:
            return timing.follow(self.flow(attempt, trace))

        seconds = attempt.seconds
        deadline = None if seconds is None else Deadline(self.clock() + seconds, seconds, self.clock)
        sampler = replace(self.sampler, seed=self.sampler.seed + attempt.sample) if attempt.sample else None
        return Job(attempt.item.problem, make_flow, self.limits, deadline, sampler)

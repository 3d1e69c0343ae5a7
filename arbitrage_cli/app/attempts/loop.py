"""Makes the missing attempts of a command, and stores and shows a row for each. All commands that keep rows use this loop.

If llama.cpp crashes while it solves a problem, the next command solves the problem last and alone. After several crashes, the
problem is recorded as an error.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.app.attempts.attempts import Attempt, RunCounts
from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display
from arbitrage_cli.arbitrage import CompareAnswers, Flow
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import Clock, Deadline
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Refusals, Scheduler
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import tally_of
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Event, Fields, Finished, Limits, RoleLimits, Started, Trace


@dataclass(slots=True)
class Stopwatch:
    """The time of an attempt, in seconds. `router_seconds` is the time in which the policy scored steps and decided.

    Answers are compared in another thread, whose time `timer` may not count. `clock` measures each comparison.
    """

    timer: Clock = time.perf_counter
    clock: Clock = time.perf_counter
    seconds: float = 0.0
    router_seconds: float = 0.0
    program_seconds: float | None = None  # outside the models and the policy
    _uncounted: float = 0.0  # the time of comparisons that `timer` did not count
    _began: tuple[float, float] = (0.0, 0.0)

    def begin(self, seconds: float, timer_seconds: float) -> None:
        """Start. The arguments are the time of the run so far, by the clock of attempts and by `timer`."""
        self._began = seconds, timer_seconds

    def end(self, finished: Finished, seconds: float, timer_seconds: float) -> None:
        """Stop. The arguments are those of `begin`."""
        began, timer_began = self._began
        self.seconds = seconds - began
        elsewhere = tally_of(finished).seconds + self.router_seconds
        self.program_seconds = max(0.0, timer_seconds - timer_began - elsewhere) + self._uncounted

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
                if isinstance(request, CompareAnswers):
                    answer = yield from self._compare(request)
                else:
                    answer = yield request

    def _compare(self, request: CompareAnswers) -> Generator[CompareAnswers, bool, bool]:
        """Pass on a request to compare answers, and note the part of its time that `timer` does not count."""
        spent = 0.0

        def is_same() -> bool:
            nonlocal spent
            began = self.clock()
            try:
                return request.is_same()
            finally:
                spent = self.clock() - began

        began = self.timer()
        response = yield CompareAnswers(is_same)
        self._uncounted += max(0.0, spent - (self.timer() - began))
        return response


@dataclass(slots=True)
class Loop:
    """Makes attempts, and stores each row as soon as its attempt ends.

    `row` makes the row of an attempt, or None if the attempt counts as not made. `kept` is called with each row. `counts`,
    if given, are shown. `conditions` are those of all rows. Without a `store`, no row is stored. Sample k uses the seed of
    `sampler` + k. `clock` measures the attempts, and `timer` the time that the program itself takes.
    """

    scheduler: Callable[[Attempt], Scheduler]
    flow: Callable[[Attempt, Trace], Flow]
    limits: RoleLimits
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
        timing = self._timings.pop(attempt.id, None) or Stopwatch()
        row = self.row(attempt, finished, timing)
        if row is not None:
            conditions = dict(self.conditions)
            if attempt.is_alone:
                conditions["alone"] = True
            if conditions:
                row = row.model_copy(update={"conditions": conditions})
            self._keep(attempt, row)
        if self.counts:
            verdict, detail = row.verdict if row else ("stopped", "")
            shown = AttemptEnded(
                attempt.id,
                self.counts.label(attempt.route),
                verdict,
                detail,
                seconds=row.took if row else None,
                progress=self.counts.now(),
            )
            self.display.handle(shown)

    def _keep(self, attempt: Attempt, row: Any) -> None:
        with noted_signals():  # a row is both stored and counted, or neither
            if self.store:
                row = self.store.append(row)
            self.kept(row)
            if self.counts:
                self.counts.add(attempt.route, row)

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
                self.end(attempt, Finished(Trace(attempt.item.problem, self._limits_of(attempt)), error))

    def _solve(self, attempts: Iterator[Attempt]) -> Iterator[Attempt]:
        if (first := next(attempts, None)) is None:
            return
        jobs = map(self._job, itertools.chain([first], attempts))
        events = self.scheduler(first).run(jobs, self.is_ready, self._refusals)
        with contextlib.closing(events):
            for event, seconds, timer_seconds in self._timed(events):
                attempt = self.in_flight[event.trace.problem.id]
                if isinstance(event, Started):
                    self._timings[attempt.id].begin(seconds, timer_seconds)
                    self._begin(attempt)
                self.display.handle(event)
                if isinstance(event, Finished):
                    self._timings[attempt.id].end(event, seconds, timer_seconds)
                    self.end(attempt, event)
                    del self.in_flight[attempt.id]
                    yield attempt

    def _timed(self, events: Iterator[Event]) -> Iterator[tuple[Event, float, float]]:
        """Yield each event with the seconds so far, by `clock` and by `timer`.

        They exclude the time in which the caller makes, stores and shows a row.
        """
        seconds = timer_seconds = 0.0
        while True:
            began, timer_began = self.clock(), self.timer()
            event = next(events, None)
            timer_seconds += self.timer() - timer_began
            seconds += self.clock() - began
            if event is None:
                return
            yield event, seconds, timer_seconds

    def _begin(self, attempt: Attempt) -> None:
        if self.store:
            self.store.started.begin(attempt.id)
        label = self.counts.label(attempt.route) if self.counts else attempt.route.label
        self.display.handle(AttemptStarted(attempt.id, label))

    def _job(self, attempt: Attempt) -> Job:
        self.in_flight[attempt.id] = attempt
        timing = self._timings[attempt.id] = Stopwatch(self.timer, self.clock)

        def make_flow(trace: Trace) -> Flow:
            return timing.follow(self.flow(attempt, trace))

        seconds = attempt.seconds
        deadline = None if seconds is None else Deadline(self.clock() + seconds, seconds, self.clock)
        sampler = replace(self.sampler, seed=self.sampler.seed + attempt.sample) if attempt.sample else None
        return Job(attempt.item.problem, make_flow, self._limits_of(attempt), deadline, sampler)

    def _limits_of(self, attempt: Attempt) -> Limits:
        return self.limits.of(*attempt.route.policy.models)

"""Makes the missing attempts of a command, stores a row for each, and shows it. All commands that keep rows use this loop.

If llama.cpp crashes while it solves a problem, the next command solves the problem last and alone. After several crashes, the
problem is recorded as an error.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.app.progress import RunCounts
from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display
from arbitrage_cli.arbitrage import Flow, WriteStep
from arbitrage_cli.arbitrage import Request as FlowRequest
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Refusals, Scheduler
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import Key, tally_of, tau_in_json
from arbitrage_cli.runs.started import MAX_CRASHES
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.types import Finished, Limits, Started, Step, Trace


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to solve a problem, in at most `seconds`. Problems of one `block` may be solved at once.

    A problem during which llama.cpp crashed `is_alone`.
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
    def key(self) -> Key:
        return self.id, self.sample, self.route.policy.name, tau_in_json(self.route.tau)


def missing(attempts: Sequence[Attempt], statuses: Mapping[Key, str]) -> list[Attempt]:
    """Return the attempts that have no row, followed by the attempts that ended in an error."""
    new = [attempt for attempt in attempts if attempt.key not in statuses]
    return new + [attempt for attempt in attempts if statuses.get(attempt.key) == "error"]


@dataclass(slots=True)
class Timing:
    """The time of an attempt, in seconds. `router_seconds` is the time in which the policy scored steps and decided."""

    timer: Callable[[], float] = time.perf_counter
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
                answer = yield self._with_timed_scores(request)

    def _with_timed_scores(self, request: FlowRequest) -> FlowRequest:
        if not isinstance(request, WriteStep) or request.early_stop is None:
            return request
        score_of = request.early_stop.score_of

        def timed(trace: Trace, prefix: Step) -> float:
            began = self.timer()
            score = score_of(trace, prefix)
            self.router_seconds += self.timer() - began
            return score

        return replace(request, early_stop=replace(request.early_stop, score_of=timed))


@dataclass(slots=True)
class Loop:
    """Makes attempts, and stores each row as soon as its attempt ends.

    `row` makes the row of an attempt, or None if the attempt counts as not made. `kept` counts a row; `counts`, if given, are
    shown. Without a `store`, no row is stored. Sample k uses the seed of `sampler` + k. `clock` measures attempts, and `timer` what the program itself needs.
    """

    scheduler: Callable[[Attempt], Scheduler]
    flow: Callable[[Attempt, Trace], Flow]
    limits: Limits
    row: Callable[[Attempt, Finished, Timing], Any]
    display: Display
    store: RunFolder | None = None
    sampler: Sampler | None = None
    kept: Callable[[Attempt, Any], object] = lambda attempt, row: None
    counts: RunCounts | None = None
    is_ready: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.perf_counter
    timer: Callable[[], float] = time.perf_counter
    in_flight: dict[str, Attempt] = field(default_factory=dict)
    _timings: dict[str, Timing] = field(default_factory=dict)
    _refusals: Refusals = field(default_factory=Refusals)

    def run(self, attempts: Iterable[Attempt]) -> Iterator[Attempt]:
        """Make attempts, and yield each when it is kept. Consecutive ones with the same block, sample and route run together."""
        if self.counts:
            self.display.begin(self.counts.begin())
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
        timing = self._timings.pop(attempt.id) if attempt.id in self._timings else Timing()
        row = self.row(attempt, finished, timing)
        if row is not None:
            with noted_signals():  # a row is both stored and counted, or neither
                if self.store:
                    self.store.append(row)
                self.kept(attempt, row)
                if self.counts:
                    self.counts.add(attempt.route, row)
        if self.counts:
            (verdict, detail), took = row.verdict if row else ("stopped", ""), row.took if row else None
            shown = AttemptEnded(attempt.id, attempt.route.label, verdict, detail, took, self.counts.now())
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
                    self.display.handle(AttemptStarted(attempt.id, attempt.route.label))
                self.display.handle(event)
                if isinstance(event, Finished):
                    self._timings[attempt.id].end(event, now, timed)
                    self.end(attempt, event)
                    del self.in_flight[attempt.id]
                    yield attempt

    def _job(self, attempt: Attempt) -> Job:
        self.in_flight[attempt.id] = attempt
        timing = self._timings[attempt.id] = Timing(self.timer)

        def make_flow(trace: Trace) -> Flow:
            return timing.follow(self.flow(attempt, trace))

        seconds = attempt.seconds
        deadline = None if seconds is None else Deadline(self.clock() + seconds, seconds, self.clock)
        sampler = self.sampler and replace(self.sampler, seed=self.sampler.seed + attempt.sample)
        return Job(attempt.item.problem, make_flow, self.limits, deadline, sampler)

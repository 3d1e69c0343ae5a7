"""Measures policies side by side: what is solved in which order, the solving itself, and how the policies stand.

All policies solve a problem before the next one's turn, in an order that rotates, so that a machine that gets slower
during a run gets slower for all of them. One attempt at a time. Knows no file, no terminal and no data set by name; how an
answer is graded is given to it.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arbitrage_cli.arbitrage import Ask, Flow, Policy, Rate, Router
from arbitrage_cli.datasets import Item
from arbitrage_cli.engine import Engine
from arbitrage_cli.errors import DefectError, InterruptedRunError, ProblemError
from arbitrage_cli.run_folder import Key, key_of, latest
from arbitrage_cli.runs import Measured, RunInfo, attempt_error, row, tau_in_json
from arbitrage_cli.scheduler import Rater, Scheduler
from arbitrage_cli.summary import Standing
from arbitrage_cli.types import Event, Finished, Limits, ModelRole, Score, Started, Step, Trace

Grade = Callable[[str, Mapping[str, Any]], Score]
"""Compares a solution's text with a right answer (an `Item.gold`)."""

EnginesFor = Callable[[Policy, int], Mapping[ModelRole, Engine]]
"""The engines that a policy needs, for the sample of that number. They are idle, and hold no problem."""


@dataclass(frozen=True, slots=True)
class Column:
    """A policy at one tau: what a benchmark compares with others."""

    policy: Policy
    tau: float | None

    @property
    def label(self) -> str:
        """What it is called in a table: `entropy 0.5`."""
        return self.policy.name if self.tau is None else f"{self.policy.name} {self.tau:g}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One problem, to be solved once with one policy. Samples are numbered from 0; sample k has the seed of the run + k."""

    item: Item
    sample: int
    column: Column

    @property
    def key(self) -> Key:
        """The key of the row that will tell of it."""
        return self.item.problem.id, self.sample, self.column.policy.name, tau_in_json(self.column.tau)


@dataclass(frozen=True, slots=True)
class Began:
    """An attempt is taken up."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt is over, and its row is to be written."""

    attempt: Attempt
    row: dict[str, Any]


def plan(items: Sequence[Item], columns: Sequence[Column], samples: int) -> list[Attempt]:
    """All attempts in the order in which they are made: the first problem begins with the first column, the next with the next."""
    return [
        Attempt(item, sample, columns[(index + sample + turn) % len(columns)])
        for index, item in enumerate(items)
        for sample in range(samples)
        for turn in range(len(columns))
    ]


def left(attempts: Iterable[Attempt], rows: Iterable[Mapping[str, Any]], *, retry_errors: bool) -> list[Attempt]:
    """The attempts that these rows leave to be made. Those that ended in an error come last: they may do so again."""
    status = {key_of(made): made["status"] for made in latest(rows)}
    by_status: dict[str | None, list[Attempt]] = {"done": [], "error": [], None: []}
    for attempt in attempts:
        by_status[status.get(attempt.key)].append(attempt)
    return by_status[None] + (by_status["error"] if retry_errors else [])


def failed_row(attempt: Attempt, error: ProblemError, limits: Limits, seconds: float) -> dict[str, Any]:
    """The row of an attempt that nothing is known of but why it failed, and after how long."""
    item, policy = attempt.item, attempt.column.policy
    run = RunInfo(policy.name, policy.number or None, attempt.column.tau, 0.0, 0)
    measured = Measured(attempt.sample, item.level, item.gold, None, seconds, 0.0)
    return row(Finished(Trace(item.problem, limits), error), run, measured)


def _no_router(policy: Policy) -> None:
    """Policies that make their own router need none."""


def _no_rater(policy: Policy) -> None:
    """Policies that ask for no rewards need none."""


@dataclass(slots=True)
class Bench:
    """Makes attempts. `seed` is that of sample 0; an attempt that takes longer than `timeout` seconds is broken off.

    `router_for` gives the router of a policy that has it from outside, `rater_for` whoever rates steps for one.
    """

    engines_for: EnginesFor
    grade: Grade
    limits: Limits
    seed: int
    timeout: float | None = None
    router_for: Callable[[Policy], Router | None] = _no_router
    rater_for: Callable[[Policy], Rater | None] = _no_rater
    clock: Callable[[], float] = time.perf_counter

    def run(self, attempts: Iterable[Attempt]) -> Generator[Began | Event | Ended, None, None]:
        """Make the attempts one after the other. A ProblemError is a row; any other error ends the run, after its row."""
        for attempt in attempts:
            yield Began(attempt)
            yield from self._make(attempt)

    def _make(self, attempt: Attempt) -> Iterator[Event | Ended]:
        policy, tau, seed = attempt.column.policy, attempt.column.tau, self.seed + attempt.sample
        engines = self.engines_for(policy, attempt.sample)
        router = self.router_for(policy)
        deciding = _Stopwatch(self.clock)

        def make_flow(trace: Trace) -> Flow:
            return deciding.follow(policy.flow(trace, tau, seed, router))

        scheduler = Scheduler(engines, make_flow, self.limits, rater=self.rater_for(policy))
        with contextlib.closing(scheduler.run([attempt.item.problem])) as events:
            finished, wall_seconds = yield from self._follow(events)
            if isinstance(finished.error, InterruptedRunError):
                raise finished.error
            score = None if attempt_error(finished) else self.grade(finished.trace.text, attempt.item.gold)
            run = RunInfo(policy.name, policy.number or None, tau, 0.0, seed)
            item = attempt.item
            measured = Measured(attempt.sample, item.level, item.gold, score, wall_seconds, deciding.seconds)
            yield Ended(attempt, row(finished, run, measured))
            yield from events  # nothing but the error that ends the run, if there is one

    def _follow(self, events: Generator[Event, None, None]) -> Generator[Event, None, tuple[Finished, float]]:
        """Pass the events of one problem on; returns the last of them, and the seconds that went by in between.

        Seconds that whoever gets the events takes for them are not counted.
        """
        trace: Trace | None = None
        wall_seconds = 0.0
        while True:
            began = self.clock()
            event = next(events, None)
            wall_seconds += self.clock() - began
            if event is None:
                raise DefectError("a problem was given up without a word")
            if isinstance(event, Started):
                trace, wall_seconds = event.trace, 0.0
            yield event
            if isinstance(event, Finished):
                return event, wall_seconds
            if trace and self.timeout is not None and wall_seconds > self.timeout:
                late = ProblemError(f"not finished after {self.timeout:g} s", "give a longer --timeout")
                events.close()
                finished = Finished(trace, late)
                yield finished
                return finished, wall_seconds


@dataclass(slots=True)
class _Stopwatch:
    """Adds up the time that a flow takes for itself: to look at a step, and decide. The models' time is not in it."""

    clock: Callable[[], float]
    seconds: float = 0.0

    def follow(self, flow: Flow) -> Flow:
        """The same flow, with its time taken from each answer it is sent to its next wish."""
        with contextlib.closing(flow):
            answer: Step | tuple[float, ...] | None = None
            while True:
                wish = self._resume(flow, answer)
                if wish is None:
                    return
                answer = yield wish

    def _resume(self, flow: Flow, answer: Step | tuple[float, ...] | None) -> Ask | Rate | None:
        """The flow's next wish; None at its end."""
        began = self.clock()
        try:
            return flow.send(answer)
        except StopIteration:
            return None
        finally:
            self.seconds += self.clock() - began


# --- how the policies stand


@dataclass(slots=True)
class Standings:
    """How the columns stand while a run goes on: right answers, and time in relation to the target alone."""

    columns: Sequence[Column]
    planned: int  # attempts of each column
    _rows: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = field(default_factory=dict)  # by label; problem and sample

    def __post_init__(self) -> None:
        self._rows = {column.label: {} for column in self.columns}

    def add(self, attempt: Attempt, made: Mapping[str, Any]) -> None:
        """Count the row of an attempt; one that was tried again counts once."""
        self._rows[attempt.column.label][made["id"], made["sample"]] = made

    def now(self) -> list[Standing]:
        """One for each column, in their order."""
        return [self._standing(column) for column in self.columns]

    def seconds_left(self, attempts: Collection[Attempt]) -> float | None:
        """An estimate of the time that these attempts will take; None before anything is known."""
        means = {standing.label: standing.seconds / standing.done for standing in self.now() if standing.done}
        if not means:
            return None
        overall = sum(means.values()) / len(means)
        return sum(means.get(attempt.column.label, overall) for attempt in attempts)

    def _standing(self, column: Column) -> Standing:
        rows = self._rows[column.label]
        done = {key: made for key, made in rows.items() if made["status"] == "done"}
        return Standing(
            label=column.label,
            planned=self.planned,
            tried=len(rows),
            done=len(done),
            correct=sum(made["score"]["value"] == "correct" for made in done.values()),
            seconds=sum(made["wall_seconds"] for made in done.values()),
            speedup=self._speedup(done),
        )

    def _speedup(self, done: Mapping[tuple[str, int], Mapping[str, Any]]) -> float | None:
        """Seconds of the target alone / seconds of these rows, over the problems that both have finished."""
        alone = {key: made for key, made in self._rows.get("target", {}).items() if made["status"] == "done"}
        shared = done.keys() & alone.keys()
        seconds = sum(done[key]["wall_seconds"] for key in shared)
        return sum(alone[key]["wall_seconds"] for key in shared) / seconds if seconds > 0 else None

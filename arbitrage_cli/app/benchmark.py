"""Runs policies side by side and measures the time of each attempt.

All policies solve a block of problems before the next block begins. The order of the policies is random in each block, so a
slowdown of the machine affects all policies, and no policy always follows the same other policy. A block is a single problem
or, if several problems are solved at once, a few problems for each slot.
"""

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from arbitrage_cli.arbitrage import Flow, Request, Scorer, WriteStep
from arbitrage_cli.errors import DefectError, InterruptedRunError, ProblemError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.scheduler import Job, Rater, Refusals, Scheduler, Writer
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import Key, attempt_error, tau_in_json
from arbitrage_cli.runs.results import Result, SampleKey
from arbitrage_cli.runs.rows import AttemptRow, CollectedRow
from arbitrage_cli.runs.summary import tally_of
from arbitrage_cli.types import Event, Finished, Grade, Limits, ModelRole, Started, Step, Trace

NO_TIMES: Mapping[str, float | None] = MappingProxyType({"router": 0.0})
ROUNDS = 4  # the number of problems in a block per slot

GradeSolution = Callable[[str, Mapping[str, Any]], Grade]
"""Grades a solution's text against `Item.gold`. Raises ProblemError if the grader fails."""
WritersFor = Callable[[Route, int], Mapping[ModelRole, Writer]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to solve a problem. Consecutive attempts with the same block, sample and route run together."""

    item: Item
    sample: int
    route: Route
    block: int = 0

    @property
    def key(self) -> Key:
        return self.item.problem.id, self.sample, self.route.policy.name, tau_in_json(self.route.tau)


@dataclass(frozen=True, slots=True)
class Began:
    """The beginning of an attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an attempt, and its row."""

    attempt: Attempt
    row: AttemptRow | CollectedRow


RunEvent = Began | Event | Ended


def plan(items: Sequence[Item], routes: Sequence[Route], samples: int, concurrency: int = 1) -> list[Attempt]:
    """Return all attempts in order. The order of the policies in a block is random, but the same in all runs."""
    return [
        Attempt(item, sample, route, index)
        for index, block in enumerate(_blocks(items, concurrency))
        for sample in range(samples)
        for route in random.Random(f"{index}/{sample}").sample(routes, len(routes))
        for item in block
    ]


def _blocks(items: Sequence[Item], concurrency: int) -> list[Sequence[Item]]:
    """Split items into blocks of one problem, or of ROUNDS problems per slot. The last block contains the remainder."""
    size = 1 if concurrency == 1 else ROUNDS * concurrency
    starts = range(0, max(len(items) - size, 0) + 1, size)
    return [items[start : len(items) if start == starts[-1] else start + size] for start in starts if items]


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs attempts, up to `concurrency` at a time.

    Sample k uses the seed `seed + k`. `seconds_for` returns the time limit of the next attempt, or None. `timer` measures
    the time spent on scores and in the program itself. Attempts for which `is_needed` is false are skipped.
    """

    writers_for: WritersFor
    grade: GradeSolution
    limits: Limits
    seed: int
    seconds_for: Callable[[], float | None] = lambda: None
    scorer_for: Callable[[Policy], Scorer | Checker | None] = lambda policy: None
    rater_for: Callable[[Policy], Rater | None] = lambda policy: None
    concurrency: int = 1
    find_answer: Callable[[str], str | None] = boxed_answer
    clock: Callable[[], float] = time.perf_counter
    timer: Callable[[], float] = time.perf_counter
    is_needed: Callable[[Attempt], bool] = lambda attempt: True
    refusals: Refusals = field(default_factory=Refusals)

    def run(self, attempts: Iterable[Attempt]) -> Generator[RunEvent, None, None]:
        """Run the attempts. A ProblemError is recorded in the attempt's row; other errors end the run."""
        for _, together in itertools.groupby(attempts, key=lambda one: (one.block, one.sample, one.route)):
            if needed := [attempt for attempt in together if self.is_needed(attempt)]:
                yield from self._solve_block(needed)

    def _solve_block(self, block: Sequence[Attempt]) -> Iterator[RunEvent]:
        route, sample = block[0].route, block[0].sample
        scorer, writers = self.scorer_for(route.policy), self.writers_for(route, sample)
        in_flight = {attempt.item.problem.id: _InFlight(attempt, self.timer) for attempt in block}

        def make_flow(trace: Trace) -> Flow:
            return in_flight[trace.problem.id].follow(route.flow(trace, self.seed + sample, scorer))

        scheduler = Scheduler(
            writers,
            concurrency=self.concurrency,
            rater=self.rater_for(route.policy),
            speculator=as_speculator(writers.get("draft")),
        )
        jobs = (Job(attempt.item.problem, make_flow, self.limits, self._deadline()) for attempt in block)
        with contextlib.closing(scheduler.run(jobs, refusals=self.refusals)) as events:
            yield from self._follow(events, in_flight)
        if in_flight:
            raise DefectError("the scheduler lost a problem")

    def _deadline(self) -> Deadline | None:
        seconds = self.seconds_for()
        return Deadline(self.clock() + seconds, seconds, self.clock) if seconds is not None else None

    def _follow(self, events: Iterator[Event], in_flight: dict[str, "_InFlight"]) -> Iterator[RunEvent]:
        for event, now, timed in self._timed(events):
            current = in_flight[event.trace.problem.id]
            if isinstance(event, Started):
                current.began, current.timer_began = now, timed
                yield Began(current.attempt)
            yield event
            if isinstance(event, Finished):
                if isinstance(event.error, InterruptedRunError):
                    raise event.error
                del in_flight[event.trace.problem.id]
                program_seconds = current.program_seconds(event, timed) if self.concurrency == 1 else None
                times = {"router": current.router_seconds, "program": program_seconds}
                yield Ended(current.attempt, self.row(current.attempt, event, times, now - current.began))

    def row(
        self, attempt: Attempt, finished: Finished, times: Mapping[str, float | None] = NO_TIMES, seconds: float = 0.0
    ) -> AttemptRow:
        """Return the row of an attempt, with the seconds of the router and the program, and of the whole attempt."""
        item, grade = attempt.item, None
        if not attempt_error(finished):
            try:
                grade = self.grade(finished.trace.text, item.gold)
            except ProblemError as error:
                finished = replace(finished, error=error)
        return AttemptRow.of(
            finished,
            attempt.route,
            times,
            sample=attempt.sample,
            level=item.level,
            gold=dict(item.gold),
            grade=grade,
            answer=self.find_answer(finished.trace.text),
            wall_seconds=seconds,
        )

    def _timed(self, events: Iterator[Event]) -> Iterator[tuple[Event, float, float]]:
        """Yield each event with the elapsed seconds by `clock` and by `timer`, without the caller's time."""
        now = timed = 0.0
        while True:
            began, timer_began = self.clock(), self.timer()
            event = next(events, None)
            timed += self.timer() - timer_began
            now += self.clock() - began
            if event is None:
                return
            yield event, now, timed


@dataclass(slots=True)
class _InFlight:
    attempt: Attempt
    timer: Callable[[], float]
    began: float = 0.0  # seconds since the start of the block
    timer_began: float = 0.0
    router_seconds: float = 0.0  # time in which the policy scored steps and decided, without model time

    def follow(self, flow: Flow) -> Flow:
        """Yield a flow's requests, and measure the time from each response to the next request."""
        with contextlib.closing(flow):
            answer: Step | tuple[float, ...] | None = None
            while True:
                began = self.timer()
                try:
                    request = flow.send(answer)
                except StopIteration:
                    return
                finally:
                    self.router_seconds += self.timer() - began
                answer = yield self._with_timed_scores(request)

    def program_seconds(self, finished: Finished, timed: float) -> float:
        """Return the seconds outside the models and the policy."""
        model_seconds = tally_of(finished).seconds
        return max(0.0, timed - self.timer_began - model_seconds - self.router_seconds)

    def _with_timed_scores(self, request: Request) -> Request:
        if not isinstance(request, WriteStep) or request.early_stop is None:
            return request
        score_of = request.early_stop.score_of

        def timed(trace: Trace, prefix: Step) -> float:
            began = self.timer()
            score = score_of(trace, prefix)
            self.router_seconds += self.timer() - began
            return score

        return replace(request, early_stop=replace(request.early_stop, score_of=timed))


@dataclass(frozen=True, slots=True)
class Standing:
    """A policy's progress: attempt counts, and the total seconds of the finished attempts."""

    label: str
    planned: int
    tried: int
    done: int
    correct: int | None = None
    seconds: float | None = None
    speedup: float | None = None  # over the target alone on the same problems, if problems are solved one at a time


@dataclass(slots=True)
class _Sums:
    tried: set[SampleKey] = field(default_factory=set)
    done: dict[SampleKey, float] = field(default_factory=dict)  # the wall-clock seconds
    correct: int = 0
    seconds: float = 0.0
    shared: float = 0.0  # of the attempts that the target finished too
    shared_target: float = 0.0  # the target's time for these attempts


class Standings:
    """Tracks the progress of all policies. Each policy has `planned` attempts."""

    def __init__(self, routes: Sequence[Route], planned: int, concurrency: int = 1) -> None:
        self._planned = planned
        self._concurrency = concurrency
        self._sums = {route: _Sums() for route in routes}
        self._target = next((sums for route, sums in self._sums.items() if route.policy.name == "target"), None)

    def add(self, route: Route, result: Result) -> None:
        sums, key = self._sums[route], result.key
        sums.tried.add(key)
        if result.seconds is None:
            return
        sums.done[key] = result.seconds
        sums.correct += result.is_correct
        sums.seconds += result.seconds
        for compared in self._sums.values() if sums is self._target else (sums,):
            if self._target is not None and key in compared.done and key in self._target.done:
                compared.shared += compared.done[key]
                compared.shared_target += self._target.done[key]

    def now(self) -> list[Standing]:
        return [self._standing(route, sums) for route, sums in self._sums.items()]

    def _standing(self, route: Route, sums: _Sums) -> Standing:
        speedup = sums.shared_target / sums.shared if self._concurrency == 1 and sums.shared > 0 else None
        counts = self._planned, len(sums.tried), len(sums.done), sums.correct
        return Standing(route.label, *counts, sums.seconds, speedup)

    def seconds_left(self, waiting: Mapping[Route, int]) -> float | None:
        """Estimate the seconds needed for the remaining attempts, or return None if no attempt has finished yet."""
        means = {route: sums.seconds / len(sums.done) for route, sums in self._sums.items() if sums.done}
        if not means:
            return None
        overall = sum(means.values()) / len(means)
        return sum(count * means.get(route, overall) for route, count in waiting.items()) / self._concurrency

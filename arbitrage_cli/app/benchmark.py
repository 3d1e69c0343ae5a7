"""Plans the attempts of a benchmark, and measures the time of each attempt.

All policies solve a block of problems before the next block begins. The order of the policies is random in each block, so a
slowdown of the machine affects all policies, and no policy always follows the same other policy. A block is a single problem
or, if several problems are solved at once, a few problems for each slot.
"""

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.app.loop import Attempt
from arbitrage_cli.arbitrage import Flow, Request, Scorer, WriteStep
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.scheduler import Job, Rater, Refusals, Scheduler, Writer
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import attempt_error
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.runs.summary import tally_of
from arbitrage_cli.types import Event, Finished, Grade, Limits, ModelRole, Started, Step, Trace

ROUNDS = 4  # the number of problems in a block per slot

GradeSolution = Callable[[str, Mapping[str, Any]], Grade]
"""Grades a solution's text against `Item.gold`. Raises ProblemError if the grader fails."""
WritersFor = Callable[[Route, int], Mapping[ModelRole, Writer]]


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


@dataclass(slots=True)
class Bench:
    """Makes attempts, up to `concurrency` at a time.

    Sample k uses the seed `seed + k`. `seconds_for` returns the time limit of the next attempt, or None. `scorers` and `raters` are those of the policies, by name. `timer` measures the time spent on scores and in the program itself.
    """

    writers_for: WritersFor
    grade: GradeSolution
    limits: Limits
    seed: int
    is_needed: Callable[[Attempt], bool] = lambda attempt: True
    seconds_for: Callable[[], float | None] = lambda: None
    scorers: Mapping[str, Scorer | Checker | None] = field(default_factory=dict)
    raters: Mapping[str, Rater | None] = field(default_factory=dict)
    concurrency: int = 1
    find_answer: Callable[[str], str | None] = boxed_answer
    clock: Callable[[], float] = time.perf_counter
    timer: Callable[[], float] = time.perf_counter
    refusals: Refusals = field(default_factory=Refusals)
    _timings: "dict[str, _Timing]" = field(default_factory=dict)  # by problem

    def solve(self, attempts: Iterator[Attempt]) -> Generator[Event, None, None]:
        """Make the needed attempts, which have the same sample and route."""
        needed = filter(self.is_needed, attempts)
        if (first := next(needed, None)) is None:
            return
        writers, policy = self.writers_for(first.route, first.sample), first.route.policy.name
        scheduler = Scheduler(
            writers,
            concurrency=self.concurrency,
            rater=self.raters.get(policy),
            speculator=as_speculator(writers.get("draft")),
        )
        jobs = (self._job(attempt, self.scorers.get(policy)) for attempt in itertools.chain([first], needed))
        with contextlib.closing(scheduler.run(jobs, refusals=self.refusals)) as events:
            yield from self._timed(events)

    def row(self, attempt: Attempt, finished: Finished) -> AttemptRow:
        item, grade = attempt.item, None
        timing = self._timings.pop(attempt.id, None) or _Timing(self.timer)
        if not attempt_error(finished):
            try:
                grade = self.grade(finished.trace.text, item.gold)
            except ProblemError as error:
                finished = replace(finished, error=error)
        return AttemptRow.of(
            finished,
            attempt.route,
            {"router": timing.router_seconds, "program": timing.program_seconds if self.concurrency == 1 else None},
            sample=attempt.sample,
            level=item.level,
            gold=dict(item.gold),
            grade=grade,
            answer=self.find_answer(finished.trace.text),
            wall_seconds=timing.seconds,
        )

    def _job(self, attempt: Attempt, scorer: Scorer | Checker | None) -> Job:
        timing = self._timings[attempt.id] = _Timing(self.timer)

        def make_flow(trace: Trace) -> Flow:
            return timing.follow(attempt.route.flow(trace, self.seed + attempt.sample, scorer))

        seconds = self.seconds_for()
        deadline = None if seconds is None else Deadline(self.clock() + seconds, seconds, self.clock)
        return Job(attempt.item.problem, make_flow, self.limits, deadline)

    def _timed(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events, and measure by `clock` and by `timer` without the caller's time."""
        now = timed = 0.0
        while True:
            began, timer_began = self.clock(), self.timer()
            event = next(events, None)
            timed += self.timer() - timer_began
            now += self.clock() - began
            if event is None:
                return
            if isinstance(event, Started):
                self._timings[event.trace.problem.id].begin(now, timed)
            elif isinstance(event, Finished):
                self._timings[event.trace.problem.id].end(event, now, timed)
            yield event


@dataclass(slots=True)
class _Timing:
    """The time of an attempt, in seconds. `router_seconds` is the time in which the policy scored steps and decided."""

    timer: Callable[[], float]
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

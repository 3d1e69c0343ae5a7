"""Measures policies side by side: what is solved in which order, the solving itself, and how the policies stand.

All policies solve a block of problems before the next block's turn, in an order that rotates, so that a machine that gets
slower during a run gets slower for all of them. In a latency run a block is one problem; in a throughput run, where several
problems are solved at once, it is so many that little of its time is that of its end, when not all places are taken. Knows
no file, no terminal and no data set by name; how an answer is graded is given to it.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.arbitrage import Flow, Router, ScoreSteps, WriteStep
from arbitrage_cli.data.rows import Item
from arbitrage_cli.errors import DefectError, InterruptedRunError, ProblemError
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.scheduler import Rater, Scheduler
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.runs.folder import Key, key_of, latest
from arbitrage_cli.runs.labels import label, tau_in_json
from arbitrage_cli.runs.records import Measured, RunInfo, attempt_error, row, seconds_of
from arbitrage_cli.runs.summary import Share, Standing
from arbitrage_cli.system.signals import running_seconds
from arbitrage_cli.types import Event, Finished, Limits, ModelRole, Score, Started, Step, Trace

ROUNDS = 4
"""Problems of a block for each that is solved at once."""

Grade = Callable[[str, Mapping[str, Any]], Score]
"""Compares a solution's text with a right answer (an `Item.gold`). ProblemError if the grader fails; the attempt is then an error."""

_Place = tuple[str, int]
"""An attempt of a column: problem id and sample."""

EnginesFor = Callable[["Column", int], Mapping[ModelRole, Engine]]
"""The engines that a policy needs, for the sample of that number. They are idle, and hold no problem."""


@dataclass(frozen=True, slots=True)
class Column:
    """A policy at one tau: what a benchmark compares with others."""

    policy: Policy
    tau: float | None

    @property
    def label(self) -> str:
        """What it is called in a table."""
        return label(self.policy.name, self.tau)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One problem, to be solved once with one policy. Samples are numbered from 0; sample k has the seed of the run + k.

    Attempts of one block, sample and column that follow each other are solved together.
    """

    item: Item
    sample: int
    column: Column
    block: int = 0

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


def plan(items: Sequence[Item], columns: Sequence[Column], samples: int, concurrency: int = 1) -> list[Attempt]:
    """All attempts in the order in which they are made: the first block begins with the first column, the next with the next."""
    return [
        Attempt(item, sample, columns[(index + sample + turn) % len(columns)], index)
        for index, block in enumerate(_blocks(items, concurrency))
        for sample in range(samples)
        for turn in range(len(columns))
        for item in block
    ]


def _blocks(items: Sequence[Item], concurrency: int) -> list[Sequence[Item]]:
    """Blocks of one problem, or of ROUNDS problems for each that is solved at once; the last takes what is left over."""
    size = 1 if concurrency == 1 else ROUNDS * concurrency
    starts = range(0, max(len(items) - size, 0) + 1, size)
    return [items[start : len(items) if start == starts[-1] else start + size] for start in starts if items]


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
    """Makes attempts, `concurrency` at once. `seed` is that of sample 0; an attempt that takes longer than `timeout` seconds
    is broken off.

    `router_for` gives the router of a policy that has it from outside, `rater_for` whoever rates steps for one. Policies that
    can stop a step before it is finished do so if it `stops_early`.
    """

    engines_for: EnginesFor
    grade: Grade
    limits: Limits
    seed: int
    timeout: float | None = None
    router_for: Callable[[Policy], Router | None] = _no_router
    rater_for: Callable[[Policy], Rater | None] = _no_rater
    concurrency: int = 1
    stops_early: bool = False
    clock: Callable[[], float] = running_seconds

    def run(self, attempts: Iterable[Attempt]) -> Generator[Began | Event | Ended, None, None]:
        """Make the attempts, block by block. A ProblemError is a row; any other error ends the run, after its row."""
        for _, block in itertools.groupby(attempts, key=lambda attempt: (attempt.block, attempt.sample, attempt.column)):
            yield from self._make(list(block))

    def _make(self, block: Sequence[Attempt]) -> Iterator[Began | Event | Ended]:
        """Make attempts that differ in their problem only."""
        policy, tau, seed = block[0].column.policy, block[0].column.tau, self.seed + block[0].sample
        engines = self.engines_for(block[0].column, block[0].sample)
        router = self.router_for(policy)
        left = {attempt.item.problem.id: attempt for attempt in block}
        times = {name: _Times(_Stopwatch(self.clock)) for name in left}

        def make_flow(trace: Trace) -> Flow:
            flow = policy.flow(trace, tau, seed, router, stops_early=self.stops_early)
            return times[trace.problem.id].deciding.follow(flow)

        rater = self.rater_for(policy)
        draft = engines.get("draft")
        scheduler = Scheduler(engines, make_flow, self.limits, concurrency=self.concurrency, rater=rater, speculator=draft)
        with contextlib.closing(scheduler.run(attempt.item.problem for attempt in block)) as events:
            last: float | None = None  # when the block began, or a problem of it was done
            for event, now in self._timed(events):
                name = event.trace.problem.id
                if isinstance(event, Started):
                    last, times[name].began = now if last is None else last, now
                    yield Began(left[name])
                yield event
                seconds = now - times[name].began
                if isinstance(event, Finished):
                    if isinstance(event.error, InterruptedRunError):
                        raise event.error
                    share = Share(block[0].block, len(block), now - (last or 0.0)) if self.concurrency > 1 else None
                    last = now
                    yield Ended(left[name], self._row(left.pop(name), event, seconds, times[name].deciding.seconds, share))
                elif self.timeout is not None and seconds > self.timeout:
                    late = ProblemError(f"not finished after {self.timeout:g} s", "give a longer --timeout")
                    scheduler.give_up(event.trace, late)
        if left:
            raise DefectError("a problem was given up without a word")

    def _timed(self, events: Iterator[Event]) -> Iterator[tuple[Event, float]]:
        """Each event with the seconds that went by until it came. Those that whoever gets the events takes do not count."""
        now = 0.0
        while True:
            began = self.clock()
            event = next(events, None)
            now += self.clock() - began
            if event is None:
                return
            yield event, now

    def _row(
        self, attempt: Attempt, finished: Finished, seconds: float, router_seconds: float, share: Share | None
    ) -> dict[str, Any]:
        item, policy = attempt.item, attempt.column.policy
        score = None
        if not attempt_error(finished):
            try:
                score = self.grade(finished.trace.text, item.gold)
            except ProblemError as error:
                finished = replace(finished, error=error)
        run = RunInfo(policy.name, policy.number or None, attempt.column.tau, 0.0, self.seed + attempt.sample)
        measured = Measured(attempt.sample, item.level, item.gold, score, seconds, router_seconds, share)
        return row(finished, run, measured)


@dataclass(slots=True)
class _Stopwatch:
    """Adds up the time that a flow takes for itself: to look at steps, unfinished ones too, and decide. The models' is not in it."""

    clock: Callable[[], float]
    seconds: float = 0.0

    def follow(self, flow: Flow) -> Flow:
        """The same flow, with its time taken from each answer it is sent to its next wish."""
        with contextlib.closing(flow):
            answer: Step | tuple[float, ...] | None = None
            while True:
                request = self._resume(flow, answer)
                if request is None:
                    return
                answer = yield request

    def _resume(self, flow: Flow, answer: Step | tuple[float, ...] | None) -> WriteStep | ScoreSteps | None:
        """The flow's next wish; None at its end."""
        began = self.clock()
        try:
            return self._with_looks(flow.send(answer))
        except StopIteration:
            return None
        finally:
            self.seconds += self.clock() - began

    def _with_looks(self, request: WriteStep | ScoreSteps) -> WriteStep | ScoreSteps:
        """The same wish; the time of looks at what is being written for it is added too."""
        if isinstance(request, ScoreSteps) or request.early_stop is None:
            return request
        number_of = request.early_stop.number_of

        def timed(trace: Trace, beginning: Step) -> float:
            began = self.clock()
            number = number_of(trace, beginning)
            self.seconds += self.clock() - began
            return number

        return replace(request, early_stop=replace(request.early_stop, number_of=timed))


@dataclass(slots=True)
class _Times:
    """When a problem was taken up, and what its flow takes for itself."""

    deciding: _Stopwatch
    began: float = 0.0


# --- how the policies stand


@dataclass(slots=True)
class _Sums:
    """What the attempts of one column come to. `shared` and `shared_alone` are its seconds and those of the target alone,
    over what both have finished.
    """

    tried: set[_Place] = field(default_factory=set)
    done: dict[_Place, float] = field(default_factory=dict)  # the wall-clock seconds
    correct: int = 0
    seconds: float = 0.0
    shared: float = 0.0
    shared_alone: float = 0.0


@dataclass(slots=True)
class Standings:
    """How the columns stand while a run goes on: right answers, and time in relation to the target alone.

    Each row is read once: progress is told after every attempt, and must not take longer the more there are.
    """

    columns: Sequence[Column]
    planned: int  # attempts of each column
    concurrency: int = 1
    _sums: dict[Column, _Sums] = field(default_factory=dict)
    _alone: _Sums | None = None  # of the target

    def __post_init__(self) -> None:
        self._sums = {column: _Sums() for column in self.columns}
        self._alone = next((sums for column, sums in self._sums.items() if column.policy.name == "target"), None)

    def add(self, attempt: Attempt, made: Mapping[str, Any]) -> None:
        """Count the row of an attempt; an error that is tried again counts once."""
        sums = self._sums[attempt.column]
        place = attempt.item.problem.id, attempt.sample
        sums.tried.add(place)
        if made["status"] != "done":
            return
        sums.done[place] = made["wall_seconds"]
        sums.correct += made["score"]["value"] == "correct"
        sums.seconds += seconds_of(made)
        for one in self._sums.values() if sums is self._alone else (sums,):
            self._share(one, place)

    def now(self) -> list[Standing]:
        """One for each column, in their order."""
        return [self._standing(column) for column in self.columns]

    def seconds_left(self, waiting: Mapping[Column, int]) -> float | None:
        """An estimate of the time that so many attempts of each column will take; None before anything is known."""
        means = {column: sums.seconds / len(sums.done) for column, sums in self._sums.items() if sums.done}
        if not means:
            return None
        overall = sum(means.values()) / len(means)
        return sum(count * means.get(column, overall) for column, count in waiting.items())

    def _share(self, sums: _Sums, place: _Place) -> None:
        """Compare an attempt with that of the target alone, if both are done."""
        if self._alone is not None and place in sums.done and place in self._alone.done:
            sums.shared += sums.done[place]
            sums.shared_alone += self._alone.done[place]

    def _standing(self, column: Column) -> Standing:
        sums = self._sums[column]
        return Standing(
            label=column.label,
            planned=self.planned,
            tried=len(sums.tried),
            done=len(sums.done),
            correct=sums.correct,
            seconds=sums.seconds,
            speedup=sums.shared_alone / sums.shared if self.concurrency == 1 and sums.shared > 0 else None,
            concurrency=self.concurrency,
        )

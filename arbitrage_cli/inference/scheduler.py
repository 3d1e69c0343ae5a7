"""Runs the flows of many problems over two engines, and tells what happens as events.

One tick: hand the flows' asks to the engines and their wishes for rewards to the rater, let each that has work go one batch
further, resume the flows whose steps or rewards are there. Knows no policy, no token and no terminal. Finished problems come in
the order in which they end.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from arbitrage_cli.arbitrage import Flow, ScoreSteps, WriteStep
from arbitrage_cli.errors import ArbitrageError, ProblemError
from arbitrage_cli.inference.engine import Progress, Speculator
from arbitrage_cli.types import (
    Cost,
    Decided,
    Event,
    Finished,
    Limits,
    ModelRole,
    Problem,
    Rating,
    Started,
    Step,
    Trace,
    Writing,
    Wrote,
)


@dataclass(frozen=True, slots=True)
class Ratings:
    """The rewards of some steps, from 0 to 1, and what it cost to know them."""

    rewards: tuple[float, ...]
    cost: Cost


@dataclass(frozen=True, slots=True)
class Rated:
    """What became of the wish of one slot: its ratings, or why there are none."""

    slot: int
    ratings: Ratings | None = None
    error: ProblemError | None = None


class Writer(Protocol):
    """Whatever writes the steps of one model: its `Engine`, whose methods these are."""

    @property
    def busy(self) -> bool: ...

    def open(self, slot: int, problem: Problem) -> None: ...

    def close(self, slot: int) -> None: ...

    def start(self, slot: int, ask: WriteStep, speculator: Speculator | None = None) -> int: ...

    def tick(self) -> Sequence[Progress]: ...

    def seconds_alone(self, slot: int, trace: Trace) -> float | None: ...


class Rater(Protocol):
    """Whatever gives rewards. `slot` numbers the problems in flight, as for an engine."""

    @property
    def busy(self) -> bool:
        """Whether any wish is to be met."""
        ...

    @property
    def waits_for_many(self) -> bool:
        """Whether it is to wait until no engine has work, as it is faster with many wishes at once."""
        ...

    def open(self, slot: int, problem: Problem) -> None: ...

    def close(self, slot: int) -> None:
        """Forget a problem, and its wish if it has one."""
        ...

    def start(self, slot: int, request: ScoreSteps) -> None:
        """Take up the wish of a slot, one at a time; `tick` meets it. ProblemError if that cannot be."""
        ...

    def tick(self) -> Sequence[Rated]:
        """Go one batch further: the wishes that are met with it, or have failed."""
        ...


@dataclass(slots=True)
class _InFlight:
    """One problem being solved: its flow, how many of its decisions were told already, what rating it took so far, and whether
    its steps are being rated now.
    """

    slot: int
    trace: Trace
    flow: Flow
    num_told: int = 0
    reward_cost: Cost = field(default_factory=Cost)
    waits_for_rewards: bool = False


class Scheduler:
    """Solves problems with one policy. `concurrency` problems are in flight at once; each takes a slot of every engine.

    `rater` is needed if the flows ask for rewards. `speculator` is asked how steps might go on, where they have no proposal
    or have left it.
    """

    def __init__(
        self,
        engines: Mapping[ModelRole, Writer],
        make_flow: Callable[[Trace], Flow],
        limits: Limits,
        *,
        concurrency: int = 1,
        rater: Rater | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self._engines = engines
        self._make_flow = make_flow
        self._limits = limits
        self._rater = rater
        self._speculator = speculator
        self._concurrency = concurrency
        self._given_up: dict[Trace, ProblemError] = {}
        self._free = list(reversed(range(concurrency)))
        self._in_flight: dict[int, _InFlight] = {}

    def run(self, problems: Iterable[Problem], is_ready: Callable[[], bool] = lambda: True) -> Generator[Event, None, None]:
        """Solve all problems, taking each from the iterable when there is a free slot for it.

        `is_ready` tells whether the next one can be had at once: as long as it cannot, those in flight are not kept waiting.
        A ProblemError ends its problem, as the `error` of `Finished`. Any other error ends the run, after the problems in
        flight were told as finished with it, so that their steps are not lost.
        """
        waiting = iter(problems)
        exhausted = False
        try:
            while True:
                yield from self._end_given_up()
                while self._free and not exhausted and (not self._in_flight or is_ready()):
                    problem = next(waiting, None)
                    if problem is None:
                        exhausted = True
                    else:
                        yield from self._admit(problem)
                if not self._in_flight:
                    return
                yield from self._tick()
        except ArbitrageError as error:
            for flight in list(self._in_flight.values()):
                yield self._finish(flight, error)
            raise
        finally:
            for flight in list(self._in_flight.values()):
                self._release(flight)

    def give_up(self, trace: Trace, error: ProblemError) -> None:
        """Have a problem that is in flight end with this error before anything more is done for it. The others go on."""
        self._given_up[trace] = error

    def _end_given_up(self) -> Iterator[Event]:
        for flight in list(self._in_flight.values()) if self._given_up else ():
            error = self._given_up.pop(flight.trace, None)
            if error is not None:
                yield self._finish(flight, error)
        self._given_up.clear()  # what is left had ended by itself

    def _admit(self, problem: Problem) -> Iterator[Event]:
        trace = Trace(problem, self._limits)
        flight = _InFlight(self._free.pop(), trace, self._make_flow(trace))
        self._in_flight[flight.slot] = flight
        yield Started(trace)
        try:
            for solver in self._solvers():
                solver.open(flight.slot, problem)
        except ProblemError as error:
            yield self._finish(flight, error)
            return
        yield from self._resume(flight, None)

    def _tick(self) -> Iterator[Event]:
        for role, engine in self._engines.items():
            if not engine.busy:
                continue
            for progress in engine.tick():
                flight = self._in_flight[progress.slot]
                if progress.error is not None:
                    yield self._finish(flight, progress.error)
                    continue
                if progress.num_unread:
                    yield Writing(flight.trace, role, progress.num_unread)
                    continue
                yield Wrote(flight.trace, role, progress.text)
                if progress.step is not None:
                    yield from self._resume(flight, progress.step)
        rater = self._rater
        if rater and rater.busy and not (rater.waits_for_many and any(engine.busy for engine in self._engines.values())):
            for rated in rater.tick():
                flight = self._in_flight[rated.slot]
                if rated.ratings is None:
                    yield self._finish(flight, rated.error)
                else:
                    flight.reward_cost += rated.ratings.cost
                    yield from self._resume(flight, rated.ratings.rewards)
            yield from [Rating(flight.trace) for flight in self._in_flight.values() if flight.waits_for_rewards]

    def _resume(self, flight: _InFlight, answer: Step | tuple[float, ...] | None) -> Iterator[Event]:
        """Give a flow what it asked for (None to begin), tell what it decided, and pass on what it asks next."""
        flight.waits_for_rewards = False
        try:
            ask = flight.flow.send(answer)
        except StopIteration:
            yield from self._tell_decisions(flight)
            yield self._finish(flight, None)
            return
        yield from self._tell_decisions(flight)
        try:
            if isinstance(ask, ScoreSteps):
                self._wanted_rater().start(flight.slot, ask)
                flight.waits_for_rewards = True
                return
            engine = self._engines[ask.model]
            speculator = self._speculator if ask.proposal or ask.speculates else None
            num_unread = engine.start(flight.slot, ask, speculator)
        except ProblemError as error:
            yield self._finish(flight, error)
        else:
            yield Writing(flight.trace, ask.model, num_unread)

    def _wanted_rater(self) -> Rater:
        if self._rater is None:
            raise ValueError("this policy asks for rewards, and nothing gives any")
        return self._rater

    def _tell_decisions(self, flight: _InFlight) -> Iterator[Event]:
        for decision in flight.trace.decisions[flight.num_told :]:
            yield Decided(flight.trace, decision)
        flight.num_told = len(flight.trace.decisions)

    def _finish(self, flight: _InFlight, error: ArbitrageError | None) -> Finished:
        target = self._engines.get("target") if self._concurrency == 1 else None  # else there is no speed of one alone
        alone = target.seconds_alone(flight.slot, flight.trace) if target and error is None else None
        self._release(flight)
        return Finished(flight.trace, error, alone, flight.reward_cost)

    def _release(self, flight: _InFlight) -> None:
        flight.flow.close()
        for solver in self._solvers():
            with suppress(ArbitrageError):  # of a model that has failed; what ended the run is told already
                solver.close(flight.slot)
        del self._in_flight[flight.slot]
        self._free.append(flight.slot)

    def _solvers(self) -> list[Writer | Rater]:
        return [*self._engines.values(), *([self._rater] if self._rater else [])]

"""Solves many problems at once by running their flows on writers, and yields events.

In each tick, every busy writer and the rater advance by one batch. Flows resume when their steps or rewards are ready. Answers
are compared in a thread of their own.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol

from arbitrage_cli.arbitrage import CompareAnswers, Flow, FlowRequest, RateSteps, StopWriting, WriteStep
from arbitrage_cli.errors import ArbitrageError, ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.comparing import Comparer
from arbitrage_cli.inference.engine import SlotUpdate
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.types import (
    Checked,
    Cost,
    Decided,
    Event,
    Finished,
    Limits,
    ModelRole,
    Phase,
    Problem,
    Rating,
    Started,
    Step,
    Trace,
    Writing,
    Wrote,
    frozen,
)

MAX_REFUSED = 20  # problems in a row


@frozen
class RewardUpdate:
    """The response to one slot's request: the rewards (0 to 1) of the steps, or an error, and the cost of all ratings."""

    slot: int
    rewards: tuple[float, ...] = ()
    cost: Cost = field(default_factory=Cost)
    error: ProblemError | None = None


class Solver(Protocol):
    """A writer, a rater or a comparer. `slot` is the index of a problem in flight."""

    @property
    def busy(self) -> bool: ...

    @property
    def wait(self) -> Callable[[], None] | None:
        """A function that waits briefly for a server response, or None for local models."""

    def close(self, slot: int) -> None:
        """Forget a problem and cancel its request."""


class Writer(Solver, Protocol):
    """Writes steps with one model, locally or on a server."""

    sampler: Sampler

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        """Assign a problem to a slot. Without a `sampler`, the writer's own is used.

        Raises ProblemError if the model cannot write its solution.
        """

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        """Start the requested step. Return the number of unread tokens, or 0 if the server does not report it.

        Raises ContextFullError if the context is full. If a request has `until_end`, the writer may write further steps, and
        later calls only ask for the next one.
        """

    def tick(self) -> Sequence[SlotUpdate]:
        """Return what has been written since the last tick. The end of a step, or an error, is the last update of its slot."""

    def stop(self, slot: int) -> Sequence[Step]:
        """Stop writing.

        Return the steps that `tick` has not returned, even if it returned their error. The last may be unfinished.
        """

    def num_prompt_tokens(self, slot: int) -> int | None:
        """Return the number of the prompt's tokens, without the solution, or None if the server has not reported it."""

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        """Return the computed time in which the model alone would write the trace, or None if it is unknown."""


class Rater(Solver, Protocol):
    """Computes the rewards of steps, with a local model or on a server."""

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None: ...

    def start(self, slot: int, request: RateSteps) -> None:
        """Start a request. Its rewards are returned by `tick`. Raises ProblemError if the steps cannot be rated."""

    def tick(self) -> Sequence[RewardUpdate]: ...


@frozen
class Job:
    """A problem and the flow, limits and sampler to solve it. If `sampler` is None, each writer uses its own sampler."""

    problem: Problem
    make_flow: Callable[[Trace], Flow]
    limits: Limits
    deadline: Deadline | None = None
    sampler: Sampler | None = None


@dataclass(slots=True, eq=False)
class _InFlight:
    slot: int
    trace: Trace
    flow: Flow
    job: Job
    num_reported: int = 0
    opened: dict[ModelRole, Writer] = field(default_factory=dict)
    problems: dict[ModelRole, Problem] = field(default_factory=dict)  # with which the writers were opened
    phases: dict[ModelRole, Phase] = field(default_factory=dict)  # of the steps that the models write
    sample: int = 0  # of the steps that the models write
    awaited: Collection[ModelRole] = ()  # the models that write a step
    abandoned: list[Step] = field(default_factory=list)
    reward_cost: Cost = field(default_factory=Cost)
    waits_for_rewards: bool = False


class Refusals:
    """The latest problems in a row that each model's server refused with the same status, or all without a status.

    After `max_refused`, the run ends.
    """

    def __init__(self, max_refused: float = MAX_REFUSED) -> None:
        self._max_refused = max_refused
        self._latest: dict[str, list[ServerRequestError]] = {}
        self._failure: ServerError | None = None

    def note(self, model: str, error: ProblemError | ServerError | None) -> None:
        """Add a refusal. Another status or any other result begins a new row."""
        if isinstance(error, ServerError):
            self._failure = error
        latest = self._latest.pop(model, [])
        if isinstance(error, ServerRequestError):
            self._latest[model] = [*(one for one in latest if one.status == error.status), error]

    def check(self) -> None:
        """Raise the error of a server that failed or refused too many problems, unless refusals are unlimited."""
        if self._failure and self._max_refused < inf:
            raise self._failure
        for refused in self._latest.values():
            if len(refused) >= self._max_refused:
                raise ServerError(f"{len(refused)} problems in a row failed: {refused[-1].message}")


class Scheduler:
    """Solves up to `concurrency` problems at once. Each problem occupies a slot in every writer.

    A problem is opened in a writer when the writer's first step begins. A `rater` is required if flows request rewards. The
    `speculator`, which is the draft, continues steps that have no matching proposal.
    """

    def __init__(
        self,
        writers: Mapping[ModelRole, Writer],
        *,
        concurrency: int = 1,
        rater: Rater | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        self._writers = writers
        self._rater = rater
        self._comparer = Comparer()
        self._speculator = speculator
        self._concurrency = concurrency
        self._free = list(reversed(range(concurrency)))
        self._in_flight: dict[int, _InFlight] = {}
        self._refusals = Refusals()

    def run(
        self, jobs: Iterable[Job], is_ready: Callable[[], bool] = lambda: True, refusals: Refusals | None = None
    ) -> Generator[Event, None, None]:
        """Run all jobs. A job is taken when a slot is free and `is_ready` returns true, so that `jobs` does not block.

        A ProblemError, such as TimedOutError at the job's deadline, ends only its problem, as does a ServerError if `refusals`
        are unlimited. Any other error ends the run, as do too many `refusals`. All problems in flight first finish with this
        error, so that their steps are not lost.
        """
        waiting = iter(jobs)
        exhausted = False
        self._refusals = refusals or Refusals()
        try:
            while True:
                self._refusals.check()
                for flight in list(self._in_flight.values()):
                    if (deadline := flight.job.deadline) and deadline.has_passed:
                        yield self._finish(flight, deadline.error)
                while self._free and not exhausted and (not self._in_flight or is_ready()):
                    job = next(waiting, None)
                    if job is None:
                        exhausted = True
                    else:
                        yield from self._admit(job)
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
            self._comparer.end()

    def _admit(self, job: Job) -> Iterator[Event]:
        trace = Trace(replace(job.problem, thinks=job.limits.thinking.switch), job.limits)
        flight = _InFlight(self._free.pop(), trace, job.make_flow(trace), job)
        self._in_flight[flight.slot] = flight
        yield Started(trace)
        try:
            if self._rater:
                self._rater.open(flight.slot, trace.problem, job.deadline)
        except ProblemError as error:
            yield self._finish(flight, error)
            return
        yield from self._resume(flight, None)

    def _tick(self) -> Iterator[Event]:
        self._wait()
        for role, writer in self._writers.items():
            for update in writer.tick() if writer.busy else ():
                yield from self._take_update(role, update)
        if self._rater and self._rater.busy:
            yield from self._take_rewards(self._rater.tick())
        for comparison in self._comparer.tick():
            flight = self._in_flight[comparison.slot]
            if comparison.error is not None:
                yield self._finish(flight, comparison.error)
            else:
                yield from self._resume(flight, comparison.is_same)

    def _wait(self) -> None:
        busy = [solver for solver in self._solvers() if solver.busy]
        waits = [solver.wait for solver in busy if solver.wait]
        if waits and len(waits) == len(busy):
            waits[0]()

    def _take_update(self, role: ModelRole, update: SlotUpdate) -> Iterator[Event]:
        flight = self._in_flight[update.slot]
        if update.error or update.step:
            self._refusals.note(role, update.error)
        if update.error is not None:
            yield self._finish(flight, update.error)
        elif update.num_unread:
            yield Writing(flight.trace, role, update.num_unread, flight.phases[role])
        else:
            yield Wrote(flight.trace, role, update.text, flight.phases[role])
            if update.step is not None:
                flight.awaited = [model for model in flight.awaited if model != role]
                yield from self._resume(flight, update.step)

    def _take_rewards(self, updates: Iterable[RewardUpdate]) -> Iterator[Event]:
        for update in updates:
            flight = self._in_flight[update.slot]
            self._refusals.note("rater", update.error)
            flight.reward_cost += update.cost
            if update.error is not None:
                yield self._finish(flight, update.error)
            else:
                yield from self._resume(flight, update.rewards)
        yield from [Rating(flight.trace) for flight in self._in_flight.values() if flight.waits_for_rewards]

    def _resume(self, flight: _InFlight, response: Step | tuple[float, ...] | bool | None) -> Iterator[Event]:
        flight.waits_for_rewards = False
        earlier = flight.trace.check
        try:
            request = self._next_request(flight, response)
        except ProblemError as error:
            yield self._finish(flight, error)
            return
        writing: Sequence[WriteStep] = ()
        if isinstance(request, WriteStep):
            writing = [request]
        elif isinstance(request, tuple):
            writing = request
        flight.abandoned += self._stop(flight, keeping=[one.model for one in writing])
        if (check := flight.trace.check) and not earlier:
            yield Checked(flight.trace, check)
        for decision in flight.trace.decisions[flight.num_reported :]:
            yield Decided(flight.trace, decision, self._num_prompt_tokens(flight))
        flight.num_reported = len(flight.trace.decisions)
        if request is None:
            yield self._finish(flight, None)
            return
        try:
            if isinstance(request, RateSteps):
                self._rate(flight, request)
            elif isinstance(request, CompareAnswers):
                self._comparer.start(flight.slot, request)
            else:
                yield from self._write(flight, writing)
        except ProblemError as error:
            yield self._finish(flight, error)

    def _rate(self, flight: _InFlight, request: RateSteps) -> None:
        if self._rater is None:
            raise ValueError("the policy requests rewards, but there is no rater")
        self._rater.start(flight.slot, request)
        flight.waits_for_rewards = True

    def _next_request(self, flight: _InFlight, response: Step | tuple[float, ...] | bool | None) -> FlowRequest | None:
        """Return the next request of a flow that needs time, or None at the flow's end."""
        try:
            request = flight.flow.send(response)
            while isinstance(request, StopWriting):
                request = flight.flow.send(self._stop(flight))
        except StopIteration:
            return None
        return request

    def _stop(self, flight: _InFlight, keeping: Collection[ModelRole] = ()) -> list[Step]:
        """Stop the models, except those in `keeping`. Return the abandoned steps: unfinished ones, or written ahead by a server."""
        stopped = [one for role, one in flight.opened.items() if role not in keeping]
        return [step for one in stopped for step in one.stop(flight.slot)]

    def _write(self, flight: _InFlight, requests: Sequence[WriteStep]) -> Iterator[Event]:
        """Start the steps of models that are not writing."""
        writing = flight.awaited
        flight.awaited = [request.model for request in requests]
        for request in requests:
            if request.model in writing:
                continue
            if request.sample != flight.sample:  # the models are opened again, with this sample's sampler
                for earlier in flight.opened.values():
                    earlier.close(flight.slot)
                flight.opened.clear()
            flight.sample = request.sample
            writer = self._opened(flight, request.model, request.trace.problem)
            speculator = self._speculator if request.proposal or request.speculates else None
            if speculator:
                self._opened(flight, "draft", flight.trace.problem)
            phase = flight.phases[request.model] = request.trace.phase
            yield Writing(flight.trace, request.model, writer.start(flight.slot, request, speculator), phase)

    def _opened(self, flight: _InFlight, role: ModelRole, problem: Problem) -> Writer:
        """Return the writer of a model. It is opened again for a problem with another prompt, as a draft's that thinks now."""
        if role in flight.opened and flight.problems[role] != problem:
            flight.opened.pop(role).close(flight.slot)
        if role not in flight.opened:
            writer = self._writers[role]
            sampler = (flight.job.sampler or writer.sampler).of_sample(flight.sample)
            writer.open(flight.slot, problem, flight.job.deadline, sampler.of_model(role))
            flight.opened[role], flight.problems[role] = writer, problem
        return flight.opened[role]

    def _finish(self, flight: _InFlight, error: ArbitrageError | None) -> Finished:
        alone = self._seconds_alone(flight) if error is None else None
        num_prompt = self._num_prompt_tokens(flight) if error is None else None
        flight.abandoned += self._stop(flight)
        self._release(flight)
        return Finished(flight.trace, error, alone, flight.reward_cost, num_prompt, flight.abandoned)

    def _seconds_alone(self, flight: _InFlight) -> float | None:
        is_alone = self._concurrency == 1  # otherwise problems share batches
        if "target" in self._writers and is_alone and flight.trace.is_by_target:
            with suppress(ProblemError):  # the target cannot write this problem
                return self._opened(flight, "target", flight.trace.problem).seconds_alone(flight.slot, flight.trace)
        return None

    def _num_prompt_tokens(self, flight: _InFlight) -> int | None:
        """Return the prompt's tokens as the first model counts them or, if its server does not report them, another model."""
        counts = (writer.num_prompt_tokens(flight.slot) for role, writer in flight.opened.items() if role != "check")
        return next((count for count in counts if count is not None), None)

    def _release(self, flight: _InFlight) -> None:
        flight.flow.close()
        for solver in self._solvers():
            with suppress(ArbitrageError):  # of a failed model, whose error was already reported
                solver.close(flight.slot)
        del self._in_flight[flight.slot]
        self._free.append(flight.slot)

    def _solvers(self) -> list[Solver]:
        return [*self._writers.values(), *([self._rater] if self._rater else []), self._comparer]

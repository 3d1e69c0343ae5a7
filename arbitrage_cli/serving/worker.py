"""Answers concurrent requests in one batch, with a single scheduler. Each request has its own policy, limits and sampler.

`Intake` passes requests from the HTTP thread to the models' thread. `Ticket.deliver` passes reports back.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from functools import partial

from arbitrage_cli.arbitrage import Scorer
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.scheduler import Job, Refusals, Scheduler
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.serving.answers import SolutionEvent
from arbitrage_cli.serving.limits import Load, RequestLimits
from arbitrage_cli.serving.requests import ChatRequest, RefusedError, shutting_down
from arbitrage_cli.types import (
    Decided,
    Event,
    Finished,
    Json,
    RequestEnded,
    RoleLimits,
    ServingEvent,
    Started,
    Writing,
    Wrote,
)

Observe = Callable[[ServingEvent], None]
Report = SolutionEvent | None  # None if the worker stopped first


class Ticket:
    """A queued or running request. `deliver` is called in the models' thread.

    Once `end` is set, the deadline counts as passed, so that the scheduler ends the request as after a timeout.
    """

    def __init__(self, request: ChatRequest, seconds: float, deliver: Callable[[Report], None]) -> None:
        self.request = request
        self.deliver = deliver
        self.end = ""
        self.arrived = time.perf_counter()
        self.deadline = Deadline(self.arrived + seconds, seconds, self._clock)

    @property
    def policy(self) -> Policy:
        return self.request.route.policy

    def _clock(self) -> float:
        return math.inf if self.end else time.perf_counter()


class Intake:
    """A thread-safe queue of tickets. A single thread iterates over it, and calls `end` for each ticket that it received.

    The next ticket is the first whose servers all have fewer running requests than the limit.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._waiting: deque[Ticket] = deque()
        self._load = Load()
        self._next: Ticket | None = None
        self._changed = threading.Condition()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def describe(self) -> Json:
        """Return the limits, and the load of each server."""
        with self._changed:
            return self._limits.to_json(self._load)

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket. Raises RefusedError if too many requests need one of its servers, or the intake is closed."""
        with self._changed:
            if self._is_closed:
                raise shutting_down()
            num_open = max(map(self._load.num_open, self._needs(ticket)))
            if num_open >= self._limits.running + self._limits.waiting:
                message = f"the queue is full: {num_open} requests for the same models are running or waiting"
                raise RefusedError(message, "retry later", status=429, code="queue_full", retry_after=0.0)
            self._waiting.append(ticket)
            self._load.waiting.update(self._needs(ticket))
            self._changed.notify()

    def withdraw(self, ticket: Ticket) -> None:
        ticket.end = ticket.end or "cancelled"
        with self._changed, contextlib.suppress(ValueError):
            self._remove(ticket)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def is_ready(self) -> bool:
        """Reserve the next ticket, so that it cannot be withdrawn. Return false if the iterator would block."""
        with self._changed:
            if not self._next and (ticket := next(filter(self._may_run, self._waiting), None)):
                self._remove(ticket)
                self._load.running.update(self._needs(ticket))
                self._next = ticket
            return bool(self._next) or (self._is_closed and not self._waiting)

    def end(self, ticket: Ticket) -> None:
        with self._changed:
            self._load.running.subtract(self._needs(ticket))

    def _needs(self, ticket: Ticket) -> Collection[str]:
        return self._limits.needs(ticket.policy)

    def _may_run(self, ticket: Ticket) -> bool:
        return all(self._load.running[server] < self._limits.running for server in self._needs(ticket))

    def _remove(self, ticket: Ticket) -> None:
        """Remove a waiting ticket. Raises ValueError if the ticket does not wait."""
        self._waiting.remove(ticket)
        self._load.waiting.subtract(self._needs(ticket))

    def drain(self) -> list[Ticket]:
        """Remove and return all tickets, whether or not they may run."""
        with self._changed:
            rest = [*([self._next] if self._next else []), *self._waiting]
            self._next = None
            self._waiting.clear()
            return rest

    def __iter__(self) -> Iterator[Ticket]:
        while True:
            with self._changed:
                self._changed.wait_for(self.is_ready)
                ticket = self._next
                self._next = None
            if not ticket:
                return
            yield ticket


class Worker:
    """Solves the problems in its intake. `scorer_for` returns the scorer of a policy, given the limits of a request."""

    def __init__(
        self,
        scheduler: Scheduler,
        scorer_for: Callable[[Policy, RoleLimits], Scorer | Checker | None],
        limits: RequestLimits,
    ) -> None:
        self._scheduler = scheduler
        self._scorer_for = scorer_for
        self.intake = Intake(limits)
        self._tickets: dict[str, Ticket] = {}

    @property
    def num_running(self) -> int:
        return len(self._tickets)

    def run(self, observe: Observe) -> None:
        """Answer requests until the intake is closed and empty. Raises ArbitrageError if a model in this process fails."""
        refusals = Refusals(math.inf)  # a refusal concerns one client, and a model's server may recover
        try:
            with contextlib.closing(self._scheduler.run(self._jobs(), self.intake.is_ready, refusals)) as events:
                for event in events:
                    self._report(event, observe)
        finally:
            self.intake.close()
            for ticket in [*self._tickets.values(), *self.intake.drain()]:
                ticket.deliver(None)

    def _jobs(self) -> Iterator[Job]:
        for ticket in self.intake:
            request = ticket.request
            self._tickets[request.problem.id] = ticket
            scorer = self._scorer_for(ticket.policy, request.limits)
            make_flow = partial(request.route.flow, seed=request.sampler.seed, scorer=scorer)
            yield Job(request.problem, make_flow, request.own_limits, ticket.deadline, request.sampler)

    def _report(self, event: Event, observe: Observe) -> None:
        ticket = self._tickets[event.trace.problem.id]
        request = ticket.request
        if isinstance(event, Started):
            return
        observe(event)
        if isinstance(event, Decided) or (
            isinstance(event, Writing | Wrote) and request.body.stream and ticket.policy.keeps_every_token
        ):
            ticket.deliver(event)
        elif isinstance(event, Finished):
            del self._tickets[event.trace.problem.id]
            self.intake.end(ticket)
            observe(RequestEnded(request.model, event, time.perf_counter() - ticket.arrived, ticket.end))
            ticket.deliver(event)

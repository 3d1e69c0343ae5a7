"""Answers requests with one scheduler: many in one batch, each with its own policy, limits and sampler. Knows no HTTP.

Runs in the thread that owns the models, until the intake is closed and empty.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial

from arbitrage_cli.arbitrage import Router
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.serving.events import RequestBegun, RequestEnded, ServingEvent
from arbitrage_cli.serving.intake import Intake, Ticket
from arbitrage_cli.types import Decided, Event, Finished, Started

Observe = Callable[[ServingEvent], None]


class Worker:
    """Takes tickets from the intake, and reports to them. `router` is the head's; None without a head."""

    def __init__(self, scheduler: Scheduler, intake: Intake, router: Router | None) -> None:
        self._scheduler = scheduler
        self._intake = intake
        self._router = router
        self._tickets: dict[str, Ticket] = {}

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._tickets)

    def run(self, observe: Observe) -> None:
        """Answer requests until the intake is closed and empty. An error that loses the models' state ends it: ArbitrageError."""
        try:
            with contextlib.closing(self._scheduler.run_jobs(self._jobs(), self._intake.is_ready)) as events:
                for event in events:
                    self._follow(event, observe)
        finally:
            self._intake.close()
            for ticket in [*self._tickets.values(), *self._intake]:
                ticket.deliver(None)

    def _jobs(self) -> Iterator[Job]:
        for ticket in self._intake:
            request = ticket.request
            self._tickets[request.problem.id] = ticket
            make_flow = partial(request.route.flow, seed=request.sampler.seed, router=self._router)
            yield Job(request.problem, make_flow, request.limits, ticket.deadline, request.sampler)

    def _follow(self, event: Event, observe: Observe) -> None:
        ticket = self._tickets[event.trace.problem.id]
        if isinstance(event, Started):
            observe(RequestBegun(event.trace, ticket.request.model))
            return
        observe(event)
        if isinstance(event, Decided):
            ticket.deliver(event.decision)
        elif isinstance(event, Finished):
            del self._tickets[event.trace.problem.id]
            seconds = time.perf_counter() - ticket.arrived
            observe(RequestEnded(ticket.request.model, event, seconds, ticket.is_cancelled))
            ticket.deliver(event)

"""Requests on their way from the HTTP thread to the thread of the models, and back. Knows no HTTP and no model."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.serving.requests import CompletionRequest
from arbitrage_cli.types import Decision, Finished

Report = Decision | Finished | None
"""What becomes of a request: a step was kept; it has ended; or (None) nobody will answer it any more."""


class Ticket:
    """One request on its way. `deliver` takes what becomes of it, and may be called in any thread.

    A request that is cancelled ends like one whose time is up: its deadline has passed from then on.
    """

    def __init__(self, request: CompletionRequest, seconds: float, deliver: Callable[[Report], None]) -> None:
        self.request = request
        self.deliver = deliver
        self.is_cancelled = False
        self.arrived = time.perf_counter()
        self.deadline = Deadline(self.arrived + seconds, seconds, self._clock)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True

    def _clock(self) -> float:
        return math.inf if self.is_cancelled else time.perf_counter()


class Intake:
    """The tickets that wait for a free slot, first come first served. One thread takes them: see `__iter__`."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket) -> bool:
        """Let a ticket wait. Returns False if the intake is closed."""
        with self._changed:
            if not self.is_closed:
                self._waiting.append(ticket)
            self._changed.notify()
            return not self.is_closed

    def withdraw(self, ticket: Ticket) -> None:
        """Cancel a ticket, and forget it if it still waits."""
        ticket.cancel()
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        """Take no new tickets. May be called by a signal handler, in the thread that takes tickets."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def is_ready(self) -> bool:
        """Whether the next ticket, or the end, can be taken without waiting."""
        return bool(self._waiting) or self.is_closed

    def __iter__(self) -> Iterator[Ticket]:
        """The tickets as they come, until the intake is closed and empty. Waits for the next one."""
        while True:
            with self._changed:
                self._changed.wait_for(self.is_ready)
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            yield ticket

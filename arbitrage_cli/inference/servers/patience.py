"""Decides whether and when failed work is repeated on a model's server, and how long a command waits for the server.

A run waits for minutes, because its earlier results would be of little use without the rest. `serve` waits for seconds,
because its clients can ask elsewhere, and because waiting requests keep others from their slots.
"""

import logging
import random
import time
from dataclasses import dataclass
from typing import Protocol

from arbitrage_cli.errors import ServerError, ServerRequestError

MAX_TRIES = 8  # while the server can be reached
MAX_PROBES = 3
FIRST_DELAY = 0.5  # seconds
MAX_DELAY = 30.0
CHUNK_SECONDS = 120.0  # timeout between two chunks of a response, including the prefill of a long prompt
GONE_SECONDS = 300.0  # of uninterrupted failures, after which a run stops
NOTE_SECONDS = 10.0  # shorter pauses are not reported
SERVING_SECONDS = 10.0  # in which `serve` must reach a server
MAX_SERVING_TRIES = 3
MAX_SERVING_DELAY = 1.0
MAX_FAILED = 3  # requests to `serve` in a row that a server may fail
BREAK_SECONDS = 10.0  # in which it is not asked again
TIMEOUT = 408  # HTTP status, also of responses that do not arrive in time
OVERLOADED = frozenset({429, 503})  # HTTP status

log = logging.getLogger("arbitrage.servers")


class RetryableError(Exception):
    """A failure after which the work may be retried.

    `is_down` is true if the server did not respond at all, for `waited` seconds. `retry_after` is the delay in seconds that
    the server asks for, or 0.
    """

    def __init__(
        self, reason: str, *, retry_after: float = 0.0, is_down: bool = False, waited: float = 0.0, status: int = 0
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.is_down = is_down
        self.waited = waited
        self.status = status


@dataclass
class Tries:
    """The tries of one piece of work, of which `num_counted` failed while the server could be reached.

    A probe, which tests a server, is repeated a few times, and only if the server responds. `is_shared` is true if several
    problems are sent to the server at once.
    """

    began: float
    is_probe: bool = False
    is_shared: bool = False
    number: int = 0
    num_counted: int = 0
    failing_since: float = 0.0

    def add(self, failure: RetryableError, *, is_counted: bool) -> None:
        self.number += 1
        self.num_counted += is_counted
        if self.number == 1:
            self.failing_since = time.monotonic() - failure.waited


class Patience(Protocol):
    """The patience with one server. Its methods are called in the connection's thread.

    `silence` is the maximum time between two chunks of a response, in seconds.
    """

    @property
    def silence(self) -> float: ...

    def check(self) -> None:
        """Raise ServerError if the server should not be asked now."""

    def delay(self, failure: RetryableError, tries: Tries) -> float:
        """Return the delay before the next try, in seconds. Raises the errors of `Server.retry` if no further try is left."""

    def note_response(self) -> None:
        """Note that the server sent a part of a response."""

    def note_end(self) -> None:
        """Note that the server completed some work, or refused it for a reason."""

    def note_failure(self) -> None:
        """Note that the server failed a request, for example because the request's deadline passed in silence."""


@dataclass
class RunPatience:
    """The patience of a run, and of all probes. After `GONE_SECONDS` of uninterrupted failures, the server cannot be used."""

    server: str
    failing_since: float | None = None
    failed_at: float = 0.0
    answered_at: float = 0.0
    is_gone: bool = False
    paused_until: float = 0.0

    @property
    def silence(self) -> float:
        return CHUNK_SECONDS

    def check(self) -> None:
        pass

    def delay(self, failure: RetryableError, tries: Tries) -> float:
        tries.add(failure, is_counted=not self.is_gone)
        if tries.num_counted >= (MAX_PROBES if tries.is_probe else MAX_TRIES) or (tries.is_probe and failure.is_down):
            raise self._gave_up(failure, tries)
        if failure.retry_after > GONE_SECONDS:
            waits = f"asks to wait {failure.retry_after:,.0f} s, more than {GONE_SECONDS:.0f} s"
            raise ServerRequestError(f"{self.server} {waits} (it {failure})", "retry later", status=failure.status)
        now = time.monotonic()
        if self.failing_since is None or tries.began - self.failed_at > 2 * MAX_DELAY:  # no requests in between
            self.failing_since = now
        self.failed_at = now
        failing = now - self.failing_since
        if failing > GONE_SECONDS:
            hint = "restart the server, then rerun the command to resume"
            raise ServerError(f"{self.server} has been failing for {failing:.0f} s (it {failure})", hint)
        self._warn(failure, tries, now)
        return failure.retry_after + _backoff(tries, MAX_DELAY)

    def _gave_up(self, failure: RetryableError, tries: Tries) -> ServerRequestError:
        usual = "lower --concurrency" if tries.is_shared else "check that the server is not overloaded"
        if tries.is_probe:
            usual = "check the address and that the server is running"
        message = f"{'' if tries.is_probe else f'{tries.number} tries failed: '}{self.server} {failure}"
        return ServerRequestError(message, usual if failure.is_down or not failure.status else "", status=failure.status)

    def _warn(self, failure: RetryableError, tries: Tries, now: float) -> None:
        is_news = now - failure.waited > self.answered_at  # otherwise, the server has answered a later request
        if failure.is_down and is_news and not self.is_gone and (tries.number > 1 or now - tries.began > NOTE_SECONDS):
            self.is_gone = True
            log.warning("%s %s; retrying for %.0f s (press Ctrl-C to stop)", self.server, failure, GONE_SECONDS)
        if failure.retry_after > NOTE_SECONDS and now >= self.paused_until:
            self.paused_until = now + failure.retry_after
            log.warning("%s asks to wait %.0f s before retrying (it %s)", self.server, failure.retry_after, failure)

    def note_response(self) -> None:
        self.failing_since = None
        self.answered_at = time.monotonic()
        if self.is_gone:
            self.is_gone = False
            log.warning("%s is reachable again", self.server)

    def note_end(self) -> None:
        self.failing_since = None

    def note_failure(self) -> None:
        pass  # only unbroken failures of all requests end a run


@dataclass
class ServePatience:
    """The patience of `serve`. A request fails if its server is unreachable for `SERVING_SECONDS`, or silent for `silence`.

    After `MAX_FAILED` failed requests in a row, the server is not asked for `BREAK_SECONDS`. Then, one request every
    `BREAK_SECONDS` tries it, and all others fail until a try succeeds. If the server is overloaded, only the request fails,
    immediately.
    """

    server: str
    silence: float
    num_failed: int = 0
    refuses_until: float = 0.0

    def check(self) -> None:
        if self.num_failed < MAX_FAILED:
            return
        now = time.monotonic()
        if now < self.refuses_until:
            message = f"{self.server} failed {self.num_failed} requests in a row"
            raise ServerError(message, f"it will be asked again after {self.refuses_until - now:.0f} s")
        self.refuses_until = now + BREAK_SECONDS

    def delay(self, failure: RetryableError, tries: Tries) -> float:
        if failure.status in OVERLOADED:
            raise ServerRequestError(f"{self.server} {failure}", status=failure.status, retry_after=failure.retry_after)
        tries.add(failure, is_counted=not failure.is_down)
        delay = _backoff(tries, MAX_SERVING_DELAY)
        has_waited = failure.status == TIMEOUT or time.monotonic() + delay - tries.failing_since > SERVING_SECONDS
        if has_waited or tries.num_counted >= MAX_SERVING_TRIES:
            self.note_failure()
            raise ServerError(f"{self.server} {failure}", "check that it is running and not overloaded")
        return delay

    def note_response(self) -> None:
        pass  # a response may begin and then stall

    def note_end(self) -> None:
        self.num_failed = 0

    def note_failure(self) -> None:
        self.num_failed += 1
        self.refuses_until = time.monotonic() + BREAK_SECONDS


def _backoff(tries: Tries, most: float) -> float:
    """Return a random delay that grows exponentially, so that requests do not all return at once."""
    delay = float(min(most, FIRST_DELAY * 2 ** (tries.number - 1)))
    return delay * random.uniform(0.5, 1.0)

"""Sends many HTTP requests concurrently, in a thread with its own event loop.

Requests are retried after broken connections and after HTTP 408, 425, 429 and 5xx. The delay is the server's `Retry-After`
(up to `GONE_SECONDS`) plus a random time that grows exponentially. A longer delay, and any other HTTP error except 401,
concern only one request. API keys are sent only in the `Authorization` header, and never through a proxy to this machine or a
private network. Redirects are not followed, and no error shows a request.
"""

import asyncio
import contextlib
import json
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import urlsplit

from arbitrage_cli.errors import ContextFullError, ServerError, ServerRequestError
from arbitrage_cli.inference.servers.address import is_private

if TYPE_CHECKING:  # slow to import, and not needed without a server
    import httpx2

Json = dict[str, Any]
T = TypeVar("T")
Take = Callable[[Json], bool | None]
"""A callback that receives each JSON object of a response and returns True to close the response."""

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 30.0  # timeout of a probe, which tests a server
CHUNK_SECONDS = 120.0  # timeout between two chunks of a response, including the prefill of a long prompt
WHOLE_SECONDS = 1800.0  # total timeout of a response, whatever arrives
END_SECONDS = 0.5  # for the end of a stream after [DONE]
KEEP_ALIVE_SECONDS = 2.0  # servers close idle connections after five seconds
MAX_ANSWER_BYTES = 1 << 26
ERROR_SECONDS, MAX_ERROR_BYTES = 5.0, 1 << 20  # for the explanation of an error
MAX_TRIES, MAX_PROBES = 8, 3  # per request, while the server can be reached
FIRST_DELAY, MAX_DELAY = 0.5, 30.0  # seconds
GONE_SECONDS = 300.0  # of uninterrupted failures, after which the run stops
TIMEOUT = 408  # HTTP status, also of responses that do not arrive in time
RETRIED = frozenset({TIMEOUT, 425, 429})  # and all server errors
WAIT_SECONDS = 0.05
NOTE_SECONDS = 10.0  # shorter pauses are not reported
POOLS = 16  # clients, because httpcore searches all connections of a pool per request: 256 in one pool take 3x as long
TOO_LONG = re.compile("context[ _](length|size)|exceed_context_size|maximum context|longer than the model", re.IGNORECASE)
TOPIC_HEADERS = ("X-Session-ID", "X-SMG-Routing-Key")  # by which vLLM's router and SGLang's gateway choose a replica

log = logging.getLogger("arbitrage.servers")


@dataclass(slots=True)
class Host:
    """A server, described by its name in messages, its API key and its recent failures."""

    name: str
    key: str | None = field(default=None, repr=False)
    failing_since: float | None = None
    failed_at: float = 0.0
    is_gone: bool = False
    paused_until: float = 0.0

    def redacted(self, text: str) -> str:
        """Shorten a server's text to one line and remove the API key, which some servers include in errors, even wrapped."""
        key = r"\s*".join(map(re.escape, self.key or ""))
        return " ".join((re.sub(key, "***", text) if key else text).split())[:300]


@dataclass(frozen=True, slots=True)
class Request:
    """A POST request, or a GET request if `body` is None.

    All requests for a problem have the same `topic`, so that a load balancer can choose the replica that cached the prompt.
    Requests without a topic are probes, which have short timeouts and few retries.
    """

    url: str
    body: Mapping[str, Any] | None = None
    is_streamed: bool = False
    topic: str = ""

    @property
    def is_probe(self) -> bool:
        return not self.topic


class Connection:
    """A thread with an event loop and HTTP clients. `transport` replaces the network in tests."""

    def __init__(self, transport: "httpx2.AsyncBaseTransport | None" = None) -> None:
        self._arrived = threading.Event()
        self._notices: deque[str] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self._clients: dict[bool, list[httpx2.AsyncClient]] = {}  # by whether a proxy may be used
        self.run(self._make_clients(transport))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for its result. Do not call this from that thread."""
        future = self.begin(work)
        while not future.done():
            self.wait()
        return future.result()

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine in the thread. `wait` returns when the coroutine ends. Cancelling the future cancels its requests."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: self.notify())
        return future

    def notify(self) -> None:
        self._arrived.set()

    def wait(self) -> None:
        """Wait at most `WAIT_SECONDS` for `notify`, then log pending notices about servers."""
        self._arrived.wait(WAIT_SECONDS)
        self._arrived.clear()
        while self._notices:
            log.warning("%s", self._notices.popleft())

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def fetch(self, host: Host, request: Request) -> Json:
        answers: list[Json] = []
        await self.send(host, request, answers.append)
        return answers[0]

    async def send(self, host: Host, request: Request, take: Take, restart: Callable[[], None] = lambda: None) -> None:
        """Send a request and pass each JSON object in the response to `take`. `restart` is called before each retry.

        Raises ContextFullError if the text is too long; ServerRequestError if only this request failed; ServerError if the
        server cannot be used.
        """
        began, num_tries = time.monotonic(), 0
        while True:
            try:
                return await self._receive(host, request, take)
            except _RetryableError as failure:
                num_tries += 1
                await asyncio.sleep(self._delay(host, request, failure, num_tries, began))
                restart()

    async def _receive(self, host: Host, request: Request, take: Take) -> None:
        import httpx2

        seconds = 2 * PROBE_SECONDS if request.is_probe else WHOLE_SECONDS
        try:
            async with asyncio.timeout(seconds), self._open(host, request) as response:
                await _check(host, response)
                async with aclosing(_objects(response, is_streamed=request.is_streamed)) as answers:
                    async for answer in answers:
                        if error := answer.get("error"):
                            raise _error_in_answer(host, error)
                        self._note_answer(host)
                        if take(answer):
                            return
        except TimeoutError:
            message = f"{host.name} did not complete a response within {seconds:g} s"
            hint = "check that the server is not overloaded, or lower --concurrency or the setting max-step-tokens"
            raise ServerRequestError(message, hint, status=TIMEOUT) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _RetryableError(f"is unreachable ({str(error) or type(error).__name__})", is_down=True) from None
        except httpx2.TimeoutException as error:
            raise _RetryableError(f"timed out ({type(error).__name__})", is_down=True, status=TIMEOUT) from None
        except httpx2.RequestError as error:
            reason = host.redacted(str(error)) or type(error).__name__
            raise _RetryableError(f"interrupted a response ({reason})") from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise ServerError(f"invalid server address {host.name}: {error}", "correct the address") from None

    def _open(self, host: Host, request: Request) -> "AbstractAsyncContextManager[httpx2.Response]":
        import httpx2

        read = PROBE_SECONDS if request.is_probe else CHUNK_SECONDS
        timeout = httpx2.Timeout(read, connect=CONNECT_SECONDS, pool=None)
        method = "GET" if request.body is None else "POST"
        headers = dict.fromkeys(TOPIC_HEADERS, request.topic) if request.topic else {}
        if host.key:
            headers["Authorization"] = f"Bearer {host.key}"
        may_use_proxy = not is_private(str(urlsplit(request.url).hostname))  # a proxy would see the key in plain text
        number = hash(request.topic) % POOLS  # always the same for a problem, to reuse its connection
        client = self._clients[may_use_proxy][number]
        return client.stream(method, request.url, json=request.body, headers=headers, timeout=timeout)

    def _note_answer(self, host: Host) -> None:
        host.failing_since = None
        if host.is_gone:
            host.is_gone = False
            self._notices.append(f"{host.name} is reachable again")

    def _delay(self, host: Host, request: Request, failure: "_RetryableError", num_tries: int, began: float) -> float:
        """Return the delay before a retry, in seconds. Raises an error if the request should not be sent again."""
        has_answered = failure.status and not failure.is_down
        if request.is_probe and (failure.is_down or num_tries >= MAX_PROBES):
            hint = "" if has_answered else "check the address and that the server is running"
            raise ServerRequestError(f"{host.name} {failure}", hint, status=failure.status)
        if failure.retry_after > GONE_SECONDS:
            message = f"{host.name} asks to wait {failure.retry_after:,.0f} s, more than {GONE_SECONDS:.0f} s (it {failure})"
            raise ServerRequestError(message, "retry later", status=failure.status)
        now = time.monotonic()
        if host.failing_since is None or began - host.failed_at > 2 * MAX_DELAY:  # no requests in between
            host.failing_since = now
        host.failed_at = now
        failing = now - host.failing_since
        if failing > GONE_SECONDS:
            hint = "restart the server, then rerun the command to resume"
            raise ServerError(f"{host.name} has been failing for {failing:.0f} s (it {failure})", hint)
        if num_tries >= MAX_TRIES and not host.is_gone and (failure.status or not failure.is_down):
            message = f"{num_tries} tries failed: {host.name} {failure}"
            raise ServerRequestError(message, "" if has_answered else "lower --concurrency", status=failure.status)
        if failure.is_down and not host.is_gone and (num_tries > 1 or now - began > NOTE_SECONDS):
            host.is_gone = True
            self._notices.append(
                f"{host.name} {failure}; retrying for {GONE_SECONDS / 60:.0f} minutes (press Ctrl-C to stop)"
            )
        if failure.retry_after > NOTE_SECONDS and now >= host.paused_until:
            host.paused_until = now + failure.retry_after
            self._notices.append(f"{host.name} asks to wait {failure.retry_after:.0f} s before retrying (it {failure})")
        backoff = min(MAX_DELAY, FIRST_DELAY * 2 ** (num_tries - 1)) * random.uniform(0.5, 1.0)
        return float(failure.retry_after + backoff)

    async def _make_clients(self, transport: "httpx2.AsyncBaseTransport | None") -> None:
        import httpcore2
        import httpx2

        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        certificates = httpcore2.default_ssl_context()
        make = partial(httpx2.AsyncClient, transport=transport, limits=limits, verify=certificates)
        self._clients |= {trusts: [make(trust_env=trusts) for _ in range(POOLS)] for trusts in (False, True)}

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in chain.from_iterable(self._clients.values()):
            await client.aclose()


class Pending(Generic[T]):
    """The running coroutines, one per slot. Results are collected in the caller's thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._futures: dict[int, Future[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._futures)

    def begin(self, slot: int, work: Coroutine[Any, Any, T]) -> None:
        self._futures[slot] = self._connection.begin(work)

    def cancel(self, slot: int) -> None:
        if future := self._futures.pop(slot, None):
            future.cancel()

    def results(self) -> list[T]:
        """Return the results of the coroutines that have ended. If all of these have failed, raise the first error instead."""
        ended = [slot for slot, future in self._futures.items() if future.done()]
        good = [slot for slot in ended if not self._futures[slot].exception()]
        return [self._futures.pop(slot).result() for slot in good or ended]


class _RetryableError(Exception):
    def __init__(self, reason: str, *, retry_after: float = 0.0, is_down: bool = False, status: int = 0) -> None:
        super().__init__(reason)
        self.retry_after, self.is_down, self.status = retry_after, is_down, status


async def _check(host: Host, response: "httpx2.Response") -> None:
    status = response.status_code
    if response.is_success:
        return
    text = ""
    with contextlib.suppress(TimeoutError, _RetryableError):  # long and slow explanations are omitted
        async with asyncio.timeout(ERROR_SECONDS):
            text = host.redacted(_text_of_error(await _read(response, MAX_ERROR_BYTES)))
    reason = f"responded with HTTP {status}: {text}".rstrip(": ")
    if status in RETRIED or status >= 500:
        raise _RetryableError(reason, retry_after=_retry_after(response.headers), status=status)
    host.failing_since = None
    if response.is_redirect:
        raise ServerError(f"{host.name} redirects to another address", "use that address")
    message = f"{host.name} {reason}"
    if status == 401:
        hint = "set the API key in ARBITRAGE_API_KEY, ARBITRAGE_DRAFT_API_KEY or ARBITRAGE_TARGET_API_KEY"
        raise ServerError(message, hint)
    if TOO_LONG.search(text):
        raise ContextFullError(message, "use a shorter problem")
    raise ServerRequestError(message, status=status)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the delay in seconds that the server requests, as a number or a date. OpenAI also sends milliseconds."""
    with contextlib.suppress(ValueError, OverflowError):
        milliseconds, value = headers.get("retry-after-ms", ""), headers.get("Retry-After", "")
        is_number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", milliseconds or value)
        seconds = float(milliseconds or value) if is_number else parsedate_to_datetime(value).timestamp() - time.time()
        return max(seconds / 1000 if milliseconds else seconds, 0.0)
    return 0.0


def _text_of_error(body: bytes) -> str:
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return "" if body.lstrip().startswith(b"<") else body.decode("utf-8", "replace")  # not a web page
    return _message(error.get("error", error) if isinstance(error, dict) else error)


def _message(error: object) -> str:
    return str((error.get("message", error) if isinstance(error, dict) else error) or "")


def _error_in_answer(host: Host, error: object) -> Exception:
    text = host.redacted(_message(error))
    if TOO_LONG.search(text):
        return ContextFullError(f"{host.name}: {text}", "use a shorter problem")
    return _RetryableError(f"interrupted a response ({text})")


async def _objects(response: "httpx2.Response", *, is_streamed: bool) -> AsyncGenerator[Json, None]:
    import httpx2

    if not is_streamed:
        yield _object(await _read(response, MAX_ANSWER_BYTES))
        return
    if response.headers.get("Content-Type", "").startswith("application/json"):
        raise _RetryableError("does not stream its responses (it sent application/json)")
    has_ended, size = False, 0
    async with aclosing(cast("AsyncGenerator[Any, None]", aiter(httpx2.EventSource(response)))) as events:
        async for event in events:
            size += len(event.data)
            if size > MAX_ANSWER_BYTES:
                raise _RetryableError("sent too long a response")
            if event.data == "[DONE]":
                with contextlib.suppress(TimeoutError, httpx2.RequestError):
                    async with asyncio.timeout(END_SECONDS):
                        await anext(events, None)  # only a response that was read to its end leaves its connection open
                break
            chunk = _object(event.data)
            has_ended = has_ended or _is_last(chunk)
            yield chunk
    if not has_ended:
        raise _RetryableError("interrupted a response")


def _is_last(chunk: Json) -> bool:
    """Return whether a chunk ends a stream. llama-server's `/completion` does not send [DONE]."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return bool(chunk.get("stop") or (isinstance(first, dict) and first.get("finish_reason")))


async def _read(response: "httpx2.Response", max_bytes: int) -> bytes:
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            body += part
            if len(body) > max_bytes:
                raise _RetryableError("sent too long a response")
    return bytes(body)


def _object(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _RetryableError("sent a response that is not a JSON object")
    return value

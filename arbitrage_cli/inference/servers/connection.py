"""Sends requests to servers, many at once, from one thread of its own.

A request is sent again after 408, 429 and 5xx, and where a connection breaks: with exponential back-off and jitter, or when the
server asks for it. The caller that waits for many answers calls `wait`. An API key is in one header and nowhere else: redirects are not
followed, and no error or message holds a request.
"""

import asyncio
import itertools
import json
import logging
import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from arbitrage_cli.errors import ContextFullError, ServerError, ServerRequestError

if TYPE_CHECKING:  # slow to import, and not needed without a server
    import httpx2

Json = dict[str, Any]
T = TypeVar("T")
Take = Callable[[Json], bool | None]
"""Takes an object of an answer; True: hang up, nothing more is wanted."""

CONNECT_SECONDS = 5.0
TRIAL_SECONDS = 30.0  # of an answer that should come at once
CHUNK_SECONDS = 120.0  # between two chunks of a stream: long prompts are read in this time
ANSWER_SECONDS = 600.0  # of an answer that is not streamed
WHOLE_SECONDS = 1800.0  # of an answer, however often a bit of it comes
KEEP_ALIVE_SECONDS = 2.0  # servers close idle connections after five
MAX_ANSWER_BYTES = 1 << 26
MAX_TRIES, MAX_TRIALS = 8, 3  # of one request, while the server answers others
FIRST_DELAY, MAX_DELAY = 0.5, 30.0  # seconds
GONE_SECONDS = 300.0  # of failures without an answer between them, after which a server is given up
TRY_AGAIN = frozenset({408, 425, 429})  # and all from 500 on
WAIT_SECONDS = 0.05
NOTE_SECONDS = 10.0  # between two messages about a pause
POOLS = 16
"""Clients that take turns: for each request httpcore looks through all connections of a pool, which made 256 at once three times as slow."""
TOO_LONG = re.compile("context[ _](length|size)|exceed_context_size|maximum context|longer than the model", re.IGNORECASE)
"""A text that does not fit, in the words of vLLM and OpenAI, llama-server, SGLang."""
TOPIC_HEADERS = ("X-Session-ID", "X-SMG-Routing-Key")
"""What vLLM's router and SGLang's gateway choose a replica by."""

log = logging.getLogger("arbitrage.servers")


@dataclass(slots=True)
class Host:
    """One server as this program sees it: its address for messages, the key, and since when it fails."""

    name: str
    key: str | None = field(default=None, repr=False)
    failing_since: float | None = None
    failed_at: float = 0.0
    is_gone: bool = False
    noted_at: float = -math.inf  # when a pause was last reported

    def redacted(self, text: str) -> str:
        """A text of the server on one line, without the key, which some servers repeat."""
        return " ".join((text.replace(self.key, "***") if self.key else text).split())[:300]


@dataclass(frozen=True, slots=True)
class Request:
    """One POST (GET without a body). `is_streamed` answers come as server-sent events. An `is_trial` is given up soon.

    `topic` is the same for all requests of a problem: routers send them to the replica that has its beginning in the cache.
    """

    url: str
    body: Mapping[str, Any] | None = None
    is_streamed: bool = False
    is_trial: bool = False
    topic: str = ""


class Connection:
    """The thread, its event loop and its pool of connections. Close it when done."""

    def __init__(self, transport: "httpx2.AsyncBaseTransport | None" = None) -> None:
        """`transport`: of a test; by default the network."""
        self._arrived = threading.Event()
        self._notices: deque[str] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()
        self._clients: list[httpx2.AsyncClient] = []
        self._turns = itertools.count()
        self.run(self._make_clients(transport))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and wait for its result. Not for coroutines: they would wait for themselves."""
        future = self.begin(work)
        future.add_done_callback(lambda _: self.notify())
        while not future.done():
            self.wait()
        return future.result()

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine in the thread. Cancelling the future cancels its requests."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def notify(self) -> None:
        """Say that something has arrived: `wait` returns."""
        self._arrived.set()

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until something arrives, but no longer than this. Logs news of servers."""
        self._arrived.wait(seconds)
        self._arrived.clear()
        while self._notices:
            log.warning("%s", self._notices.popleft())

    def close(self) -> None:
        """End all requests and the thread."""
        if self._thread.is_alive():
            self.run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def fetch(self, host: Host, request: Request) -> Json:
        """An answer that is one object. Errors as `send`."""
        answers: list[Json] = []
        await self.send(host, request, answers.append)
        return answers[0]

    async def send(self, host: Host, request: Request, take: Take, restart: Callable[[], None] = lambda: None) -> None:
        """Pass the objects of an answer to `take` as they come. After `restart` they come again from the first.

        Errors: ContextFullError and ServerRequestError (of this request), ServerError (of any request to the server), those of `take`.
        """
        num_tries = 0
        while True:
            try:
                return await self._receive(host, request, take)
            except _TryAgainError as failure:
                num_tries += 1
                await self._pause(host, failure, self._delay(host, request, failure, num_tries))
                restart()

    async def _receive(self, host: Host, request: Request, take: Take) -> None:
        """Send once. `_TryAgainError` if it may succeed when sent again. Servers may send comments, or a byte now and then, for ever."""
        import httpx2

        seconds = 2 * TRIAL_SECONDS if request.is_trial else WHOLE_SECONDS
        try:
            async with asyncio.timeout(seconds), self._open(host, request) as response:
                await _check(host, response)
                async for answer in _objects(response, is_streamed=request.is_streamed):
                    if "error" in answer and "choices" not in answer:
                        raise _error_in_answer(host, answer["error"])
                    self._note_answer(host)
                    if take(answer):
                        return
        except TimeoutError:
            hint = "give the server less to do at once, or a smaller max-step-tokens (a setting)"
            raise ServerRequestError(f"{host.name} does not finish an answer within {seconds:g} s", hint) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _TryAgainError(f"cannot be reached ({str(error) or type(error).__name__})", is_down=True) from None
        except httpx2.TimeoutException as error:
            raise _TryAgainError(f"does not answer in time ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            raise _TryAgainError(f"breaks an answer off ({str(error) or type(error).__name__})") from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise ServerError(f"{host.name} is not a valid address ({error})", "check it") from None

    def _open(self, host: Host, request: Request) -> "AbstractAsyncContextManager[httpx2.Response]":
        import httpx2

        read = TRIAL_SECONDS if request.is_trial else CHUNK_SECONDS if request.is_streamed else ANSWER_SECONDS
        timeout = httpx2.Timeout(read, connect=CONNECT_SECONDS, pool=None)
        method = "GET" if request.body is None else "POST"
        headers = dict.fromkeys(TOPIC_HEADERS, request.topic) if request.topic else {}
        if host.key:
            headers["Authorization"] = f"Bearer {host.key}"
        client = self._clients[next(self._turns) % len(self._clients)]
        return client.stream(method, request.url, json=request.body, headers=headers, timeout=timeout)

    def _note_answer(self, host: Host) -> None:
        host.failing_since = None
        if host.is_gone:
            host.is_gone = False
            self._notices.append(f"{host.name} answers again")

    def _delay(self, host: Host, request: Request, failure: "_TryAgainError", num_tries: int) -> float:
        """Seconds until the next try. ServerError if the server is given up, ServerRequestError if only this request is."""
        if request.is_trial and (failure.is_down or num_tries >= MAX_TRIALS):
            hint = "check the address, and whether the server is running"
            raise ServerRequestError(f"{host.name} {failure}", hint, status=failure.status)
        now = time.monotonic()
        if host.failing_since is None or now - host.failed_at > 2 * MAX_DELAY:  # nobody asked in between
            host.failing_since = now
        host.failed_at = now
        silent = now - host.failing_since
        if silent > GONE_SECONDS:
            raise ServerError(
                f"{host.name} {failure}, for {silent:.0f} seconds now", "start it again; the same command resumes a run"
            )
        if not failure.is_down and num_tries >= MAX_TRIES:
            hint = "give the server more time, or less to do"
            raise ServerRequestError(f"{host.name} {failure}, {num_tries} times", hint, status=failure.status)
        if failure.is_down and not host.is_gone and num_tries > 1:
            host.is_gone = True
            minutes = f"{GONE_SECONDS / 60:.0f} minutes"
            self._notices.append(f"{host.name} {failure}: trying again for {minutes} (Ctrl-C ends the run)")
        backoff = min(MAX_DELAY, FIRST_DELAY * 2 ** (num_tries - 1)) * random.uniform(0.5, 1.0)
        return float(max(failure.seconds, backoff))

    async def _pause(self, host: Host, failure: "_TryAgainError", seconds: float) -> None:
        """Wait. Of a long pause, for which a server asks, say now and then how much is left."""
        end = time.monotonic() + seconds
        while (left := end - (now := time.monotonic())) > 0:
            if failure.seconds > NOTE_SECONDS and now - host.noted_at >= NOTE_SECONDS:
                host.noted_at = now
                self._notices.append(f"{host.name} {failure} and asks to wait: {left:.3g} s left")
            await asyncio.sleep(min(left, NOTE_SECONDS))

    async def _make_clients(self, transport: "httpx2.AsyncBaseTransport | None") -> None:
        import httpcore2
        import httpx2

        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS)
        certificates = httpcore2.default_ssl_context()
        self._clients += [httpx2.AsyncClient(transport=transport, limits=limits, verify=certificates) for _ in range(POOLS)]

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients:
            await client.aclose()


class Pending(Generic[T]):
    """What is written or rated for the problems in flight: one coroutine a slot, whose result is handed over in the caller's thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._futures: dict[int, Future[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._futures)

    def begin(self, slot: int, work: Coroutine[Any, Any, T]) -> None:
        self._futures[slot] = future = self._connection.begin(work)
        future.add_done_callback(lambda _: self._connection.notify())

    def cancel(self, slot: int) -> None:
        """Hang up, and forget the slot."""
        if future := self._futures.pop(slot, None):
            future.cancel()

    def results(self) -> list[T]:
        """What has ended since the last call. Raises the error of a coroutine that failed."""
        ended = [slot for slot, future in self._futures.items() if future.done()]
        return [self._futures.pop(slot).result() for slot in ended]


class _TryAgainError(Exception):
    """The request may succeed later. `seconds`: the wait that the server asks for; `is_down`: it could not be reached at all."""

    def __init__(self, reason: str, *, seconds: float = 0.0, is_down: bool = False, status: int = 0) -> None:
        super().__init__(reason)
        self.seconds, self.is_down, self.status = seconds, is_down, status


async def _check(host: Host, response: "httpx2.Response") -> None:
    """Raise the error of an answer that is not a success: it may go away, is of this request, or of all."""
    status = response.status_code
    if response.is_success:
        return
    if status in TRY_AGAIN or status >= 500:
        asked = response.headers.get("Retry-After", "")
        seconds = min(float(asked), GONE_SECONDS) if re.fullmatch("[0-9]{1,6}", asked) else 0.0
        raise _TryAgainError(f"answers with HTTP {status}", seconds=seconds, status=status)
    host.failing_since = None
    if response.is_redirect:
        raise ServerError(f"{host.name} redirects to another address", "give the address that it redirects to")
    text = host.redacted(_text_of_error((await _read(response)).decode("utf-8", "replace")))
    message = f"{host.name} answers with HTTP {status}: {text}"
    if status in (401, 403):
        hint = "set its API key: ARBITRAGE_API_KEY, or ARBITRAGE_DRAFT_API_KEY, ARBITRAGE_TARGET_API_KEY"
        raise ServerError(message, hint)
    if status not in (400, 413, 422):
        raise ServerError(message, "check the address: it mostly ends in /v1; is the server running?")
    if TOO_LONG.search(text):
        raise ContextFullError(message, "use a shorter problem")
    raise ServerRequestError(message, status=status)


def _text_of_error(body: str) -> str:
    """What an error says: its message, if the body has the form of OpenAI's errors."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return body
    error = error.get("error", error) if isinstance(error, dict) else error
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _error_in_answer(host: Host, error: object) -> Exception:
    """The error that an answer reports after it has begun."""
    text = host.redacted(str(error.get("message", error) if isinstance(error, dict) else error))
    if TOO_LONG.search(text):
        return ContextFullError(f"{host.name}: {text}", "use a shorter problem")
    return _TryAgainError(f"breaks an answer off ({text})")


async def _objects(response: "httpx2.Response", *, is_streamed: bool) -> AsyncIterator[Json]:
    """The objects of an answer: one, or a stream of events that says when it ends."""
    import httpx2

    if not is_streamed:
        yield _object(await _read(response))
        return
    ended, size = False, 0
    async for event in httpx2.EventSource(response):
        size += len(event.data)
        if size > MAX_ANSWER_BYTES:
            raise _TryAgainError("sends an endless answer")
        if event.data == "[DONE]":
            break
        chunk = _object(event.data)
        ended = ended or _has_ended(chunk)
        yield chunk
    if not ended:
        raise _TryAgainError("breaks an answer off")


def _has_ended(chunk: Json) -> bool:
    """Whether a chunk says that nothing follows: llama-server's own endpoint has no [DONE]."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return bool(chunk.get("stop") or (isinstance(first, dict) and first.get("finish_reason")))


async def _read(response: "httpx2.Response") -> bytes:
    """The body of an answer, up to a bound."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise _TryAgainError("sends an endless answer")
    return bytes(body)


def _object(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _TryAgainError("sends an answer that is not a JSON object")
    return value

"""Sends many HTTP requests concurrently, in a thread with its own event loop.

Requests may be retried after dropped connections and after HTTP 408, 425, 429 and 5xx: `patience` decides when. After HTTP
401 or a redirect, the server cannot be used. Any other HTTP error concerns only one request. API keys are sent only in the
`Authorization` header, and never through a proxy to this machine or a private network. A key that a server repeats is
removed before its response is parsed. Redirects are not followed, and no error shows a request.
"""

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from arbitrage_cli.errors import ContextFullError, ServerError, ServerRequestError
from arbitrage_cli.inference.servers.address import Address
from arbitrage_cli.inference.servers.patience import (
    TIMEOUT,
    Patience,
    RetryableError,
    RunPatience,
    ServePatience,
    Tries,
)
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.types import Json

if TYPE_CHECKING:  # slow to import, and not needed without a server
    import ssl

    import httpx2

T = TypeVar("T")
Read = Callable[[Json], T]
"""A function that parses a JSON object. Raises ValueError if the object has an unknown format."""

CONNECT_SECONDS = 5.0
SHORT_SECONDS = 30.0  # timeout of a probe, which tests a server, and of all requests whose response is not streamed
MAX_RETRY_AFTER = 1e9
WHOLE_SECONDS = 1800.0  # total timeout of a response, whatever arrives
DONE_SECONDS = 0.5  # for the end of a stream after [DONE]
IDLE_SECONDS = 2.0  # servers close idle connections after five seconds
MAX_ANSWER_BYTES = 1 << 26
ERROR_SECONDS, MAX_ERROR_BYTES = 5.0, 1 << 20  # for the explanation of an error
MIN_SECRET = 20  # characters of a key that is no ordinary word, so that it is removed even from a model's text
RETRIED = frozenset({TIMEOUT, 425, 429})  # HTTP status, and all server errors
WAIT_SECONDS = 0.05
POOLS = 16  # clients, because httpcore searches all connections of a pool per request: 256 in one pool take 3x as long
TOO_LONG = re.compile("context[ _](length|size)|exceed_context_size|maximum context|longer than the model", re.IGNORECASE)
TOPIC_HEADERS = ("X-Session-ID", "X-SMG-Routing-Key")  # by which vLLM's router and SGLang's gateway choose a replica


class Connection:
    """A thread with an event loop and HTTP clients. `transport` replaces the network in tests.

    With `serving_silence`, the patience with servers is that of `serve`, whose servers may be silent for as many seconds.
    """

    def __init__(
        self, transport: "httpx2.AsyncBaseTransport | None" = None, *, serving_silence: float | None = None
    ) -> None:
        self.serving_silence = serving_silence
        self._arrived = threading.Event()
        self._transport = transport
        self._clients: dict[tuple[bool, int], httpx2.AsyncClient] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for its result. Do not call this from that thread."""
        return self.begin(work).result()

    def begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine in the thread. Cancelling the future cancels its requests."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def notify(self) -> None:
        self._arrived.set()

    def wait(self) -> None:
        """Wait at most `WAIT_SECONDS` for `notify`."""
        self._arrived.wait(WAIT_SECONDS)
        self._arrived.clear()

    def client(self, topic: str, *, may_use_proxy: bool) -> "httpx2.AsyncClient":
        """Return a client, which is always the same for a topic, so that its connection is reused."""
        import httpx2

        name = may_use_proxy, hash(topic) % POOLS
        if name not in self._clients:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
            self._clients[name] = httpx2.AsyncClient(
                transport=self._transport, limits=limits, verify=self._certificates, trust_env=may_use_proxy
            )
        return self._clients[name]

    @cached_property
    def _certificates(self) -> "ssl.SSLContext":
        import httpcore2

        return httpcore2.default_ssl_context()

    def close(self) -> None:
        if self._thread.is_alive():
            self.run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.aclose()


@dataclass
class Server:
    """The API at an address, and the patience with it.

    Requests for a problem have the same `topic`, so that a load balancer can choose the replica that cached the prompt.
    Requests without a topic are probes.
    """

    connection: Connection
    address: Address
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._probing = RunPatience(self.name)
        self._patience: Patience = self._probing
        self._topics: set[str] = set()  # of the requests that are in flight
        self._is_shared = False  # whether requests for several problems were ever in flight at once
        if self.connection.serving_silence is not None:
            self._patience = ServePatience(self.name, self.connection.serving_silence)

    @property
    def name(self) -> str:
        return self.address.host

    async def fetch(self, path: str, read: Read[T], body: Json | None = None, topic: str = "") -> T:
        """Send a request once, and return the response as `read` parses it. Raises the same errors as `stream`."""
        async with self._sent(path, body, topic, streams=False) as response:
            return self._parsed(await _read(response, MAX_ANSWER_BYTES), read)

    async def stream(self, path: str, read: Read[T], body: Json, topic: str) -> AsyncGenerator[T, None]:
        """Send a request once, and yield the objects in the response as `read` parses them.

        Raises RetryableError if the request should be sent again, or the errors of `retry`, or ContextFullError if the text is
        too long.
        """
        import httpx2

        size = 0
        silence, _ = self._limits(topic, streams=True)
        async with self._sent(path, body, topic, streams=True) as response:
            kind = response.headers.get("Content-Type", "nothing").partition(";")[0].strip()
            if kind.lower() != "text/event-stream":
                raise ServerRequestError(f"{self.name} does not stream its responses (it sent {self.shown(kind)})")
            response.encoding = "utf-8"  # of all event streams, whatever their header says
            async with aclosing(aiter(httpx2.EventSource(response))) as events:  # type: ignore[type-var]
                while data := await _within(silence, _next_data(events)):
                    size += len(data)
                    if size > MAX_ANSWER_BYTES:
                        raise RetryableError("sent too long a response")
                    if data == "[DONE]":
                        # Only a response that was read to its end leaves its connection open.
                        with contextlib.suppress(TimeoutError, httpx2.RequestError):
                            async with asyncio.timeout(DONE_SECONDS):
                                await anext(events, None)
                        return
                    yield self._parsed(data, read)

    @contextlib.asynccontextmanager
    async def _sent(
        self, path: str, body: Json | None, topic: str, *, streams: bool
    ) -> AsyncGenerator["httpx2.Response", None]:
        """Send a request and check the status of the response. Errors while the response is read are converted as well."""
        import httpx2

        silence, seconds = self._limits(topic, streams=streams)
        headers = dict.fromkeys(TOPIC_HEADERS, topic) if topic else {}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        client = self.connection.client(topic, may_use_proxy=not self.address.is_private)  # a proxy would see the key
        connecting = min(CONNECT_SECONDS, silence)
        timeout = httpx2.Timeout(silence, connect=connecting, pool=None)
        method = "GET" if body is None else "POST"
        url = self.address.url(path)
        sending = client.stream(method, url, json=body, headers=headers, timeout=timeout)
        began = time.monotonic()
        if topic:
            self._topics.add(topic)
        self._is_shared = self._is_shared or len(self._topics) > 1
        try:
            async with asyncio.timeout(seconds), contextlib.AsyncExitStack() as stack:
                # The whole head of a response, because httpx2 waits for each part of it: `100 Continue` may come forever.
                response = await _within(connecting + silence, stack.enter_async_context(sending))
                await self._check(response)
                yield response
        except TimeoutError:
            message = f"{self.name} did not complete a response within {seconds:g} s"
            fewer = "--concurrency or --max-step-tokens" if self._is_shared else "--max-step-tokens"
            hint = f"check that the server is not overloaded, or lower {fewer}"
            raise ServerRequestError(message, hint, status=TIMEOUT) from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            reason = f"is unreachable ({str(error) or type(error).__name__})"
            raise RetryableError(reason, is_down=True, waited=time.monotonic() - began) from None
        except httpx2.TimeoutException:
            raise _silent(silence) from None
        except httpx2.RequestError as error:
            raise RetryableError(f"interrupted a response ({self.shown(error) or type(error).__name__})") from None
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise ServerError(f"invalid server address {self.name}: {error}", "correct the address") from None
        finally:
            self._topics.discard(topic)

    def _limits(self, topic: str, *, streams: bool) -> tuple[float, float]:
        """Return the maximum seconds between two chunks of a response, and of the whole response."""
        if topic and streams:
            return self._patience.silence, WHOLE_SECONDS
        silence = min(self._patience.silence, SHORT_SECONDS) if topic else SHORT_SECONDS
        return silence, 2 * silence

    async def _check(self, response: "httpx2.Response") -> None:
        status = response.status_code
        if response.is_success:
            return
        text = ""
        with contextlib.suppress(TimeoutError, RetryableError):  # long and slow explanations are omitted
            async with asyncio.timeout(ERROR_SECONDS):
                body = await _read(response, MAX_ERROR_BYTES)
                value = "" if body.lstrip().startswith("<") else _loaded(body)  # no web page
                text = self.shown(_message(body if value is None else value))
        reason = f"responded with HTTP {status}: {text}".rstrip(": ")
        if status in RETRIED or status >= 500:
            raise RetryableError(reason, retry_after=_retry_after(response.headers), status=status)
        self._patience.note_end()
        if response.is_redirect:
            raise ServerError(f"{self.name} redirects to another address", "use that address")
        message = f"{self.name} {reason}"
        if status == 401:
            hint = "set the API key in ARBITRAGE_API_KEY, ARBITRAGE_DRAFT_API_KEY or ARBITRAGE_TARGET_API_KEY"
            raise ServerError(message, hint)
        if TOO_LONG.search(text):
            raise ContextFullError(message, "use a shorter problem")
        raise ServerRequestError(message, status=status)

    def _parsed(self, text: str, read: Read[T]) -> T:
        """Parse a JSON object. Raises ContextFullError or RetryableError if the object describes an error."""
        value = _loaded(self.redacted(text) if len(self.key or "") >= MIN_SECRET else text)
        if not isinstance(value, dict):
            raise RetryableError("sent a response that is not a JSON object")
        if value.get("error"):
            reason = self.shown(_message(value))
            if TOO_LONG.search(reason):
                raise ContextFullError(f"{self.name}: {reason}", "use a shorter problem")
            raise RetryableError(f"interrupted a response ({reason})")
        try:
            answer = read(value)
        except ValueError as error:
            reason = self.shown(reason_of(error) if isinstance(error, ValidationError) else error)
            raise ServerRequestError(f"{self.name} sent a response in an unknown format ({reason})") from None
        self._patience.note_response()
        return answer

    def note_failure(self) -> None:
        """Note that the server failed work that was cancelled. Call this in the connection's thread."""
        self._patience.note_failure()

    def redacted(self, text: str) -> str:
        """Replace the API key, which some servers repeat, even with line breaks in it."""
        return re.sub(r"(?:\s|\\[nrt])*\\?".join(map(re.escape, self.key)), "***", text) if self.key else text

    def shown(self, text: object) -> str:
        """Return a server's text as a part of an error."""
        return " ".join(self.redacted(str(text)).split())[:300]

    async def retry(
        self, work: Callable[[], Awaitable[T]], *, is_probe: bool = False, restart: Callable[[], None] = lambda: None
    ) -> T:
        """Repeat the work until it succeeds. `restart` is called before each retry.

        A probe tests the server. Raises ServerRequestError if only this work failed; ServerError if the server cannot be used.
        """
        patience: Patience = self._probing if is_probe else self._patience
        patience.check()
        tries = Tries(time.monotonic(), is_probe)
        while True:
            try:
                result = await work()
            except RetryableError as failure:
                tries.is_shared = self._is_shared
                delay = patience.delay(failure, tries)
            else:
                patience.note_end()
                return result
            await asyncio.sleep(delay)
            restart()


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of the work. Raises RetryableError if it takes longer: a server may send empty parts forever."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise _silent(seconds) from None


def _silent(seconds: float) -> RetryableError:
    return RetryableError(f"sent nothing for {seconds:g} s", is_down=True, status=TIMEOUT)


async def _next_data(events: "AsyncIterator[httpx2.ServerSentEvent]") -> str:
    """Return the data of the next event that has any, or nothing at the end. Some servers send empty events as well."""
    async for event in events:
        if event.data:
            return event.data
    return ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the delay in seconds that the server requests, as a number or as a date (RFC 9110)."""
    value = headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return min(float(value), MAX_RETRY_AFTER)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER)


def _loaded(text: str) -> Any:
    """Return a JSON value, or None if the text is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _message(value: Any) -> Any:
    """Return the explanation in a JSON value that describes an error."""
    for name in ("error", "message"):
        value = value.get(name, value) if isinstance(value, dict) else value
    return value or ""


async def _read(response: "httpx2.Response", max_bytes: int) -> str:
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:
        async for part in parts:
            body += part
            if len(body) > max_bytes:
                raise RetryableError("sent too long a response")
    return body.decode("utf-8", "replace")

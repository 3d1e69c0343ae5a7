"""An HTTP server with OpenAI's endpoints, which checks API keys and limits requests.

HTTP, models and signals each have a thread. The main thread waits for signals.
"""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from arbitrage_cli.errors import UsageError, os_errors
from arbitrage_cli.routing.route import Route
from arbitrage_cli.serving import answers
from arbitrage_cli.serving.answers import Answer, SolutionEvent
from arbitrage_cli.serving.requests import ChatRequest, Defaults, RefusedError, find_route, read_request, shutting_down
from arbitrage_cli.serving.worker import Observe, Report, Ticket, Worker
from arbitrage_cli.system.signals import ENDING, Interruption, interruptible
from arbitrage_cli.types import Finished, Json, Writing, frozen

MAX_CONNECTIONS = 512
BACKLOG = 128  # pending connections
HEADER_BYTES, BODY_BYTES = 1 << 16, 1 << 20
KEEP_ALIVE_SECONDS = 120  # longer than clients reuse a connection: a request on a closing connection would be lost
STATUS_CLIENT_CLOSED = 499  # as in nginx
MIN_RETRY_SECONDS = 1

log = logging.getLogger("arbitrage.serving")


@frozen
class ServerBounds:
    """Limits on the time of a request, and of its body.

    If a stream sends nothing for `keep_alive_seconds`, it sends a comment. A disconnected client is noticed as often.
    """

    seconds: float = 600.0
    body_seconds: float = 10.0
    keep_alive_seconds: float = 5.0


@frozen
class Access:
    """The required API key, if any, and the host names that a request may address."""

    api_key: str | None = None
    accepts_host: Callable[[str], bool] = lambda host: True


@frozen
class Guard:
    """Rejects requests from web pages of other origins, without the API key, or with an ambiguous length."""

    app: ASGIApp
    access: Access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        await (_refusal_response(refusal, closes=True) if refusal else self.app)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> RefusedError | None:
        if "content-length" in headers and "transfer-encoding" in headers:
            return RefusedError("a request must not have both Content-Length and Transfer-Encoding")
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self.access.accepts_host(_host_name(host)):  # a web page may have any domain name resolve to this server
            return RefusedError("unknown Host header", "use the server's IP address, or an API key", code="invalid_host")
        if origin is not None and origin.partition("://")[2] != host:
            message = "requests from web pages of other origins are refused"
            return RefusedError(message, status=403, code="invalid_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        required = self.access.api_key
        is_right = scheme.lower() == "bearer" and secrets.compare_digest(key.strip().encode(), (required or "").encode())
        if required is None or is_right or path == "/health":
            return None
        return RefusedError("missing or invalid API key", status=401, code="invalid_api_key")


def _host_name(header: str) -> str:
    """Return the name or IP address in a Host header, or "" if the header is invalid."""
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{header}").hostname or ""
    return ""


@frozen
class Endpoints:
    """The route handlers."""

    defaults: Defaults
    worker: Worker
    bounds: ServerBounds
    created: int  # Unix time

    async def health(self, request: Request) -> Response:
        intake = self.worker.intake
        load = {"running": self.worker.num_running, "waiting": len(intake)}
        return JsonResponse({"status": "ok", **load, **intake.describe()})

    async def models(self, request: Request) -> Response:
        data = [self._model(name, find_route(name, self.defaults)) for name in self.defaults.names]
        return JsonResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JsonResponse(self._model(name, find_route(name, self.defaults)))

    def _model(self, name: str, route: Route) -> Json:
        """Describe a model, with the size of its context as OpenRouter, vLLM and llama-server name it."""
        size = self.defaults.context_size_of(route.policy)
        context = {"context_length": size, "max_model_len": size, "meta": {"n_ctx": size}} if size else {}
        return {"id": name, "object": "model", "created": self.created, "owned_by": "arbitrage", **context}

    async def complete(self, request: Request) -> ASGIApp:
        chat = read_request(await _read_body(request, self.bounds), f"chatcmpl-{secrets.token_hex(12)}", self.defaults)
        call = Exchange(chat, self.bounds)
        self.worker.intake.put(call.ticket)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                response = await (call.events() if chat.body.stream else call.answer(request.is_disconnected))
                await response(scope, receive, send)
            finally:  # or the client has left
                self.worker.intake.withdraw(call.ticket)

        return respond


class Exchange:
    """A request that is being answered in the event loop."""

    def __init__(self, chat: ChatRequest, bounds: ServerBounds) -> None:
        self._bounds = bounds
        self._headers = {"x-arbitrage-ignored": chat.body.ignored} if chat.body.ignored else {}
        self._loop = asyncio.get_running_loop()
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._answer = Answer(chat, int(time.time()))
        self.ticket = Ticket(chat, bounds.seconds, self._deliver)

    async def answer(self, is_disconnected: Callable[[], Awaitable[bool]]) -> Response:
        while not self._answer.is_complete:
            if report := await self._next(self._next_pause()):
                self._take(report)
            if await is_disconnected():
                raise ClientDisconnect
        return JsonResponse(self._answer.complete(), headers=self._headers)

    async def events(self) -> Response:
        """Wait for the first text, if it arrives in time, because an early error can still set the HTTP status."""
        pause = self._next_pause()
        while isinstance(report := await self._next(pause), Writing):
            pass
        headers = {"cache-control": "no-store", **self._headers}
        return StreamingResponse(self._stream(report), media_type="text/event-stream", headers=headers)

    async def _stream(self, report: SolutionEvent | None) -> AsyncIterator[bytes]:
        """Yield the events of the answer, with keep-alive comments between them. `report` is the first report."""
        yield answers.event(self._answer.first())
        pause = self._next_pause()
        try:
            while True:
                chunk = self._take(report) if report else None
                if chunk or not report:
                    yield answers.event(chunk) if chunk else answers.KEEP_ALIVE
                    await asyncio.sleep(0)  # notice at once that the client has left, because asyncio warns of later writes
                    pause = self._next_pause()
                if self._answer.is_complete:
                    break
                report = await self._next(pause)
            for chunk in self._answer.last():
                yield answers.event(chunk)
        except RefusedError as error:
            yield answers.event(answers.error_body(error))
        yield answers.DONE

    def _take(self, report: SolutionEvent) -> Json | None:
        chunk = self._answer.take(report)
        if self._answer.is_complete:  # otherwise the request would count as cancelled
            self.ticket.end = "stop"
        return chunk

    def _next_pause(self) -> float:
        """Return the time at which a silence that begins now counts as a pause. Reports of models may arrive meanwhile."""
        return self._loop.time() + self._bounds.keep_alive_seconds

    async def _next(self, pause: float) -> SolutionEvent | None:
        """Return the next report, or None if the `pause` begins. Raises RefusedError if the request failed or timed out."""
        try:
            async with asyncio.timeout_at(pause):
                report = await self._reports.get()
        except TimeoutError:
            if self.ticket.deadline.has_passed:
                raise answers.timed_out() from None
            return None
        if report is None:
            raise shutting_down()
        if isinstance(report, Finished) and (refusal := answers.refusal_of(report)):
            raise refusal
        return report

    def _deliver(self, report: Report) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._reports.put_nowait, report)


async def _read_body(request: Request, bounds: ServerBounds) -> bytes:
    """Read a request body. Raises RefusedError if the body is not JSON, is too large or arrives too slowly."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("the body must be JSON", "set the header Content-Type: application/json", status=415)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_seconds):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise RefusedError(f"the body is larger than {BODY_BYTES:,} bytes", status=413)
    except TimeoutError as error:
        raise RefusedError(f"the body did not arrive within {bounds.body_seconds:g} s", status=408) from error
    return bytes(body)


class JsonResponse(JSONResponse):
    """A response in ASCII, because a model's text may contain parts of characters that UTF-8 cannot encode."""

    def render(self, content: Json) -> bytes:
        return answers.to_json(content)


def _refusal_response(error: RefusedError, *, closes: bool = False) -> Response:
    """Return an error response. If `closes` is true, the connection is closed, because it may still contain a body.

    uvicorn also closes it after an internal error. A client that is not told would reuse the connection, and lose its next
    request.
    """
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(MIN_RETRY_SECONDS, math.ceil(error.retry_after)))
    if closes or error.status in (408, 413, 500):
        headers["connection"] = "close"
    return JsonResponse(answers.error_body(error), error.status, headers)


async def _show_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=STATUS_CLIENT_CLOSED)
    if isinstance(error, HTTPException):
        hint = "this server has /v1/chat/completions, /v1/models and /health" if error.status_code == 404 else ""
        error = RefusedError(error.detail.lower(), hint, status=error.status_code)
    if not isinstance(error, RefusedError):
        if not isinstance(error, h11.LocalProtocolError):  # after a malformed body, which uvicorn has already refused
            log.error("internal error in a request (%s: %s); please report it", type(error).__name__, error, exc_info=error)
        error = RefusedError("internal server error", status=500)
    return _refusal_response(error)


# --- connections and signals


class Protocol(H11Protocol):
    """uvicorn's HTTP protocol, limited to `MAX_CONNECTIONS` clients.

    At the limit, a new connection closes the oldest connection that has not sent a complete request.
    """

    _began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._began = time.monotonic()
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            states = h11.IDLE, h11.SEND_BODY
            unfinished = [one for one in self.connections if isinstance(one, Protocol) and one.conn.their_state in states]
            oldest = min(unfinished, key=lambda connection: connection._began)  # noqa: SLF001 - same class
            self.connections.discard(oldest)
            oldest.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, so that requests wait while models are loaded. Port 0 selects a free port."""
    with os_errors(UsageError, f"{host} port {port}: cannot listen", "use another --port or --host"):
        family, _, _, _, address = socket.getaddrinfo(os.fsencode(host), port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    return bound


class Service:
    """An HTTP server and the worker that answers its requests."""

    def __init__(self, worker: Worker, defaults: Defaults, bounds: ServerBounds, access: Access) -> None:
        self._worker = worker
        endpoints = Endpoints(defaults, worker, bounds, int(time.time()))
        routes = [
            HttpRoute("/health", endpoints.health),
            HttpRoute("/v1/chat/completions", endpoints.complete, methods=["POST"]),
            HttpRoute("/v1/models", endpoints.models),
            HttpRoute("/v1/models/{name:path}", endpoints.model),
        ]
        handlers = dict.fromkeys((RefusedError, HTTPException, ClientDisconnect, Exception), _show_error)
        config = uvicorn.Config(
            Starlette(routes=routes, middleware=[Middleware(Guard, access)], exception_handlers=handlers),
            http=Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",  # client errors are not logged; the application logs its own failures
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=math.ceil(bounds.body_seconds + bounds.seconds),
        )
        self._http = uvicorn.Server(config)

    def run(self, bound: socket.socket, observe: Observe) -> None:
        """Serve until a signal arrives or `drain` is called, then finish open requests. A second signal aborts them.

        Raises the errors of `Worker.run`.
        """
        hold_signals = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ENDING)  # the main thread handles them
        with ThreadPoolExecutor(2, "serving", initializer=hold_signals) as pool:
            working = pool.submit(self._worker.run, observe)
            working.add_done_callback(lambda _: self.drain())
            serving = pool.submit(self._http.run, [bound])
            try:
                with contextlib.suppress(Interruption), interruptible():
                    serving.result()
                self.drain()
                serving.result()
            finally:
                self._http.force_exit = True
                self._worker.intake.close()
        working.result()

    def drain(self) -> None:
        """Stop accepting requests and let open requests finish. Thread-safe."""
        self._http.should_exit = True

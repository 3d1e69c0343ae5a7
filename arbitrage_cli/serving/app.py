"""The ASGI application: defines the HTTP endpoints, checks API keys, limits request bodies, and sends answers."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from h11 import LocalProtocolError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from arbitrage_cli.serving import answers
from arbitrage_cli.serving.answers import Answer, Json, Progress
from arbitrage_cli.serving.requests import ChatRequest, Defaults, RefusedError, find_route, read_request
from arbitrage_cli.serving.worker import Report, Ticket, Worker
from arbitrage_cli.types import Decided, Finished, Writing

log = logging.getLogger("arbitrage.serving")

Result = TypeVar("Result")

STATUS_CLIENT_CLOSED = 499  # as in nginx


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on requests: the maximum numbers of running and waiting requests, their timeout, and their size."""

    running: int
    waiting: int = 64
    seconds: float = 600.0
    body_bytes: int = 1 << 20
    body_seconds: float = 10.0
    keep_alive_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Access:
    """The required API key and the host names that a request may address. An empty value is not checked."""

    api_key: str | None = None
    hosts: Sequence[str] = ()


def make_app(defaults: Defaults, worker: Worker, bounds: Bounds, access: Access) -> ASGIApp:
    endpoints = Endpoints(defaults, worker, bounds)
    routes = [
        HttpRoute("/health", endpoints.health),
        HttpRoute("/v1/chat/completions", endpoints.complete, methods=["POST"]),
        HttpRoute("/v1/models", endpoints.models),
        HttpRoute("/v1/models/{name:path}", endpoints.model),
    ]
    known_hosts = [Middleware(TrustedHostMiddleware, access.hosts, www_redirect=False)] if access.hosts else []
    return Starlette(
        routes=routes,
        middleware=[*known_hosts, Middleware(Guard, access.api_key)],
        exception_handlers={
            RefusedError: _show_refusal,
            HTTPException: _show_http_error,
            ClientDisconnect: _show_nothing,
            Exception: _show_defect,
        },
    )


class Guard:
    """Rejects requests from web pages of other origins, and requests without the API key."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope, Headers(scope=scope))
        await (_refusal_response(refusal) if refusal else self._app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> RefusedError | None:
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            message = "requests from web pages of other origins are refused"
            return RefusedError(message, status=403, code="invalid_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        is_right = scheme.lower() == "bearer" and secrets.compare_digest(key.strip().encode(), (self._key or "").encode())
        if self._key is None or is_right or scope["path"] == "/health":
            return None
        return RefusedError("missing or invalid API key", status=401, code="invalid_api_key")


class Endpoints:
    """The route handlers."""

    def __init__(self, defaults: Defaults, worker: Worker, bounds: Bounds) -> None:
        self._defaults, self._worker, self._bounds = defaults, worker, bounds
        self._started = int(time.time())
        self._open: set[Call] = set()  # waiting or running

    async def health(self, request: Request) -> Response:
        return _json_response({"status": "ok", "running": self._worker.num_running, "waiting": len(self._worker.intake)})

    async def models(self, request: Request) -> Response:
        return _json_response({"object": "list", "data": [self._model(name) for name in self._defaults.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        find_route(name, self._defaults.menu)
        return _json_response(self._model(name))

    def _model(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "arbitrage"}

    async def complete(self, request: Request) -> Response:
        body = await _read_body(request, self._bounds)
        chat = read_request(body, f"chatcmpl-{secrets.token_hex(12)}", self._defaults)
        if chat.ignored:
            log.info("%s: ignored fields: %s", chat.problem.id, ", ".join(chat.ignored))
        with contextlib.ExitStack() as stack:
            call = self._begin(chat)
            stack.callback(self._end, call)
            headers = {"x-arbitrage-ignored": ", ".join(chat.ignored)} if chat.ignored else {}
            if not chat.streams:
                return _json_response(await _unless_disconnected(request, call.answer()), headers=headers)
            first = await _unless_disconnected(request, call.first())  # an early error can still set the HTTP status
            return EventStream(call.stream(first), stack.pop_all(), headers)

    def _begin(self, chat: ChatRequest) -> "Call":
        if len(self._open) >= self._bounds.running + self._bounds.waiting:
            message = f"the queue is full: {len(self._open)} requests are running or waiting"
            raise RefusedError(message, "retry later", status=429, code="queue_full")
        call = Call(chat, self._bounds, on_end=self._open.discard)
        if not self._worker.intake.put(call.ticket):
            raise _shutting_down()
        self._open.add(call)
        return call

    def _end(self, call: "Call") -> None:
        self._open.discard(call)
        self._worker.intake.withdraw(call.ticket)


class Call:
    """A request that is being answered in the event loop. `on_end` is called after the last report."""

    def __init__(self, chat: ChatRequest, bounds: Bounds, on_end: Callable[["Call"], None]) -> None:
        self._bounds = bounds
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._answer = Answer(chat, int(time.time()))
        self.ticket = Ticket(chat, bounds.seconds, self._deliver)

    async def answer(self) -> Json:
        try:
            async with asyncio.timeout(self._bounds.seconds):
                while not self._answer.is_stopped:
                    if isinstance(report := await self._next(), Finished):
                        return self._answer.complete(report)
                    self._answer.take(report)
        except TimeoutError as error:
            raise answers.timed_out() from error
        return self._answer.complete(None)

    async def first(self) -> Progress | None:
        """Return the first report with text, or None if it does not arrive in time."""
        while isinstance(report := await self.next_or_none(), Writing):
            pass
        return report

    async def next_or_none(self) -> Progress | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._bounds.keep_alive_seconds):
                return await self._next()
        return None

    async def stream(self, report: Progress | None) -> AsyncIterator[bytes]:
        """Yield the events of the answer, with keep-alive comments between them. `report` is the first report."""
        yield answers.event(self._answer.first())
        try:
            while not isinstance(report, Finished):
                if report is None:
                    yield answers.KEEP_ALIVE
                elif chunk := self._answer.take(report):
                    yield answers.event(chunk)
                if self._answer.is_stopped and isinstance(report, Decided):
                    break  # the step with the stop string is complete, so its tokens are counted
                if self.ticket.deadline.has_passed:
                    raise answers.timed_out()
                report = await self.next_or_none()
            for chunk in self._answer.last(report if isinstance(report, Finished) else None):
                yield answers.event(chunk)
        except RefusedError as error:
            yield answers.event(answers.error_body(error))
        yield answers.DONE

    async def _next(self) -> Progress:
        report = await self._reports.get()
        if report is None:
            raise _shutting_down()
        if isinstance(report, Finished) and (refusal := answers.refusal_of(report)):
            raise refusal
        return report

    def _deliver(self, report: Report) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._take, report)

    def _take(self, report: Report) -> None:
        self._reports.put_nowait(report)
        if report is None or isinstance(report, Finished):
            self._on_end(self)


class EventStream(StreamingResponse):
    """Server-sent events. `at_end` is closed when the stream ends or its client disconnects."""

    def __init__(self, events: AsyncIterator[bytes], at_end: contextlib.ExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-store", **headers})
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._at_end:
            await super().__call__(scope, receive, send)


async def _read_body(request: Request, bounds: Bounds) -> bytes:
    """Read a request body. Raises RefusedError if the body is not JSON, is too large or arrives too slowly."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("the body must be JSON", "set the header Content-Type: application/json", status=415)
    too_large = RefusedError(f"the body is larger than {bounds.body_bytes:,} bytes", status=413)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_seconds):
            if int(request.headers.get("content-length", "0")) > bounds.body_bytes:
                raise too_large
            async for part in request.stream():
                body += part
                if len(body) > bounds.body_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedError(f"the body did not arrive within {bounds.body_seconds:g} s", status=408) from error
    return bytes(body)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`. If the client disconnects first, cancel `work` and raise ClientDisconnect."""
    task, disconnected = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _shutting_down() -> RefusedError:
    return RefusedError("the server is shutting down", "retry later", status=503)


def _json_response(data: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(answers.to_json(data), status, headers, media_type="application/json")


def _refusal_response(error: RefusedError) -> Response:
    close = {"connection": "close"}  # an unread body would keep the connection open
    retry, log_in = {"retry-after": "1"}, {"www-authenticate": "Bearer"}
    headers = {401: log_in, 408: close, 429: retry, 503: retry}
    return _json_response(answers.error_body(error), error.status, headers.get(error.status))


async def _show_refusal(request: Request, error: Any) -> Response:
    return _refusal_response(error)


async def _show_http_error(request: Request, error: Any) -> Response:
    return _refusal_response(RefusedError(error.detail.lower(), status=error.status_code))


async def _show_defect(request: Request, error: Exception) -> Response:
    if not isinstance(error, LocalProtocolError):  # after a malformed body, which uvicorn has already refused
        log.error("internal error in a request (%s: %s); please report it", type(error).__name__, error, exc_info=error)
    return _refusal_response(RefusedError("internal server error", status=500))


async def _show_nothing(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_CLOSED)

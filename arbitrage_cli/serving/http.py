"""The HTTP server in a thread of its own, beside the thread of the models. Knows no endpoint."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from arbitrage_cli.errors import UsageError

MAX_CONNECTIONS = 1000
HEAD_SECONDS = 10.0
CLOSING_SECONDS = 5
HEAD_BYTES = 1 << 16


class Protocol(H11Protocol):
    """uvicorn's, which waits for the head of a request as long as a byte comes now and then; this one does not."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(error)

    def _watch(self) -> None:
        """The time for a head begins with the connection, and with the first byte of a further head."""
        begun = bool(self.conn.trailing_data[0]) or self.cycle is None
        if self.conn.their_state is not h11.IDLE or not begun:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet; port 0 takes any that is free. UsageError."""
    with _explained(f"{host} port {port}"):
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    return bound


def listen(bound: socket.socket) -> None:
    """Let clients connect. UsageError if another process, which bound the same address, was first."""
    host, port = bound.getsockname()[:2]
    with _explained(f"{host} port {port}"):
        bound.listen()


@contextmanager
def _explained(place: str) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{place}: cannot listen there ({reason})", "give another --port or --host") from error


@contextmanager
def answering(app: ASGIApp, bound: socket.socket) -> Iterator[None]:
    """Answers requests meanwhile. In the end, answers that are being sent are finished."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), name="http")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()

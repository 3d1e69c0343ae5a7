"""Runs the server: HTTP and signal handling in the main thread, the models in a second thread."""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from arbitrage_cli.errors import UsageError, os_errors
from arbitrage_cli.serving.app import Access, Bounds, make_app
from arbitrage_cli.serving.requests import Defaults
from arbitrage_cli.serving.worker import Observe, Worker
from arbitrage_cli.system.signals import ENDING

MAX_CONNECTIONS = 512
BACKLOG = 128  # pending connections
HEADER_BYTES = 1 << 16
KEEP_ALIVE_SECONDS = 120  # longer than clients reuse a connection: a request on a closing connection would be lost
ANOTHER = "use another --port or --host"


class HttpServer(uvicorn.Server):
    """uvicorn's server with its own signal handling: the first signal lets open requests finish; the second aborts them."""

    _last_signal: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals that are not ignored. A second signal is raised again after the server has stopped."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in ENDING}
        handled = [number for number, handler in previous.items() if handler != signal.SIG_IGN]
        try:
            for number in handled:
                signal.signal(number, self.handle_exit)
            yield
        finally:
            for number in handled:
                signal.signal(number, previous[number])
        if self.force_exit and self._last_signal is not None:
            signal.raise_signal(self._last_signal)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._last_signal, self.force_exit, self.should_exit = sig, self.should_exit, True


class Protocol(H11Protocol):
    """uvicorn's HTTP protocol, limited to `MAX_CONNECTIONS` clients.

    At the limit, a new connection closes the oldest connection that has not sent a complete request.
    """

    _began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._began = time.monotonic()
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            others = (other for other in self.connections if isinstance(other, Protocol))
            unfinished = [other for other in others if other.conn.their_state in (h11.IDLE, h11.SEND_BODY)]
            oldest = min(unfinished, key=lambda connection: connection._began)  # noqa: SLF001 - same class
            self.connections.discard(oldest)
            oldest.transport.close()


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that is not listening yet. Port 0 selects a free port."""
    with os_errors(UsageError, f"{host} port {port}: cannot listen", ANOTHER):
        family, kind, _, _, address = socket.getaddrinfo(os.fsencode(host), port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    return bound


def listen(bound: socket.socket) -> None:
    host, port = bound.getsockname()[:2]
    with os_errors(UsageError, f"{host} port {port}: cannot listen", ANOTHER):
        bound.listen(BACKLOG)


class Service:
    """An HTTP server and the worker that answers its requests."""

    def __init__(self, worker: Worker, defaults: Defaults, bounds: Bounds, access: Access) -> None:
        self._worker = worker
        config = uvicorn.Config(
            make_app(defaults, self._worker, bounds, access),
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
        self._http = HttpServer(config)

    def run(self, bound: socket.socket, observe: Observe) -> None:
        """Serve until a signal arrives or `drain` is called, then finish open requests. Raises the errors of `Worker.run`."""
        hold_signals = partial(signal.pthread_sigmask, signal.SIG_BLOCK, ENDING)  # the main thread handles them
        with ThreadPoolExecutor(1, "models", initializer=hold_signals) as pool:
            working = pool.submit(self._worker.run, observe)
            working.add_done_callback(lambda _: self.drain())
            try:
                self._http.run([bound])
            finally:
                self._worker.intake.close()
        working.result()

    def drain(self) -> None:
        """Stop accepting requests and let open requests finish. Thread-safe."""
        self._http.should_exit = True

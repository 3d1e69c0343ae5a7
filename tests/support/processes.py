"""Helpers for tests with other processes and threads."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cli import TIMEOUT, Process

from arbitrage_cli.system.child import Child


def process_of(child: Child) -> int | None:
    """The id of the process that is kept; None without one."""
    return child._process.id if child._process else None


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def serve_threads(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve on a loopback port, and yield its number."""
    handler.disable_nagle_algorithm = True  # otherwise each response waits 40 ms between its headers and its body
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def awaited(condition: Callable[[], int | None]) -> int:
    until = time.monotonic() + TIMEOUT
    while not (answer := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return answer


def ended_by(number: int, process: Process) -> int:
    """The exit code of a process that is sent a signal until it ends: one that is still pending is not sent again."""

    def code() -> int | None:
        process.send_signal(number)
        return process.poll()

    return awaited(code)

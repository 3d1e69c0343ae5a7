"""Helpers for tests of child processes and of the sandbox."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.grading.programs import find_sandbox
from arbitrage_cli.system.child import Child


def sandbox_or_skip() -> list[str]:
    """Return the sandbox. Without bubblewrap, skip the test, or fail if ARBITRAGE_TEST_SANDBOX is set, as in .ci/run."""
    try:
        return find_sandbox()
    except UsageError as error:
        if os.environ.get("ARBITRAGE_TEST_SANDBOX"):
            raise
        pytest.skip(error.message)


def process_of(child: Child) -> int | None:
    """The id of the process that is kept; None without one."""
    return child._process.id if child._process else None


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def awaited(condition: Callable[[], int | None]) -> int:
    until, pause = time.monotonic() + 20, threading.Event()
    while (answer := condition()) is None and time.monotonic() < until:
        pause.wait(0.01)
    assert answer is not None
    return answer

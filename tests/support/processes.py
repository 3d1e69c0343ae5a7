"""Child processes, for tests: the wall that programs run behind, and which processes there are."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arbitrage_cli.errors import UsageError
from arbitrage_cli.grading.programs import find_wall
from arbitrage_cli.system.child import Child


def wall_or_skip() -> list[str]:
    """The wall. Without one the test is skipped; where ARBITRAGE_TEST_WALL is set, as in .ci/run, it fails."""
    try:
        return find_wall()
    except UsageError as error:
        if os.environ.get("ARBITRAGE_TEST_WALL"):
            raise
        pytest.skip(error.message)


def process_of(child: Child) -> int | None:
    """The id of the process that is kept; None without one."""
    return child._process.id if child._process else None


def is_running(process_id: int) -> bool:
    """Whether the process exists and has not ended; a zombie has ended."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def awaited(condition: Callable[[], int | None]) -> int:
    """What the condition finds, once it does."""
    until, pause = time.monotonic() + 20, threading.Event()
    while (answer := condition()) is None and time.monotonic() < until:
        pause.wait(0.01)
    assert answer is not None
    return answer

"""Compares answers in a separate thread, so that a slow comparison does not delay the models' work on other problems."""

import concurrent.futures
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread

from arbitrage_cli.arbitrage import CompareAnswers
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.types import frozen

WAIT_SECONDS = 0.05
Tasks = SimpleQueue[tuple[Future[bool], CompareAnswers] | None]
"""Comparisons to make. None ends the thread that makes them."""


@frozen
class Comparison:
    """The response to one slot's request: whether the answers are the same, or an error."""

    slot: int
    is_same: bool = False
    error: ProblemError | None = None


class Comparer:
    """Compares the answers of many problems, one after another. `slot` is the index of a problem in flight."""

    def __init__(self) -> None:
        self._tasks: Tasks | None = None
        self._running: dict[int, Future[bool]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def wait(self) -> None:
        """Wait at most `WAIT_SECONDS` for a comparison."""
        concurrent.futures.wait(self._running.values(), WAIT_SECONDS, concurrent.futures.FIRST_COMPLETED)

    def start(self, slot: int, request: CompareAnswers) -> None:
        if self._tasks is None:
            self._tasks = SimpleQueue()
            # A daemon, unlike the threads of an executor: a process that is interrupted does not wait for a comparison.
            Thread(target=_work, args=(self._tasks,), name="comparisons", daemon=True).start()
        self._running[slot] = Future()
        self._tasks.put((self._running[slot], request))

    def tick(self) -> list[Comparison]:
        """Return the comparisons that have ended. Raises the errors of a comparison, except ProblemError."""
        ended = [slot for slot, future in self._running.items() if future.done()]
        return [_result(slot, self._running.pop(slot)) for slot in ended]

    def close(self, slot: int) -> None:
        """Forget a problem. Its comparison ends by itself if it has begun."""
        if future := self._running.pop(slot, None):
            future.cancel()

    def end(self) -> None:
        """Cancel all comparisons that have not begun, and end the thread. The next `start` starts another thread."""
        for slot in list(self._running):
            self.close(slot)
        if self._tasks is not None:
            self._tasks.put(None)
            self._tasks = None


def _work(tasks: Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, request = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(request.is_same())
        except BaseException as error:  # noqa: BLE001 - raised again by `tick`
            future.set_exception(error)


def _result(slot: int, future: "Future[bool]") -> Comparison:
    try:
        return Comparison(slot, future.result())
    except ProblemError as error:
        return Comparison(slot, error=error)

"""Writes steps for many problems at once with a model on a server, as `Engine` does with a local model.

Steps are written in the connection's thread and returned by `tick` in the thread of the scheduler. `requests` says what is
asked, `solution` how responses become steps, `billing` what a step costs, and `chat` how chat APIs are asked.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.engine import SlotUpdate
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.chat import ChatRequests, ChatSolution
from arbitrage_cli.inference.servers.connection import Server
from arbitrage_cli.inference.servers.dialects import Chat
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.inference.servers.patience import TIMEOUT
from arbitrage_cli.inference.servers.requests import Options, TokenRequests
from arbitrage_cli.inference.servers.solution import Report, Solution
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.types import ModelRole, Problem, Step, Trace


class _Slot:
    """A problem, and the updates that the connection's thread has reported and `tick` has not returned."""

    solution: Solution

    def __init__(self, number: int, notify: Callable[[], None], deadline: Deadline | None) -> None:
        self._number = number
        self._notify = notify
        self._deadline = deadline
        self._silent_since = 0.0
        self.writing: Future[None] | None = None
        self.updates: deque[SlotUpdate] = deque()

    def begin(self, writing: "Future[None]") -> None:
        self.writing = writing
        self._silent_since = time.monotonic()

    @property
    def is_failed(self) -> bool:
        """Whether the deadline has passed, and the server was silent for most of the time until then."""
        silent = time.monotonic() - self._silent_since
        return self._deadline is not None and self._deadline.has_passed and silent > self._deadline.seconds / 2

    def report(self, **update: Any) -> None:
        if update.get("text"):
            self._silent_since = time.monotonic()
        self.updates.append(SlotUpdate(self._number, **update))
        self._notify()

    def due(self) -> Iterator[SlotUpdate]:
        """Remove and yield the updates up to the end of a step. The next step may not be wanted."""
        while self.updates:
            update = self.updates.popleft()
            yield update
            if update.step:
                return

    def cut(self) -> list[Step]:
        """Return the steps that `tick` has not returned, and the step that was being written."""
        complete = [update.step for update in self.updates if update.step]
        self.updates.clear()
        unfinished = self.solution.cut()
        return [*complete, unfinished] if unfinished else complete


@dataclass(eq=False)
class ServedWriter:
    """A `Writer` for a model on a server.

    If `shares_prompts` is false, no problem uses another problem's prompt cache.
    """

    role: ModelRole
    model: ServedModel
    sampler: Sampler
    style: PromptStyle
    keep_token_stats: bool = False
    shares_prompts: bool = True

    def __post_init__(self) -> None:
        self._options = Options(
            self.role,
            self.model,
            self.style,
            self.model.prompt(self.style),
            self.keep_token_stats,
            self.shares_prompts,
        )
        self._connection = self.model.server.connection
        self._slots: dict[int, _Slot] = {}

    @property
    def wait(self) -> Callable[[], None]:
        return self._connection.wait

    @property
    def busy(self) -> bool:
        return any(slot.writing for slot in self._slots.values())

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        """Assign a problem to a slot."""
        opened = _Slot(slot, self._connection.notify, deadline)
        opened.solution = self._solution(problem, sampler or self.sampler, opened.report)
        self._slots[slot] = opened

    def _solution(self, problem: Problem, sampler: Sampler, report: Report) -> Solution:
        options = self._options
        if isinstance(self.model.dialect, Chat):
            return ChatSolution(options, ChatRequests(options, problem, sampler), report)
        return Solution(options, TokenRequests(options, problem, sampler), report)

    def close(self, slot: int) -> None:
        if (opened := self._slots.pop(slot, None)) and opened.writing:
            opened.writing.cancel()

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        opened = self._slots[slot]
        if not opened.solution.until_end:  # otherwise, the step is already being written
            opened.solution.begin(request)
            opened.begin(self._connection.begin(self._write(opened)))
        return 0

    def tick(self) -> list[SlotUpdate]:
        slots = self._slots.values()
        ended = [slot for slot in slots if slot.writing and slot.writing.done()]  # first, so that no update is missed
        updates = [update for slot in slots for update in slot.due()]
        for slot in ended:
            if slot.writing and not slot.updates:
                slot.writing.result()
                slot.writing = None
        if any(slot.updates for slot in slots):
            self._connection.notify()  # otherwise, `wait` would wait before the next tick
        return updates

    def stop(self, slot: int) -> list[Step]:
        opened = self._slots[slot]
        if opened.writing is None:
            return opened.cut()
        opened.writing.cancel()  # first, so that nothing is added
        opened.writing = None

        async def cut() -> list[Step]:
            if opened.is_failed:
                self.model.server.note_failure()
            return opened.cut()

        return self._connection.run(cut())

    def num_prompt_tokens(self, slot: int) -> int | None:
        return self._slots[slot].solution.num_prompt

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        return None  # other users of the server change its speed

    # --- in the connection's thread

    async def _write(self, slot: _Slot) -> None:
        """Write and report the next step or, with `until_end`, all later steps."""
        try:
            while True:
                await _write_phase(slot.solution, self.model.server)
                if not slot.solution.until_end or slot.solution.trace.finished:
                    return
        except (ProblemError, ServerError) as error:
            slot.report(error=error)


async def _write_phase(solution: Solution, server: Server) -> None:
    """Write the next step or, with `until_end`, the rest of the phase.

    If a response is interrupted, its last step is written again. After complete steps, this needs another request.
    """
    num_steps = solution.num_steps

    def restart() -> None:
        if solution.num_steps > num_steps:
            raise ServerRequestError(f"{server.name} interrupted a response", status=TIMEOUT)
        solution.retract()

    solution.begin_step()
    try:
        await server.retry(solution.write, restart=restart)
    except ServerRequestError as error:
        if error.status != TIMEOUT or solution.num_steps == num_steps:
            raise
        solution.retract()

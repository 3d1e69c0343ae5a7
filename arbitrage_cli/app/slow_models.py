"""Notices a model whose tokens take far too long for its size, as with too many threads on a busy machine. Reads no file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from arbitrage_cli.system.machine import cores_in_use, logical_processors
from arbitrage_cli.types import ModelRole, Wrote

TOKENS = 4
"""Tokens in a row that are timed."""
SLOWEST = 2e9
"""Bytes of weights a second: a token reads all of them once, and few machines read less."""


@dataclass(frozen=True, slots=True)
class Load:
    """A model's bytes, and its threads."""

    size: int
    threads: int


class SlowModels:
    """Watches the events of a run. Time is counted between tokens of one model that follow each other."""

    def __init__(self, models: Mapping[ModelRole, Load], clock: Callable[[], float] = time.perf_counter) -> None:
        """Models with one thread cannot wait for each other: they are not watched."""
        self._models = {role: load for role, load in models.items() if load.threads > 1 and load.size}
        self._clock = clock
        self._writer: ModelRole | None = None
        self._began = 0.0
        self._tokens = 0

    def warning(self, event: object) -> str | None:
        """What the user should know after this event; once for each model."""
        if not isinstance(event, Wrote) or event.model not in self._models:
            self._writer = None
            return None
        if event.model != self._writer:
            self._writer, self._began, self._tokens = event.model, self._clock(), 0
            return None
        self._tokens += 1
        seconds = (self._clock() - self._began) / self._tokens
        load = self._models[event.model]
        if self._tokens < TOKENS or load.size > SLOWEST * seconds or not _compete(load.threads):
            return None
        return self._describe(event.model, seconds)

    def _describe(self, role: ModelRole, seconds: float) -> str:
        threads = self._models.pop(role).threads
        busy = cores_in_use()
        others = f" (load {busy:.1f})" if busy is not None else ""
        return (
            f"the {role} takes {seconds:.2f} s for a token with {threads} threads, far too long for its size: other programs use "
            f"the processors{others}, and threads wait for each other; --threads {threads // 2} may be many times faster"
        )


def _compete(threads: int) -> bool:
    """Whether there are more threads than processors, with what else is running."""
    return (cores_in_use() or 0.0) + threads > logical_processors() + 0.5

"""How a benchmark is shown while it goes on: how far it is, how the policies stand, how long it will still take.

`Progress` is chosen once, by flag and terminal; `PlainProgress` writes one line an attempt, without an escape byte.
Knows no model and no file.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from arbitrage_cli.display import Loading, one_line, write
from arbitrage_cli.runs.summary import Standing
from arbitrage_cli.types import Event, ModelRole

LOADING_SECONDS = 5.0
"""Loading is mentioned again only after so long."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a benchmark is. `finished` and `planned` count attempts; `seconds_left` is an estimate, None if unknown."""

    finished: int
    planned: int
    standings: Sequence[Standing]
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt. `verdict` is its grade, or "error"; `detail` the answer that was found, or what went wrong.

    `seconds` are None where they were not those of this attempt alone.
    """

    problem: str
    label: str
    verdict: str
    detail: str
    seconds: float | None


class Progress(Loading, Protocol):
    """Shows one benchmark. `close` leaves the terminal as it was, and may be called twice."""

    def begin(self, title: str, state: State) -> None:
        """Models are loaded, attempts follow."""
        ...

    def start(self, problem: str, label: str) -> None:
        """An attempt is taken up: a problem's id, and the policy's name."""
        ...

    def handle(self, event: Event) -> None: ...

    def finish(self, outcome: Outcome, state: State) -> None:
        """An attempt is over, and its row is safe."""
        ...

    def close(self) -> None: ...


class PlainProgress:
    """A `Progress` of lines. `verbosity`: 0 notes only, 1 one line an attempt."""

    def __init__(self, stream: TextIO, *, verbosity: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._verbosity = verbosity
        self._clock = clock
        self._last_loading = clock()

    def loading(self, role: ModelRole, source: str, fraction: float) -> None:
        now = self._clock()
        if self._verbosity and now - self._last_loading >= LOADING_SECONDS:
            self._last_loading = now
            self.note(f"loading {role} {source}: {fraction:.0%}")

    def note(self, text: str) -> None:
        write(self._stream, one_line(text) + "\n")

    def begin(self, title: str, state: State) -> None:
        if self._verbosity:
            self.note(f"{title}: {state.planned} attempts" + (f", {state.finished} of them done" if state.finished else ""))

    def start(self, problem: str, label: str) -> None:
        """Nothing is told before there is an outcome."""

    def handle(self, event: Event) -> None:
        """Steps and tokens are not told."""

    def finish(self, outcome: Outcome, state: State) -> None:
        if self._verbosity:
            self.note("; ".join([f"{state.finished}/{state.planned} {told(outcome)}", *_left(state)]))

    def close(self) -> None:
        """Nothing is left to be undone."""


def told(outcome: Outcome) -> str:
    """One line about an attempt: `gsm8k/12, entropy 0.5: incorrect (18), 12.3 s`."""
    detail = f" ({outcome.detail})" if outcome.detail else ""
    took = "" if outcome.seconds is None else f", {short(outcome.seconds)}"
    return one_line(f"{outcome.problem}, {outcome.label}: {outcome.verdict}{detail}{took}")


def short(seconds: float) -> str:
    """A measured time: 0.42 s, 12.3 s, 1230 s."""
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 1000 else 0}f} s"


def duration(seconds: float) -> str:
    """About how long: 40 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _left(state: State) -> list[str]:
    if state.seconds_left is None or state.finished == state.planned:
        return []
    return [f"about {duration(state.seconds_left)} left"]

"""A benchmark in a terminal: one region that is drawn over, with a line for each policy; only notes scroll up and stay."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.text import Text

from arbitrage_cli.display import one_line
from arbitrage_cli.display.live import COLORS, REDRAW_SECONDS
from arbitrage_cli.display.progress import Outcome, State, duration, short, told
from arbitrage_cli.display.region import Region
from arbitrage_cli.runs.summary import Standing
from arbitrage_cli.types import Decided, Event, ModelRole, Started, Writing, Wrote

BAR = 24  # characters; fewer where the line is too short for them
SPINNER = "-\\|/"
MIN_LABEL = 8  # characters of a policy's label that are left in the narrowest terminal


@dataclass(frozen=True, slots=True)
class Words:
    """What a policy's line has beside its figures."""

    correct: str = ""
    each: str = ""
    rate: str = "/s"
    speed: str = ""
    counts: bool = False  # of right answers, beside their share
    planned: bool = True  # how many attempts there will be


WORDS = (
    Words("correct ", " each", " problems/s", " the target's speed", counts=True),
    Words("correct ", speed=" speed"),
    Words(),
    Words(planned=False),
)
"""From all to as few as still tell the figures: the first that fit are taken."""


class LiveProgress:
    """A `Progress` for a terminal on stderr."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._region = Region(stream)
        self._clock = clock
        self._drawn = -REDRAW_SECONDS
        self._above: list[Text] = []
        self._title = ""
        self._state: State | None = None
        self._began = self._updated = clock()
        self._going_on: dict[str, str] = {}  # what each attempt is called, by problem
        self._label = ""
        self._step = 0
        self._writer: ModelRole | None = None
        self._num_tokens = 0
        self._last = ""

    # --- the Progress protocol

    def loading(self, role: ModelRole, source: str, fraction: float) -> None:
        if self._is_due or fraction >= 1:
            self._draw([Text(f"loading {fraction:4.0%} {role} {one_line(source)}", "dim")])

    def note(self, text: str) -> None:
        self._above.append(Text(one_line(text), "yellow"))
        self._draw(self._lines())

    def begin(self, title: str, state: State) -> None:
        self._title, self._state = one_line(title), state
        self._began = self._updated = self._clock()
        self._draw(self._lines())

    def start(self, problem: str, label: str) -> None:
        self._going_on[problem] = one_line(f"{problem}, {label}")
        self._label = one_line(label)
        self._step, self._writer, self._num_tokens = 0, None, 0
        self._draw(self._lines())

    def handle(self, event: Event) -> None:
        if isinstance(event, Wrote):
            self._num_tokens += 1
            if not self._is_due:
                return
        elif isinstance(event, Writing):
            if event.model != self._writer or len(event.trace.decisions) + 1 != self._step:  # it may be told anew
                self._num_tokens = 0
            self._writer, self._step = event.model, len(event.trace.decisions) + 1
        elif not isinstance(event, Started | Decided):
            return
        self._draw(self._lines())

    def finish(self, outcome: Outcome, state: State) -> None:
        self._going_on.pop(outcome.problem, None)
        self._state, self._updated = state, self._clock()
        self._last = told(outcome)
        if outcome.verdict == "error":
            self._above.append(Text(self._last, "bold red"))
        self._draw(self._lines())

    def close(self) -> None:
        self._state = None
        self._draw([])

    # --- drawing

    def _lines(self) -> list[Text]:
        """How far it is, a line for each policy, what is being done, and what came of the last attempt."""
        if self._state is None:
            return []
        now, columns = self._clock(), self._region.size[0] - 1
        several = len(self._going_on) > 1
        attempt = f"{len(self._going_on)} problems at once, {self._label}" if several else "".join(self._going_on.values())
        doing = Text(f"{SPINNER[int(now * 4) % 4]} {attempt}") if attempt else Text("")
        if attempt and self._writer and not several:
            doing.append(f"  step {self._step} ", "dim")
            doing.append(self._writer, COLORS[self._writer])
            doing.append(f"  {self._num_tokens} tokens", "dim")
        rows = _standing_lines(self._state.standings, columns)
        last = [Text(f"  last: {self._last}", "dim")] if self._last else []
        return [self._head(self._state, now, columns), *rows, doing, *last]

    def _head(self, state: State, now: float, columns: int) -> Text:
        """Title, bar, counts and times: where there is little room the bar and then the title get shorter, never the rest."""
        rest = Text(f"  {state.finished}/{state.planned}  {_clock_words(now - self._began)}")
        if state.seconds_left is not None and state.finished < state.planned:
            rest.append(f", about {duration(max(0.0, state.seconds_left - (now - self._updated)))} left", "bold")
        title = Text(self._title, "bold")
        title.truncate(max(1, columns - rest.cell_len), overflow="ellipsis")
        room = min(BAR, columns - title.cell_len - 2 - rest.cell_len)
        if room <= 0:
            return title + rest
        full = round(room * state.finished / state.planned) if state.planned else room
        return Text.assemble(title, "  ", ("█" * full, "green"), ("░" * (room - full), "dim"), rest)

    @property
    def _is_due(self) -> bool:
        """Whether what comes with every token is worth drawing again."""
        return self._clock() - self._drawn >= REDRAW_SECONDS

    def _draw(self, lines: list[Text]) -> None:
        self._drawn = self._clock()
        above, self._above = self._above, []
        self._region.update(above, lines)


def _standing_lines(standings: Sequence[Standing], columns: int) -> list[Text]:
    """A line for each policy, all in as many words as there is room for in each; then the labels are cut."""
    width = max((len(standing.label) for standing in standings), default=0)
    lines: list[Text] = []
    for words in WORDS:
        lines = [_standing_line(standing, width, words) for standing in standings]
        too_long = max((line.cell_len for line in lines), default=0) - columns
        if too_long <= 0:
            return lines
    width = max(min(width, MIN_LABEL), width - too_long)
    return [_standing_line(standing, width, WORDS[-1]) for standing in standings]


def _standing_line(standing: Standing, width: int, words: Words) -> Text:
    """`entropy 0.5  12/60  correct 9/12 (75%)  31.2 s each  1.42x the target's speed  1 failed`, or less of it."""
    label = Text(standing.label)
    label.truncate(width, overflow="ellipsis", pad=True)
    tried = f"{standing.tried:>{len(str(standing.planned))}}" + (f"/{standing.planned}" if words.planned else "")
    line = Text.assemble("  ", label, f"  {tried}")
    if standing.tried and standing.correct is not None:
        share = f"{standing.correct / standing.tried:.0%}"
        counts = f"{standing.correct}/{standing.tried} ({share})" if words.counts else share
        line.append(f"  {words.correct}{counts}", "green")
    if standing.done and standing.concurrency > 1 and standing.seconds:
        line.append(f"  {standing.done / standing.seconds:.3g}{words.rate}")
    elif standing.done and standing.seconds is not None:
        line.append(f"  {short(standing.seconds / standing.done)}{words.each}")
    if standing.speedup is not None and standing.label != "target":
        line.append(f"  {standing.speedup:.2f}x{words.speed}", "bold")
    if standing.tried > standing.done:
        line.append(f"  {standing.tried - standing.done} failed", "bold red")
    return line


def _clock_words(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

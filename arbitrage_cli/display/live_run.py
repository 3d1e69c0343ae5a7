"""The live view of a run: a line for each policy and one for the attempt that is being made. Only failures stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from arbitrage_cli.display import rounding, wording
from arbitrage_cli.display.live_solve import COLORS
from arbitrage_cli.display.protocol import AttemptEnded, AttemptStarted, RunProgress
from arbitrage_cli.display.text import one_line
from arbitrage_cli.runs.summary import Standing
from arbitrage_cli.types import Event, ModelRole, Writing, Wrote

BAR = 24  # characters; fewer where the line is too short for them
SPINNER = "-\\|/"
MIN_LABEL = 8  # characters of a policy's label that are left in the narrowest terminal


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a policy's line, beside its figures."""

    correct: str = ""
    each: str = ""
    rate: str = "/s"
    speed: str = ""
    has_counts: bool = False  # of right answers, beside their share
    has_planned: bool = True  # how many attempts there will be


_WORDS = (
    _Words("correct ", " each", " problems/s", " the target's speed", has_counts=True),
    _Words("correct ", speed=" speed"),
    _Words(),
    _Words(has_planned=False),
)
"""From all words to none: the first that fit the terminal are used."""


class RunView:
    """The `View` of the attempts of a run."""

    def __init__(self, progress: RunProgress, now: float) -> None:
        self._progress = progress
        self._began = self._updated = now
        self._in_flight: dict[str, str] = {}  # what each attempt is called, by problem
        self._label = ""
        self._step = 0
        self._writer: ModelRole | None = None
        self._num_tokens = 0
        self._last = ""

    def begin(self) -> list[Text]:
        return []

    def handle(self, event: Event | AttemptStarted | AttemptEnded, columns: int, now: float) -> list[Text]:
        if isinstance(event, AttemptStarted):
            self._in_flight[event.problem] = one_line(f"{event.problem}, {event.label}")
            self._label, self._step, self._writer, self._num_tokens = one_line(event.label), 0, None, 0
        elif isinstance(event, AttemptEnded):
            self._in_flight.pop(event.problem, None)
            self._progress, self._updated, self._last = event.progress, now, wording.attempt(event)
            return [Text(self._last, "bold red")] if event.verdict == "error" else []
        elif isinstance(event, Wrote):
            self._num_tokens += 1
        elif isinstance(event, Writing):
            step = len(event.trace.decisions) + 1
            if (event.model, step) != (self._writer, self._step):  # else it goes on reading
                self._writer, self._step, self._num_tokens = event.model, step, 0
        return []

    def may_wait(self, event: Event | AttemptStarted | AttemptEnded) -> bool:
        return not isinstance(event, AttemptStarted | AttemptEnded | Writing)

    def region(self, columns: int, rows: int, now: float) -> list[Text]:
        """How far the run is, a line for each policy, the attempt that is being made, and how the last one ended."""
        head = self._head(columns - 1, now)
        last = [Text(f"  last: {self._last}", "dim")] if self._last else []
        standings = [replace(one, label=one_line(one.label)) for one in self._progress.standings]
        return [head, *_standing_lines(standings, columns - 1), self._attempt_line(now), *last]

    def end(self) -> list[Text]:
        return []

    def close(self, columns: int) -> list[Text]:
        return []

    def _attempt_line(self, now: float) -> Text:
        if not self._in_flight:
            return Text("")
        several = len(self._in_flight) > 1
        attempt = (
            f"{len(self._in_flight)} problems at once, {self._label}" if several else next(iter(self._in_flight.values()))
        )
        line = Text(f"{SPINNER[int(now * 4) % 4]} {attempt}")
        if self._writer and not several:
            line.append(f"  step {self._step} ", "dim").append(self._writer, COLORS[self._writer])
            line.append(f"  {self._num_tokens} tokens", "dim")
        return line

    def _head(self, columns: int, now: float) -> Text:
        """Title, bar, counts and times. If there is little room the bar and then the title get shorter, never the rest."""
        progress = self._progress
        rest = Text(f"  {progress.finished}/{progress.planned}  {_clock_time(now - self._began)}")
        if progress.seconds_left is not None and progress.finished < progress.planned:
            left = max(0.0, progress.seconds_left - (now - self._updated))
            rest.append(f", about {rounding.duration(left)} left", "bold")
        title = Text(one_line(progress.title), "bold")
        title.truncate(max(1, columns - rest.cell_len), overflow="ellipsis")
        room = min(BAR, columns - title.cell_len - 2 - rest.cell_len)
        if room <= 0:
            return title + rest
        full = round(room * progress.finished / progress.planned) if progress.planned else room
        return Text.assemble(title, "  ", ("█" * full, "green"), ("░" * (room - full), "dim"), rest)


def _standing_lines(standings: Sequence[Standing], columns: int) -> list[Text]:
    """A line for each policy, all with as many words as every line has room for; then the labels are cut."""
    width = max((len(standing.label) for standing in standings), default=0)
    lines: list[Text] = []
    for words in _WORDS:
        lines = [_standing_line(standing, width, words) for standing in standings]
        too_long = max((line.cell_len for line in lines), default=0) - columns
        if too_long <= 0:
            return lines
    width = max(min(width, MIN_LABEL), width - too_long)
    return [_standing_line(standing, width, _WORDS[-1]) for standing in standings]


def _standing_line(standing: Standing, width: int, words: _Words) -> Text:
    """`entropy 0.5  12/60  correct 9/12 (75%)  31.2 s each  1.42x the target's speed  1 failed`, or less of it."""
    label = Text(standing.label)
    label.truncate(width, overflow="ellipsis", pad=True)
    tried = f"{standing.tried:>{len(str(standing.planned))}}" + (f"/{standing.planned}" if words.has_planned else "")
    line = Text.assemble("  ", label, f"  {tried}")
    if standing.tried and standing.correct is not None:
        share = f"{standing.correct / standing.tried:.0%}"
        counts = f"{standing.correct}/{standing.tried} ({share})" if words.has_counts else share
        line.append(f"  {words.correct}{counts}", "green")
    if standing.done and standing.concurrency > 1 and standing.seconds:
        line.append(f"  {standing.done / standing.seconds:.3g}{words.rate}")
    elif standing.done and standing.seconds is not None:
        line.append(f"  {rounding.seconds(standing.seconds / standing.done)}{words.each}")
    if standing.speedup is not None and standing.label != "target":
        line.append(f"  {standing.speedup:.2f}x{words.speed}", "bold")
    if standing.tried > standing.done:
        line.append(f"  {standing.tried - standing.done} failed", "bold red")
    return line


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""The live view of a benchmark or collection: a table of the policies and the current attempt. Only failures stay."""

from collections.abc import Sequence
from datetime import timedelta

from rich.text import Text

from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, RunProgress, Shown, Standing
from arbitrage_cli.display import wording
from arbitrage_cli.display.live_solve import COLORS
from arbitrage_cli.display.text import aligned, one_line, short_labels
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ModelRole, Writing, Wrote

BAR = 24  # characters
SPINNER = "-\\|/"
MIN_LABEL = 8  # characters of a policy's label


class RunView:
    """The view of a run."""

    def __init__(self, progress: RunProgress, now: float) -> None:
        self._progress = progress
        self._began = self._updated = now
        self._in_flight: dict[str, str] = {}  # policies by problem
        self._step = 0
        self._writer: ModelRole | None = None
        self._num_tokens = 0
        self._last = ""

    def handle(self, event: Shown, columns: int, now: float) -> list[Text]:
        if isinstance(event, AttemptStarted):
            self._in_flight[event.problem] = event.label
            self._step, self._writer, self._num_tokens = 0, None, 0
        elif isinstance(event, AttemptEnded):
            self._in_flight.pop(event.problem, None)
            self._progress, self._updated, self._last = event.progress, now, wording.attempt(event)
            return [Text(self._last, "bold red")] if event.verdict == "error" else []
        elif isinstance(event, Wrote):
            self._num_tokens += 1
        elif isinstance(event, Writing):
            step = len(event.trace.decisions) + 1
            if (event.model, step) != (self._writer, self._step):  # otherwise the prefill continues
                self._writer, self._step, self._num_tokens = event.model, step, 0
        return []

    def may_wait(self, event: Shown) -> bool:
        return not isinstance(event, AttemptStarted | AttemptEnded | Writing)

    def region(self, columns: int, rows: int, now: float) -> list[Text]:
        table = [Text(line, style) for line, style in _standing_lines(self._progress.standings, columns - 1)]
        last = [Text(f"  last: {self._last}", "dim")] if self._last else []
        return [self._head(columns - 1, now), *table, self._attempt_line(now), *last]

    def end(self) -> list[Text]:
        return []

    def close(self, columns: int) -> list[Text]:
        return []

    def _attempt_line(self, now: float) -> Text:
        if not self._in_flight:
            return Text("")
        several = len(self._in_flight) > 1
        problem, label = list(self._in_flight.items())[-1]
        attempt = f"{formatting.count(len(self._in_flight), 'problem')} at once" if several else problem
        line = Text(f"{SPINNER[int(now * 4) % 4]} {one_line(f'{attempt}, {label}')}")
        if self._writer and not several:
            line.append(f"  step {self._step} ", "dim").append(self._writer, COLORS[self._writer])
            line.append(f"  {formatting.count(self._num_tokens, 'token')}", "dim")
        return line

    def _head(self, columns: int, now: float) -> Text:
        progress = self._progress
        clock = str(timedelta(seconds=int(now - self._began))).removeprefix("0:")
        rest = Text(f"  {progress.finished}/{progress.planned}  {clock}")
        if progress.seconds_left is not None and progress.finished < progress.planned:
            left = max(0.0, progress.seconds_left - (now - self._updated))
            rest.append(f", about {formatting.duration(left)} left", "bold")
        title = Text(one_line(progress.title), "bold")
        title.truncate(max(1, columns - rest.cell_len), overflow="ellipsis")
        room = min(BAR, columns - title.cell_len - 2 - rest.cell_len)  # a narrow terminal shortens the bar, then the title
        if room <= 0:
            return title + rest
        full = round(room * progress.finished / progress.planned) if progress.planned else room
        return Text.assemble(title, "  ", ("█" * full, "green"), ("░" * (room - full), "dim"), rest)


def _standing_lines(standings: Sequence[Standing], columns: int) -> list[tuple[str, str]]:
    cells = {
        "done": [f"{row.tried}/{row.planned}" for row in standings],
        "right": ["" if row.correct is None or not row.tried else f"{row.correct / row.tried:.0%}" for row in standings],
        "s each": [_pace(row) for row in standings],
        "speed": ["" if row.speedup is None else f"{row.speedup:.2f}x" for row in standings],
        "failed": [str(row.tried - row.done) if row.tried > row.done else "" for row in standings],
    }
    shown = {heading: column for heading, column in cells.items() if any(column)}
    room = columns - 2 - sum(2 + max(map(len, (heading, *column))) for heading, column in shown.items())
    labels = short_labels([row.label for row in standings], max(MIN_LABEL, room))
    head, *lines = aligned(["", *shown], zip(labels, *shown.values(), strict=True))
    styles = ["red" if row.tried > row.done else "" for row in standings]
    return [(f"  {head}", "dim"), *((f"  {line}", style) for line, style in zip(lines, styles, strict=True))]


def _pace(standing: Standing) -> str:
    if not standing.done or standing.seconds is None:
        return ""
    return formatting.number(standing.seconds / standing.done)

"""The live view of a server: a row for each request that is being answered. Each that has ended stays as a line."""

from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

from arbitrage_cli.app.protocol import ServerInfo, Shown
from arbitrage_cli.display import wording
from arbitrage_cli.display.live_solve import COLORS
from arbitrage_cli.display.region import View
from arbitrage_cli.display.text import aligned, one_line
from arbitrage_cli.types import Decided, ModelRole, RequestBegun, RequestEnded, Trace, Writing, Wrote

MAX_REQUESTS = 16  # that have a row each
NUM_SHOWN = 12  # last characters of an id


@dataclass(slots=True)
class _Row:
    """A request in flight, and the step that is being written for it."""

    model: str
    began: float
    writer: ModelRole | None = None
    num_accepted: int = 0
    num_escalated: int = 0
    num_tokens: int = 0
    text: list[str] = field(default_factory=list)


class ServeView(View):
    """Shows requests."""

    def __init__(self, server: ServerInfo) -> None:
        self._server = server
        self._rows: dict[Trace, _Row] = {}
        self._num_ended = self._num_failed = 0

    def begin(self) -> list[Text]:
        return [Text(line, "dim") for line in wording.serving(self._server)]

    def handle(self, event: Shown, columns: int, now: float) -> list[Text]:
        if isinstance(event, RequestBegun):
            self._rows[event.trace] = _Row(event.model, now)
        elif isinstance(event, RequestEnded):
            self._rows.pop(event.finished.trace, None)
            self._num_ended += 1
            self._num_failed += event.finished.error is not None and not event.is_cancelled
            return [Text(wording.request(event), "red" if event.finished.error else "")]
        elif isinstance(event, Writing | Wrote | Decided) and event.trace in self._rows:
            _update(self._rows[event.trace], event)
        return []

    def may_wait(self, event: Shown) -> bool:
        return not isinstance(event, RequestBegun | RequestEnded)

    def region(self, columns: int, rows: int, now: float) -> list[Text]:
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        head = Text(f"{self._server.url}  {len(self._rows)} running, {self._num_ended} ended{failed}", "bold")
        if not self._rows:
            return [head]
        shown = list(self._rows.items())[: max(1, min(MAX_REQUESTS, rows - 3))]
        cells = [
            (
                trace.problem.id[-NUM_SHOWN:],
                one_line(row.model),
                row.writer or "",
                str(row.num_accepted),
                str(row.num_escalated),
                str(row.num_tokens),
                f"{now - row.began:.1f}",
            )
            for trace, row in shown
        ]
        title, *lines = aligned(
            ["request", "model", "writer", "accepted", "escalated", "tokens", "s"], cells, left=(0, 1, 2)
        )
        return [head, Text(title, "dim"), *(_line(line, row, columns) for line, (_, row) in zip(lines, shown, strict=True))]


def _update(row: _Row, event: Writing | Wrote | Decided) -> None:
    if isinstance(event, Writing):
        if event.model != row.writer:
            row.text.clear()
        row.writer = event.model
    elif isinstance(event, Wrote):
        row.text.append(event.text)
        row.num_tokens += 1
    else:
        row.num_accepted += event.decision.verdict == "accept"
        row.num_escalated += event.decision.verdict == "escalate"
        row.text.clear()


def _line(cells: str, row: _Row, columns: int) -> Text:
    """The row's figures, and the end of the step that is being written."""
    room = columns - cell_len(cells) - 3
    text = one_line("".join(row.text[-columns:]))[-max(room, 0) :] if room > 0 else ""
    while cell_len(text) > room > 0:
        text = text[1:]
    return Text.assemble(cells, "  ", (text, COLORS[row.writer] if row.writer else ""))

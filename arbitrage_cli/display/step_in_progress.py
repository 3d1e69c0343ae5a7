"""The step that a model is writing, for the region of a live display."""

from dataclasses import dataclass

from arbitrage_cli.app.protocol import Shown
from arbitrage_cli.display.text import COLORS, role_name
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ModelRole, Rating, Writing, Wrote


@dataclass(slots=True)
class StepInProgress:
    """The step that is being written, as far as it is shown.

    Two models may write at once, but only the one that began last is shown.
    """

    number: int = 1
    writer: ModelRole | None = None
    text: str = ""
    draft_text: str = ""  # while the target rewrites the step
    num_tokens: int = 0
    num_unread: int = 0  # prompt tokens, until the first token is written
    is_scored: bool = False
    is_thought: bool = False
    began: float = 0.0

    def update(self, event: Shown, now: float) -> None:
        match event:
            case Wrote() if event.model == self.writer:
                self.text += event.text
                self.num_tokens += 1
            case Rating():
                self.is_scored = True
            case Writing():
                continues_prefill = event.model == self.writer and not self.num_tokens
                if not continues_prefill:
                    self._begin(event, now)
                self.number = len(event.trace.decisions) + 1
                self.num_unread = event.num_unread

    def _begin(self, event: Writing, now: float) -> None:
        rewrites_draft = self.writer == "draft" and event.model == "target"
        self.draft_text = self.text if rewrites_draft else ""
        self.writer = event.model
        self.text = ""
        self.num_tokens = 0
        self.is_thought = event.phase == "think"
        self.is_scored = False
        self.began = now

    @property
    def head(self) -> list[tuple[str, str]]:
        """The number of the step, its writer, and what the writer does."""
        writer = (f"{role_name(self.writer):<6}", COLORS[self.writer]) if self.writer else ("", "")
        return [(f"{self.number:>3}  ", "bold"), writer, (f"  {self._state:<10}", "dim")]

    @property
    def _state(self) -> str:
        if self.is_scored:
            return "scoring"
        if self.num_unread > 1 and not self.num_tokens:
            return f"prefill {self.num_unread} tokens"
        return formatting.count(self.num_tokens, "token")

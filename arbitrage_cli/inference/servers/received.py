"""The step that is arriving from a server, and the parts of a response that belong to it. Sends nothing."""

import time
from dataclasses import dataclass, field, replace

from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL
from arbitrage_cli.inference.servers.responses import Piece, ServedToken
from arbitrage_cli.inference.step_text import StepText, text_end
from arbitrage_cli.types import Cost, Phase, StepStop


@dataclass(slots=True)
class ReceivedStep:
    """A step of which a part may have arrived. Several responses may contain it, and a response may contain several steps.

    `began` is the time of its request. `num_earlier` counts the tokens of earlier steps in the same response. `reported`
    contains the token counts that the server has reported for the step so far.
    """

    text: StepText
    phase: Phase
    began: float
    num_earlier: int = 0
    ids: list[int] = field(default_factory=list)
    tokens: list[ServedToken] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reported: Cost = field(default_factory=Cost)
    first_at: float | None = None

    @property
    def num_tokens(self) -> int:
        """The tokens of the step: those that were reported or, if more have arrived, those."""
        return max(self.reported.decode_tokens, len(self.ids), len(self.tokens)) or len(self.pieces)

    @property
    def num_in_response(self) -> int:
        return self.num_earlier + self.num_tokens

    @property
    def visible(self) -> str:
        return self.text.so_far.strip()

    @property
    def stop(self) -> StepStop | None:
        return text_end(self.text, self.ids or self.pieces, self.phase)

    def add(self, piece: Piece) -> str:
        """Append a piece. Return the completed characters."""
        self.ids += piece.ids
        self.tokens += piece.tokens
        if not piece.text:
            return ""
        self.pieces.append(piece.text)
        self.first_at = self.first_at or time.perf_counter()
        return self.text.add(piece.text.encode("utf-8", "replace"))

    def split(self, piece: Piece) -> tuple[Piece, Piece | None]:
        """Split a piece where the step ends. The second part is None if the step does not end before the piece does."""
        num_own = 1 + self.text.num_before_end(one.encode("utf-8", "replace") for one in piece.text)
        return piece.split(num_own) if num_own < len(piece.text) else (piece, None)


def nothing_received() -> ReceivedStep:
    return ReceivedStep(StepText(), "answer", 0.0)


def without_end_token(piece: Piece, marker: str) -> Piece:
    """Remove the name of the end-of-sequence token from the last piece.

    Some servers include this name in the text, and others only in the log-probabilities.
    """
    if piece.ending not in ("end", "stop"):
        return piece
    *_, last = (None, *LOOKS_LIKE_CONTROL.finditer(piece.text if marker else ""))
    if last and last.end() == len(piece.text) and last[0] != marker:
        piece = replace(piece, text=piece.text[: last.start()])
    if piece.tokens and not piece.text.endswith(piece.tokens[-1].text):
        piece = replace(piece, tokens=(*piece.tokens[:-1], replace(piece.tokens[-1], text="")))
    return piece

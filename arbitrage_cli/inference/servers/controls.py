"""Finds text of questions and steps that a server would tokenize as control tokens."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from arbitrage_cli.errors import ControlTokenError, ServerRequestError
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, SURELY_CONTROL, Control, Plain, Segment, cut_inside

WOULD_BE_CONTROL = "which the model's server would treat as a control token"
ACCEPTS_IDS = "use a server that accepts token ids, such as vLLM, SGLang or llama-server"


class Controls:
    """Finds text that a server would tokenize as control tokens, including the control tokens in the prompt's template."""

    def __init__(self, segments: Iterable[Segment], *, can_ignore: bool = False) -> None:
        template = "".join(segment.text for segment in segments if isinstance(segment, Control))
        self._own = {match[0] for match in LOOKS_LIKE_CONTROL.finditer(template)}
        self._can_ignore = can_ignore

    def find(self, text: str) -> list[re.Match[str]]:
        found = () if self._can_ignore else LOOKS_LIKE_CONTROL.finditer(text)
        return [match for match in found if match[0] in self._own or SURELY_CONTROL.fullmatch(match[0])]

    def fragments(self, segment: Segment) -> list[str]:
        """Split a question or step inside each control token."""
        return [segment.text] if isinstance(segment, Control) else cut_inside(segment.text, self.find(segment.text))

    def join(self, segments: Sequence[Segment]) -> str:
        """Join the segments. Raises ServerRequestError if a step contains a control token's text."""
        if name := self._first_in(segments):
            raise ServerRequestError(f"a step contains '{name}', {WOULD_BE_CONTROL}", ACCEPTS_IDS)
        return "".join(segment.text for segment in segments)

    def check_question(self, segments: Sequence[Segment]) -> None:
        """Raise ControlTokenError if a question that is sent as a string contains a control token's text."""
        if name := self._first_in(segments):
            raise ControlTokenError(f"the question contains '{name}', {WOULD_BE_CONTROL}", ACCEPTS_IDS)

    def _first_in(self, segments: Sequence[Segment]) -> str | None:
        """Return the text of the first control token in a question or step."""
        found = chain.from_iterable(self.find(segment.text) for segment in segments if isinstance(segment, Plain))
        return next((match[0] for match in found), None)

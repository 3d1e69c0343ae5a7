"""Finds text of questions and steps that a server would tokenize as control tokens."""

import re
from collections.abc import Iterable

from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, SURELY_CONTROL, Control, Segment, cut_inside


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

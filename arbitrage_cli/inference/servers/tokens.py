"""What a server would read as control tokens in text of users and models, which never becomes one.

Such text is cut apart, and its parts are tokenized one by one. If only a string can be sent, it is refused.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, SURELY_CONTROL, Control, Plain, Segment


class Controls:
    """What a server may read as a control token in data: what a template's own text has, and what is surely one."""

    def __init__(self, segments: Iterable[Segment], *, reads_data_plainly: bool = False) -> None:
        """`reads_data_plainly`: the server finds none in data."""
        template = "".join(segment.text for segment in segments if isinstance(segment, Control))
        self._own = {match[0] for match in LOOKS_LIKE_CONTROL.finditer(template)}
        self._finds_any = not reads_data_plainly

    def find(self, text: str) -> list[re.Match[str]]:
        """Where the server would find one."""
        found = LOOKS_LIKE_CONTROL.finditer(text) if self._finds_any else ()
        return [match for match in found if match[0] in self._own or SURELY_CONTROL.fullmatch(match[0])]

    def fragments(self, text: str) -> list[str]:
        cuts = [match.start() + 1 for match in self.find(text)]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def prompt_text(segments: Sequence[Segment], controls: Controls) -> str:
    """A prompt and the steps after it as one string. ServerRequestError if the server would find a control token in data."""
    for text in (segment.text for segment in segments if isinstance(segment, Plain)):
        for match in controls.find(text):
            raise ServerRequestError(
                f"the text has '{match[0]}', which the server would read as a control token",
                "a server that takes token ids can have it: vLLM, SGLang, llama-server",
            )
    return "".join(segment.text for segment in segments)

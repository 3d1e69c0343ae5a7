"""From segments of a prompt, and steps of other models, to what a server is sent: token ids, or a string if it takes no ids.

Text of users and models never becomes a control token. A server may read what looks like one as one. So such text is cut apart,
and its parts are tokenized one by one. If only a string can be sent, it is refused.
"""

import asyncio
import re
from collections.abc import Coroutine, Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, Protocol

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, Control, Plain, Segment

SURELY_CONTROL = re.compile(r"<\|[^|\n]{1,64}\|>|<\uff5c[^\uff5c\n]{1,64}\uff5c>|</?s>|<(unk|pad|bos|eos|mask|fim_[a-z]+)>")
"""Of what looks like a control token, what is hardly ever anything else."""


class Tokenize(Protocol):
    """Token ids of a text. `is_template`: it may have control tokens. `begins`: it is the beginning of a prompt."""

    def __call__(self, text: str, *, is_template: bool = False, begins: bool = False) -> Coroutine[Any, Any, list[int]]: ...


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
        """The text, cut inside all of them."""
        cuts = [match.start() + 1 for match in self.find(text)]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


async def prompt_ids(tokenize: Tokenize, segments: Sequence[Segment], controls: Controls) -> list[int]:
    """The ids of a prompt: read as one text if no data in it looks like a control token, else part by part."""
    if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
        return await tokenize("".join(segment.text for segment in segments), is_template=True, begins=True)
    parts = [
        tokenize(text, is_template=isinstance(segment, Control), begins=not index)
        for index, segment in enumerate(segments)
        for text in ([segment.text] if isinstance(segment, Control) else controls.fragments(segment.text))
    ]
    return await _joined(parts)


async def step_ids(tokenize: Tokenize, text: str, controls: Controls) -> list[int]:
    """The ids of a step that another model wrote."""
    return await _joined([tokenize(part) for part in controls.fragments(text) if part])


def prompt_text(segments: Sequence[Segment], controls: Controls) -> str:
    """A prompt and the steps after it as one string. ServerRequestError if the server would find a control token in data."""
    for text in (segment.text for segment in segments if isinstance(segment, Plain)):
        for match in controls.find(text):
            raise ServerRequestError(
                f"the text has '{match[0]}', which the server would read as a control token",
                "a server that takes token ids can have it: vLLM, SGLang, llama-server",
            )
    return "".join(segment.text for segment in segments)


async def _joined(parts: Sequence[Coroutine[Any, Any, list[int]]]) -> list[int]:
    """The ids of all parts; if one fails, the others are not waited for."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
    except ExceptionGroup as errors:  # the group wraps what a part raised; callers know the errors themselves
        raise errors.exceptions[0] from None
    return list(chain.from_iterable(task.result() for task in tasks))

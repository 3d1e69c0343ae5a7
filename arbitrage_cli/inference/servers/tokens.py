"""From segments of a prompt, and steps of other models, to what a server is sent: token ids, or a string if it takes no ids.

Text of users and models never becomes a control token. A server may read what looks like one as one, whoever wrote it; so such text is
cut apart and its parts are tokenized one by one. Where only a string can be sent, it is refused. Knows no server.
"""

import asyncio
import re
from collections.abc import Awaitable, Iterable, Sequence
from itertools import chain, pairwise
from typing import Protocol

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, Control, Plain, Segment

SURELY_CONTROL = re.compile(r"<\|[^|\n]{1,64}\|>|<\uff5c[^\uff5c\n]{1,64}\uff5c>|</?s>|<(unk|pad|bos|eos|mask)>")
"""Of what looks like a control token, what is hardly ever anything else."""


class Tokenize(Protocol):
    """Token ids of a text. `is_template`: it may have control tokens. `begins`: it is the beginning of a prompt."""

    def __call__(self, text: str, *, is_template: bool = False, begins: bool = False) -> Awaitable[list[int]]: ...


async def prompt_ids(tokenize: Tokenize, segments: Sequence[Segment]) -> list[int]:
    """The ids of a prompt: read as one text if no data in it looks like a control token, else part by part."""
    if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
        return await tokenize("".join(segment.text for segment in segments), is_template=True, begins=True)
    parts = [
        tokenize(text, is_template=isinstance(segment, Control), begins=not index)
        for index, segment in enumerate(segments)
        for text in ([segment.text] if isinstance(segment, Control) else fragments(segment.text))
    ]
    return list(chain.from_iterable(await asyncio.gather(*parts)))


async def step_ids(tokenize: Tokenize, text: str) -> list[int]:
    """The ids of a step that another model wrote."""
    return list(chain.from_iterable(await asyncio.gather(*map(tokenize, fragments(text)))))


def fragments(text: str) -> list[str]:
    """The text, cut inside all that looks like a control token."""
    cuts = [match.start() + 1 for match in LOOKS_LIKE_CONTROL.finditer(text)]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def prompt_text(segments: Sequence[Segment], steps: Iterable[str] = ()) -> str:
    """A prompt and the steps after it as one string. ServerRequestError if the server could find a control token in data."""
    template = "".join(segment.text for segment in segments if isinstance(segment, Control))
    own = {match[0] for match in LOOKS_LIKE_CONTROL.finditer(template)}
    data = [segment.text for segment in segments if isinstance(segment, Plain)] + list(steps)
    for text in data:
        for match in LOOKS_LIKE_CONTROL.finditer(text):
            if match[0] in own or SURELY_CONTROL.fullmatch(match[0]):
                raise ServerRequestError(
                    f"the text has '{match[0]}', which the server would read as a control token",
                    "a server that takes token ids can have it: vLLM, SGLang, llama-server",
                )
    return "".join(segment.text for segment in segments) + "".join(steps)

"""Sends requests for a model on a server.

Questions and steps that contain the text of a control token are split and tokenized in parts. If the server does not accept
token ids, such a question or step is rejected.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.backend import ModelCard
from arbitrage_cli.inference.chat_template import (
    LOOKS_LIKE_CONTROL,
    SURELY_CONTROL,
    ChatPrompt,
    Control,
    Plain,
    PromptStyle,
    Segment,
    cut_inside,
)
from arbitrage_cli.inference.layouts import Messages, RoleRefusedError
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.servers.connection import RetryableError, Server
from arbitrage_cli.inference.servers.dialects import Completions, Prompt, TextRequest
from arbitrage_cli.inference.servers.responses import Converted, Piece

END_SECONDS = 5.0  # for the token counts after the last piece of text
SPARE_TOKENS = 64  # of a response, beyond the requested tokens
HIDDEN_TOKENS = 4096  # of a prompt that a server may add to
REFUSED = frozenset({400, 422, 500})  # HTTP status; some servers report errors of a chat template as 500

log = logging.getLogger("arbitrage.servers")


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
        """Join the segments. Raises ServerRequestError if a question or step contains a control token's text."""
        for match in chain.from_iterable(self.find(segment.text) for segment in segments if isinstance(segment, Plain)):
            message = f"the text contains '{match[0]}', which the server would treat as a control token"
            raise ServerRequestError(message, "use a server that accepts token ids, such as vLLM, SGLang or llama-server")
        return "".join(segment.text for segment in segments)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on a server. `num_alternatives` is the number of log-probabilities per token, or 0 if the server sends none."""

    server: Server
    source: ServedSource
    dialect: Completions
    card: ModelCard
    num_alternatives: int = 0

    @property
    def name(self) -> str:
        return self.card.name

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        template = self.source.template or (None if self.dialect.is_plain else self._render)
        return ChatPrompt(template, None, (), style, self.source.template_variables)

    def controls(self, segments: Sequence[Segment]) -> Controls:
        return Controls(segments, can_ignore=self.dialect.can_ignore_controls)

    async def prompt_of(self, segments: Sequence[Segment], controls: Controls, topic: str = "") -> Prompt:
        """Return a prompt as the server accepts it."""
        if self.dialect.is_plain:
            return Prompt(controls.join(segments))
        if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
            segments = [Control("".join(segment.text for segment in segments))]  # tokenized as a whole
        return Prompt(ids=await self.ids_of(segments, controls, topic, begins=True))

    async def ids_of(
        self, segments: Sequence[Segment], controls: Controls, topic: str, *, begins: bool = False
    ) -> list[int]:
        """Tokenize segments. If `begins` is true, the server may add the first token of a sequence."""
        parts = [
            self._tokenize(text, topic, is_template=isinstance(segment, Control), begins=begins and not index)
            for index, segment in enumerate(segments)
            for text in controls.fragments(segment)
            if text
        ]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def _tokenize(self, text: str, topic: str, *, is_template: bool, begins: bool) -> list[int]:
        body = self.dialect.tokenizing(self.name, text, is_template=is_template, begins=begins)
        ids = (await self.server.fetch("/tokenize", Converted.model_validate, body, topic)).tokens
        return ids[1:] if begins and ids[:1] == ids[1:2] else ids  # server and template may both add the first token

    async def pieces(self, request: TextRequest, topic: str = "") -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a response. Raises the same errors as `Server.stream`."""
        body, num_pieces, is_complete = self.dialect.body(request), 0, False
        stream = self.server.stream(self.dialect.path, self.dialect.reader(request), body, topic)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit, aclosing(stream) as pieces:
                async for piece in pieces:
                    num_pieces += 1
                    if piece.ending:
                        is_complete = True
                        limit.reschedule(asyncio.get_running_loop().time() + END_SECONDS)
                    yield self._checked(piece, request, num_pieces)
        if not is_complete:
            raise RetryableError("interrupted a response")

    def _checked(self, piece: Piece, request: TextRequest, num_pieces: int) -> Piece:
        """Return the piece without implausible token counts. Raises ServerRequestError if the response is refused or too long."""
        if piece.failure:
            message = f"{self.server.name} ended its response with '{self.server.shown(piece.failure)}'"
            is_filtered = piece.failure in ("content_filter", "refusal")
            raise ServerRequestError(message, status=403 if is_filtered else 0)
        max_written, max_prompt = 2 * request.max_tokens + SPARE_TOKENS, 2 * len(request.prompt) + HIDDEN_TOKENS
        if num_pieces > max_written:
            hint = "use a server that limits the number of tokens in a response"
            raise ServerRequestError(f"{self.server.name} sent more than {request.max_tokens} tokens", hint)
        if piece.usage and (piece.usage.prompt > max_prompt or (piece.usage.written or 0) > max_written):
            log.warning("a server reports wrong token counts, which are not counted: more tokens than were sent")
            return replace(piece, usage=None)
        return piece

    def _render(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        work = partial(self._rendered, messages, {**self.source.template_variables, **variables})
        try:
            return self.server.connection.run(self.server.retry(work, is_probe=True))
        except ServerRequestError as error:
            if error.status not in REFUSED:
                raise
            raise RoleRefusedError(error.message) from error

    async def _rendered(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        read, rendering = Converted.model_validate, self.dialect.rendering(self.name, messages, variables)
        rendered = await self.server.fetch(self.dialect.rendering_path, read, rendering)
        if rendered.text is None:
            rendered = await self.server.fetch("/detokenize", read, {"model": self.name, "tokens": rendered.tokens})
        return rendered.text or ""

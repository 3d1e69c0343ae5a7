"""Sends requests for one model on a server: to render and tokenize prompts, and to write text.

Questions and steps that contain the text of a control token are split and tokenized in parts.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import field, replace
from functools import partial
from itertools import chain
from typing import TypeVar

from arbitrage_cli.errors import ServerError, ServerRequestError
from arbitrage_cli.inference.backend import ModelCard
from arbitrage_cli.inference.chat_template import (
    LOOKS_LIKE_CONTROL,
    ChatPrompt,
    Control,
    Messages,
    Plain,
    PromptStyle,
    RoleRefusedError,
    Segment,
)
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.servers.connection import Server
from arbitrage_cli.inference.servers.controls import Controls
from arbitrage_cli.inference.servers.dialects import Chat, Completions, Dialect, Prompt, TextRequest
from arbitrage_cli.inference.servers.patience import RetryableError
from arbitrage_cli.inference.servers.responses import Piece, Rendered, Text, Tokenized
from arbitrage_cli.types import Fields, Json, frozen

COUNTS_SECONDS = 5.0  # for the token counts after the last piece of text
SPARE_TOKENS = 64  # of a response, beyond the requested tokens
HIDDEN_TOKENS = 4096  # of a prompt that a server may add to
REFUSED = frozenset({400, 422, 500})  # HTTP status; some servers report errors of a chat template as 500
SERVER_FAILED = 500
MAX_RENDERED = 256  # layouts of conversations; more than a `ChatPrompt` needs

NAME_SERVER = 'if a proxy hides vLLM, SGLang or llama-server, name it in the pair, for example target.server = "vllm"'
WITHOUT_STEPS = f"use policy agree, draft or target, which arbitrage advise compares; {NAME_SERVER}"
PROBE_QUESTION = "What is 2 + 3?"  # which every model can be asked
PROBE_PROMPT = Prompt(messages=[{"role": "user", "content": PROBE_QUESTION}])

log = logging.getLogger("arbitrage.servers")
T = TypeVar("T")


class UnrenderedError(Exception):
    """Raised for messages and template variables, in JSON, that the server has not rendered yet."""


@frozen
class ServedModel:
    """A model on a server.

    `num_alternatives` is the number of log-probabilities per token, or 0 if the server sends none. `guards` contains texts
    and their ids, one of which must precede a text that continues another if the tokenizer would insert a space.
    `rendered` maps messages to their texts, or to the reason why the template rejects them.
    """

    server: Server
    source: ServedSource
    dialect: Dialect
    card: ModelCard
    num_alternatives: int = 0
    guards: Mapping[str, list[int]] = field(default_factory=dict)
    rendered: dict[str, str | RoleRefusedError] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def description(self) -> str:
        return (
            f"{self.name} ({self.card.description} at {self.server.name}; context {self.card.context_size}, "
            f"{self.num_alternatives or 'no'} log-probabilities per token)"
        )

    @property
    def cannot_continue(self) -> ServerError | None:
        """The error to raise for a policy that routes steps, if the model cannot continue another model's text."""
        if not isinstance(self.dialect, Chat):
            return None
        message = f"{self.name} at {self.server.name} is behind a chat API, which writes only whole solutions"
        return ServerError(message, WITHOUT_STEPS)

    @property
    def completions(self) -> Completions:
        """The dialect of a server that continues prompts. Raises ValueError for a chat API."""
        if isinstance(self.dialect, Chat):
            raise ValueError(f"{self.server.name} is a chat API")
        return self.dialect

    @property
    def facts(self) -> Fields:
        """The facts that must not change until a run is resumed, by field of run.json."""
        return {
            "model": self.name,
            "context_size": self.card.context_size,
            "log_probabilities": self.num_alternatives,
        }

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Build prompts. Waits until the server has rendered examples; must not be called in the connection's thread."""
        template = None if isinstance(self.dialect, Chat) else self.source.template or self._find_rendered
        build = partial(ChatPrompt, template, None, (), style, self.source.template_variables)
        return self.server.connection.run(self.server.retry(partial(self.with_renderings, build), is_probe=True))

    async def prompt_of(self, segments: Sequence[Segment], controls: Controls, topic: str = "") -> Prompt:
        """Return a prompt as token ids."""
        if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
            segments = [Control("".join(segment.text for segment in segments))]  # tokenized as a whole
        return Prompt(ids=await self.ids_of(segments, controls, topic, begins=True))

    async def ids_of(
        self, segments: Sequence[Segment], controls: Controls, topic: str, *, begins: bool = False
    ) -> list[int]:
        """Tokenize segments. If `begins` is true, the server may add the first token of a sequence."""
        parts = [
            self.tokenize(text, topic, is_template=isinstance(segment, Control), begins=begins and not index)
            for index, segment in enumerate(segments)
            for text in controls.fragments(segment)
            if text
        ]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def tokenize(self, text: str, topic: str = "", *, is_template: bool = False, begins: bool = False) -> list[int]:
        """Tokenize a text.

        Unless it `begins` the prompt, a guard is put before the text if necessary, and its ids are removed.
        """
        for guard, head in ({} if begins else self.guards).items() or [("", [])]:
            body = self.completions.tokenizing(self.name, guard + text, is_template=is_template, begins=begins)
            ids = (await self.server.fetch("/tokenize", Tokenized.model_validate, body, topic)).tokens
            if begins and ids[:1] == ids[1:2]:
                return ids[1:]  # server and template both added the first token
            if ids[: len(head)] == head:  # otherwise the text merged with the guard
                return ids[len(head) :]
        raise ServerRequestError(f"{self.server.name} cannot tokenize {text[:20]!r} as a continuation")

    async def pieces(self, request: TextRequest, topic: str = "") -> AsyncGenerator[Piece, None]:
        """Yield the pieces of a response. Raises the same errors as `Server.stream`."""
        body = self.dialect.body(request)
        num_pieces = 0
        is_complete = False
        stream = self.server.stream(self.dialect.path, self.dialect.read, body, topic)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit, aclosing(stream) as pieces:
                async for piece in pieces:
                    num_pieces += 1
                    if piece.ending:
                        is_complete = True
                        limit.reschedule(asyncio.get_running_loop().time() + COUNTS_SECONDS)
                    yield self._checked(piece, request, num_pieces)
        if not is_complete:
            raise RetryableError("interrupted a response")

    def _checked(self, piece: Piece, request: TextRequest, num_pieces: int) -> Piece:
        """Return the piece without implausible token counts.

        Raises ServerRequestError if the response is refused or too long.
        """
        if piece.failure:
            message = f"{self.server.name} ended its response with '{self.server.shown(piece.failure)}'"
            is_filtered = piece.failure in ("content_filter", "refusal")
            raise ServerRequestError(message, status=403 if is_filtered else 0)
        max_written = 2 * request.max_tokens + SPARE_TOKENS
        max_prompt = 2 * len(request.prompt) + HIDDEN_TOKENS
        if num_pieces > max_written:
            hint = "use a server that limits the number of tokens in a response"
            raise ServerRequestError(f"{self.server.name} sent more than {request.max_tokens} tokens", hint)
        if piece.usage and (piece.usage.prompt > max_prompt or (piece.usage.written or 0) > max_written):
            log.warning("ignoring wrong token counts from a server: more tokens than were sent")
            return replace(piece, usage=None)
        return piece

    async def with_renderings(self, work: Callable[[], T], topic: str = "") -> T:
        """Repeat the work with everything that it asks the server to render. Raises the errors of the work and of `fetch`."""
        if len(self.rendered) > MAX_RENDERED:
            self.rendered.clear()
        while True:
            try:
                return work()
            except UnrenderedError as missing:
                (key,) = missing.args
                messages, variables = json.loads(key)
                try:
                    self.rendered[key] = await self._render(messages, variables, topic)
                except (ServerRequestError, RetryableError) as error:
                    if error.status not in REFUSED:
                        raise
                    if error.status == SERVER_FAILED:  # at everything, or at this conversation?
                        await self._render(PROBE_PROMPT.messages, {}, topic)
                    self.rendered[key] = RoleRefusedError(str(error))

    def _find_rendered(self, messages: Messages, variables: Fields) -> str:
        key = json.dumps([messages, variables])
        if key not in self.rendered:
            raise UnrenderedError(key)
        if isinstance(text := self.rendered[key], str):
            return text
        raise RoleRefusedError(*text.args)

    async def _render(self, messages: Sequence[Json], variables: Fields, topic: str) -> str:
        dialect = self.completions
        rendering = dialect.rendering(self.name, messages, {**self.source.template_variables, **variables})
        rendered = await self.server.fetch(dialect.rendering_path, Rendered.validate_python, rendering, topic)
        if isinstance(rendered, Tokenized):
            ids = {"model": self.name, "tokens": rendered.tokens}
            rendered = await self.server.fetch("/detokenize", Text.model_validate, ids, topic)
        return rendered.text

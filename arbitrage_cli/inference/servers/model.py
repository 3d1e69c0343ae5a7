"""Sends requests for a model on a server.

Questions and steps that contain the text of a control token are split and tokenized in parts. If the server does not accept
token ids, such a question or step is rejected.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import ValidationError

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
from arbitrage_cli.inference.servers.connection import Connection, Host, Json, Request
from arbitrage_cli.inference.servers.dialects import Completions, Piece, TextRequest
from arbitrage_cli.system.files import reason_of

REFUSED = frozenset({400, 422, 500})  # HTTP status; some servers report errors of a chat template as 500


class Controls:
    """Finds text that a server would tokenize as control tokens, including the control tokens in the prompt's template."""

    def __init__(self, segments: Iterable[Segment], *, can_ignore: bool = False) -> None:
        template = "".join(segment.text for segment in segments if isinstance(segment, Control))
        self._own = {match[0] for match in LOOKS_LIKE_CONTROL.finditer(template)}
        self._can_ignore = can_ignore

    def find(self, text: str) -> list[re.Match[str]]:
        found = () if self._can_ignore else LOOKS_LIKE_CONTROL.finditer(text)
        return [match for match in found if match[0] in self._own or SURELY_CONTROL.fullmatch(match[0])]

    def fragments(self, text: str) -> list[str]:
        return cut_inside(text, self.find(text))


def prompt_text(segments: Sequence[Segment], controls: Controls) -> str:
    """Join the segments. Raises ServerRequestError if data contains a control token's text."""
    for match in chain.from_iterable(controls.find(segment.text) for segment in segments if isinstance(segment, Plain)):
        message = f"the text contains '{match[0]}', which the server would treat as a control token"
        raise ServerRequestError(message, "use a server that accepts token ids, such as vLLM, SGLang or llama-server")
    return "".join(segment.text for segment in segments)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on a server. `num_alternatives` is the number of log-probabilities per token, or 0 if the server sends none."""

    connection: Connection
    host: Host
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

    async def tokenize(self, text: str, topic: str, *, is_template: bool = False, begins: bool = False) -> list[int]:
        answer = await self._post(*self.dialect.tokenizing(self.name, text, is_template=is_template, begins=begins), topic)
        with parsing(self.host):
            ids = [int(token) for token in answer["tokens"]]
        return ids[1:] if begins and ids[:1] == ids[1:2] else ids  # server and template may both add the first token

    def controls(self, segments: Sequence[Segment]) -> Controls:
        return Controls(segments, can_ignore=self.dialect.can_ignore_controls)

    async def prompt_of(self, segments: Sequence[Segment], topic: str = "") -> list[int] | str:
        controls = self.controls(segments)
        return prompt_text(segments, controls) if self.dialect.is_plain else await self.ids_of(segments, controls, topic)

    async def ids_of(self, segments: Sequence[Segment], controls: Controls, topic: str) -> list[int]:
        """Return the token ids of a prompt.

        The prompt is tokenized as a whole unless a question or step may contain control tokens.
        """
        if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
            return await self.tokenize("".join(segment.text for segment in segments), topic, is_template=True, begins=True)
        parts = [
            self.tokenize(text, topic, is_template=isinstance(segment, Control), begins=not index)
            for index, segment in enumerate(segments)
            for text in ([segment.text] if isinstance(segment, Control) else controls.fragments(segment.text))
        ]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def ids_of_step(self, text: str, controls: Controls, topic: str) -> list[int]:
        parts = [self.tokenize(part, topic) for part in controls.fragments(text) if part]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def write(
        self,
        request: TextRequest,
        take: Callable[[Piece], bool | None],
        restart: Callable[[], None],
        topic: str = "",
    ) -> None:
        def take_answer(answer: Json) -> bool | None:
            with parsing(self.host):
                piece = self.dialect.read(answer)
            if piece.failure:
                message = f"{self.host.name} ended its response with '{self.host.redacted(piece.failure)}'"
                is_filtered = piece.failure in ("content_filter", "refusal")
                raise ServerRequestError(message, status=403 if is_filtered else 0)
            return take(piece)

        url = self.dialect.url(self.source.address.base, self.source.address.root)
        sent = Request(url, self.dialect.body(request), is_streamed=True, topic=topic)
        await self.connection.send(self.host, sent, take_answer, restart)

    def _render(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        return self.connection.run(self._rendered(messages, {**self.source.template_variables, **variables}))

    async def _rendered(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        try:
            answer = await self._post(*self.dialect.rendering(self.name, messages, variables))
            with parsing(self.host):
                if "prompt" in answer:
                    return str(answer["prompt"])
                ids = [int(token) for token in answer["tokens"]]
            text = await self._post("detokenize", {"model": self.name, "tokens": ids})
            with parsing(self.host):
                return str(text["prompt"] if "prompt" in text else text["text"])
        except ServerRequestError as error:
            if error.status not in REFUSED:
                raise
            raise RoleRefusedError(error.message) from error

    async def _post(self, path: str, body: Mapping[str, Any], topic: str = "") -> Json:
        request = Request(f"{self.source.address.root}/{path}", body, topic=topic)
        return await self.connection.fetch(self.host, request)


@contextlib.contextmanager
def parsing(host: Host) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = host.redacted(
            reason_of(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        )
        raise ServerRequestError(f"{host.name} sent a response in an unknown format ({reason})") from error

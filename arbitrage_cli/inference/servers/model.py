"""Sends requests for a model on a server, and tests the server's features with a trial step.

A trial is needed because servers ignore unknown fields. Data that contains the text of a control token is split and tokenized
in parts, or refused if the server does not accept token ids.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from arbitrage_cli.errors import ProblemError, ServerError, ServerRequestError
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
from arbitrage_cli.inference.servers.dialects import (
    MIN_ALTERNATIVES,
    VOCABULARY_SIZE,
    Completions,
    ListedModel,
    Models,
    Piece,
    TextRequest,
    dialect_of,
)
from arbitrage_cli.types import DEFAULT_CONTEXT_SIZE, Problem

TRIAL_QUESTION = "What is 2 + 3?"
TRIAL_TOKENS = 32
TEMPLATE_REFUSED = frozenset({400, 422, 500})  # HTTP status if a chat template raises an error

log = logging.getLogger("arbitrage.servers")


class Controls:
    """Finds text that a server would tokenize as control tokens: well-known ones and those in the prompt's template."""

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
        raise ServerRequestError(
            f"the text contains '{match[0]}', which the server would treat as a control token",
            "use a server that accepts token ids, such as vLLM, SGLang or llama-server",
        )
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
    reports_usage: bool = False

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def has_template(self) -> bool:
        return self.source.template is not None or not self.dialect.is_plain

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Create the model's prompt builder. May send requests."""
        template = self.source.template or (None if self.dialect.is_plain else self._render)
        return ChatPrompt(template, None, (), style, self.source.template_variables)

    async def tokenize(self, text: str, *, is_template: bool = False, begins: bool = False) -> list[int]:
        answer = await self._post(*self.dialect.tokenizing(self.name, text, is_template=is_template, begins=begins))
        with _parsing(self.host):
            ids = [int(token) for token in answer["tokens"]]
        return ids[1:] if begins and ids[:1] == ids[1:2] else ids  # server and template may both add the first token

    def controls(self, segments: Sequence[Segment]) -> Controls:
        return Controls(segments, can_ignore=self.dialect.can_ignore_controls)

    async def prompt_of(self, segments: Sequence[Segment]) -> list[int] | str:
        controls = self.controls(segments)
        return prompt_text(segments, controls) if self.dialect.is_plain else await self.ids_of(segments, controls)

    async def ids_of(self, segments: Sequence[Segment], controls: Controls) -> list[int]:
        """Return the token ids of a prompt. The text is tokenized as a whole, unless data may contain control tokens."""
        if not any(LOOKS_LIKE_CONTROL.search(segment.text) for segment in segments if isinstance(segment, Plain)):
            return await self.tokenize("".join(segment.text for segment in segments), is_template=True, begins=True)
        parts = [
            self.tokenize(text, is_template=isinstance(segment, Control), begins=not index)
            for index, segment in enumerate(segments)
            for text in ([segment.text] if isinstance(segment, Control) else controls.fragments(segment.text))
        ]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def ids_of_step(self, text: str, controls: Controls) -> list[int]:
        parts = [self.tokenize(part) for part in controls.fragments(text) if part]
        return list(chain.from_iterable(await asyncio.gather(*parts)))

    async def write(
        self,
        request: TextRequest,
        take: Callable[[Piece], bool | None],
        restart: Callable[[], None],
        *,
        is_trial: bool = False,
        topic: str = "",
    ) -> None:
        def take_answer(answer: Json) -> bool | None:
            with _parsing(self.host):
                piece = self.dialect.read(answer)
            return take(piece)

        url = self.dialect.url(self.source.address.base, self.source.address.root)
        sent = Request(url, self.dialect.body(request), request.is_streamed, is_trial, topic)
        await self.connection.send(self.host, sent, take_answer, restart)

    def _render(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        return self.connection.run(self._rendered(messages, {**self.source.template_variables, **variables}))

    async def _rendered(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        try:
            answer = await self._post(*self.dialect.rendering(self.name, messages, variables))
            with _parsing(self.host):
                if "prompt" in answer:
                    return str(answer["prompt"])
                ids = [int(token) for token in answer["tokens"]]
            text = await self._post("detokenize", {"model": self.name, "tokens": ids})
            with _parsing(self.host):
                return str(text["prompt"] if "prompt" in text else text["text"])
        except ServerRequestError as error:
            if error.status not in TEMPLATE_REFUSED:
                raise
            raise RoleRefusedError(error.message) from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> Json:
        request = Request(f"{self.source.address.root}/{path}", body, is_trial=True)
        return await self.connection.fetch(self.host, request)


def open_served(connection: Connection, source: ServedSource, *, needs_template: bool = True) -> ServedModel:
    """Find a model on a server and test it with a trial step. Raises ServerError or TemplateError if the model cannot be used."""
    host = Host(source.address.host, source.key)
    try:
        model = connection.run(_find(connection, host, source))
        if needs_template and not model.has_template:
            raise ServerError(
                f"{host.name} ({model.dialect.name}) does not provide the chat template of {model.name}",
                "set draft_template or target_template in the pair to a Jinja file or a GGUF file of the same model",
            )
        segments = model.prompt(PromptStyle("")).segments(Problem("", TRIAL_QUESTION))
        model = connection.run(_tested(model, segments))
    except ProblemError as error:
        raise ServerError(error.message, error.hint) from error
    log.info("%s", describe(model))
    return model


def facts_about(model: ServedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "server": model.card.description,
        "host": model.host.name,
        "context_size": model.card.context_size,
        "continues": "text" if model.dialect.is_plain else "token ids",
        "log_probabilities": model.num_alternatives,
        "counts_tokens": model.reports_usage,
        "has_template": model.has_template,
    }


def describe(model: ServedModel) -> str:
    facts = facts_about(model)
    return (
        f"{model.name} ({facts['server']} at {facts['host']}; context {facts['context_size']}, "
        f"prompt format {facts['continues']}, {model.num_alternatives or 'no'} log-probabilities per token)"
    )


async def _find(connection: Connection, host: Host, source: ServedSource) -> ServedModel:
    async def get(url: str) -> Json:
        return await connection.fetch(host, Request(url, is_trial=True))

    answer = await get(f"{source.address.base}/models")
    with _parsing(host):
        models = Models.model_validate(answer)
    found, dialect = _choose(host, models, source.address.model), dialect_of(models)
    facts = await get(f"{source.address.root}/{dialect.facts_path}") if dialect.facts_path else {}
    with _parsing(host):
        version, context = dialect.read_facts(facts)
        limits = [int(limit) for limit in (found.max_model_len, context, source.context_size) if limit]
    card = ModelCard(
        source=source.address.base,
        name=found.id,
        description=f"{dialect.name} {version}".strip(),
        context_size=min(limits, default=DEFAULT_CONTEXT_SIZE),
        trained_context_size=found.trained_context_size or 0,
        vocabulary_size=found.vocabulary_size or VOCABULARY_SIZE,
        threads=0,
        gpu_layers=0,
    )
    return ServedModel(connection, host, source, dialect, card)


def _choose(host: Host, models: Models, name: str | None) -> ListedModel:
    found = {model.id: model for model in models.data}
    if name is None and len(found) == 1:
        return models.data[0]
    if name not in found:
        problem = f"has no model '{name}'" if name else f"has {len(found) or 'no'} models"
        raise ServerError(f"{host.name} {problem}", f"append # and a model name to the address: {', '.join([*found][:20])}")
    return found[name]


async def _tested(model: ServedModel, segments: Sequence[Segment]) -> ServedModel:
    """Test a model with a trial step, first with as many log-probabilities as possible."""
    prompt = await model.prompt_of(segments)
    most = model.dialect.max_alternatives
    for number in dict.fromkeys((most, min(most, 5))):
        with contextlib.suppress(ServerRequestError):
            return await _test(model, prompt, number)
    return await _test(model, prompt, 0)


async def _test(model: ServedModel, prompt: list[int] | str, num_alternatives: int) -> ServedModel:
    request = TextRequest(model.name, prompt, TRIAL_TOKENS, num_alternatives=num_alternatives, is_streamed=True)
    pieces: list[Piece] = []
    await model.write(request, pieces.append, pieces.clear, is_trial=True)
    if not any(piece.text for piece in pieces):
        raise ServerError(f"{model.host.name}: {model.name} writes no text", "use a chat model that has a chat template")
    received = min((len(token.alternatives) for piece in pieces for token in piece.tokens), default=0)
    usage = not model.dialect.is_plain and any(piece.usage for piece in pieces)  # plain streams are closed before usage
    return replace(model, num_alternatives=received if received >= MIN_ALTERNATIVES else 0, reports_usage=usage)


@contextlib.contextmanager
def _parsing(host: Host) -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = host.redacted(f"{type(error).__name__}: {error}")
        raise ServerRequestError(f"{host.name} sent a response in an unknown format ({reason})") from error

"""Finds and tests a model on a server, and sends requests for it.

Servers ignore unknown fields, so their features are tested with short requests. Questions and steps that contain the text of
a control token are split and tokenized in parts. If the server does not accept token ids, such a question or step is
rejected.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import field, replace
from functools import partial
from itertools import chain
from typing import TypeVar

from arbitrage_cli.errors import ControlTokenError, ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import ModelCard
from arbitrage_cli.inference.chat_template import (
    LOOKS_LIKE_CONTROL,
    SURELY_CONTROL,
    ChatPrompt,
    Control,
    Messages,
    Plain,
    PromptStyle,
    RoleRefusedError,
    Segment,
    cut_inside,
)
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.servers.connection import Connection, Server
from arbitrage_cli.inference.servers.dialects import (
    CONTINUATIONS,
    DIALECTS,
    OPTIONAL,
    Chat,
    Completions,
    Prompt,
    TextRequest,
)
from arbitrage_cli.inference.servers.patience import RetryableError
from arbitrage_cli.inference.servers.responses import (
    MIN_ALTERNATIVES,
    VOCABULARY_SIZE,
    ListedModel,
    ListedModels,
    Piece,
    Rendered,
    ServerFacts,
    Text,
    Tokenized,
)
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE
from arbitrage_cli.types import Fields, Json, ModelRole, Problem, frozen

COUNTS_SECONDS = 5.0  # for the token counts after the last piece of text
SPARE_TOKENS = 64  # of a response, beyond the requested tokens
HIDDEN_TOKENS = 4096  # of a prompt that a server may add to
REFUSED = frozenset({400, 422, 500})  # HTTP status; some servers report errors of a chat template as 500
SERVER_FAILED = 500
MAX_RENDERED = 256  # layouts of conversations; more than a `ChatPrompt` needs
GUARDS = "\n.0"

WOULD_BE_CONTROL = "which the model's server would treat as a control token"
ACCEPTS_IDS = "use a server that accepts token ids, such as vLLM, SGLang or llama-server"

PROBE_QUESTION = "What is 2 + 3?"
PROBE_TOKENS = 32
GREEDY, DRAWN = Sampler(), Sampler(temperature=1.0)
CHAT_CONTEXT_SIZE = 1 << 17  # if unknown

PROBE_PROMPT = Prompt(messages=[{"role": "user", "content": PROBE_QUESTION}])
COUNTING = Prompt(  # a new answer does not begin with these words, even if the model sees them
    "Here you are, as you wished: eighteen, nineteen, twenty, twenty-",
    messages=[{"role": "user", "content": "Count from eighteen to thirty, in words."}],
)
REST = "one"  # a new answer does not begin inside a number; inside "four", Qwen2.5-Coder 1.5B skips the rest of the word
AFTER_STEP = PROBE_PROMPT.followed_by("I add the two numbers.\n\n")

UNEXPLAINED = re.compile("HTTP [0-9]+$|HTTP 404: (?!.*model)", re.IGNORECASE)
WITHOUT_REASON = (
    "check the API key and the address, which usually ends in /v1; for a server without chat completions, set "
    "the model's template in pairs.toml"
)
"""The hint if a server gives no reason for an HTTP error, or does not know the path."""

WITHOUT_STEPS = "use policy agree, draft or target, which arbitrage advise compares"
OTHER_CONVENTION = (
    "if the server supports /completions, set the model's template in pairs.toml; otherwise, set the target's continuation "
    f"there ({', '.join(CONTINUATIONS)}), or {WITHOUT_STEPS}"
)
NO_DRAFT = f"if the server supports /completions, set the draft's template in pairs.toml; otherwise, {WITHOUT_STEPS}"
WITHOUT_THINKING = (
    "use a model without thinking, or set chat_template_kwargs = { enable_thinking = false } in the pair if the server "
    "accepts this field"
)

log = logging.getLogger("arbitrage.servers")
T = TypeVar("T")


class UnrenderedError(Exception):
    """Raised for messages and template variables, in JSON, that the server has not rendered yet."""


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


@frozen
class ServedModel:
    """A model on a server.

    `num_alternatives` is the number of log-probabilities per token, or 0 if the server sends none. `cannot_continue` is the
    error to raise for a policy that routes steps, if the model cannot continue another model's text. `guards` contains texts
    and their ids, one of which must precede a text that continues another if the tokenizer would insert a space.
    `rendered` maps messages to their texts, or to the reason why the template rejects them.
    """

    server: Server
    source: ServedSource
    dialect: Completions
    card: ModelCard
    num_alternatives: int = 0
    cannot_continue: ServerError | None = None
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
    def facts(self) -> Fields:
        """The facts that must not change until a run is resumed, by field of run.json."""
        return {
            "model": self.name,
            "context_size": self.card.context_size,
            "log_probabilities": self.num_alternatives,
        }

    def prompt(self, style: PromptStyle) -> ChatPrompt:
        """Build prompts. Waits until the server has rendered examples; must not be called in the connection's thread."""
        template = self.source.template or (None if self.dialect.is_plain else self._find_rendered)
        build = partial(ChatPrompt, template, None, (), style, self.source.template_variables)
        return self.server.connection.run(self.server.retry(partial(self.with_renderings, build), is_probe=True))

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
            body = self.dialect.tokenizing(self.name, guard + text, is_template=is_template, begins=begins)
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
        stream = self.server.stream(self.dialect.path, self.dialect.reader(request), body, topic)
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
        rendering = self.dialect.rendering(self.name, messages, {**self.source.template_variables, **variables})
        rendered = await self.server.fetch(self.dialect.rendering_path, Rendered.validate_python, rendering, topic)
        if isinstance(rendered, Tokenized):
            ids = {"model": self.name, "tokens": rendered.tokens}
            rendered = await self.server.fetch("/detokenize", Text.model_validate, ids, topic)
        return rendered.text


# --- finding and testing


def open_served(
    connection: Connection,
    source: ServedSource,
    role: ModelRole = "target",
    *,
    is_greedy: bool = False,
    continues: bool = True,
) -> ServedModel:
    """Find a model on a server and test it. If `is_greedy` is true, rejected seeds are not reported.

    Every chat API can be used for whole solutions. If `continues` is false, or for a checker, it is used for nothing else, so
    it is not tested whether the model continues answers.

    Raises ServerError or TemplateError if the model cannot be used.
    """
    server = Server(connection, source.address, source.key)
    try:
        model = connection.run(server.retry(partial(_find, server, source), is_probe=True))
        if isinstance(model.dialect, Chat):
            tested = role if continues else "check"
            model = connection.run(_adapted(model, model.dialect, tested, is_greedy=is_greedy))
        else:
            segments = model.prompt(PromptStyle("")).segments(Problem("", PROBE_QUESTION))
            model = connection.run(_tested(model, segments))
    except ProblemError as error:
        raise ServerError(error.message, WITHOUT_REASON if UNEXPLAINED.search(error.message) else error.hint) from error
    log.info("%s", model.description)
    return model


async def _find(server: Server, source: ServedSource) -> ServedModel:
    name = source.address.model
    try:
        models = (await server.fetch("models", ListedModels.model_validate)).data
    except ServerRequestError as error:
        if error.status != 404 or name is None:
            raise
        models = [ListedModel(id=name)]
    found = _choose(server, models, name)
    dialect = next((DIALECTS[owner] for model in models if (owner := model.owned_by or "") in DIALECTS), Completions)()
    if source.continuation or (dialect.is_plain and not source.template):
        dialect = Chat.at(server.name, source.continuation, source.template_variables)
    facts = await server.fetch(dialect.facts_path, ServerFacts.model_validate) if dialect.facts_path else ServerFacts()
    limits = [limit for limit in (found.max_model_len, facts.context_size, source.context_size) if limit and limit > 0]
    card = ModelCard(
        name=found.id,
        description=f"{dialect.name} {facts.version}".strip(),
        context_size=min(limits, default=CHAT_CONTEXT_SIZE if isinstance(dialect, Chat) else DEFAULT_CONTEXT_SIZE),
        vocabulary_size=found.vocabulary_size or VOCABULARY_SIZE,
        threads=0,
        gpu_layers=0,
    )
    return ServedModel(server, source, dialect, card)


def _choose(server: Server, models: Sequence[ListedModel], name: str | None) -> ListedModel:
    found = {model.id: model for model in models}
    if name is None and len(found) == 1:
        return models[0]
    if name not in found:
        problem = f"has no model '{name}'" if name else f"has {len(found) or 'no'} models"
        names = server.shown(", ".join([*found][:20]))
        raise ServerError(f"{server.name} {problem}", f"append # and a model name to the address: {names}")
    return found[name]


async def _guards(model: ServedModel) -> Mapping[str, list[int]]:
    """Return the guards if the tokenizer inserts a space before each text, as SentencePiece does."""
    *heads, rest, whole = [await model.tokenize(text) for text in (*GUARDS, "a", f"{GUARDS[0]}a")]
    return {} if whole == heads[0] + rest else dict(zip(GUARDS, heads, strict=True))


async def _tested(model: ServedModel, segments: Sequence[Segment]) -> ServedModel:
    if not model.dialect.is_plain:
        model = replace(model, guards=await model.server.retry(partial(_guards, model), is_probe=True))
    controls = Controls(segments, can_ignore=model.dialect.can_ignore_controls)
    prompt = await model.server.retry(partial(model.prompt_of, segments, controls), is_probe=True)
    try:
        return await _test(model, prompt, model.dialect.max_alternatives)
    except ServerRequestError as error:
        if error.status and error.status not in REFUSED:
            raise
    return await _test(model, prompt, 0)  # the server may refuse log-probabilities


async def _test(model: ServedModel, prompt: Prompt, num_alternatives: int) -> ServedModel:
    pieces = await _answer(model, TextRequest(model.name, prompt, PROBE_TOKENS, num_alternatives=num_alternatives))
    if not _text_of(pieces):
        raise ServerError(f"{model.server.name}: {model.name} writes no text", "use a chat model that has a chat template")
    received = min((len(token.top) for piece in pieces for token in piece.tokens), default=0)
    return replace(model, num_alternatives=received if received >= MIN_ALTERNATIVES else 0)


async def _answer(model: ServedModel, request: TextRequest) -> list[Piece]:
    async def collect() -> list[Piece]:
        return [piece async for piece in model.pieces(request)]

    return await model.server.retry(collect, is_probe=True)


def _text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# --- chat APIs


async def _adapted(model: ServedModel, chat: Chat, role: ModelRole, *, is_greedy: bool) -> ServedModel:
    """Return the model with the features of its chat API. A checker never continues an answer."""
    chat, pieces = await _ask(model, chat, PROBE_PROMPT, sampler=DRAWN)
    text = _text_of(pieces).lstrip()
    if not text or text.startswith("<think>") or any(piece.thinks for piece in pieces):
        raise ServerError(f"{model.server.name}: {model.name} thinks before it answers", WITHOUT_THINKING)
    cannot_continue: ServerError | None = None
    if role == "target":
        chat, cannot_continue = await _continuing(model, chat)
    else:
        chat = replace(chat, can_continue=False)
        if role == "draft":
            message = f"{model.name} at {model.server.name} is behind a chat API, so it cannot draft steps"
            cannot_continue = ServerError(message, NO_DRAFT)
    for name in sorted(chat.omitted & {"temperature", *(() if is_greedy else ("seed", "top_p"))}):
        log.warning("%s does not accept %s, so samples differ from the requested ones", model.server.name, name)
    return replace(model, dialect=chat, cannot_continue=cannot_continue)


async def _continuing(model: ServedModel, chat: Chat) -> tuple[Chat, ServerError | None]:
    """Test whether the model continues an unfinished answer. Return the API's features and, if it does not, the error."""
    try:
        chat, pieces = await _ask(model, chat, COUNTING)
    except ServerRequestError as error:
        if error.status not in REFUSED:
            raise
        text = error.message
    else:
        if (text := _text_of(pieces).lstrip()).startswith(REST):
            return await _after_separator(model, chat), None
    how = f"with '{chat.continuation}' ({text[:100]!r})"
    message = f"{model.name} at {model.server.name} does not continue answers {how}"
    return replace(chat, can_continue=False), ServerError(message, OTHER_CONVENTION)


async def _after_separator(model: ServedModel, chat: Chat) -> Chat:
    """Test whether the server keeps the separator at the end of the text to continue. Anthropic rejects it."""
    try:
        chat, pieces = await _ask(model, chat, AFTER_STEP, stop=BLANK_LINE.separator)
    except ServerRequestError as error:
        if error.status not in REFUSED:
            raise
        return replace(chat, trims=True)
    text = _text_of(pieces)
    return replace(chat, trims=not text.strip() or text.startswith("\n"))


async def _ask(
    model: ServedModel, chat: Chat, prompt: Prompt, stop: str = "", sampler: Sampler = GREEDY
) -> tuple[Chat, list[Piece]]:
    """Send a probe without the optional fields that the server rejects.

    Fields are omitted one at a time, because some servers reject only a combination of fields.
    """
    while True:
        request = TextRequest(model.name, prompt, PROBE_TOKENS, sampler, stop=stop)
        try:
            return chat, await _answer(replace(model, dialect=chat), request)
        except ServerRequestError as error:
            rejected = [name for name in OPTIONAL if re.search(rf"\b{name}\b", error.message)]
            new = [name for name in rejected if name not in chat.omitted]
            if error.status not in REFUSED or not new:
                raise
            chat = replace(chat, omitted=chat.omitted | {new[0]})

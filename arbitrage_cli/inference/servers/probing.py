"""Finds a model on a server, and tests what the server and the model can do.

Servers ignore unknown fields, so their features are tested with short requests, called probes.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from arbitrage_cli.errors import ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import ModelCard
from arbitrage_cli.inference.chat_template import PromptStyle, Segment
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.servers.connection import Connection, Server
from arbitrage_cli.inference.servers.controls import Controls
from arbitrage_cli.inference.servers.dialects import (
    MAX_ALTERNATIVES,
    OPTIONAL,
    OWNERS,
    SERVERS,
    Chat,
    Dialect,
    Prompt,
    TextRequest,
)
from arbitrage_cli.inference.servers.model import NAME_SERVER, PROBE_PROMPT, PROBE_QUESTION, REFUSED, ServedModel
from arbitrage_cli.inference.servers.responses import (
    MIN_ALTERNATIVES,
    VOCABULARY_SIZE,
    ListedModel,
    ListedModels,
    Piece,
    ServerFacts,
)
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE
from arbitrage_cli.types import Problem

GUARDS = "\n.0"
PROBE_TOKENS = 32
DRAWN = Sampler(temperature=1.0)
CHAT_CONTEXT_SIZE = 1 << 17  # if unknown

UNEXPLAINED = re.compile("HTTP [0-9]+$|HTTP 404: (?!.*model)", re.IGNORECASE)
WITHOUT_REASON = f"check the API key and the address, which usually ends in /v1; {NAME_SERVER}"
"""The hint if a server gives no reason for an HTTP error, or does not know the path."""

WITHOUT_THINKING = (
    "use a model without thinking, or set chat_template_kwargs = { enable_thinking = false } in the pair if the server "
    "accepts this field"
)

log = logging.getLogger("arbitrage.servers")


def open_served(connection: Connection, source: ServedSource, *, is_greedy: bool = False) -> ServedModel:
    """Find a model on a server and test it. If `is_greedy` is true, rejected seeds are not reported.

    Raises ServerError or TemplateError if the model cannot be used.
    """
    server = Server(connection, source.address, source.key)
    try:
        model = connection.run(server.retry(partial(_find, server, source), is_probe=True))
        if isinstance(model.dialect, Chat):
            model = connection.run(_adapted(model, model.dialect, is_greedy=is_greedy))
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
    owned_by = (model.owned_by or "" for model in models)
    kind = source.server or next((OWNERS[owner] for owner in owned_by if owner in OWNERS), None)
    dialect: Dialect = SERVERS[kind]() if kind else Chat.at(server.name, source.template_variables)
    if source.template and isinstance(dialect, Chat):
        raise ServerError(
            f"{server.name} is a chat API, which has chat templates of its own",
            f"remove the template from the pair; {NAME_SERVER}",
        )
    facts = await _facts(server, () if isinstance(dialect, Chat) else dialect.facts_paths)
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


async def _facts(server: Server, paths: Sequence[str]) -> ServerFacts:
    """Return what the server says of itself at the first of these paths that it has."""
    for path in paths:
        try:
            return await server.fetch(path, ServerFacts.model_validate)
        except ServerRequestError as error:
            if error.status != 404:
                raise
    return ServerFacts()


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
    model = replace(model, guards=await model.server.retry(partial(_guards, model), is_probe=True))
    controls = Controls(segments, can_ignore=model.completions.can_ignore_controls)
    prompt = await model.server.retry(partial(model.prompt_of, segments, controls), is_probe=True)
    try:
        return await _test(model, prompt, MAX_ALTERNATIVES)
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


async def _adapted(model: ServedModel, chat: Chat, *, is_greedy: bool) -> ServedModel:
    """Return the model without the fields that its chat API rejects. Raises ServerError if the model thinks."""
    chat, pieces = await _ask(model, chat)
    text = _text_of(pieces).lstrip()
    if not text or text.startswith("<think>") or any(piece.thinks for piece in pieces):
        raise ServerError(f"{model.server.name}: {model.name} thinks before it answers", WITHOUT_THINKING)
    for name in sorted(chat.omitted & {"temperature", *(() if is_greedy else ("seed", "top_p"))}):
        log.warning("%s does not accept %s, so samples differ from the requested ones", model.server.name, name)
    return replace(model, dialect=chat)


async def _ask(model: ServedModel, chat: Chat) -> tuple[Chat, list[Piece]]:
    """Send a probe without the optional fields that the server rejects.

    Fields are omitted one at a time, because some servers reject only a combination of fields.
    """
    request = TextRequest(model.name, PROBE_PROMPT, PROBE_TOKENS, DRAWN)
    while True:
        try:
            return chat, await _answer(replace(model, dialect=chat), request)
        except ServerRequestError as error:
            rejected = [name for name in OPTIONAL if re.search(rf"\b{name}\b", error.message)]
            new = [name for name in rejected if name not in chat.omitted]
            if error.status not in REFUSED or not new:
                raise
            chat = replace(chat, omitted=chat.omitted | {new[0]})

"""Finds a model on a server, and tests the server's features with short requests, because servers ignore unknown fields."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from arbitrage_cli.errors import ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import ModelCard
from arbitrage_cli.inference.chat_template import PromptStyle, Segment
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
from arbitrage_cli.inference.servers.model import REFUSED, ServedModel
from arbitrage_cli.inference.servers.responses import MIN_ALTERNATIVES, VOCABULARY_SIZE, Facts, ListedModel, Models, Piece
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE
from arbitrage_cli.types import ModelRole, Problem

PROBE_QUESTION = "What is 2 + 3?"
PROBE_TOKENS = 32
GREEDY, DRAWN = Sampler(), Sampler(temperature=1.0)
CHAT_CONTEXT_SIZE = 1 << 17  # if unknown

QUESTION = Prompt(messages=[{"role": "user", "content": PROBE_QUESTION}])
COUNTING = Prompt(  # a new answer does not begin with these words, even if the model sees them
    "Here you are, as you wished: eighteen, nineteen, twenty, twenty-",
    messages=[{"role": "user", "content": "Count from eighteen to thirty, in words."}],
)
REST = "one"  # a new answer does not begin inside a number; inside "four", Qwen2.5-Coder 1.5B skips the rest of the word
AFTER_STEP = QUESTION.followed_by("I add the two numbers.\n\n")

UNEXPLAINED = re.compile("HTTP [0-9]+$|HTTP 404: (?!.*model)", re.IGNORECASE)
WITHOUT_REASON = (
    "check the API key and the address, which usually ends in /v1; for a server without chat completions, set "
    "the model's template in pairs.toml"
)
"""The hint if a server gives no reason for an HTTP error, or does not know the path."""

OTHER_CONVENTION = (
    "if the server supports /completions, set the model's template in pairs.toml; if not, set continuation in the table of "
    f"the pair's target ({', '.join(CONTINUATIONS)}), or use another model"
)
WITHOUT_THINKING = (
    "use a model without thinking, or set chat_template_kwargs = { enable_thinking = false } in the pair if the server "
    "accepts this field"
)

log = logging.getLogger("arbitrage.servers")


def open_served(
    connection: Connection,
    source: ServedSource,
    role: ModelRole = "target",
    *,
    is_greedy: bool = False,
    continues: bool = True,
) -> ServedModel:
    """Find a model on a server and test it. If `is_greedy` is true, rejected seeds are not reported.

    If `continues` is false, the model only writes whole solutions, so every chat API can be used.

    Raises ServerError or TemplateError if the model cannot be used.
    """
    server = Server(connection, source.address, source.key)
    try:
        model = connection.run(server.retry(partial(_find, server, source), is_probe=True))
        if isinstance(model.dialect, Chat):
            if role == "draft" and continues:
                hint = "use it as the target; if the server supports /completions, set the draft's template in pairs.toml"
                raise ServerError(f"{model.name} at {server.name} is behind a chat API, so it cannot be the draft", hint)
            model = connection.run(_adapted(model, model.dialect, is_greedy=is_greedy, continues=continues))
        else:
            segments = model.prompt(PromptStyle("")).segments(Problem("", PROBE_QUESTION))
            model = connection.run(_tested(model, segments))
    except ProblemError as error:
        raise ServerError(error.message, WITHOUT_REASON if UNEXPLAINED.search(error.message) else error.hint) from error
    log.info("%s", describe(model))
    return model


def facts_about(model: ServedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "server": model.card.description,
        "host": model.server.name,
        "context_size": model.card.context_size,
        "continues": model.dialect.continues,
        "log_probabilities": model.num_alternatives,
        "has_template": not isinstance(model.dialect, Chat),
    }


def describe(model: ServedModel) -> str:
    facts = facts_about(model)
    return (
        f"{model.name} ({facts['server']} at {facts['host']}; context {facts['context_size']}, "
        f"prompt format {facts['continues']}, {model.num_alternatives or 'no'} log-probabilities per token)"
    )


async def _find(server: Server, source: ServedSource) -> ServedModel:
    name = source.address.model
    try:
        models = (await server.fetch("models", Models.model_validate)).data
    except ServerRequestError as error:
        if error.status != 404 or name is None:
            raise
        models = [ListedModel(id=name)]
    found = _choose(server, models, name)
    dialect = next((DIALECTS[owner] for model in models if (owner := model.owned_by or "") in DIALECTS), Completions)()
    if source.continuation or (dialect.is_plain and not source.template):
        dialect = Chat.at(server.name, source.continuation, source.template_variables)
    facts = await server.fetch(dialect.facts_path, Facts.model_validate) if dialect.facts_path else Facts()
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


async def _tested(model: ServedModel, segments: Sequence[Segment]) -> ServedModel:
    prompt = await model.server.retry(partial(model.prompt_of, segments, model.controls(segments)), is_probe=True)
    most = model.dialect.max_alternatives
    for number in dict.fromkeys((most, min(most, 5))):
        try:
            return await _test(model, prompt, number)
        except ServerRequestError as error:
            if error.status and error.status not in REFUSED:
                raise
    return await _test(model, prompt, 0)


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


async def _adapted(model: ServedModel, chat: Chat, *, is_greedy: bool, continues: bool) -> ServedModel:
    chat, pieces = await _ask(model, chat, QUESTION, sampler=DRAWN)
    text = _text_of(pieces).lstrip()
    if not text or text.startswith("<think>") or any(piece.thinks for piece in pieces):
        raise ServerError(f"{model.server.name}: {model.name} thinks before it answers", WITHOUT_THINKING)
    if continues:
        chat = await _after_separator(model, await _continuing(model, chat))
    else:
        chat = replace(chat, can_continue=False)
    for name in sorted(chat.omitted & {"temperature", *(() if is_greedy else ("seed", "top_p"))}):
        log.warning("%s does not accept %s, so samples differ from the requested ones", model.server.name, name)
    return replace(model, dialect=chat)


async def _continuing(model: ServedModel, chat: Chat) -> Chat:
    """Check that the model continues an unfinished answer. Raises ServerError if it does not."""
    try:
        chat, pieces = await _ask(model, chat, COUNTING)
    except ServerRequestError as error:
        if error.status not in REFUSED:
            raise
        message = (
            f"{model.server.name} refuses to continue an answer by the convention '{chat.continuation}': {error.message}"
        )
        raise ServerError(message, OTHER_CONVENTION) from error
    if _text_of(pieces).lstrip().startswith(REST):
        return chat
    message = f"{model.server.name}: {model.name} does not continue an answer by the convention '{chat.continuation}'"
    raise ServerError(message, OTHER_CONVENTION)


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

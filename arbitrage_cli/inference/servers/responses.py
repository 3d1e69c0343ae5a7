"""Parses responses from every kind of server, and computes statistics from log-probabilities.

Parsing a response in an unknown format raises a ValueError.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from arbitrage_cli.types import Cost, TokenStats, frozen

log = logging.getLogger("arbitrage.servers")

MAX_COUNT = 1 << 40  # tokens
MAX_LOGPROB, MIN_LOGPROB = 0.01, -1000.0  # nats; rounding errors may exceed 0
MIN_ALTERNATIVES = 2  # needed for a margin
VOCABULARY_SIZE = 1 << 17  # if unknown; twice as many add 0.35 r nats to an entropy, with probability r outside the top k

Count = Annotated[int, Field(ge=0, lt=MAX_COUNT)]
LogProbability = Annotated[float, Field(le=MAX_LOGPROB), AfterValidator(lambda value: max(value, MIN_LOGPROB))]
Ending = Literal["separator", "end", "length", "stop"]
"""The reason why a server stopped: a stop string, the end of the sequence, `max_tokens`, or `stop` (one of the first two)."""
ENDINGS: Mapping[str, Ending] = {"stop": "stop", "eos": "end", "end_turn": "end", "length": "length", "max_tokens": "length"}
"""The ways in which a complete response can end, by finish reason. All other finish reasons are failures."""


@frozen
class ServedToken:
    """A generated token, its log-probability, and the log-probabilities of the top tokens at its position in descending order."""

    text: str
    log_probability: float
    top: Sequence[float] = ()


class ReportedUsage(BaseModel):
    """The token counts of a response. `prompt` includes the `cached` tokens."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)
    prompt: Count = Field(validation_alias="prompt_tokens")
    cached: Count | None = Field(
        default=None,
        validation_alias=AliasChoices(
            AliasPath("prompt_tokens_details", "cached_tokens"), "prompt_cache_hit_tokens", "cached_tokens"
        ),
    )
    written: Count | None = Field(default=None, validation_alias="completion_tokens")
    thinking: Count | None = Field(default=None, validation_alias=AliasPath("completion_tokens_details", "reasoning_tokens"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cached or 0) > self.prompt:
            raise ValueError("more cached tokens than prompt tokens")
        return self

    @property
    def cost(self) -> Cost:
        cached = self.cached or 0
        return Cost(self.prompt - cached, decode_tokens=self.written or 0, cached_tokens=cached)


def _known_usage(reported: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(reported or None)
    except ValidationError as error:
        log.warning("ignoring wrong token counts from a server: %s", error.errors()[0]["msg"])
        return None


KnownUsage = Annotated[ReportedUsage | None, WrapValidator(_known_usage)]
"""The token counts of a response, or None if they are missing or inconsistent."""


@frozen
class Piece:
    """A chunk of a response.

    `ending` is set in the last chunk that contains text. `failure` is the reason why the server refused to complete its
    response.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: tuple[ServedToken, ...] = ()
    ending: Ending | None = None
    usage: ReportedUsage | None = None
    thinks: bool = False
    failure: str = ""

    def split(self, num_characters: int) -> "tuple[Piece, Piece]":
        """Split the piece after a number of characters. Ids are divided in proportion to the characters."""
        rest = self.text[num_characters:]
        num_ids = len(self.ids) * num_characters // len(self.text)
        lengths = accumulate(len(token.text) for token in reversed(self.tokens))
        num_tokens = sum(length > len(rest) for length in lengths)
        first = replace(self, text=self.text[:num_characters], ids=self.ids[:num_ids], tokens=self.tokens[:num_tokens])
        return first, replace(self, text=rest, ids=self.ids[num_ids:], tokens=self.tokens[num_tokens:])


# --- OpenAI's format


class _WithNulls(BaseModel):
    """A part of a response in which null means that a field is missing."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields


class _Delta(BaseModel):
    content: str | None = None
    reasoning: Any = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
    refusal: str | None = None


class _LogProbabilities(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[LogProbability] = []
    top_logprobs: list[dict[str, LogProbability]] | None = None

    def read(self) -> tuple[ServedToken, ...]:
        rows = zip(self.tokens, self.token_logprobs, self.top_logprobs or [], strict=True)
        return tuple(ServedToken(text, own, sorted(top.values(), reverse=True)) for text, own, top in rows)


class _Choice(_WithNulls):
    """A part of a response: `text` in completions, `delta` in chats."""

    index: int | None = None
    text: str = ""
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    stopped_by: Any = Field(default=None, validation_alias=AliasChoices("stop_reason", "matched_stop"))  # vLLM; SGLang
    token_ids: tuple[int, ...] | None = None
    logprobs: _LogProbabilities | None = None

    def read(self, usage: ReportedUsage | None) -> Piece:
        ending = None
        failure = "refusal" if self.delta.refusal else ""
        reason = self.finish_reason
        if reason:
            ending = "separator" if isinstance(self.stopped_by, str) else ENDINGS.get(reason, "stop")
            failure = failure or ("" if reason in ENDINGS else reason)
        tokens = self.logprobs.read() if self.logprobs else ()
        text = self.text or self.delta.content or ""
        thinks = bool(self.delta.reasoning or (usage and usage.thinking))
        return Piece(text, self.token_ids or (), tokens, ending, usage, thinks, failure)


class Response(_WithNulls):
    """A response of `/completions` or `/chat/completions`, or a chunk of it."""

    choices: list[_Choice] = []
    usage: KnownUsage = None

    def read(self) -> Piece:
        return next((choice for choice in self.choices if not choice.index), _Choice()).read(self.usage)


# --- llama-server's own format


class _Top(BaseModel):
    logprob: LogProbability


class _Entry(_Top):
    token: str
    top_logprobs: list[_Top] = []


class _Timings(BaseModel):
    prompt_n: Count  # without cached tokens
    predicted_n: Count
    cache_n: Count | None = None

    def read(self) -> ReportedUsage:
        return ReportedUsage(prompt=self.prompt_n + (self.cache_n or 0), cached=self.cache_n, written=self.predicted_n)


class LlamaResponse(BaseModel):
    """A response of llama-server's `/completion`, or a chunk of it. The text omits the stop string."""

    content: str
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    tokens: tuple[int, ...] = ()
    completion_probabilities: list[_Entry] = []
    timings: _Timings | None = None

    def read(self) -> Piece:
        tokens = tuple(
            ServedToken(entry.token, entry.logprob, sorted((top.logprob for top in entry.top_logprobs), reverse=True))
            for entry in self.completion_probabilities
        )
        endings: dict[str, Ending] = {"word": "separator", "eos": "end", "limit": "length"}
        ending = endings.get(self.stop_type, "stop") if self.stop else None
        usage = self.timings.read() if self.timings else None
        return Piece(self.content + self.stopping_word, self.tokens, tokens, ending, usage)


# --- models and prompts


class ListedModel(BaseModel):
    """A model on a server. Only llama-server reports the vocabulary size."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = Field(  # of vLLM, OpenRouter, and Mistral
        default=None, validation_alias=AliasChoices("max_model_len", "context_length", "max_context_length")
    )
    vocabulary_size: int | None = Field(default=None, validation_alias=AliasPath("meta", "n_vocab"))


class ListedModels(BaseModel):
    """The models that a server offers."""

    data: list[ListedModel]


class ServerFacts(BaseModel):
    """The version of a server and, of llama-server, the size of the context per slot."""

    version: str = Field(default="", validation_alias=AliasChoices("version", "build_info"))
    context_size: int | None = Field(default=None, validation_alias=AliasPath("default_generation_settings", "n_ctx"))


class Tokenized(BaseModel):
    """The response to a request to tokenize text, or the rendered messages of vLLM and SGLang."""

    tokens: list[int]


class Text(BaseModel):
    """The response to a request to detokenize text, or the rendered messages of llama-server."""

    text: str = Field(validation_alias=AliasChoices("prompt", "text"))


Rendered = TypeAdapter[Text | Tokenized](Text | Tokenized)
"""The response to a request to render messages."""


# --- statistics from the top k tokens


def token_stats(tokens: Sequence[ServedToken], k: int, vocabulary_size: int = VOCABULARY_SIZE) -> TokenStats:
    """Compute the statistics of a step from the top k tokens. Raises ValueError if a token has fewer than two alternatives.

    The entropy of the other tokens is estimated as the mean of a lower and an upper bound, -r ln min(r, p_k) and -r ln(r /
    (V - k)), where r is their total probability, p_k the probability of the k-th token and V the vocabulary size. With k =
    20, the root mean square error was 0.011 nats on 1,668 tokens of a real draft.
    """
    if not tokens or min(len(token.top) for token in tokens) < MIN_ALTERNATIVES:
        raise ValueError("the response lacks log-probabilities of the top tokens")
    return TokenStats(
        tuple(token.log_probability for token in tokens),
        tuple(entropy(token.top[:k], vocabulary_size) for token in tokens),  # a sampled token may be sent in addition
        tuple(token.top[0] - token.top[1] for token in tokens),
        pieces=tuple(token.text for token in tokens),
    )


def entropy(log_probabilities: Sequence[float], vocabulary_size: int) -> float:
    top = [(math.exp(value), value) for value in log_probabilities]
    known = -sum(p * value for p, value in top if p > 0)
    rest = 1.0 - sum(p for p, _ in top)
    num_others = vocabulary_size - len(top)
    if rest <= 0 or num_others <= 0:
        return max(0.0, known)
    lower = -rest * math.log(min([rest, *(p for p, _ in top if p > 0)]))
    upper = max(lower, -rest * math.log(rest / num_others))
    return known + (lower + upper) / 2

"""Converts requests to the JSON format of each kind of server, and parses the responses. Sends nothing.

Parsing a response in an unknown format raises KeyError, TypeError, ValueError or AttributeError.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import TokenStats

log = logging.getLogger("arbitrage.servers")

Json = Mapping[str, Any]

MAX_COUNT = 1 << 40  # tokens
MAX_LOGPROB, MIN_LOGPROB = 0.01, -1000.0  # nats; rounding errors may exceed 0
MIN_ALTERNATIVES = 2  # needed for a margin
VOCABULARY_SIZE = 1 << 17  # if unknown; twice as many add 0.35 r nats to an entropy, with probability r outside the top k

Count = Annotated[int, Field(ge=0, lt=MAX_COUNT)]
Ending = Literal["separator", "end", "length", "stop"]
"""The reason why a server stopped: a stop string, the end of the sequence, `max_tokens`, or `stop` (one of the first two)."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The messages of a chat, and the beginning of the assistant's answer."""

    messages: Sequence[Json]
    written: str = ""

    def __add__(self, text: str) -> "Dialogue":
        return replace(self, written=self.written + text)

    def __len__(self) -> int:
        """Return the number of characters, which is almost always greater than the number of tokens."""
        return len(self.written) + sum(len(message["content"]) for message in self.messages)


Prompt = Sequence[int] | str | Dialogue


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request to continue a prompt up to `stop` or `marker`, or to the end of the sequence if both are empty.

    Requests with different cache keys do not share a prompt cache.
    """

    model: str
    prompt: Prompt
    max_tokens: int
    sampler: Sampler = field(default_factory=Sampler)
    num_alternatives: int = 0
    cache_key: str = ""
    is_first: bool = False
    stop: str = BLANK_LINE.separator
    marker: str = ""

    @property
    def stops(self) -> list[str]:
        return [text for text in (self.stop, self.marker) if text]

    @property
    def dialogue(self) -> Dialogue:
        if not isinstance(self.prompt, Dialogue):
            raise TypeError("a chat needs messages")
        return self.prompt


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token and the top tokens at its position, each with its log-probability."""

    text: str
    log_probability: float
    alternatives: tuple[tuple[str, float], ...] = ()


_OTHER_NAMES = ("prompt_cache_hit_tokens", "cached_tokens")  # of DeepSeek and Moonshot
_CACHED = AliasChoices(AliasPath("prompt_tokens_details", "cached_tokens"), *_OTHER_NAMES)


class Usage(BaseModel):
    """The token counts of a response. `prompt` includes the `cached` tokens."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)
    prompt: Count = Field(validation_alias="prompt_tokens")
    cached: Count | None = Field(default=None, validation_alias=_CACHED)
    written: Count | None = Field(default=None, validation_alias="completion_tokens")
    thinking: Count | None = Field(default=None, validation_alias=AliasPath("completion_tokens_details", "reasoning_tokens"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.cached or 0) > self.prompt:
            raise ValueError("more cached tokens than prompt tokens")
        return self


def _known_usage(reported: object, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(reported)
    except ValidationError as error:
        log.warning("a server reports wrong token counts, which are not counted: %s", error.errors()[0]["msg"])
        return None


KnownUsage = Annotated[Usage | None, WrapValidator(_known_usage)]
"""The token counts of a response, or None if they are missing or contradict themselves."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of a response.

    `ending` is set in the last chunk that contains text. `failure` is the reason why the server refused to complete its
    response.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: tuple[Token, ...] = ()
    ending: Ending | None = None
    usage: Usage | None = None
    thinks: bool = False
    failure: str = ""

    def split(self, num_characters: int) -> "tuple[Piece, Piece]":
        """Split the piece after a number of characters. Ids are divided in proportion to the characters."""
        rest, num_ids = self.text[num_characters:], len(self.ids) * num_characters // len(self.text)
        lengths = accumulate(len(token.text) for token in reversed(self.tokens))
        num_tokens = sum(length > len(rest) for length in lengths)
        first = replace(self, text=self.text[:num_characters], ids=self.ids[:num_ids], tokens=self.tokens[:num_tokens])
        return first, replace(self, text=rest, ids=self.ids[num_ids:], tokens=self.tokens[num_tokens:])


WITH_USAGE: Json = {"stream_options": {"include_usage": True}}


class Completions:
    """OpenAI's `/completions` without extensions.

    The prompt is a string, the chat template is unknown, and the response does not distinguish a stop string from the end of
    the sequence. Requests therefore have no stop string; the stream is closed at the separator instead.
    """

    name: ClassVar[str] = "OpenAI-compatible"
    is_plain: ClassVar[bool] = True  # without extensions
    max_alternatives: ClassVar[int] = 5
    can_ignore_controls: ClassVar[bool] = False  # can tokenize control tokens as plain text
    facts_path: ClassVar[str] = ""
    own_fields: ClassVar[Json] = {}  # includes neutral values for the server's default sampling

    def url(self, base: str, root: str) -> str:
        return f"{base}/completions"

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> tuple[str, dict[str, Any]]:
        return "tokenize", {"model": model, "prompt": text, "add_special_tokens": False}

    def rendering(self, model: str, messages: Sequence[Json], variables: Json) -> tuple[str, dict[str, Any]]:
        options = {"chat_template_kwargs": dict(variables)} if variables else {}
        return "tokenize", {"model": model, "messages": list(messages), "add_generation_prompt": True, **options}

    def read_facts(self, facts: Json) -> tuple[str, int | None]:
        return str(facts.get("version") or ""), None

    def body(self, request: TextRequest) -> dict[str, Any]:
        body = {**self.own_fields, **sampling(request), "max_tokens": request.max_tokens, **WITH_USAGE}
        if request.num_alternatives:
            body["logprobs"] = request.num_alternatives
        return body

    def read(self, answer: Json) -> Piece:
        read = _Completion.model_validate(answer)
        if not read.choices:
            return Piece(usage=read.usage)
        choice = read.choices[0]
        ending: Ending | None = "length" if choice.finish_reason == "length" else None
        if choice.finish_reason == "stop":  # at a string, or at a token (none or a number)
            ending = "separator" if isinstance(choice.stopped_by, str) else "end"
        tokens = choice.logprobs.read() if choice.logprobs else ()
        return Piece(choice.text, tuple(choice.token_ids or ()), tokens, ending, read.usage)


class Vllm(Completions):
    """The dialect of vLLM, which ignores SGLang's fields."""

    name = "vLLM"
    is_plain = False
    max_alternatives = 20
    facts_path = "version"
    own_fields: ClassVar[Json] = {
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
        "add_special_tokens": False,
        "include_stop_str_in_output": True,
        "no_stop_trim": True,  # the same in SGLang
    }

    def body(self, request: TextRequest) -> dict[str, Any]:
        body = {**super().body(request), "stop": request.stops}
        if request.marker:
            body["skip_special_tokens"] = False
        if request.cache_key:
            body["cache_salt"] = request.cache_key
        return body


class Sglang(Vllm):
    """The dialect of SGLang, which ignores vLLM's fields."""

    name = "SGLang"
    facts_path = "get_server_info"


class LlamaServer(Completions):
    """The dialect of llama-server. Responses omit the stop string."""

    name = "llama-server"
    is_plain = False
    max_alternatives = 20
    can_ignore_controls = True
    facts_path = "props"
    own_fields: ClassVar[Json] = {"cache_prompt": True, "return_tokens": True}

    def url(self, base: str, root: str) -> str:
        return f"{root}/completion"

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> tuple[str, dict[str, Any]]:
        return "tokenize", {"content": text, "add_special": begins, "parse_special": is_template}

    def rendering(self, model: str, messages: Sequence[Json], variables: Json) -> tuple[str, dict[str, Any]]:
        return "apply-template", {"messages": list(messages), "chat_template_kwargs": dict(variables)}

    def read_facts(self, facts: Json) -> tuple[str, int | None]:
        return str(facts.get("build_info") or ""), facts["default_generation_settings"]["n_ctx"]  # per slot

    def body(self, request: TextRequest) -> dict[str, Any]:
        body = {**sampling(request), "n_predict": request.max_tokens, "stop": request.stops, **self.own_fields}
        if request.marker:
            body["preserved_tokens"] = [request.marker]
        if request.num_alternatives:
            body["n_probs"] = request.num_alternatives
        body["samplers"] = [name for name in ("top_k", "top_p", "min_p", "temperature") if name in body]
        if request.cache_key and request.is_first:
            body["cache_prompt"] = False
        return body

    def read(self, answer: Json) -> Piece:
        read = _LlamaCompletion.model_validate(answer)
        tokens = tuple(entry.read() for entry in read.completion_probabilities or ())
        if not read.stop:
            return Piece(read.content, tuple(read.tokens or ()), tokens)
        endings: dict[str, Ending] = {"word": "separator", "eos": "end", "limit": "length"}
        ending = endings[read.stop_type]
        text = read.content + (read.stopping_word if ending == "separator" else "")
        return Piece(text, tuple(read.tokens or ()), tokens, ending, read.timings.read() if read.timings else None)


DIALECTS: Mapping[str, type[Completions]] = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaServer}  # by `owned_by`


def sampling(request: TextRequest) -> dict[str, Any]:
    drawn = {name: value for name, value in asdict(request.sampler).items() if value or name not in ("top_k", "min_p")}
    return {"model": request.model, "prompt": request.prompt, "stream": True, **drawn}


def dialect_of(models: "Models") -> Completions:
    owners = [model.owned_by or "" for model in models.data]
    return next((DIALECTS[owner] for owner in owners if owner in DIALECTS), Completions)()


# --- responses


class ListedModel(BaseModel):
    """A model on a server. Only llama-server reports the vocabulary size."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = Field(  # of vLLM, OpenRouter, and Mistral
        default=None, validation_alias=AliasChoices("max_model_len", "context_length", "max_context_length")
    )
    vocabulary_size: int | None = Field(default=None, validation_alias=AliasPath("meta", "n_vocab"))


class Models(BaseModel):
    """The models that a server offers."""

    data: list[ListedModel]


_LogProbability = Annotated[float, Field(le=MAX_LOGPROB), AfterValidator(lambda value: max(value, MIN_LOGPROB))]


class _Entry(BaseModel):
    token: str
    logprob: _LogProbability
    top_logprobs: "list[_Entry] | None" = None

    def read(self) -> Token:
        return Token(self.token, self.logprob, _ranked((other.token, other.logprob) for other in self.top_logprobs or ()))


class _LogProbabilities(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[_LogProbability] = []
    top_logprobs: list[dict[str, _LogProbability]] | None = None

    def read(self) -> tuple[Token, ...]:
        rows = zip(self.tokens, self.token_logprobs, self.top_logprobs or [], strict=True)
        return tuple(Token(text, own, _ranked(others.items())) for text, own, others in rows)


class _Choice(BaseModel):
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    stopped_by: Any = Field(default=None, validation_alias=AliasChoices("stop_reason", "matched_stop"))  # vLLM; SGLang
    token_ids: list[int] | None = None
    logprobs: _LogProbabilities | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: KnownUsage = None


class _Timings(BaseModel):
    prompt_n: Count  # without cached tokens
    predicted_n: Count
    cache_n: Count | None = None

    def read(self) -> Usage:
        return Usage(prompt=self.prompt_n + (self.cache_n or 0), cached=self.cache_n, written=self.predicted_n)


class _LlamaCompletion(BaseModel):
    content: str
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    tokens: list[int] | None = None
    completion_probabilities: list[_Entry] | None = None
    timings: _Timings | None = None


def _ranked(alternatives: Any) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(alternatives, key=lambda alternative: -alternative[1]))


# --- statistics from the top k tokens


def token_stats(tokens: Sequence[Token], k: int, vocabulary_size: int = VOCABULARY_SIZE) -> TokenStats:
    """Compute the statistics of a step from the top k tokens. Raises ValueError if a token has fewer than two alternatives.

    The entropy of the other tokens is estimated as the mean of a lower and an upper bound, -r ln min(r, p_k) and -r ln(r /
    (V - k)), where r is their total probability, p_k the probability of the k-th token and V the vocabulary size. With k =
    20, the root mean square error was 0.011 nats on 1,668 tokens of a real draft.
    """
    if not tokens or min(len(token.alternatives) for token in tokens) < MIN_ALTERNATIVES:
        raise ValueError("the response lacks log-probabilities of the top tokens")
    ranked = [[value for _, value in token.alternatives[:k]] for token in tokens]  # a sampled token may be sent in addition
    return TokenStats(
        tuple(token.log_probability for token in tokens),
        tuple(entropy(values, vocabulary_size) for values in ranked),
        tuple(values[0] - values[1] for values in ranked),
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

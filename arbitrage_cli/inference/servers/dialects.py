"""What each kind of server is asked, and how its answers read: pure functions from requests to JSON and back.

vLLM, SGLang, llama.cpp's server, and any other with OpenAI's `/completions`. What they have in common is `Completions`; a subclass
says what is different. Sends nothing. A field of the wrong type raises KeyError, IndexError, TypeError, ValueError or AttributeError.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from arbitrage_cli.inference.step_text import BLANK_LINE

Json = Mapping[str, Any]

MAX_COUNT = 1 << 40  # tokens
MAX_LOGPROB, RULED_OUT = 0.01, -1000.0  # nats; rounding may give a little more than 0

Ending = Literal["separator", "end", "length"]
"""Why a server stopped writing: at the blank line, at the end of the sequence, or at `max_tokens`."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A text to continue: token ids, or a string for a server that takes no ids. `num_alternatives` are wanted for each token.

    Texts with different `cache_key`s should find nothing of each other in the server's cache. `is_first`: the first with this key.
    """

    model: str
    prompt: Sequence[int] | str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    num_alternatives: int = 0
    is_streamed: bool = False
    cache_key: str = ""
    is_first: bool = False
    stop: str = BLANK_LINE.separator


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was written: its text, its log-probability, and those of the likeliest tokens there, by their texts."""

    text: str
    log_probability: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and seconds of one answer, as far as the server reports them. `cached` is a part of `prompt`."""

    prompt: int
    cached: int = 0
    written: int = 0
    prompt_seconds: float | None = None
    written_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. `ending` is set in the last part that has text, `usage` where it is reported."""

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: tuple[Token, ...] = ()
    ending: Ending | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Completions:
    """OpenAI's `/completions`, and no more than that.

    Such a server does not say whether it stopped at the blank line or at the end of the sequence. So it is not asked to stop: its
    stream is closed at the blank line.
    """

    name: str = "OpenAI-compatible"
    takes_ids: bool = False
    says_why_it_stopped: bool = False
    max_alternatives: int = 5
    needs_stream_for_alternatives: bool = False
    shows_template: bool = False
    reads_data_plainly: bool = False
    """Whether it can be told to find no control tokens in a text."""
    facts_path: str = ""
    own_fields: Json = field(default_factory=dict)
    """Fields of this kind of server. Among them: settings that switch off what it samples by on its own."""

    def url(self, base: str, root: str) -> str:
        """Where to ask."""
        return f"{base}/completions"

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> tuple[str, dict[str, Any]]:
        """Path and body of a request for the ids of a text; the answer has them as `tokens`."""
        return "tokenize", {"model": model, "prompt": text, "add_special_tokens": False}

    def rendering(self, model: str, messages: Sequence[Json], variables: Json) -> tuple[str, dict[str, Any]]:
        """Path and body of a request for messages in the chat template; the answer has them as `prompt`, or as `tokens`."""
        more = {"chat_template_kwargs": dict(variables)} if variables else {}
        return "tokenize", {"model": model, "messages": list(messages), "add_generation_prompt": True, **more}

    def read_facts(self, facts: Json) -> tuple[str, int | None]:
        """Version of the server and context of the model, from its own endpoint."""
        return str(facts.get("version") or ""), None

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = {
            "model": request.model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": request.is_streamed,
            **self.own_fields,
        }
        if request.num_alternatives:
            body["logprobs"] = request.num_alternatives
        if request.is_streamed:
            body["stream_options"] = {"include_usage": True}
        if self.says_why_it_stopped:
            body |= {"stop": [request.stop], **self._stop_fields()}
        return {**body, **self._cache_fields(request)}

    def read(self, answer: Json) -> Piece:
        """An answer, or a part of a streamed one."""
        usage = _usage(answer["usage"]) if answer.get("usage") else None
        if not answer["choices"]:
            return Piece(usage=usage)
        choice = answer["choices"][0]
        ids = tuple(int(token) for token in choice.get("token_ids") or ())
        return Piece(_text(choice["text"]), ids, _tokens(choice.get("logprobs")), self._ending(choice), usage)

    def _stop_fields(self) -> Json:
        return {}

    def _cache_fields(self, request: CompletionRequest) -> Json:
        return {}

    def _ending(self, choice: Json) -> Ending | None:
        reason = choice.get("finish_reason")
        if reason is None:
            return None
        if reason == "length":
            return "length"
        if reason != "stop":
            raise ValueError(f"it ended with '{reason}'")
        return "separator" if self._was_separator(choice) else "end"

    def _was_separator(self, choice: Json) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Vllm(Completions):
    """vLLM: token ids in and out, the stop text kept and named."""

    name: str = "vLLM"
    takes_ids: bool = True
    says_why_it_stopped: bool = True
    max_alternatives: int = 20
    shows_template: bool = True
    facts_path: str = "version"
    own_fields: Json = field(
        default_factory=lambda: {
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
    )

    def _stop_fields(self) -> Json:
        return {"include_stop_str_in_output": True}

    def _cache_fields(self, request: CompletionRequest) -> Json:
        return {"cache_salt": request.cache_key} if request.cache_key else {}

    def _was_separator(self, choice: Json) -> bool:
        return isinstance(choice.get("stop_reason"), str)  # else the id of a token


@dataclass(frozen=True, slots=True)
class Sglang(Completions):
    """SGLang: as vLLM, with other names for the same."""

    name: str = "SGLang"
    takes_ids: bool = True
    says_why_it_stopped: bool = True
    max_alternatives: int = 20
    shows_template: bool = True
    facts_path: str = "get_server_info"
    own_fields: Json = field(
        default_factory=lambda: {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    )

    def _stop_fields(self) -> Json:
        return {"no_stop_trim": True}

    def _was_separator(self, choice: Json) -> bool:
        return isinstance(choice.get("matched_stop"), str)  # else the id of a token


@dataclass(frozen=True, slots=True)
class LlamaServer(Completions):
    """llama.cpp's own `/completion`, which says why it stopped. It cuts off the stop text, which is put back.

    If not streamed, it leaves out the log-probabilities of the stop text's tokens.
    """

    name: str = "llama-server"
    takes_ids: bool = True
    says_why_it_stopped: bool = True
    max_alternatives: int = 20
    needs_stream_for_alternatives: bool = True
    shows_template: bool = True
    reads_data_plainly: bool = True
    facts_path: str = "props"
    own_fields: Json = field(
        default_factory=lambda: {
            "samplers": ["top_p", "temperature"],
            "cache_prompt": True,
            "return_tokens": True,
        }
    )

    def url(self, base: str, root: str) -> str:
        """Where to ask."""
        return f"{root}/completion"

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> tuple[str, dict[str, Any]]:
        """Control tokens are found in a template's text only."""
        return "tokenize", {"content": text, "add_special": begins, "parse_special": is_template}

    def rendering(self, model: str, messages: Sequence[Json], variables: Json) -> tuple[str, dict[str, Any]]:
        """Path and body."""
        return "apply-template", {"messages": list(messages), "chat_template_kwargs": dict(variables)}

    def read_facts(self, facts: Json) -> tuple[str, int | None]:
        """The context is that of one slot."""
        return str(facts.get("build_info") or ""), facts["default_generation_settings"]["n_ctx"]

    def body(self, request: CompletionRequest) -> dict[str, Any]:
        """The request."""
        body: dict[str, Any] = {
            "model": request.model,
            "prompt": request.prompt,
            "n_predict": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": request.is_streamed,
            "stop": [request.stop],
            **self.own_fields,
        }
        if request.num_alternatives:
            body["n_probs"] = request.num_alternatives
        if request.cache_key and request.is_first:
            body["cache_prompt"] = False
        return body

    def read(self, answer: Json) -> Piece:
        """An answer, or a part of a streamed one."""
        ending, text = self._ending(answer), _text(answer["content"])
        if ending == "separator":
            text += _text(answer["stopping_word"])
        tokens = tuple(_token(entry) for entry in answer.get("completion_probabilities") or ())
        ids = tuple(int(token) for token in answer.get("tokens") or ())
        timings = answer.get("timings") if ending else None  # the chunk of the stop text has them too
        return Piece(text, ids, tokens, ending, _timings(timings) if timings else None)

    def _ending(self, choice: Json) -> Ending | None:
        if not choice.get("stop"):
            return None
        endings: dict[str, Ending] = {"word": "separator", "eos": "end", "limit": "length"}
        return endings[choice["stop_type"]]


OWNERS: Mapping[str, type[Completions]] = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaServer}
"""Kinds of servers by what they call the owner of their models."""


def dialect_of(models: Json) -> Completions:
    """The dialect of the server that gave this list of models."""
    owners = [entry.get("owned_by") for entry in models["data"]]
    return next((OWNERS[owner] for owner in owners if owner in OWNERS), Completions)()


# --- parts of answers


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("the text is no text")
    return value


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < MAX_COUNT:
        raise ValueError("a number of tokens is none")
    return count


def _logprob(value: Any) -> float:
    """A log-probability; of a token that is ruled out, a very low one."""
    number = float(value)
    if not number <= MAX_LOGPROB:  # or not a number
        raise ValueError("a log-probability is none")
    return max(number, RULED_OUT)


def _usage(usage: Json) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    written = _count(usage.get("completion_tokens") or 0)
    return Usage(_count(usage["prompt_tokens"]), _count(details.get("cached_tokens") or 0), written)


def _timings(timings: Json) -> Usage:
    """llama-server's: `prompt_n` are the tokens that were not in the cache."""
    cached = _count(timings.get("cache_n") or 0)
    return Usage(
        _count(timings["prompt_n"]) + cached,
        cached,
        _count(timings["predicted_n"]),
        float(timings["prompt_ms"]) / 1000,
        float(timings["predicted_ms"]) / 1000,
    )


def _tokens(logprobs: Json | None) -> tuple[Token, ...]:
    """The tokens of an answer, in either of OpenAI's shapes: that of completions, and that of chats."""
    if not logprobs:
        return ()
    if logprobs.get("content") is not None:
        return tuple(_token(entry) for entry in logprobs["content"])
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs.get("top_logprobs") or [], strict=True)
    return tuple(Token(_text(text), _logprob(own), _ranked(others.items())) for text, own, others in rows)


def _token(entry: Json) -> Token:
    others = ((other["token"], other["logprob"]) for other in entry.get("top_logprobs") or ())
    return Token(_text(entry["token"]), _logprob(entry["logprob"]), _ranked(others))


def _ranked(alternatives: Any) -> tuple[tuple[str, float], ...]:
    """Alternatives, the likeliest first."""
    return tuple(sorted(((_text(text), _logprob(value)) for text, value in alternatives), key=lambda one: -one[1]))

"""Converts requests to the JSON format of each kind of server. Sends nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.responses import LlamaResponse, Piece, Response
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import Fields, Json, ServerKind, frozen

OPTIONAL = ("max_tokens", "top_p", "seed", "stream_options", "temperature", "thinking", "enable_thinking")
"""Fields that some APIs reject, in the order in which they are omitted.

Instead of `max_tokens`, these APIs accept `max_completion_tokens`.
"""

MAX_ALTERNATIVES = 20  # log-probabilities per token

APIS: Mapping[str, Json] = {
    "aliyuncs.com": {"enable_thinking": False},  # Qwen on DashScope
    "deepseek.com": {"thinking": {"type": "disabled"}},
    "moonshot.ai": {"thinking": {"type": "disabled"}},
    "moonshot.cn": {"thinking": {"type": "disabled"}},
    "openrouter.ai": {"reasoning": {"enabled": False}},
}
"""The fields that turn off thinking, by the domain of the API. Source: the providers' documentation."""


@frozen
class Prompt:
    """What a model is asked to continue: token ids or, for a chat API, messages."""

    ids: Sequence[int] = ()
    messages: Sequence[Json] = ()

    def followed_by(self, ids: Iterable[int]) -> "Prompt":
        return replace(self, ids=[*self.ids, *ids])

    def __len__(self) -> int:
        """Return the number of tokens or, for messages, of characters, which is almost always greater."""
        return len(self.ids) + sum(len(message["content"]) for message in self.messages)


@frozen
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

    def body(self) -> Json:
        """Return the fields that all servers accept, without the prompt."""
        drawn = {name: value for name, value in asdict(self.sampler).items() if value or name not in ("top_k", "min_p")}
        return {"model": self.model, "stream": True, **drawn}

    @property
    def stops(self) -> list[str]:
        return [text for text in (self.stop, self.marker) if text]


class Completions(ABC):
    """A server whose models continue token ids, so that they can continue the text of another model.

    `facts_paths` are where the version and the context size may be found. `can_ignore_controls` is true if the server can
    tokenize the text of a control token as plain text. `own_fields` includes neutral values for the server's default sampling.
    """

    name: ClassVar[str]
    path: ClassVar = "completions"
    can_ignore_controls: ClassVar = False
    facts_paths: ClassVar[Sequence[str]]
    rendering_path: ClassVar = "/tokenize"
    own_fields: ClassVar[Json]

    @abstractmethod
    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> Json: ...

    @abstractmethod
    def rendering(self, model: str, messages: Sequence[Json], variables: Fields) -> Json: ...

    def body(self, request: TextRequest) -> Json:
        return {**self.own_fields, **request.body(), "prompt": request.prompt.ids, "stop": request.stops}

    @abstractmethod
    def read(self, answer: Json) -> Piece: ...


class Vllm(Completions):
    """The dialect of vLLM, which ignores SGLang's fields."""

    name = "vLLM"
    facts_paths: ClassVar[Sequence[str]] = ("/version",)
    own_fields: ClassVar[Json] = {
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
        "add_special_tokens": False,
        "include_stop_str_in_output": True,
        "no_stop_trim": True,  # the same in SGLang
    }

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> Json:
        return {"model": model, "prompt": text, "add_special_tokens": False}

    def rendering(self, model: str, messages: Sequence[Json], variables: Fields) -> Json:
        options = {"chat_template_kwargs": dict(variables)} if variables else {}
        return {"model": model, "messages": list(messages), "add_generation_prompt": True, **options}

    def body(self, request: TextRequest) -> Json:
        body = super().body(request) | {"max_tokens": request.max_tokens, "stream_options": {"include_usage": True}}
        if request.num_alternatives:
            body["logprobs"] = request.num_alternatives
        if request.marker:
            body["skip_special_tokens"] = False
        if request.cache_key:
            body["cache_salt"] = request.cache_key
        return body

    def read(self, answer: Json) -> Piece:
        return Response.model_validate(answer).read()


class Sglang(Vllm):
    """The dialect of SGLang, which ignores vLLM's fields."""

    name = "SGLang"
    facts_paths = ("/server_info", "/get_server_info")  # older versions only have the second


class LlamaServer(Completions):
    """The dialect of llama-server. Responses omit the stop string."""

    name = "llama-server"
    path = "/completion"
    can_ignore_controls = True
    facts_paths = ("/props",)
    rendering_path = "/apply-template"
    own_fields: ClassVar[Json] = {"cache_prompt": True, "return_tokens": True}

    def tokenizing(self, model: str, text: str, *, is_template: bool, begins: bool) -> Json:
        return {"content": text, "add_special": begins, "parse_special": is_template}

    def rendering(self, model: str, messages: Sequence[Json], variables: Fields) -> Json:
        return {"messages": list(messages), "chat_template_kwargs": dict(variables)}

    def body(self, request: TextRequest) -> Json:
        body = super().body(request) | {"n_predict": request.max_tokens}
        if request.marker:
            body["preserved_tokens"] = [request.marker]
        if request.num_alternatives:
            body["n_probs"] = request.num_alternatives
        # The order of `Sampler`. By default, llama-server applies the temperature last.
        body["samplers"] = [name for name in ("temperature", "top_k", "top_p", "min_p") if name in body]
        if request.cache_key and request.is_first:
            body["cache_prompt"] = False
        return body

    def read(self, answer: Json) -> Piece:
        return LlamaResponse.model_validate(answer).read()


SERVERS: Mapping[ServerKind, type[Completions]] = {"vllm": Vllm, "sglang": Sglang, "llama-server": LlamaServer}
OWNERS: Mapping[str, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server"}
"""What is behind an API, by the `owned_by` of its models."""


@dataclass(frozen=True)
class Chat:
    """`/chat/completions`, whose models write whole solutions and do not think.

    Requests no stop strings and no log-probabilities, which only routing needs. `omitted` contains the optional fields that
    the server rejects.
    """

    name: ClassVar = "chat API"
    path: ClassVar = "chat/completions"
    no_thinking: Json = field(default_factory=dict)
    omitted: frozenset[str] = frozenset()

    @classmethod
    def at(cls, host: str, variables: Fields) -> "Chat":
        """Return the chat API of a host. `variables` are for the chat template."""
        no_thinking = next((fields for domain, fields in APIS.items() if f".{host}".endswith(f".{domain}")), {})
        switches = {"chat_template_kwargs": dict(variables)} if variables else {}
        return cls({**switches, **no_thinking})

    def body(self, request: TextRequest) -> Json:
        unused = {*(() if request.sampler.temperature else ("seed", "top_p")), *self.omitted}
        fields = {"max_tokens": request.max_tokens, "stream_options": {"include_usage": True}}
        body = {**request.body(), **fields, **self.no_thinking, "messages": [*request.prompt.messages]}
        if "max_tokens" in self.omitted:
            body["max_completion_tokens"] = request.max_tokens
        return {name: value for name, value in body.items() if name not in unused}

    def read(self, answer: Json) -> Piece:
        return Response.model_validate(answer).read()


Dialect = Completions | Chat

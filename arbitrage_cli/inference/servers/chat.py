"""Continues a text through `/chat/completions`, for servers that offer nothing else. Sends nothing.

Chat APIs use different conventions to continue an unfinished answer; a table names the convention of each known API. Most
chat APIs omit the stop string and report `stop` both for a stop string and for the end of the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, Field

from arbitrage_cli.errors import ServerRequestError
from arbitrage_cli.inference.servers.dialects import (
    WITH_USAGE,
    Completions,
    Dialogue,
    Ending,
    Json,
    KnownUsage,
    Piece,
    TextRequest,
    sampling,
)

MAX_COMMON = 40  # characters that an answer and the steps so far may have in common by chance

ENDINGS: Mapping[str, Ending] = {"stop": "stop", "eos": "end", "end_turn": "end", "length": "length", "max_tokens": "length"}
"""The ways in which a complete step can end, by finish reason. All other finish reasons are failures."""
OPTIONAL = ("max_tokens", "top_p", "seed", "stream_options", "stop", "temperature", "thinking", "enable_thinking")
"""Fields that some APIs reject, in the order in which they are omitted. Instead of `max_tokens`, these APIs accept `max_completion_tokens`."""

CONTINUATIONS: Mapping[str, tuple[Json, Json]] = {
    "trailing": ({}, {}),
    "prefix": ({"prefix": True}, {}),
    "partial": ({"partial": True}, {}),
    "final": ({}, {"continue_final_message": True, "add_generation_prompt": False}),  # vLLM, SGLang
}
"""The conventions for continuing an answer.

Each convention adds fields to the assistant's message, which is the last one, and to the request.
"""

APIS: Mapping[str, tuple[str, Json]] = {
    "aliyuncs.com": ("partial", {"enable_thinking": False}),  # Qwen on DashScope
    "anthropic.com": ("trailing", {}),  # Claude before 4.6
    "deepseek.com": ("prefix", {"thinking": {"type": "disabled"}}),  # only at https://api.deepseek.com/beta
    "mistral.ai": ("prefix", {}),
    "moonshot.ai": ("partial", {"thinking": {"type": "disabled"}}),
    "moonshot.cn": ("partial", {"thinking": {"type": "disabled"}}),
    "openrouter.ai": ("trailing", {"reasoning": {"enabled": False}}),
}
"""The convention of each API, and the fields that turn off thinking, by domain, from the providers' documentation."""
OTHER_API: tuple[str, Json] = ("trailing", {})  # such as llama-server


def chat_at(host: str, continuation: str | None, variables: Json) -> "Chat":
    """Return the chat API of a host. `continuation` replaces the convention, and `variables` are those of the chat template."""
    usual, no_thinking = next((api for domain, api in APIS.items() if f".{host}".endswith(f".{domain}")), OTHER_API)
    switches = {"chat_template_kwargs": dict(variables)} if variables else {}
    return Chat(continuation or usual, {**switches, **no_thinking})


@dataclass(frozen=True)
class Chat(Completions):
    """`/chat/completions` with the features of one server. Requests no log-probabilities, which only drafts need.

    If `repeats` is true, responses begin with the text to continue. If `trims` is true, the server rejects or removes white
    space at the end of this text, so a response may begin with the separator.
    """

    name: ClassVar[str] = "chat API"
    continuation: str = "trailing"
    no_thinking: Json = field(default_factory=dict)
    omitted: frozenset[str] = frozenset()
    repeats: bool = False
    trims: bool = False

    @property
    def can_stop(self) -> bool:
        """Whether the server can stop at a separator. If not, the stream is closed there."""
        return not self.trims and "stop" not in self.omitted

    def url(self, base: str, root: str) -> str:
        return f"{base}/chat/completions"

    def body(self, request: TextRequest) -> dict[str, Any]:
        unused = {"prompt", *(() if request.sampler.temperature else ("seed", "top_p")), *self.omitted}
        body = {**sampling(request), "max_tokens": request.max_tokens, **WITH_USAGE}
        if request.stop and self.can_stop:
            body["stop"] = [request.stop]
        if "max_tokens" in self.omitted:
            body["max_completion_tokens"] = request.max_tokens
        continued = CONTINUATIONS[self.continuation][1] if request.dialogue.written else {}
        body |= {"messages": self._messages(request.dialogue), **continued, **self.no_thinking}
        return {name: value for name, value in body.items() if name not in unused}

    def _messages(self, dialogue: Dialogue) -> list[Json]:
        if not dialogue.written:
            return list(dialogue.messages)
        written = dialogue.written.rstrip() if self.trims else dialogue.written
        return [*dialogue.messages, {"role": "assistant", "content": written, **CONTINUATIONS[self.continuation][0]}]

    def read(self, answer: Json) -> Piece:
        read = _Chunk.model_validate(answer)
        thinks = bool(read.usage and read.usage.thinking)
        if not read.choices:
            return Piece(usage=read.usage, thinks=thinks)
        choice, delta = read.choices[0], read.choices[0].delta
        ending, failure = None, "refusal" if delta.refusal else ""
        if reason := choice.finish_reason:
            stopped = isinstance(choice.stopped_by, str) or choice.native_finish_reason == "stop_sequence"
            ending = "separator" if stopped else ENDINGS.get(reason, "stop")
            failure = failure or ("" if reason in ENDINGS else reason)
        thinks = thinks or bool(delta.reasoning)
        return Piece(delta.content or "", ending=ending, usage=read.usage, thinks=thinks, failure=failure)


class _Delta(BaseModel):
    content: str | None = None
    reasoning: Any = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
    refusal: str | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    native_finish_reason: str | None = None  # of OpenRouter
    stopped_by: Any = Field(default=None, validation_alias=AliasChoices("stop_reason", "matched_stop"))  # vLLM; SGLang


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: KnownUsage = None


class OwnText:
    """Removes repeated text from the beginning of a response: the text to continue and the separator after it."""

    def __init__(self, written: str, chat: Chat) -> None:
        self._sent = written.rstrip() if chat.trims else written
        self._repeats, self._is_compared, self._held = chat.repeats, not self._sent, ""
        self._skipped = "\n" if written != self._sent else ""

    def __call__(self, piece: Piece) -> Piece:
        """Hold a response back until it differs from the text to continue.

        Raises ServerRequestError if the response repeats only a part of the text to continue.
        """
        text = piece.text
        if not self._is_compared:
            self._held += text
            num_common = len(commonprefix([self._held, self._sent]))  # noqa: RUF071 - texts, not paths
            if piece.ending is None and num_common == len(self._held) < len(self._sent):
                return replace(piece, text="")
            is_repetition = self._repeats or num_common >= MAX_COMMON
            if is_repetition and num_common < len(self._sent):
                raise ServerRequestError("the model begins its answer again instead of continuing it", "use another target")
            text, self._is_compared = self._held[num_common if is_repetition else 0 :], True
        if text := text.lstrip(self._skipped):
            self._skipped = ""
        return replace(piece, text=text)

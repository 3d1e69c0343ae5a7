"""Continues a text through `/chat/completions`, for servers that offer nothing else. Sends nothing.

Chat APIs continue an unfinished answer by different conventions. If an API has none, the model is instructed to write the next
step. Most chat APIs omit the stop string and report `stop` both for a stop string and for the end of the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, Field

from arbitrage_cli.inference.servers.dialects import (
    Completions,
    Dialogue,
    Ending,
    Json,
    LogProbabilities,
    Piece,
    TextRequest,
    Usage,
    sampling,
)

END = "[END]"  # written by an instructed model after its last step
FIRST_STEP = "{question}\n\nWrite only the first step of the solution, in one paragraph. {rules}"
NEXT_STEP = (
    "{question}\n\nThis is the beginning of a solution:\n\n{written}\n\n"
    "Continue the solution exactly where it stops. Write only the next step, in one paragraph, without repeating anything. {rules}"
)
RULES = f"If this step completes the solution, write {END} after it."
MAX_COMMON = 40  # characters; a longer common beginning of an answer and the steps so far is no coincidence

ENDINGS: Mapping[str, Ending] = {"stop": "stop", "eos": "end", "end_turn": "end", "length": "length", "max_tokens": "length"}
"""The endings of complete steps, by finish reason. All other reasons are failures."""
OPTIONAL = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream_options", "logprobs")
"""Fields that some APIs reject. Instead of `max_tokens`, these APIs accept `max_completion_tokens`."""

NO_THINKING: tuple[Json, ...] = (
    {},
    {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},  # vLLM, SGLang, llama-server
    {"thinking": {"type": "disabled"}},  # DeepSeek, Moonshot, Z.ai, Anthropic
    {"enable_thinking": False},  # Qwen on DashScope
    {"reasoning_effort": "none"},  # OpenAI, Gemini
    {"reasoning": {"enabled": False}},  # OpenRouter
)
"""The fields that turn off thinking in different APIs."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A convention for continuing an answer: fields of the last message, which is the assistant's, and of the request."""

    name: str
    message: Json = field(default_factory=dict)
    request: Json = field(default_factory=dict)


INSTRUCTED = Continuation("instructed")  # OpenAI, Gemini, Claude since 4.6
CONTINUATIONS: Mapping[str, Continuation] = MappingProxyType(
    {
        own.name: own
        for own in (
            Continuation("trailing"),  # llama-server, OpenRouter, Claude before 4.6
            Continuation("prefix", {"prefix": True}),  # Mistral; DeepSeek at https://api.deepseek.com/beta
            Continuation("partial", {"partial": True}),  # Moonshot, Qwen on DashScope
            Continuation("final", request={"continue_final_message": True, "add_generation_prompt": False}),  # vLLM, SGLang
            INSTRUCTED,
        )
    }
)
"""The known conventions, in the order in which they are tried."""


@dataclass(frozen=True)
class Chat(Completions):
    """`/chat/completions` with the features of one server.

    `repeats`: responses begin with the text to continue. `trims`: the server rejects or removes white space at the end of the
    text, so a response may begin with the separator.
    """

    name: ClassVar[str] = "chat API"
    max_alternatives: ClassVar[int] = 20
    continuation: Continuation = INSTRUCTED
    no_thinking: Json = field(default_factory=dict)
    variables: Json = field(default_factory=dict)  # of the chat template
    omitted: frozenset[str] = frozenset()
    repeats: bool = False
    trims: bool = False

    @property
    def is_instructed(self) -> bool:
        return self.continuation is INSTRUCTED

    @property
    def can_stop(self) -> bool:
        """Whether the server can stop at a separator. If not, the stream is closed there."""
        return not self.trims and "stop" not in self.omitted

    def url(self, base: str, root: str) -> str:
        return f"{base}/chat/completions"

    def body(self, request: TextRequest) -> dict[str, Any]:
        dialogue = request.dialogue
        drawn = {name: value for name, value in sampling(request).items() if name != "prompt"}
        if not request.sampler.temperature:
            drawn = {name: value for name, value in drawn.items() if name not in ("seed", "top_p")}
        body = {**drawn, "messages": self._messages(dialogue), "stream_options": {"include_usage": True}}
        body["max_tokens"] = request.max_tokens
        if request.stop and self.can_stop:
            body["stop"] = [request.stop]
        if request.num_alternatives and "logprobs" not in self.omitted:
            body |= {"logprobs": True, "top_logprobs": request.num_alternatives}
        if self.variables:
            body["chat_template_kwargs"] = dict(self.variables)
        if "max_tokens" in self.omitted:
            body["max_completion_tokens"] = request.max_tokens
        continued = self.continuation.request if dialogue.written else {}
        return {name: value for name, value in body.items() if name not in self.omitted} | {**continued, **self.no_thinking}

    def _messages(self, dialogue: Dialogue) -> list[Json]:
        if self.is_instructed:
            *before, last = dialogue.messages
            form = NEXT_STEP if dialogue.written else FIRST_STEP
            text = form.format(question=last["content"], written=dialogue.written.rstrip(), rules=RULES)
            return [*before, {"role": "user", "content": text}]
        if not dialogue.written:
            return list(dialogue.messages)
        written = dialogue.written.rstrip() if self.trims else dialogue.written
        return [*dialogue.messages, {"role": "assistant", "content": written, **self.continuation.message}]

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
        thinks = thinks or bool(delta.reasoning or delta.text(of="thinking"))
        tokens = choice.logprobs.read() if choice.logprobs else ()
        return Piece(delta.text(of="text"), (), tokens, ending, read.usage, thinks=thinks, failure=failure)


class _Delta(BaseModel):
    content: str | list[dict[str, Any]] | None = None  # a list in Mistral's thinking models
    reasoning: Any = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))
    refusal: str | None = None

    def text(self, of: str) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get(of) or "") for part in self.content if part.get("type") == of)
        return self.content or "" if of == "text" else ""


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    native_finish_reason: str | None = None  # of OpenRouter
    stopped_by: Any = Field(default=None, validation_alias=AliasChoices("stop_reason", "matched_stop"))  # vLLM; SGLang
    logprobs: LogProbabilities | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: Usage | None = None


class OwnText:
    """Removes the text so far from the beginning of a response.

    Raises NotContinuedError if the response repeats a different text.
    """

    def __init__(self, written: str, chat: Chat) -> None:
        self._sent = written.rstrip() if chat.trims or chat.is_instructed else written
        self._repeats, self._is_checked = chat.repeats, not self._sent
        self._is_stripped = not ((chat.trims or chat.is_instructed) and written != self._sent)
        self._held = ""

    def __call__(self, piece: Piece) -> Piece:
        """Return the piece with the text that belongs to the step. Text is held back until it differs from the text so far."""
        text = piece.text
        if not self._is_checked:
            self._held += text
            if piece.ending is None and len(self._held) < len(self._sent) and self._sent.startswith(self._held):
                return replace(piece, text="")
            text, self._is_checked = self._without_repetition(self._held), True
        if not self._is_stripped and (text := text.lstrip("\n")):
            self._is_stripped = True
        return replace(piece, text=text)

    def _without_repetition(self, text: str) -> str:
        pairs = enumerate(zip(text, self._sent, strict=False))
        num_common = next((index for index, (one, other) in pairs if one != other), min(len(text), len(self._sent)))
        is_repetition = self._repeats or num_common >= MAX_COMMON
        if is_repetition and num_common < len(self._sent):
            raise NotContinuedError
        return text[num_common:] if is_repetition else text


class NotContinuedError(Exception):
    """Raised if a response does not continue the solution."""

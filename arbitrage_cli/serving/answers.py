"""The answer to a request in OpenAI's shapes: whole, or as the chunks of a stream. Pure functions and records.

A stream has a chunk for each token that is surely kept, and for each step once it is decided: nothing is sent that may be thrown away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arbitrage_cli.errors import ContextFullError, ConversationError, ScriptEndedError, TimedOutError
from arbitrage_cli.inference.step_text import num_begun
from arbitrage_cli.runs.records import step_record
from arbitrage_cli.runs.summary import tally
from arbitrage_cli.serving.requests import CompletionRequest, RefusedError
from arbitrage_cli.types import Decision, Finished, Phase, Trace

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class UntilStop:
    """A text that arrives in parts, up to the first complete stop text. Characters that may begin one are held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.is_stopped = False

    def add(self, part: str) -> str:
        """Take a part. Returns the characters that can be shown now."""
        if self.is_stopped:
            return ""
        text = self._held + part
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self._stops if stop in text]
        self.is_stopped = bool(found)
        end = min(found)[1] if found else len(text) - max((num_begun(text, stop) for stop in self._stops), default=0)
        self._held = "" if found else text[end:]
        return text[:end]

    def finish(self) -> str:
        """The characters held back, which did not become a stop text."""
        held, self._held = self._held, ""
        return held


class Answer:
    """The answer to one request while its steps are decided."""

    def __init__(self, request: CompletionRequest, created: int) -> None:
        self._request = request
        self._created = created
        self._until_stop = UntilStop(request.stops)
        self._text: list[str] = []
        self._thoughts: list[str] = []
        problem = replace(request.problem, think_tokens=request.limits.think_tokens)
        self._trace = Trace(problem, request.limits)
        self._written = self._sent = ""  # of the step that is being written

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text was found: nothing after it is wanted."""
        return self._until_stop.is_stopped

    def begin_step(self) -> None:
        """A step begins, or begins again because a server broke it off."""
        self._written = ""

    def write(self, text: str) -> Json | None:
        """Take a token of a step that is surely kept. Returns its chunk of a stream, if there is something to show."""
        self._written += text
        if len(self._written) <= len(self._sent) or not self._written.startswith(self._sent):
            return None  # written once more
        new, self._sent = self._written[len(self._sent) :], self._written
        return self._take(new, self._trace.phase)

    def add(self, decision: Decision) -> Json:
        """Take a step. Returns its chunk of a stream. RefusedError if its tokens were sent, and are others now."""
        if not decision.kept.text.startswith(self._sent):
            raise RefusedError("the server of a model broke its answer off", "ask again", status=502, kind="server_error")
        rest, self._written, self._sent = decision.kept.text[len(self._sent) :], "", ""
        self._trace.add(decision)
        return self._take(rest, decision.kept.phase, [decision]) or self._piece("", [decision])

    def first(self) -> Json:
        return self._piece("", [])

    def last(self, finished: Finished | None) -> list[Json]:
        """The chunks that end a stream. `finished` is None if a stop text ended it."""
        rest = self._until_stop.finish()
        chunks = [self._piece(rest, [])] if rest else []
        chunks.append(self._chunk({**self._delta(""), "finish_reason": self._reason(finished)}))
        if self._request.shows_usage:
            chunks.append({**self._chunk({}), "choices": [], "usage": self._usage(finished)})
        return chunks

    def whole(self, finished: Finished | None) -> Json:
        self._text.append(self._until_stop.finish())
        text, is_chat = "".join(self._text), self._request.kind == "chat"
        thoughts = {"reasoning_content": "".join(self._thoughts)} if self._thoughts else {}
        message = {"role": "assistant", "content": text, "refusal": None, **thoughts}
        content: Json = {"message": message} if is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self._reason(finished)}
        return {
            **self._head("chat.completion" if is_chat else "text_completion"),
            "choices": [choice],
            "usage": self._usage(finished),
            **self._decided(self._trace.decisions),
        }

    def _take(self, text: str, phase: Phase, decisions: Sequence[Decision] = ()) -> Json | None:
        """Take characters of a phase. A stop text is looked for in the answer only."""
        if phase == "answer":
            shown = self._until_stop.add(text)
            return self._piece(shown, decisions) if shown else None
        self._thoughts.append(text)
        chunk = self._chunk({"delta": {"reasoning_content": text}, "finish_reason": None})
        return {**chunk, **self._decided(decisions)} if text else None

    def _piece(self, text: str, decisions: Sequence[Decision]) -> Json:
        self._text.append(text)
        return {**self._chunk({**self._delta(text), "finish_reason": None}), **self._decided(decisions)}

    def _delta(self, text: str) -> Json:
        if self._request.kind == "text":
            return {"text": text}
        is_first = len(self._text) == 1
        return {"delta": {**({"role": "assistant"} if is_first else {}), **({"content": text} if text or is_first else {})}}

    def _chunk(self, choice: Json) -> Json:
        name = "chat.completion.chunk" if self._request.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [{"index": 0, "logprobs": None, **choice}]}

    def _head(self, name: str) -> Json:
        return {"id": self._request.problem.id, "object": name, "created": self._created, "model": self._request.model}

    def _decided(self, decisions: Sequence[Decision]) -> Json:
        return {"arbitrage": {"steps": list(map(step_record, decisions))}} if self._request.shows_decisions else {}

    def _reason(self, finished: Finished | None) -> str:
        return "stop" if finished is None or finished.trace.stop == "end" else "length"

    def _usage(self, finished: Finished | None) -> Json:
        """Tokens of the kept text, and beside them what each model did for it."""
        decisions, kept = self._trace.decisions, self._trace.num_tokens
        figures, verdicts = tally(decisions), [decision.verdict for decision in decisions]
        prompt = (finished and finished.prompt_tokens) or num_prompt_tokens(decisions)
        thoughts = sum(one.kept.num_tokens for one in decisions if one.kept.phase == "think")
        return {
            "prompt_tokens": prompt,
            "completion_tokens": kept,
            "total_tokens": prompt + kept,
            "completion_tokens_details": {"reasoning_tokens": thoughts},
            "accepted_steps": verdicts.count("accept"),
            "escalated_steps": verdicts.count("escalate"),
            "draft_tokens": figures.drafted_tokens,
            "target_tokens": figures.target_tokens,
        }


def num_prompt_tokens(decisions: list[Decision]) -> int:
    """Tokens of the prompt that the first model read before it wrote, or had read for an earlier request of a server."""
    written = [step for decision in decisions[:1] for step in (decision.draft, decision.target) if step]
    return written[0].cost.prefill_tokens + written[0].cost.cached_tokens if written else 0


def refusal_of(finished: Finished) -> RefusedError | None:
    """The refusal, if there is no answer. A solution that filled the context is an answer if it has a step."""
    error = finished.error
    if error is None or (isinstance(error, ContextFullError) and finished.trace.decisions):
        return None
    if isinstance(error, TimedOutError):
        return too_late()
    message, hint = str(error), getattr(error, "hint", "")
    if isinstance(error, ContextFullError | ConversationError | ScriptEndedError):
        code = "context_length_exceeded" if isinstance(error, ContextFullError) else None
        return RefusedError(message, hint, code=code, parameter="messages")
    return RefusedError(message, hint, status=500, kind="server_error")


def too_late() -> RefusedError:
    """The refusal of a request that took too long."""
    message = "the answer was not finished in time"
    return RefusedError(message, "ask for fewer tokens, or later", status=503, kind="server_error", code="timeout")


def error_body(error: RefusedError) -> Json:
    """An error as OpenAI shapes it."""
    message = f"{error.message}: {error.hint}" if error.hint else error.message
    return {"error": {"message": message, "type": error.kind, "param": error.parameter, "code": error.code}}


def event(data: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + to_json(data) + b"\n\n"


def to_json(data: Mapping[str, Any]) -> bytes:
    """As a line of JSON, in ASCII."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False).encode()

"""Builds responses in OpenAI's format, either complete or as the chunks of a stream. Does no I/O.

A stream contains only final text: kept steps, and tokens of steps that are certain to be kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from arbitrage_cli.errors import (
    ContextFullError,
    ConversationError,
    ServerError,
    ServerRequestError,
    TimedOutError,
)
from arbitrage_cli.inference.servers.patience import OVERLOADED
from arbitrage_cli.inference.step_text import num_begun
from arbitrage_cli.runs.records import attempt_error, tally
from arbitrage_cli.runs.rows import KeptStep
from arbitrage_cli.serving.requests import ChatRequest, RefusedError
from arbitrage_cli.types import Decided, Decision, Fields, Finished, Json, Phase, Trace, Writing, Wrote

SolutionEvent = Writing | Wrote | Decided | Finished
"""The start of a step, a token, a kept step, or the end of a solution."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
USUAL_CHARS_PER_TOKEN = 4  # of a prompt whose tokens were not counted


@dataclass
class StopFilter:
    """Ends streamed text before the first stop string and holds back characters that may begin a stop string."""

    stops: Sequence[str]
    is_stopped: bool = False
    _held: str = ""

    def add(self, part: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + part
        found = [(text.index(stop) + len(stop), text.index(stop)) for stop in self.stops if stop in text]
        self.is_stopped = bool(found)
        end = min(found)[1] if found else len(text) - num_begun(text, self.stops)
        self._held = "" if found else text[end:]
        return text[:end]

    def finish(self) -> str:
        held = self._held
        self._held = ""
        return held


class Answer:
    """Builds the response as steps arrive."""

    def __init__(self, request: ChatRequest, created: int) -> None:
        self._request = request
        self._created = created
        self._filter = StopFilter(request.body.stop)
        self._text: list[str] = []
        self._thoughts: list[str] = []
        limits = request.own_limits
        self._trace = Trace(replace(request.problem, thinks=limits.thinking.switch), limits)
        self._num_prompt: int | None = None
        self._written = self._sent = ""  # text of the current step
        self._reason = "stop"
        self.is_complete = False

    def take(self, report: SolutionEvent) -> Json | None:
        """Add a report. Return the chunk to send, or None if there is nothing to send.

        Raises RefusedError if a step is rewritten and the new text differs from the tokens that were already sent.
        """
        if isinstance(report, Finished | Decided):
            self._trace.check = report.trace.check
            self._num_prompt = report.prompt_tokens or self._num_prompt
        if isinstance(report, Finished):
            self._reason = "stop" if report.trace.stop == "end" else "length"
            self.is_complete = True
            return None
        if isinstance(report, Decided):
            chunk = self._add_step(report.decision)
            self.is_complete = self._filter.is_stopped  # only now, so that the tokens of the step are counted
            return chunk
        if isinstance(report, Writing):
            self._written = ""
            return None
        return self._add_token(report.text)

    def _add_token(self, text: str) -> Json | None:
        self._written += text
        if len(self._written) <= len(self._sent) or not self._written.startswith(self._sent):
            return None  # the step is written again, and this part was sent before
        new = self._written[len(self._sent) :]
        self._sent = self._written
        return self._add_text(new, self._trace.phase)

    def _add_step(self, decision: Decision) -> Json | None:
        text = decision.kept.text
        if not text.startswith(self._sent):
            message = "the connection to a model server broke, and the text of the retry differs"
            raise RefusedError(message, "retry", status=502)
        rest = text[len(self._sent) :]
        self._written = ""
        self._sent = ""
        self._trace.add(decision)
        return self._add_text(rest, decision.kept.phase, [decision])

    def first(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""})

    def last(self) -> list[Json]:
        """Return the chunks that end a stream."""
        rest = self._filter.finish()
        chunks = [self._chunk({"content": rest})] if rest else []
        chunks.append({**self._chunk({}, reason=self._reason), **self._facts()})
        if self._request.body.stream_options.include_usage:
            chunks.append({**self._chunk({}), "choices": [], "usage": self._usage()})
        return chunks

    def complete(self) -> Json:
        text = "".join([*self._text, self._filter.finish()])
        thoughts = {"reasoning_content": "".join(self._thoughts)} if self._thoughts else {}
        message = {"role": "assistant", "content": text, "refusal": None, **thoughts}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}
        header = self._header("chat.completion", self._trace.decisions)
        return {**header, "choices": [choice], "usage": self._usage(), **self._facts()}

    def _add_text(self, text: str, phase: Phase, decisions: Sequence[Decision] = ()) -> Json | None:
        is_answer = phase == "answer"
        shown = self._filter.add(text) if is_answer else text  # stop strings do not apply to thinking
        (self._text if is_answer else self._thoughts).append(shown)
        if not shown and not decisions:
            return None
        return self._chunk({"content" if is_answer else "reasoning_content": shown} if shown else {}, decisions)

    def _chunk(self, delta: Json, decisions: Sequence[Decision] = (), reason: str | None = None) -> Json:
        choice = {"index": 0, "logprobs": None, "delta": delta, "finish_reason": reason}
        return {**self._header("chat.completion.chunk", decisions), "choices": [choice]}

    def _header(self, kind: str, decisions: Sequence[Decision]) -> Json:
        steps = (
            {"arbitrage": {"steps": [KeptStep.of_decision(decision).to_dict() for decision in decisions]}}
            if self._request.body.arbitrage
            else {}
        )
        request = self._request
        return {"id": request.problem.id, "object": kind, "created": self._created, "model": request.model, **steps}

    def _facts(self) -> Json:
        """Return the seed, if tokens were sampled, the draft's tokens as llama-server names them, and the warnings."""
        request = self._request
        figures = tally(self._trace.decisions)
        cost = figures.target_cost  # of a target alone, which verifies proposals
        drafted, kept = figures.drafted_tokens, figures.accepted_tokens
        if not figures.drafted_steps:
            drafted, kept = cost.verify_tokens, cost.verify_kept
        return {
            **({"seed": request.sampler.seed} if request.sampler.temperature else {}),
            **({"timings": {"draft_n": drafted, "draft_n_accepted": kept}} if drafted else {}),
            **({"warnings": list(request.warnings)} if request.warnings else {}),
        }

    def _usage(self) -> Json:
        decisions = self._trace.decisions
        kept = self._trace.num_tokens
        check = self._trace.check
        figures = tally(decisions, check=check)
        num_chars = sum(len(message.text) for message in self._request.body.messages)
        prompt = self._num_prompt or 1 + num_chars // USUAL_CHARS_PER_TOKEN
        return {
            "prompt_tokens": prompt,
            "completion_tokens": kept,
            "total_tokens": prompt + kept,
            "completion_tokens_details": {"reasoning_tokens": figures.thinking_tokens},
            "accepted_steps": figures.accepted_steps,
            "escalated_steps": sum(decision.choice == "escalate" for decision in decisions),
            "draft_tokens": figures.drafted_tokens + figures.further_tokens,
            "target_tokens": figures.target_tokens,
            **({"check_tokens": figures.check_tokens} if check else {}),
        }


def refusal_of(finished: Finished) -> RefusedError | None:
    """Return the error response for a failed solution. A solution that fills the context is not a failure.

    Errors of servers contain their addresses and the operator's settings, so only the operator sees their messages.
    """
    error = finished.error
    if error is None or attempt_error(finished) is None:
        return None
    if isinstance(error, TimedOutError):
        return timed_out()
    if isinstance(error, ContextFullError):
        message = "the conversation and its answer do not fit in a model's context"
        return RefusedError(message, "shorten the conversation", code="context_length_exceeded", parameter="messages")
    if isinstance(error, ConversationError):
        message = "a model's chat template rejects this conversation"
        hint = "start a new one, or omit the system prompt"
        return RefusedError(message, hint, parameter="messages")
    if isinstance(error, ServerRequestError) and error.status in OVERLOADED:
        message, code = "the server of a model is overloaded", "upstream_overloaded"
        return RefusedError(message, "retry later", status=error.status, code=code, retry_after=error.retry_after)
    if isinstance(error, ServerError | ServerRequestError):
        return RefusedError("the server of a model failed", "retry later", status=502, code="upstream_error")
    return RefusedError(str(error), error.hint, status=500)


def timed_out() -> RefusedError:
    message = "the request timed out before the answer was complete"
    return RefusedError(message, "request fewer tokens, or retry later", status=504, code="timeout")


def error_body(error: RefusedError) -> Json:
    message = f"{error.message}: {error.hint}" if error.hint else error.message
    return {"error": {"message": message, "type": error.kind, "param": error.parameter, "code": error.code}}


def event(data: Fields) -> bytes:
    return b"data: " + to_json(data) + b"\n\n"


def to_json(data: Fields) -> bytes:
    return json.dumps(data, ensure_ascii=True, allow_nan=False).encode()

"""Writes steps for many problems at once with a model on a server, as `Engine` does with a local model.

The token ids that the server sampled are kept for each problem. Only other text is tokenized. A server stops at every
separator. If the step does not end there, another request continues it. If the model also writes all later steps, one request
returns the rest of the phase, and the stream is divided into steps.
"""

import copy
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ContextFullError, ProblemError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, Control, Plain, PromptStyle, Segment
from arbitrage_cli.inference.engine import SlotUpdate
from arbitrage_cli.inference.kv_cache import StepIds
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.chat import Chat, OwnText
from arbitrage_cli.inference.servers.connection import TIMEOUT, Pending
from arbitrage_cli.inference.servers.dialects import Dialogue, Ending, Piece, Prompt, TextRequest, Token, Usage, token_stats
from arbitrage_cli.inference.servers.model import Controls, ServedModel, prompt_text
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.inference.step_text import StepText, step_end, text_end
from arbitrage_cli.inference.thinking import THINK
from arbitrage_cli.inference.unit_costs import TokenCosts
from arbitrage_cli.types import WHOLE, Cost, Decision, ModelRole, Phase, Problem, Step, StepStop, Trace

SPARE_PIECES = 64  # of a stream, beyond the requested tokens
MAX_BLANK_ANSWERS = 4  # in a row
CHECK_TOKENS = 4  # written to find out whether a solution is complete


@dataclass(slots=True)
class _Slot:
    number: int
    problem: Problem
    segments: list[Segment]
    controls: Controls
    sampler: Sampler
    prompt: list[int] | None = None
    steps: StepIds = field(default_factory=StepIds)
    updates: deque[SlotUpdate] = field(default_factory=deque)  # not yet returned by `tick`
    is_new: bool = True
    writes_rest: bool = False  # the request in flight returns all later steps
    topic: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(slots=True)
class _Writing:
    """A step that is being written. If `until_end` is true, the same response contains all later steps of the phase."""

    began: float
    text: StepText
    phase: Phase
    until_end: bool
    num_earlier: int = 0  # tokens of earlier steps in the same response
    ids: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    first_at: float | None = None

    @property
    def num_tokens(self) -> int:
        counted = sum(usage.written or 0 for usage in self.usages)
        return max(counted, len(self.ids), len(self.tokens)) or len(self.pieces)

    @property
    def stop(self) -> StepStop | None:
        return text_end(self.text, self.ids or self.pieces, self.phase)

    def add(self, piece: Piece) -> str:
        self.ids += piece.ids
        self.tokens += piece.tokens
        if not piece.text:
            return ""
        self.pieces.append(piece.text)
        self.first_at = self.first_at or time.perf_counter()
        return self.text.add(piece.text.encode("utf-8", "replace"))


class ServedWriter:
    """A `Writer` for a model on a server. Steps are written in the connection's thread and returned by `tick`.

    If `shares_prompts` is false, no problem uses another problem's prompt cache. `may_be_complete` returns false if a
    solution's text is certainly unfinished.
    """

    def __init__(
        self,
        role: ModelRole,
        model: ServedModel,
        sampler: Sampler,
        style: PromptStyle,
        *,
        keep_token_stats: bool = False,
        shares_prompts: bool = True,
        may_be_complete: Callable[[str], bool] = lambda text: True,
    ) -> None:
        self._role = role
        self._model = model
        self._sampler = sampler
        self._prompt = model.prompt(style)
        self._instructions, self._step_end = style.instructions, style.step_end
        self._may_be_complete = may_be_complete
        self._keep_token_stats = keep_token_stats
        self._shares_prompts = shares_prompts
        self._think_end_ids: list[int] | None = None
        self._costs = TokenCosts()
        self._slots: dict[int, _Slot] = {}
        self._pending: Pending[SlotUpdate] = Pending(model.connection)
        self.wait: Callable[[], None] | None = model.connection.wait

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        """Assign a problem to a slot. Raises ServerRequestError if the server cannot show where its thinking ends."""
        segments, form = self._prompt.for_problem(problem), self._prompt.think_format
        if problem.thinks and self._model.dialect.is_plain and form is not THINK:
            raise self._hidden_end()
        marks = [Control(form.opens + form.closes)] if problem.thinks else []
        controls = self._model.controls([*segments, *marks])
        self._slots[slot] = _Slot(slot, problem, segments, controls, sampler or self._sampler)

    def close(self, slot: int) -> None:
        self._pending.cancel(slot)
        self._slots.pop(slot, None)

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        opened = self._slots[slot]
        if not opened.writes_rest:
            self._pending.begin(slot, self._answer(opened, request))
        opened.writes_rest = request.until_end
        return 0

    def tick(self) -> list[SlotUpdate]:
        finished = self._pending.results()
        updates = [slot.updates.popleft() for slot in self._slots.values() for _ in range(len(slot.updates))]
        return updates + finished

    def num_prompt_tokens(self, slot: int) -> int | None:
        prompt = self._slots[slot].prompt
        return None if prompt is None else len(prompt)

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        own = sum((_per_request(decision.target.cost) for decision in trace.decisions if decision.target), Cost())
        return self._costs.seconds_alone(own, 1, trace.num_tokens)

    # --- in the connection's thread

    async def _answer(self, slot: _Slot, request: WriteStep) -> SlotUpdate:
        trace = replace(request.trace, decisions=[*request.trace.decisions])  # may be ahead of the flow's trace
        try:
            while True:
                num_steps = len(trace.decisions)
                try:
                    step = await self._write(slot, trace, until_end=request.until_end)
                except ServerRequestError as error:
                    if error.status != TIMEOUT or len(trace.decisions) == num_steps:
                        raise
                    continue  # the next request follows the complete steps
                if trace.finished or not request.until_end:
                    return SlotUpdate(slot.number, step=step)
                self._report(slot, step=step)
        except ProblemError as error:
            return SlotUpdate(slot.number, error=error)

    def _report(self, slot: _Slot, text: str = "", num_unread: int = 0, step: Step | None = None) -> None:
        slot.updates.append(SlotUpdate(slot.number, text, num_unread, step))
        self._model.connection.notify()

    async def _write(self, slot: _Slot, trace: Trace, *, until_end: bool) -> Step:
        """Write the next step or, with `until_end`, the rest of the phase. Return the last step."""
        writing, num_before = self._begin(trace, until_end=until_end), trace.num_tokens
        if trace.phase == "think" and not self._model.dialect.is_plain and self._think_end_ids is None:
            self._think_end_ids = await self._model.tokenize(self._prompt.think_format.end, slot.topic, is_template=True)
        prompt = await self._prompt_of(slot, trace)
        room = self._room(prompt)
        fitting = self._model.card.context_size - len(prompt)  # servers may reject a higher limit
        budget, is_last_thought = trace.next_budget(max(fitting, trace.limits.max_step_tokens) if until_end else None)
        writing, stop = await self._write_until_end(slot, trace, prompt, writing, min(budget, room))
        num_tokens, at_limit = trace.num_tokens + writing.num_tokens - num_before, stop == "budget"
        is_spent = budget <= room and (at_limit or num_tokens >= budget)
        is_full = at_limit and num_tokens >= room
        by_text = None if at_limit else stop
        reason = step_end(by_text, is_spent=is_spent, is_last_thought=is_last_thought, is_full=is_full)
        return self._keep(slot, trace, writing, reason or stop)

    def _begin(self, trace: Trace, *, until_end: bool) -> _Writing:
        return _Writing(time.perf_counter(), self._prompt.step_text(trace), trace.phase, until_end)

    def _keep(self, slot: _Slot, trace: Trace, writing: _Writing, stop: StepStop) -> Step:
        """Finish a step and add it to the trace."""
        step = self._finish(writing, stop)
        slot.steps.remember(step, self._own_ids(step, writing))
        self._costs.add(_per_request(step.cost))
        trace.add(Decision(kept=step))
        return step

    async def _write_until_end(
        self, slot: _Slot, trace: Trace, prompt: Prompt, writing: _Writing, max_tokens: int
    ) -> tuple[_Writing, StepStop]:
        num_blank = 0
        while num_blank < MAX_BLANK_ANSWERS:
            num_left = max_tokens - writing.num_tokens
            if num_left <= 0:
                return writing, "budget"
            before = writing.text.so_far.strip()
            writing, stop = await self._continue(slot, trace, writing, self._request(slot, prompt, writing, num_left))
            if stop:
                return writing, stop
            num_blank = num_blank + 1 if writing.text.so_far.strip() == before else 0
        raise ServerRequestError(f"{self._model.name} writes only blank lines")

    async def _continue(
        self, slot: _Slot, trace: Trace, before: _Writing, request: TextRequest
    ) -> tuple[_Writing, StepStop | None]:
        writing, ending, usage, own = copy.deepcopy(before), None, None, self._own_text(request)

        def restart() -> None:
            nonlocal writing, own
            self._report(slot, num_unread=1)
            if writing.num_earlier:
                raise ServerRequestError(f"{self._model.host.name} interrupted a response", status=TIMEOUT)
            writing, own = copy.deepcopy(before), self._own_text(request)

        def take(piece: Piece) -> bool:
            nonlocal writing, ending, usage
            piece = own(piece)
            if request.marker and piece.ending == "end":
                piece = _without_end_token(piece, request.marker)
            writing = self._add(slot, trace, writing, piece, request.max_tokens)
            if writing.num_earlier + len(writing.pieces) - len(before.pieces) > 2 * request.max_tokens + SPARE_PIECES:
                raise ServerRequestError(f"{self._model.host.name} sent more than max_tokens")
            ending, usage = piece.ending or ending, piece.usage or usage
            return self._closes(writing)

        await self._model.write(request, take, restart, topic=slot.topic)
        if self._closes(writing):
            if not self._model.dialect.is_plain:
                writing.usages.append(Usage(prompt=len(request.prompt)))
            return writing, writing.stop
        if usage:
            num_left = max(0, (usage.written or 0) - writing.num_earlier)
            writing.usages.append(usage.model_copy(update={"written": num_left}))
        return writing, await self._stop(slot, writing, ending, request)

    def _add(self, slot: _Slot, trace: Trace, writing: _Writing, piece: Piece, max_tokens: int) -> _Writing:
        """Add a piece to the step. If the response has more steps, keep each complete step and begin the next one."""
        rest: Piece | None = piece
        while rest:
            piece, rest = rest, None
            if self._model.dialect.is_plain or (writing.until_end and len(piece.ids) > 1):  # may contain several tokens
                num_own = 1 + writing.text.num_before_end(one.encode("utf-8", "replace") for one in piece.text)
                if num_own < len(piece.text):
                    piece, rest = piece.split(num_own)
            if text := writing.add(piece):
                self._report(slot, text)
            if not writing.until_end or writing.text.has_marker:
                return writing
            num_tokens = writing.num_earlier + writing.num_tokens
            stop = writing.stop or ("budget" if writing.num_tokens >= trace.limits.max_step_tokens else None)
            if stop and num_tokens < max_tokens:
                self._report(slot, step=self._keep(slot, trace, writing, stop))
                writing = self._begin(trace, until_end=True)
                writing.first_at, writing.num_earlier = writing.began, num_tokens
        return writing

    def _own_text(self, request: TextRequest) -> Callable[[Piece], Piece]:
        """Return a function that removes all text outside the step from the pieces of a response."""
        return lambda piece: piece

    def _closes(self, writing: _Writing) -> bool:
        if writing.until_end:
            return writing.text.has_marker and self._model.dialect.is_plain
        return writing.stop == "loop" or (writing.text.ended and self._model.dialect.is_plain)

    async def _stop(self, slot: _Slot, writing: _Writing, ending: Ending | None, request: TextRequest) -> StepStop | None:
        if ending is None:
            raise ServerRequestError(f"{self._model.host.name} sent no finish reason")
        if ending == "length" and not writing.num_earlier + writing.num_tokens:
            raise ServerRequestError(f"{self._model.host.name} ended its response before the first token")
        if not writing.text.has_marker and (writing.until_end or ending != "separator"):
            return (writing.stop or "budget") if ending == "length" else "thought" if writing.phase == "think" else "end"
        if writing.text.so_far.strip() and not writing.text.so_far.endswith(request.stop) and not writing.text.ended:
            raise ServerRequestError(f"{self._model.host.name} omitted the stop string ({self._step_end}) from its response")
        return writing.stop

    def _marker(self, phase: Phase) -> str:
        form = self._prompt.think_format
        return form.end if phase == "think" or form.ends_turns else ""

    def _own_ids(self, step: Step, writing: _Writing) -> list[int]:
        """Return a step's ids without the ids of its marker, or [] if the text must be tokenized again."""
        ids, end = writing.ids, self._think_end_ids or []
        if writing.text.lacks_tokens:
            return []
        if step.phase == "answer" or not ids:
            return ids
        before = ids[:-1] if step.stop == "thought" else ids
        if len(end) == 1 and end[0] in before and not writing.text.has_marker:
            raise self._hidden_end()
        return before if step.stop != "thought" or ids[-1:] == end else []  # marker and text may share a token

    def _hidden_end(self) -> ServerRequestError:
        return ServerRequestError(
            f"{self._model.host.name} omits '{self._prompt.think_format.end}', which marks the end of thinking in {self._model.name}",
            "use a newer version of vLLM, SGLang or llama-server, or --think off",
        )

    def _request(self, slot: _Slot, prompt: Prompt, writing: _Writing, max_tokens: int) -> TextRequest:
        sampler, is_first, slot.is_new = slot.sampler, slot.is_new, False
        text = prompt + writing.text.so_far if isinstance(prompt, str | Dialogue) else [*prompt, *writing.ids]
        k = self._model.num_alternatives if self._keep_token_stats and not writing.until_end else 0
        return TextRequest(
            self._model.name,
            text,
            max_tokens,
            replace(sampler, seed=_seed(sampler.seed, slot.problem.question, len(text))),
            num_alternatives=k,
            cache_key="" if self._shares_prompts else slot.topic,
            is_first=is_first,
            stop="" if writing.until_end else self._step_end.separator,
            marker=self._marker(writing.phase),
        )

    async def _prompt_of(self, slot: _Slot, trace: Trace) -> Prompt:
        if self._model.dialect.is_plain:
            kept = [decision.kept for decision in trace.decisions]
            steps = [segment for step in kept for segment in (Plain(step.text), *self._prompt.after(step))]
            return prompt_text([*slot.segments, *steps], slot.controls)
        if slot.prompt is None:
            slot.prompt = await self._model.ids_of(slot.segments, slot.controls, slot.topic)
        for step, own in slot.steps.missing(trace):
            ids = own or await self._model.ids_of_step(step.text, slot.controls, slot.topic)
            for segment in self._prompt.after(step):
                ids = ids + await self._model.tokenize(segment.text, slot.topic, is_template=True)
            slot.steps.add(step, ids)
        return slot.steps.after(slot.prompt)

    def _room(self, prompt: Prompt) -> int:
        size = self._model.card.context_size
        if isinstance(prompt, str | Dialogue):
            return size
        if len(prompt) >= size:
            message = f"the solution so far ({len(prompt)} tokens) fills the context of {self._model.name} ({size} tokens)"
            raise ContextFullError(message, "use a shorter problem or a smaller --max-tokens")
        return size - len(prompt)

    def _finish(self, writing: _Writing, stop: StepStop) -> Step:
        try:
            k, size = self._model.num_alternatives, self._model.card.vocabulary_size
            stats = token_stats(writing.tokens, k, size) if self._keep_token_stats and not writing.until_end else None
        except ValueError as error:
            raise ServerRequestError(f"{self._model.host.name}: {error}") from error
        text, count = writing.text.finish(is_cut=stop not in WHOLE), writing.num_tokens
        return Step(self._role, text, count, _cost(writing), stop, stats, phase=writing.phase)


class ChatWriter(ServedWriter):
    """A `Writer` for a model behind a chat API. The other model's thinking is continued as ordinary text."""

    @property
    def _chat(self) -> Chat:
        return cast("Chat", self._model.dialect)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        self._slots[slot] = _Slot(slot, problem, [], Controls([]), sampler or self._sampler)

    async def _prompt_of(self, slot: _Slot, trace: Trace) -> Prompt:
        problem, written = slot.problem, trace.written
        if trace.thoughts and not trace.text:
            written += self._step_end.separator
        system = (self._instructions if problem.system is None else problem.system).strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in problem.turns]
        return Dialogue([*messages, {"role": "user", "content": problem.question}], written)

    def _request(self, slot: _Slot, prompt: Prompt, writing: _Writing, max_tokens: int) -> TextRequest:
        """Return a request.

        The stop string is empty if a step may contain a separator, or if the server cannot stop at a separator.
        """
        request = super()._request(slot, prompt, writing, max_tokens)
        stops = writing.phase == "answer" and self._step_end.min_chars == 1 and self._chat.can_stop
        return replace(request, stop=request.stop if stops else "")

    def _marker(self, phase: Phase) -> str:
        return ""

    def _own_text(self, request: TextRequest) -> Callable[[Piece], Piece]:
        return OwnText(request.dialogue.written, self._chat)

    async def _stop(self, slot: _Slot, writing: _Writing, ending: Ending | None, request: TextRequest) -> StepStop | None:
        if writing.until_end or ending is None or ending == "length":
            return await super()._stop(slot, writing, ending, request)
        written, separator = request.dialogue.written, self._step_end.separator
        is_blank = not writing.text.so_far.strip()
        if ending == "stop" and not request.stop:
            ending = "end"
        elif ending == "stop" and is_blank:
            ending = "end" if not written or written.endswith(separator) else "separator"
        elif ending == "stop":
            ending = "end" if await self._is_over(slot, writing, request) else "separator"
        if ending == "end":
            return "thought" if writing.phase == "think" else "end"
        self._report(slot, writing.add(Piece(separator)))
        return writing.stop

    async def _is_over(self, slot: _Slot, writing: _Writing, request: TextRequest) -> bool:
        """Return whether the solution is complete.

        Unless the solution is certainly unfinished, the model is asked to continue the solution without a stop string.
        """
        dialogue = request.dialogue + writing.text.so_far.lstrip()
        if not self._may_be_complete(dialogue.written):
            return False
        pieces: list[Piece] = []
        check = replace(request, prompt=dialogue, max_tokens=CHECK_TOKENS, stop="")
        await self._model.write(check, pieces.append, pieces.clear, topic=slot.topic)
        writing.usages += [piece.usage.model_copy(update={"written": 0}) for piece in pieces if piece.usage]
        own = self._own_text(check)
        return not "".join(own(piece).text for piece in pieces)


def _cost(writing: _Writing) -> Cost:
    """Return the server's token counts and locally measured times. The time before the first output token counts as prefill."""
    now = time.perf_counter()
    num_cached = sum(usage.cached or 0 for usage in writing.usages)
    num_prompt = sum(usage.prompt for usage in writing.usages)
    first = writing.first_at if writing.first_at is not None and len(writing.pieces) > 1 else writing.began
    return Cost(
        prefill_tokens=num_prompt - num_cached,
        prefill_seconds=first - writing.began,
        decode_tokens=writing.num_tokens,
        decode_seconds=now - first,
        cached_tokens=num_cached,
    )


def _per_request(cost: Cost) -> Cost:
    """Count requests instead of prompt tokens, because most of the time before the first token is latency."""
    return replace(cost, prefill_tokens=int(cost.prefill_seconds > 0))


def _without_end_token(piece: Piece, marker: str) -> Piece:
    """Remove the end-of-sequence token from the last piece, because some servers include this token in the text."""
    *_, last = (None, *LOOKS_LIKE_CONTROL.finditer(piece.text))
    if last is None or last.end() < len(piece.text) or last[0] == marker:
        return piece
    return replace(piece, text=piece.text[: last.start()])


def _seed(seed: int, question: str, position: int) -> int:
    key = f"{seed}/{question}/{position}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >> 1

"""Writes steps for many problems at once with a model on a server, as `Engine` does with a local model.

The token ids that the server sampled are kept for each problem. Only other text is tokenized. A server stops at every
separator. If the step does not end there, another request continues it.
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
from arbitrage_cli.inference.servers.chat import END, MAX_COMMON, Chat, NotContinuedError, OwnText
from arbitrage_cli.inference.servers.connection import Pending
from arbitrage_cli.inference.servers.dialects import Dialogue, Ending, Piece, Prompt, TextRequest, Token, Usage, token_stats
from arbitrage_cli.inference.servers.model import Controls, ServedModel, prompt_text
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.inference.step_text import LOOP_ROUNDS, THOUGHT_END, StepText, step_end, text_end
from arbitrage_cli.inference.thinking import THINK
from arbitrage_cli.inference.unit_costs import TokenCosts
from arbitrage_cli.types import Cost, ModelRole, Phase, Problem, Step, StepStop, Trace

SPARE_PIECES = 64  # of a stream, beyond the requested tokens
MAX_BLANK_ANSWERS = 4  # in a row
MAX_ATTEMPTS = 2  # to continue a solution through a chat API
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
    topic: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(slots=True)
class _Writing:
    began: float
    text: StepText
    phase: Phase
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

    def copy(self) -> "_Writing":
        copied = copy.copy(self)
        copied.text, copied.usages = copy.deepcopy(self.text), [*self.usages]
        copied.ids, copied.tokens, copied.pieces = [*self.ids], [*self.tokens], [*self.pieces]
        return copied

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

    Responses are streamed if only one problem is in flight. If `shares_prompts` is false, no problem uses another problem's
    prompt cache. `may_be_complete` returns false if a solution's text is certainly unfinished.
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
        segments, form = self._prompt.of(problem), self._prompt.think_format
        if problem.thinks and self._model.dialect.is_plain and form is not THINK:
            raise self._hidden_end()
        marks = [Control(form.opens + form.closes)] if problem.thinks else []
        controls = self._model.controls([*segments, *marks])
        self._slots[slot] = _Slot(slot, problem, segments, controls, sampler or self._sampler)

    def close(self, slot: int) -> None:
        self._pending.cancel(slot)
        self._slots.pop(slot, None)

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        self._pending.begin(slot, self._answer(self._slots[slot], request))
        return 0

    def tick(self) -> list[SlotUpdate]:
        finished = self._pending.results()
        updates = [slot.updates.popleft() for slot in self._slots.values() for _ in range(len(slot.updates))]
        return updates + finished

    def num_prompt_tokens(self, slot: int) -> int | None:
        prompt = self._slots[slot].prompt
        return None if prompt is None else len(prompt)

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        own = sum((decision.target.cost for decision in trace.decisions if decision.target), Cost())
        num_tokens = sum(decision.kept.num_tokens for decision in trace.decisions)
        return self._costs.seconds_alone(own, own.prefill_tokens, num_tokens)

    # --- in the connection's thread

    async def _answer(self, slot: _Slot, request: WriteStep) -> SlotUpdate:
        try:
            step, writing = await self._write(slot, request)
            self._costs.add(step.cost)
            slot.steps.remember(step, await self._own_ids(slot, step, writing))
            return SlotUpdate(slot.number, step=step)
        except ProblemError as error:
            return SlotUpdate(slot.number, error=error)

    def _report(self, slot: _Slot, text: str = "", num_unread: int = 0) -> None:
        slot.updates.append(SlotUpdate(slot.number, text, num_unread))
        self._model.connection.notify()

    async def _write(self, slot: _Slot, request: WriteStep) -> tuple[Step, _Writing]:
        trace = request.trace
        budget, is_last_thought = trace.next_budget
        prompt = await self._prompt_of(slot, trace)
        room = self._room(prompt)
        end = THOUGHT_END if trace.phase == "think" else self._step_end
        writing = _Writing(time.perf_counter(), StepText("", end, self._marker(trace.phase)), trace.phase)
        writing, stop = await self._write_until_end(slot, prompt, writing, min(budget, room))
        at_limit = stop == "budget"
        is_spent = budget <= room and (at_limit or writing.num_tokens >= budget)
        is_full = at_limit and writing.num_tokens >= room
        by_text = None if at_limit else stop
        reason = step_end(by_text, is_spent=is_spent, is_last_thought=is_last_thought, is_full=is_full)
        return self._finish(writing, reason or stop), writing

    async def _write_until_end(
        self, slot: _Slot, prompt: Prompt, writing: _Writing, max_tokens: int
    ) -> tuple[_Writing, StepStop]:
        num_blank = 0
        while num_blank < MAX_BLANK_ANSWERS:
            num_left = max_tokens - writing.num_tokens
            if num_left <= 0:
                return writing, "budget"
            before = writing.text.so_far.strip()
            writing, stop = await self._continue(slot, writing, self._request(slot, prompt, writing, num_left))
            if stop:
                return writing, stop
            num_blank = num_blank + 1 if writing.text.so_far.strip() == before else 0
        raise ServerRequestError(f"{self._model.name} writes only blank lines")

    async def _continue(self, slot: _Slot, before: _Writing, request: TextRequest) -> tuple[_Writing, StepStop | None]:
        writing, ending, usage, own = before.copy(), None, None, self._own_text(request)

        def restart() -> None:
            nonlocal writing, own
            writing, own = before.copy(), self._own_text(request)
            self._report(slot, num_unread=1)

        def take(piece: Piece) -> bool:
            nonlocal ending, usage
            piece = own(piece)
            if self._model.dialect.is_plain:  # chunks may contain several tokens
                num_before = writing.text.num_before_end(character.encode("utf-8", "replace") for character in piece.text)
                piece = piece.up_to(num_before)
            if request.marker and piece.ending == "end":
                piece = _without_end_token(piece, request.marker)
            if text := writing.add(piece):
                self._report(slot, text)
            if len(writing.pieces) - len(before.pieces) > 2 * request.max_tokens + SPARE_PIECES:
                raise ServerRequestError(f"{self._model.host.name} sent more than max_tokens")
            ending, usage = piece.ending or ending, piece.usage or usage
            return self._closes(writing)

        await self._model.write(request, take, restart, topic=slot.topic)
        if self._closes(writing):
            if not self._model.dialect.is_plain:
                writing.usages.append(Usage(prompt=len(request.prompt)))
            return writing, writing.stop
        writing.usages += [usage] if usage else []
        return writing, await self._stop(slot, writing, ending, request)

    def _own_text(self, request: TextRequest) -> Callable[[Piece], Piece]:
        """Return a function that removes all text outside the step from the pieces of a response."""
        return lambda piece: piece

    def _closes(self, writing: _Writing) -> bool:
        return writing.stop == "loop" or (writing.text.ended and self._model.dialect.is_plain)

    async def _stop(self, slot: _Slot, writing: _Writing, ending: Ending | None, request: TextRequest) -> StepStop | None:
        if ending is None:
            raise ServerRequestError(f"{self._model.host.name} sent no finish reason")
        if ending != "separator" and not writing.text.has_marker:
            return "budget" if ending != "end" else "thought" if writing.phase == "think" else "end"
        if writing.text.so_far.strip() and not writing.text.so_far.endswith(request.stop) and not writing.text.ended:
            raise ServerRequestError(f"{self._model.host.name} omitted the stop string ({self._step_end}) from its response")
        return writing.stop

    def _marker(self, phase: Phase) -> str:
        form = self._prompt.think_format
        return form.end if phase == "think" or form.ends_turns else ""

    async def _own_ids(self, slot: _Slot, step: Step, writing: _Writing) -> list[int]:
        """Return a step's ids without the ids of its marker, or [] if the text must be tokenized again."""
        ids = writing.ids
        if step.phase == "answer" or not ids:
            return ids
        if self._think_end_ids is None:
            self._think_end_ids = await self._model.tokenize(self._prompt.think_format.end, slot.topic, is_template=True)
        end, before = self._think_end_ids, ids[:-1] if step.stop == "thought" else ids
        if len(end) == 1 and end[0] in before and not writing.text.has_marker:
            raise self._hidden_end()
        return before if step.stop != "thought" or ids[-1:] == end else []  # marker and text may share a token

    def _hidden_end(self) -> ServerRequestError:
        return ServerRequestError(
            f"{self._model.host.name} omits '{self._prompt.think_format.end}', which marks the end of thinking in {self._model.name}",
            "use a newer version of vLLM, SGLang or llama-server, or --think off",
        )

    def _request(self, slot: _Slot, prompt: Prompt, writing: _Writing, max_tokens: int) -> TextRequest:
        dialect, sampler = self._model.dialect, slot.sampler
        is_first, slot.is_new = slot.is_new, False
        text = prompt + writing.text.so_far if isinstance(prompt, str | Dialogue) else [*prompt, *writing.ids]
        k = self._model.num_alternatives if self._keep_token_stats else 0
        return TextRequest(
            self._model.name,
            text,
            max_tokens,
            replace(sampler, seed=_seed(sampler.seed, slot.problem.question, len(text))),
            num_alternatives=k,
            is_streamed=len(self._slots) == 1 or dialect.is_plain or bool(k and dialect.needs_stream_for_alternatives),
            cache_key="" if self._shares_prompts else slot.topic,
            is_first=is_first,
            stop=self._step_end.separator,
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
            stats = token_stats(writing.tokens, k, size) if self._keep_token_stats else None
        except ValueError as error:
            raise ServerRequestError(f"{self._model.host.name}: {error}") from error
        text, count = writing.text.finish(), writing.num_tokens
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
        is_first = writing.phase == "answer" and self._step_end.least == 1
        return replace(request, stop=self._step_end.separator if is_first and self._chat.can_stop else "")

    def _marker(self, phase: Phase) -> str:
        return END if self._chat.is_instructed else ""

    def _own_text(self, request: TextRequest) -> Callable[[Piece], Piece]:
        return OwnText(request.dialogue.written, self._chat)

    async def _continue(self, slot: _Slot, before: _Writing, request: TextRequest) -> tuple[_Writing, StepStop | None]:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await super()._continue(slot, before, request)
            except NotContinuedError:
                self._report(slot, num_unread=1)
        message = f"{self._model.name} repeats the solution in other words instead of continuing it"
        raise ServerRequestError(message, "set another target_continuation in the pair, or use another target")

    def _closes(self, writing: _Writing) -> bool:
        return super()._closes(writing) and not writing.text.has_marker  # the response is over, except for its usage

    async def _stop(self, slot: _Slot, writing: _Writing, ending: Ending | None, request: TextRequest) -> StepStop | None:
        if writing.text.has_marker:
            return writing.stop
        if ending is None:
            raise ServerRequestError(f"{self._model.host.name} sent no finish reason")
        if ending == "length":
            return "budget"
        written, separator = request.dialogue.written, self._step_end.separator
        is_blank = not writing.text.so_far.strip()
        if self._chat.is_instructed:  # an instructed model writes one step
            step, earlier = writing.text.so_far.strip(), [one for one in map(str.strip, written.split(separator)) if one]
            if len(step) >= MAX_COMMON and step in written:
                raise NotContinuedError
            is_loop = earlier[1 - LOOP_ROUNDS :] == [step] * (LOOP_ROUNDS - 1)
            ending = "end" if is_blank or is_loop else "separator"
        elif ending == "stop" and not request.stop:
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


def _without_end_token(piece: Piece, marker: str) -> Piece:
    """Remove the end-of-sequence token from the last piece, because some servers include this token in the text."""
    *_, last = (None, *LOOKS_LIKE_CONTROL.finditer(piece.text))
    if last is None or last.end() < len(piece.text) or last[0] == marker:
        return piece
    return replace(piece, text=piece.text[: last.start()])


def _seed(seed: int, question: str, position: int) -> int:
    key = f"{seed}/{question}/{position}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >> 1

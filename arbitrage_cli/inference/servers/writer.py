"""Writes steps for many problems at once with a model on a server, as `Engine` does with a local model.

The token ids that the server sampled are kept for each problem. Only the remaining text is tokenized. A server stops at every
separator. If the step does not end there, another request continues it. If the model also writes all later steps, one request
returns the rest of the phase, and the stream is divided into steps.
"""

import hashlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ContextFullError, ProblemError, ServerError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import LOOKS_LIKE_CONTROL, Control, Plain, PromptStyle, Segment
from arbitrage_cli.inference.engine import SlotUpdate
from arbitrage_cli.inference.kv_cache import StepIds
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.dialects import Prompt, TextRequest
from arbitrage_cli.inference.servers.model import Controls, ServedModel
from arbitrage_cli.inference.servers.patience import TIMEOUT
from arbitrage_cli.inference.servers.responses import Ending, Piece, ReportedUsage, ServedToken, token_stats
from arbitrage_cli.inference.speculation import Speculator
from arbitrage_cli.inference.step_text import StepText, end_of, step_end, text_end
from arbitrage_cli.inference.thinking import THINK
from arbitrage_cli.types import WHOLE, Cost, Decision, ModelRole, Phase, Problem, Step, StepStop, TokenStats, Trace, frozen

MAX_BLANK_ANSWERS = 4  # in a row
CHECK_TOKENS = 4  # written to find out whether a solution is complete


@dataclass(slots=True)
class _Writing:
    """A step that is being written. The same response may contain earlier and later steps."""

    text: StepText
    phase: Phase
    began: float
    num_earlier: int = 0  # tokens of earlier steps in the same response
    ids: list[int] = field(default_factory=list)
    tokens: list[ServedToken] = field(default_factory=list)
    counted: Cost = field(default_factory=Cost)  # by the server
    pieces: list[str] = field(default_factory=list)
    first_at: float | None = None

    @property
    def num_tokens(self) -> int:
        return max(self.counted.decode_tokens, len(self.ids), len(self.tokens)) or len(self.pieces)

    @property
    def num_received(self) -> int:
        return self.num_earlier + self.num_tokens

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

    def cost(self) -> Cost:
        """Return the server's token counts and local times. The time before the first output token counts as prefill."""
        now = time.perf_counter()
        first = self.first_at if self.first_at is not None and len(self.pieces) > 1 else self.began
        return replace(
            self.counted,
            prefill_seconds=first - self.began,
            decode_tokens=self.num_tokens,
            decode_seconds=now - first,
        )


def _nothing() -> _Writing:
    return _Writing(StepText(), "answer", 0.0)


# --- the state of a response


@frozen
class _Awaited:
    """Nothing was received yet, so the response may still be refused and costs nothing."""


@frozen
class _Begun:
    """The prompt was read, and pieces arrive. The server has not reported yet how many tokens it used."""

    num_prompt: int


@frozen
class _Closed:
    """The writer closed the stream at the end of a step. Most servers have not reported the tokens that they used."""

    usage: ReportedUsage | None


@frozen
class _Complete:
    """The server ended the response, and may have reported the tokens that it used."""

    ending: Ending
    usage: ReportedUsage | None


@dataclass(slots=True)
class _Slot:
    """A problem.

    One response may contain all later steps (`until_end`). `trace` then has steps that the flow has not yet received.
    `response` is the response to the latest request.
    """

    number: int
    problem: Problem
    sampler: Sampler
    began: float = 0.0  # when the request for the step began
    segments: Sequence[Segment] = ()
    controls: Controls = field(init=False)
    trace: Trace = field(init=False)
    writing: _Writing = field(default_factory=_nothing)
    until_end: bool = False
    prompt: Prompt | None = None
    num_prompt: int | None = None  # tokens
    response: _Awaited | _Begun | _Closed | _Complete = field(default_factory=_Awaited)
    spent: Cost = field(default_factory=Cost)  # on responses that are not part of a step
    steps: StepIds = field(default_factory=StepIds)
    updates: deque[SlotUpdate] = field(default_factory=deque)  # not yet returned by `tick`
    topic: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def is_new(self) -> bool:
        """Whether the model has not written a step of this problem yet."""
        return self.steps.has_none_of_its_own

    @property
    def unkept(self) -> Cost:
        """The cost of the current response, if it is not kept. Its time belongs to the step that replaces it, if any."""
        written = replace(self.writing.cost(), prefill_seconds=0.0, decode_seconds=0.0)
        num_unreported = self.response.num_prompt if isinstance(self.response, _Begun) else 0
        return self.spent + written + Cost(prefill_tokens=num_unreported)

    def due(self) -> Iterator[SlotUpdate]:
        """Remove and yield the updates up to the end of a step. The next step may not be wanted."""
        while self.updates:
            update = self.updates.popleft()
            yield update
            if update.step:
                return

    def retract(self) -> None:
        """Add the cost of the current response to that of the next one."""
        self.spent = self.unkept
        self.response = _Awaited()
        self.writing = _nothing()

    def forget(self) -> None:
        """Forget the request, except for the steps of its trace."""
        self.updates.clear()
        self.until_end = False
        self.retract()
        self.spent = Cost()


@dataclass(eq=False)
class ServedWriter:
    """A `Writer` for a model on a server. Steps are written in the connection's thread and returned by `tick`.

    If `shares_prompts` is false, no problem uses another problem's prompt cache. `may_be_complete` returns false if the text
    of a solution, written with the default system prompt, is almost certainly unfinished.
    """

    role: ModelRole
    model: ServedModel
    sampler: Sampler
    style: PromptStyle
    keep_token_stats: bool = False
    shares_prompts: bool = True
    may_be_complete: Callable[[str], bool] = lambda text: True

    def __post_init__(self) -> None:
        self._prompt = self.model.prompt(self.style)
        self._think_end_ids: list[int] = []
        self._slots: dict[int, _Slot] = {}
        self._pending: dict[int, Future[None]] = {}

    @property
    def wait(self) -> Callable[[], None]:
        return self.model.server.connection.wait

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        """Assign a problem to a slot. Raises ServerRequestError if the server cannot show where its thinking ends."""
        if problem.thinks and self.model.dialect.is_plain and self._prompt.think_format is not THINK:
            raise self._hidden_end()
        self._slots[slot] = _Slot(slot, problem, sampler or self.sampler)

    def close(self, slot: int) -> None:
        if future := self._pending.pop(slot, None):
            future.cancel()
        self._slots.pop(slot, None)

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        opened = self._slots[slot]
        if not opened.until_end:
            opened.until_end = request.until_end
            opened.trace = replace(request.trace, decisions=[*request.trace.decisions])
            self._pending[slot] = self.model.server.connection.begin(self._answer(opened))
        return 0

    def tick(self) -> list[SlotUpdate]:
        ended = [slot for slot, future in self._pending.items() if future.done()]  # first, so that no update is missed
        updates = [update for slot in self._slots.values() for update in slot.due()]
        for slot in ended:
            if not self._slots[slot].updates:
                self._pending.pop(slot).result()
        if any(slot.updates for slot in self._slots.values()):
            self.model.server.connection.notify()  # otherwise, `wait` would wait before the next tick
        return updates

    def stop(self, slot: int) -> list[Step]:
        opened = self._slots[slot]
        if (future := self._pending.pop(slot, None)) is None:
            return self._unreported(opened)
        future.cancel()  # first, so that nothing is added
        return self.model.server.connection.run(self._stopped(opened))

    def num_prompt_tokens(self, slot: int) -> int | None:
        return self._slots[slot].num_prompt

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        return None  # other users of the server change its speed

    # --- in the connection's thread

    async def _answer(self, slot: _Slot) -> None:
        """Write and report the next step or, with `until_end`, all later steps."""
        num_steps = 0

        def restart() -> None:
            if len(slot.trace.decisions) > num_steps:
                raise ServerRequestError(f"{self.model.server.name} interrupted a response", status=TIMEOUT)
            self._retract(slot)

        try:
            while True:
                num_steps = len(slot.trace.decisions)
                slot.began = time.perf_counter()
                self._begin(slot)  # the server may refuse to be asked
                try:
                    await self.model.server.retry(partial(self._write, slot), restart=restart)
                except ServerRequestError as error:
                    if error.status != TIMEOUT or len(slot.trace.decisions) == num_steps:
                        raise
                    self._retract(slot)  # the next request follows the complete steps
                if not slot.until_end or slot.trace.finished:
                    return
        except (ProblemError, ServerError) as error:
            self._report(slot, error=error)

    def _retract(self, slot: _Slot) -> None:
        slot.retract()
        self._report(slot, num_unread=1)

    async def _stopped(self, slot: _Slot) -> list[Step]:
        return self._unreported(slot)

    def _unreported(self, slot: _Slot) -> list[Step]:
        steps = [update.step for update in slot.updates if update.step]
        writing = slot.writing
        if (cost := slot.unkept) != Cost():
            text = writing.text.finish(is_cut=True)
            steps.append(Step(self.role, text, writing.num_tokens, cost, "early", phase=writing.phase))
        slot.forget()
        return steps

    def _report(self, slot: _Slot, **update: Any) -> None:
        slot.updates.append(SlotUpdate(slot.number, **update))
        self.model.server.connection.notify()

    async def _write(self, slot: _Slot) -> None:
        """Write the next step or, with `until_end`, the rest of the phase."""
        limits = slot.trace.limits
        context_size = self.model.card.context_size
        self._begin(slot)
        prompt = await self._prompt_of(slot)
        if len(prompt.ids) >= context_size:
            message = (
                f"the solution so far ({len(prompt)} tokens) fills the context of {self.model.name} ({context_size} tokens)"
            )
            raise ContextFullError(message, "use a shorter problem or a smaller --max-tokens")
        room = context_size - len(prompt.ids)
        longest = None  # the limit of a step
        if slot.until_end:
            longest = max(context_size - len(prompt), limits.max_step_tokens)  # servers may reject more than fits
        budget, is_last_thought = slot.trace.next_budget(longest)
        stop = await self._write_until_end(slot, prompt, min(budget, room))
        num_tokens = slot.writing.num_received
        is_at_limit = stop == "budget"
        ended = step_end(
            None if is_at_limit else stop,
            is_spent=budget <= room and (is_at_limit or num_tokens >= budget),
            is_last_thought=is_last_thought,
            is_full=is_at_limit and num_tokens >= room,
        )
        self._keep(slot, ended or stop)

    def _begin(self, slot: _Slot, num_earlier: int = 0) -> None:
        slot.writing = _Writing(self._prompt.step_text(slot.trace), slot.trace.phase, slot.began, num_earlier)

    def _keep(self, slot: _Slot, stop: StepStop) -> None:
        """Finish the step, add it to the trace, and report it. Then begin the next step."""
        writing = slot.writing
        stats = self._token_stats(writing) if self.keep_token_stats and not slot.until_end else None
        text = writing.text.finish(is_cut=stop not in WHOLE)
        step = Step(self.role, text, writing.num_tokens, slot.spent + writing.cost(), stop, stats, phase=writing.phase)
        slot.steps.remember(step, self._own_ids(step, writing))
        slot.trace.add(Decision(kept=step))
        slot.spent = Cost()
        slot.began = time.perf_counter()
        self._begin(slot, writing.num_received)
        self._report(slot, step=step)

    def _token_stats(self, writing: _Writing) -> TokenStats:
        try:
            return token_stats(writing.tokens, self.model.num_alternatives, self.model.card.vocabulary_size)
        except ValueError as error:
            raise ServerRequestError(f"{self.model.server.name}: {error}") from error

    async def _write_until_end(self, slot: _Slot, prompt: Prompt, max_tokens: int) -> StepStop:
        """Send requests until the step ends. Return the reason why it ends."""
        num_blank = 0
        while num_blank < MAX_BLANK_ANSWERS:
            num_left = max_tokens - slot.writing.num_received
            if num_left <= 0:
                return "budget"
            before = slot.writing.text.so_far.strip()
            if stop := await self._continue(slot, self._request(slot, prompt, num_left)):
                return stop
            num_blank = num_blank + 1 if slot.writing.text.so_far.strip() == before else 0
        raise ServerRequestError(f"{self.model.name} writes only blank lines")

    async def _continue(self, slot: _Slot, request: TextRequest) -> StepStop | None:
        """Add a response to the step. Return the reason why the step ends, or None if it does not end yet."""
        is_first = slot.is_new and not slot.writing.pieces
        response = await self._receive(slot, request)
        if response.usage:
            self._count(slot, response.usage, is_first=is_first)
        slot.response = response
        if isinstance(response, _Closed):
            return slot.writing.stop
        if self._is_empty(slot.writing) and (response.ending == "length" or not slot.trace.decisions):
            hint = "if the model thinks without showing its thoughts, turn this off"
            raise ServerRequestError(f"{self.model.server.name} sent a response without text", hint)
        return await self._stop(slot, response.ending, request)

    async def _receive(self, slot: _Slot, request: TextRequest) -> _Closed | _Complete:
        """Add the pieces of a response to the step, until the server ends it or the rest is not needed."""
        ending, usage = None, None
        async with aclosing(self.model.pieces(request, slot.topic)) as pieces:
            async for piece in pieces:
                slot.response = _Begun(len(request.prompt.ids))
                self._add(slot, _without_end_token(piece, request.marker), request.max_tokens)
                ending = piece.ending or ending
                usage = piece.usage or usage
                if self._needs_no_more(slot):  # at least the number of ids that were sent is known
                    return _Closed(ReportedUsage(prompt=len(request.prompt)) if request.prompt.ids else usage)
        if ending is None:
            raise ValueError("`ServedModel.pieces` ended without an ending")
        return _Complete(ending, usage)

    def _is_empty(self, writing: _Writing) -> bool:
        """Return whether a response has nothing, not even a token without text, such as the end of the sequence."""
        return not writing.num_received

    def _needs_no_more(self, slot: _Slot) -> bool:
        if slot.writing.text.ended and self.model.dialect.is_plain:  # other servers stop by themselves, and report
            return True
        return slot.writing.stop == "loop" and not slot.until_end

    def _count(self, slot: _Slot, usage: ReportedUsage, *, is_first: bool) -> None:
        """Add the tokens that a response used, without those of its earlier steps, to the step's cost."""
        if is_first:
            slot.num_prompt = usage.prompt
        num_own = max(0, usage.cost.decode_tokens - slot.writing.num_earlier)
        slot.writing.counted += replace(usage.cost, decode_tokens=num_own)

    def _add(self, slot: _Slot, piece: Piece, max_tokens: int) -> None:
        """Add a piece to the step. If the response has more steps, keep each complete step and begin the next one."""
        rest: Piece | None = piece
        while rest:
            own, rest = self._divided(slot, rest)
            writing = slot.writing
            if text := writing.add(own):
                self._report(slot, text=text)
            if not slot.until_end or writing.text.has_marker:
                return  # what follows the end is not needed
            is_at_limit = writing.num_tokens >= slot.trace.limits.max_step_tokens
            stop = writing.stop or ("budget" if is_at_limit else None)
            if stop and writing.num_received < max_tokens:
                self._keep(slot, stop)
                slot.writing.first_at = slot.began  # it had no prompt of its own

    def _divided(self, slot: _Slot, piece: Piece) -> tuple[Piece, Piece | None]:
        """Divide a piece that may have several tokens where the step ends."""
        may_go_beyond = self.model.dialect.is_plain or (slot.until_end and len(piece.ids) > 1)
        if may_go_beyond:
            num_own = 1 + slot.writing.text.num_before_end(one.encode("utf-8", "replace") for one in piece.text)
            if num_own < len(piece.text):
                return piece.split(num_own)
        return piece, None

    async def _stop(self, slot: _Slot, ending: Ending, request: TextRequest) -> StepStop | None:
        """Return the reason why a step ends whose response the server has ended, or None if it does not end yet."""
        writing = slot.writing
        if writing.text.has_marker:
            return writing.stop
        if ending == "separator" and not slot.until_end:
            self._check_separator(writing.text, request)
            return writing.stop
        if ending == "length":
            return writing.stop or "budget"
        return end_of(writing.phase)

    def _check_separator(self, text: StepText, request: TextRequest) -> None:
        """Raise ServerRequestError if the server stopped at the separator, but did not send it."""
        if text.so_far.strip() and not text.so_far.endswith(request.stop) and not text.ended:
            raise ServerRequestError(
                f"{self.model.server.name} omitted the stop string ({self.style.step_end}) from its response"
            )

    def _own_ids(self, step: Step, writing: _Writing) -> list[int]:
        """Return a step's ids without the ids of its marker, or [] if the text must be tokenized again."""
        ids = writing.ids
        end = self._think_end_ids
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
            f"{self.model.server.name} omits '{self._prompt.think_format.end}', which marks the end of thinking in {self.model.name}",
            "use a newer version of vLLM, SGLang or llama-server, or --think off",
        )

    def _request(self, slot: _Slot, prompt: Prompt, max_tokens: int) -> TextRequest:
        writing = slot.writing
        form = self._prompt.think_format
        prompt = prompt.followed_by(writing.text.so_far, writing.ids)
        return TextRequest(
            self.model.name,
            prompt,
            max_tokens,
            replace(slot.sampler, seed=_seed(slot.sampler.seed, slot.problem.question, len(prompt))),
            num_alternatives=self.model.num_alternatives if self.keep_token_stats and not slot.until_end else 0,
            cache_key="" if self.shares_prompts else slot.topic,
            is_first=slot.is_new,
            stop=self.style.step_end.separator if self.model.dialect.can_stop and not slot.until_end else "",
            marker=form.end if writing.phase == "think" or form.ends_turns else "",
        )

    async def _prompt_of(self, slot: _Slot) -> Prompt:
        model = self.model
        topic = slot.topic
        form = self._prompt.think_format
        if not slot.segments:
            slot.segments = await model.with_renderings(partial(self._prompt.for_problem, slot.problem), topic)
            marks = [Control(form.opens + form.closes)] if slot.problem.thinks else []
            slot.controls = Controls([*slot.segments, *marks], can_ignore=model.dialect.can_ignore_controls)
            if model.dialect.is_plain:
                slot.controls.check_question(slot.segments)
        controls = slot.controls
        if model.dialect.is_plain:
            kept = [decision.kept for decision in slot.trace.decisions]
            steps = [segment for step in kept for segment in (Plain(step.text), *self._prompt.after(step))]
            return await model.prompt_of([*slot.segments, *steps], controls)
        if slot.problem.thinks and not self._think_end_ids:
            self._think_end_ids = await model.ids_of([Control(form.end)], controls, topic)
        if slot.prompt is None:
            slot.prompt = await model.prompt_of(slot.segments, controls, topic)
            slot.num_prompt = len(slot.prompt)
        for step, own in slot.steps.missing(slot.trace):
            text = [] if own else [Plain(step.text)]
            after = [Control(segment.text) for segment in self._prompt.after(step)]
            slot.steps.add(step, own + await model.ids_of([*text, *after], controls, topic))
        return Prompt(ids=slot.steps.after([*slot.prompt.ids]))


class ChatWriter(ServedWriter):
    """A `Writer` for a model behind a chat API. The other model's thinking is continued as ordinary text."""

    async def _prompt_of(self, slot: _Slot) -> Prompt:
        problem = slot.problem
        written = slot.trace.written
        if slot.trace.thoughts and not slot.trace.text:
            written += self.style.step_end.separator
        system = (self.style.instructions if problem.system is None else problem.system).strip()
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": turn.role, "content": turn.text} for turn in problem.turns]
        return Prompt(written, messages=[*messages, {"role": "user", "content": problem.question}])

    def _request(self, slot: _Slot, prompt: Prompt, max_tokens: int) -> TextRequest:
        """Return a request, without a stop string if a step may contain a separator."""
        request = super()._request(slot, prompt, max_tokens)
        is_exact = slot.writing.phase == "answer" and self.style.step_end.min_chars == 1
        return request if is_exact else replace(request, stop="")

    def _is_empty(self, writing: _Writing) -> bool:
        """Return whether a response has no text. The tokens that a chat API counts without text are hidden reasoning."""
        return not (writing.num_earlier or writing.pieces)

    async def _stop(self, slot: _Slot, ending: Ending, request: TextRequest) -> StepStop | None:
        if slot.until_end or ending == "length":
            return await super()._stop(slot, ending, request)
        if ending == "end" or (ending == "stop" and await self._is_over(slot, request)):
            return end_of(slot.writing.phase)
        self._report(slot, text=slot.writing.add(Piece(self.style.step_end.separator)))
        return slot.writing.stop

    async def _is_over(self, slot: _Slot, request: TextRequest) -> bool:
        """Return whether the solution is complete, or the server stopped at the separator."""
        if not request.stop:
            return True
        if not slot.writing.text.so_far.strip():
            written = request.prompt.text
            return not written or written.endswith(self.style.step_end.separator)
        return await self._writes_no_more(slot, request)

    async def _writes_no_more(self, slot: _Slot, request: TextRequest) -> bool:
        """Return whether the model has nothing to add.

        Unless the solution is almost certainly unfinished, the model is asked to continue it without a stop string.
        """
        prompt = request.prompt.followed_by(slot.writing.text.so_far.lstrip())
        if slot.problem.system is None and not self.may_be_complete(prompt.text):
            return False
        check = replace(request, prompt=prompt, max_tokens=CHECK_TOKENS, stop="")
        is_over = True
        async for piece in self.model.pieces(check, slot.topic):
            is_over = is_over and not piece.text
            slot.spent += piece.usage.cost if piece.usage else Cost()
        return is_over


def _without_end_token(piece: Piece, marker: str) -> Piece:
    """Remove the name of the end-of-sequence token from the last piece.

    Some servers include this name in the text, and others only in the log-probabilities.
    """
    if piece.ending not in ("end", "stop"):
        return piece
    *_, last = (None, *LOOKS_LIKE_CONTROL.finditer(piece.text if marker else ""))
    if last and last.end() == len(piece.text) and last[0] != marker:
        piece = replace(piece, text=piece.text[: last.start()])
    if piece.tokens and not piece.text.endswith(piece.tokens[-1].text):
        piece = replace(piece, tokens=(*piece.tokens[:-1], replace(piece.tokens[-1], text="")))
    return piece


def _seed(seed: int, question: str, position: int) -> int:
    key = f"{seed}/{question}/{position}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()) >> 1

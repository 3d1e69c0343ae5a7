"""Writes steps with one model, for many problems at once. Steps enter and leave the engine as text; token ids stay inside.

In each tick, all started steps advance by one batch of prefill or decoding.

A rejected draft step becomes the target's proposal: the target verifies the step's tokens in batches and keeps the tokens
that it would have drawn itself. If the target's text differs from the proposal, the draft can continue the new text. This is
speculative decoding (arXiv 2211.17192) with text instead of tokens.
"""

import functools
import math
import time

from arbitrage_cli.arbitrage import WriteStep
from arbitrage_cli.errors import ProblemError, ServerError
from arbitrage_cli.inference.acceptance import Acceptance, Calibration
from arbitrage_cli.inference.backend import Clock, Deadline, Floats, ModelCard
from arbitrage_cli.inference.decoding import Decoder, OpenProblem, StepInProgress
from arbitrage_cli.inference.kv_cache import KvCache
from arbitrage_cli.inference.proposals import History, Proposal, align
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.speculation import MAX_ROWS, Drafting, Planner, Speculation, Speculator
from arbitrage_cli.inference.token_stats import Recorder, RowMeter
from arbitrage_cli.inference.unit_costs import TOKEN_SECONDS, UnitCosts
from arbitrage_cli.types import WHOLE, ModelRole, Problem, Step, TokenStats, Trace, frozen

MIN_LOOKUP_SECONDS = 2e-3  # seconds per token; prompt lookup takes up to 1% of it


@frozen
class SlotUpdate:
    """The effect of a tick on one slot: a token was drawn, `num_unread` tokens remain to be prefilled, or the step failed.

    `step` is set if the token ended the step.
    """

    slot: int
    text: str = ""
    num_unread: int = 0
    step: Step | None = None
    error: ProblemError | ServerError | None = None


class Engine:
    """Writes steps with the model of a `KvCache`. `slot` is the index of a problem in flight.

    Engines may share a cache only if they never solve problems at the same time. Nothing is proposed without a `planner`, or
    if the model cannot remove rejected tokens without a checkpoint. A draft should not use prompt lookup, because verification
    with 4-bit weights changes log-probabilities by up to 0.1 nats, and routers use the draft's log-probabilities.
    """

    wait = None  # local models never wait

    def __init__(
        self,
        role: ModelRole,
        cache: KvCache,
        sampler: Sampler,
        *,
        keep_token_stats: bool = False,
        planner: Planner | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._role = role
        self.sampler = sampler
        self._keep_token_stats = keep_token_stats
        self._clock = clock
        states = cache.backend.states
        self._max_verified = states.max_dropped if states else MAX_ROWS
        self._planner = planner if planner and self._max_verified else Planner()
        self._calibration = Calibration()
        self._costs = planner.costs if planner else None
        self.cache = cache
        self._decoder = Decoder(cache, clock)
        self._slots: dict[int, OpenProblem] = {}
        self._steps: dict[int, StepInProgress] = {}
        self._failed: dict[int, StepInProgress] = {}  # until `stop` or `close`

    @property
    def card(self) -> ModelCard:
        return self.cache.backend.card

    @property
    def busy(self) -> bool:
        return bool(self._steps)

    @property
    def unit_costs(self) -> UnitCosts | None:
        return self._planner.costs

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None, sampler: Sampler | None = None) -> None:
        cached = self.cache.open(slot, problem, deadline)
        self._slots[slot] = OpenProblem(cached, sampler or self.sampler, Acceptance(self._calibration))

    def close(self, slot: int) -> None:
        self._steps.pop(slot, None)
        self._failed.pop(slot, None)
        if opened := self._slots.pop(slot, None):
            self.cache.close(slot, opened.cached)

    # --- writing steps

    def stop(self, slot: int) -> list[Step]:
        """Stop writing. Return the unfinished step, if there is one, even if it failed."""
        if (step := self._steps.pop(slot, None) or self._failed.pop(slot, None)) is None:
            return []
        text = step.text.finish(is_cut=True)
        cost = step.total_cost
        return [
            Step(self._role, text, len(step.tokens), cost, "early", speculation_cost=step.speculation_cost, phase=step.phase)
        ]

    def start(self, slot: int, request: WriteStep, speculator: Speculator | None = None) -> int:
        """Start the requested step and return the number of unread tokens. Raises ContextFullError if the context is full."""
        trace = request.trace
        opened = self._slots[slot]
        room = opened.prepare(trace)
        unread = opened.cached.unread
        phase = trace.phase
        budget, is_last_thought = trace.next_budget()
        recorder = Recorder(self._meter) if self._keep_token_stats else None
        self._propose(opened, request, unread)
        self._steps[slot] = StepInProgress(
            opened=opened,
            trace=trace,
            max_tokens=budget,
            recorder=recorder,
            max_proposed=min(budget, room) - 1,  # the step ends with the token after them
            max_verified=self._max_verified,
            text=self.cache.prompt.step_text(trace),
            phase=phase,
            is_last_thought=is_last_thought,
            early_stop=request.early_stop,
            speculator=speculator if self.unit_costs else None,
            until_end=request.until_end and opened.cached.sequence.drops_tails,
        )
        return len(unread)

    def _propose(self, opened: OpenProblem, request: WriteStep, unread: list[int]) -> None:
        if self._planner.prompt_lookup and self.unit_costs and self.unit_costs.decode >= MIN_LOOKUP_SECONDS:
            if opened.history is None:
                opened.history = History(opened.cached.prompt)
            opened.history.catch_up(unread)
        if not (request.until_end and opened.proposal):  # the last step's proposal may continue into this step
            step = request.proposal if self.unit_costs else None
            tokens = self.cache.proposed_ids(step.text, request.trace) if step else ()
            opened.proposal = Proposal(tokens, opened.history)

    def tick(self) -> list[SlotUpdate]:
        """Advance every step by one batch. All decoding steps share a batch."""
        alone = [slot for slot, step in self._steps.items() if step.opened.ahead or len(step.opened.cached.unread) > 1]
        decoding = [slot for slot in self._steps if slot not in alone]
        batches = [*([slot] for slot in alone), *([decoding] if decoding else [])]
        return [update for slots in batches for update in self._advance(slots)]

    def _advance(self, slots: list[int]) -> list[SlotUpdate]:
        """Prefill for one slot, or decode for all slots.

        If this fails, advance each slot separately, so that only the failing problem is aborted.
        """
        slot, step = slots[0], self._steps[slots[0]]
        if ahead := step.opened.ahead:
            return self._updates(slot, self._decoder.take_ahead(step, ahead))
        try:
            if len(step.opened.cached.unread) > 1:  # perhaps again, because a checkpoint was restored after an error
                self._decoder.read(step)
                return [SlotUpdate(slot, num_unread=len(step.opened.cached.unread))]
            return self._decode(slots)
        except ProblemError as error:
            if len(slots) > 1:
                return [update for slot in slots for update in self._advance_alone(slot)]
            self._failed[slot] = self._steps.pop(slot)
            return [SlotUpdate(slot, error=error)]

    def _advance_alone(self, slot: int) -> list[SlotUpdate]:
        """Decode for one slot after a batch failed. If a checkpoint was restored, first prefill again what follows it.

        Otherwise, a slot that fails only when it decodes would fail in every batch, and no slot would ever advance.
        """
        updates = self._advance([slot])
        while updates[-1].num_unread:
            updates += self._advance([slot])
        return updates

    def _decode(self, slots: list[int]) -> list[SlotUpdate]:
        if len(slots) == 1:
            self._ask_speculator(slots[0])
        began = self._clock()
        steps = [self._steps[slot] for slot in slots]
        counts = self._planner.plan([(step.opened.acceptance, step.place) for step in steps])
        rows = [
            step.opened.cached.unread + self._proposed(step, step.opened.proposal.upcoming(count))
            for step, count in zip(steps, counts, strict=True)
        ]
        drawn = self._decoder.decode(steps, rows)
        seconds = self._clock() - began
        num_rows = sum(map(len, rows))
        updates: list[SlotUpdate] = []
        for slot, step, tokens, texts in zip(slots, steps, rows, drawn, strict=True):
            step.charge(seconds * len(tokens) / num_rows, len(tokens), len(texts))
            updates += self._updates(slot, texts)
        return updates

    def _proposed(self, step: StepInProgress, tokens: list[int]) -> list[int]:
        return tokens if step.until_end else self.cache.before_end(tokens, step.text)

    def _updates(self, slot: int, texts: list[str]) -> list[SlotUpdate]:
        return [*(SlotUpdate(slot, text) for text in texts[:-1]), SlotUpdate(slot, texts[-1], step=self._finish(slot))]

    def _finish(self, slot: int) -> Step | None:
        step = self._steps[slot]
        if step.stop is None and self._stops_early(step):
            step.stop = "early"
        if step.stop is None:
            return None
        token_stats = self._token_stats(step)
        cost = step.total_cost
        text = step.text.finish(is_cut=step.stop not in WHOLE)
        num_tokens = len(step.tokens)
        written = Step(self._role, text, num_tokens, cost, step.stop, token_stats, step.speculation_cost, step.phase)
        if not step.text.lacks_tokens:  # otherwise the text is tokenized again, as by other models
            step.opened.cached.remember(written, step.tokens)
        del self._steps[slot]
        return written

    def _stops_early(self, step: StepInProgress) -> bool:
        # Statistics need the text of every token, so steps are not stopped inside a character.
        if step.early_stop is None or step.text.is_inside_character or not step.early_stop.is_due(len(step.tokens)):
            return False
        token_stats = self._token_stats(step)
        prefix = Step(self._role, step.text.so_far, len(step.tokens), step.cost, "early", token_stats, phase=step.phase)
        return step.early_stop.should_stop(step.trace, prefix)

    def _token_stats(self, step: StepInProgress) -> TokenStats | None:
        began = self._clock()
        token_stats = step.recorder.so_far() if step.recorder else None
        step.decode_seconds += self._clock() - began  # the statistics are part of decoding
        return token_stats

    @functools.cached_property
    def _meter(self) -> RowMeter:
        return RowMeter(self.card.vocabulary_size)

    # --- speculating

    def speculate(
        self, slot: int, trace: Trace, prefix: str, drafting: Drafting, sampler: Sampler, *, until_end: bool = False
    ) -> Speculation:
        """Continue the `prefix` of another model's step as long as `drafting` continues.

        The `sampler` is that of the other model, which often chooses the same token for the same random number. With
        `until_end`, the continuation may include the beginning of the next step. Raises ContextFullError if the context
        is full.
        """
        if slot in self._steps:
            raise ValueError(f"slot {slot} is already writing a step")
        opened = self._slots[slot]
        room = opened.cached.prepare(trace, prefix)
        phase = trace.phase
        tokenizer = self.cache.backend.tokenizer
        tokens: list[tuple[int, float]] = []
        text = self.cache.prompt.step_text(trace, prefix)

        def should_continue(logits: Floats, token: int) -> bool:
            if self.cache.ends(phase, token):
                return False
            stats = self._meter.measure(logits, token, is_top=sampler.is_greedy)
            piece = tokenizer.piece(token)
            confidence = math.exp(stats.log_probability)
            text.add(piece)
            tokens.append((len(piece), confidence))
            return drafting.should_continue(confidence) and not (text.has_marker if until_end else text.ended)

        num_rows = self.unit_costs.read(len(opened.cached.unread))[1] if self.unit_costs else 0
        most = min(drafting.max_tokens, room)
        cost = self._decoder.write_on(opened.cached, most, num_rows, sampler, should_continue)
        return Speculation(text.so_far[len(prefix) :], tokens, cost)

    def _ask_speculator(self, slot: int) -> None:
        step = self._steps[slot]
        place, opened = step.place, step.opened
        if step.speculator is None or (place.num_left and place.source != "lookup") or step.text.is_inside_character:
            return
        num_required = len(opened.cached.required)
        num_unread = max(1, num_required - opened.num_speculated)
        costs = step.speculator.unit_costs
        drafting = self._planner.plan_speculation(costs, num_unread, step.room, opened.acceptance, place)
        if drafting is None:
            return
        try:
            found = step.speculator.speculate(
                slot, step.trace, step.text.so_far, drafting, opened.sampler, until_end=step.until_end
            )
        except ProblemError:  # the step continues without a speculator
            step.speculator = None
            return
        step.speculation_cost += found.cost
        opened.num_speculated = num_required + max(0, len(found.tokens) - 1)
        tokens = self._proposed(step, self.cache.step_ids(found.text))
        lengths = (len(self.cache.backend.tokenizer.piece(token)) for token in tokens)
        opened.proposal.speculate(tokens, align(found.tokens, lengths))

    # --- measuring

    def num_prompt_tokens(self, slot: int) -> int | None:
        return len(self._slots[slot].cached.prompt)

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        """Return the computed time in which the model alone would write the trace, or None if its token costs are unknown."""
        if self._costs is None:
            return None
        cached = self._slots[slot].cached
        num_read = len(cached.prompt) - cached.num_reused
        num_decoded = sum(len(self.cache.step_ids(decision.kept.text)) for decision in trace.decisions) + 1
        return num_read * self._costs.prefill + num_decoded * (self._costs.decode + TOKEN_SECONDS)


def as_speculator(draft: object) -> Speculator | None:
    """Return the draft if it is an engine, otherwise None."""
    return draft if isinstance(draft, Engine) else None

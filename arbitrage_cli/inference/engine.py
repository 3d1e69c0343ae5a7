"""One model that writes steps, for many problems at once.

A step is started for a slot, and each tick brings all that were started one batch further: what is unread is read, and then
tokens are decoded until the step ends, or is stopped early. Knows no policy and no terminal. Token ids never leave it; steps
come and go as text.

A proposal is a step that the model may be about to write, or parts of it. Some of its tokens are read in the batch that
decodes, the model draws after each of them as it does when it decodes, and what it draws is kept as long as it is what was
proposed. So the text is the same with and without a proposal, as far as a model computes the same for one token and for many.
Where the step has left its proposal, the model that made it can be asked how it would go on now: speculative decoding (arXiv
2211.17192), with texts instead of tokens.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from arbitrage_cli.arbitrage import EarlyStop, WriteStep
from arbitrage_cli.errors import ContextFullError, ProblemError
from arbitrage_cli.inference.backend import Backend, Floats, ModelCard, Output
from arbitrage_cli.inference.chat_template import INSTRUCTIONS
from arbitrage_cli.inference.kv_cache import Batch, Cache
from arbitrage_cli.inference.sampling import Sampler, probability_of
from arbitrage_cli.inference.speculation import Kind, Place, Planner, Proposal
from arbitrage_cli.inference.step_text import StepText
from arbitrage_cli.inference.token_stats import Recorder
from arbitrage_cli.types import Cost, Limits, ModelRole, Problem, Step, StepStop, Trace

MEASURED = Problem("", "1 + 1")  # what `measure` reads,
FEWEST_MEASURED, MOST_MEASURED = 4, 64  # and how many tokens it decodes, to the end of an answer:
MEASURED_SECONDS = 0.05  # as many as this takes
UNSURE = 0.6  # of all tokens told to come next together: no more are told
ENOUGH_TOKENS = 16  # to know a model's speed from one trace

log = logging.getLogger("arbitrage.engine")


@dataclass(frozen=True, slots=True)
class Speculation:
    """How a step might go on, and what it cost to say so."""

    text: str
    cost: Cost


class Speculator(Protocol):
    """Whoever says how a step that another model is writing might go on: an `Engine`, whose methods these are."""

    @property
    def seconds_per_token(self) -> float: ...

    def speculate(self, slot: int, trace: Trace, beginning: str, most: int) -> Speculation: ...


@dataclass(slots=True)
class _Job:
    """One step being written. `unread` are the ids that the model must see before it can go on; never empty.

    `proposal` has ids that may come next; after the first `max_proposed` tokens of the step there is no room to read any.
    """

    trace: Trace
    unread: list[int]
    max_tokens: int
    recorder: Recorder | None
    proposal: Proposal
    max_proposed: int
    sampler: Sampler
    early_stop: EarlyStop | None = None
    speculator: Speculator | None = None
    text: StepText = field(default_factory=StepText)
    tokens: list[int] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)  # but for that of decoding
    decode_seconds: float = 0.0
    speculation_cost: Cost = field(default_factory=Cost)
    stop: StepStop | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a tick did for one slot: tokens still to be read, or else the characters that one token added, and the step or why
    there is none. A tick that draws several tokens for a slot tells each.
    """

    slot: int
    text: str = ""
    num_unread: int = 0
    step: Step | None = None
    error: ProblemError | None = None


class Engine:
    """Writes steps with one backend. `slot` numbers the problems in flight, from 0.

    Whose sequences those are, and what `keep_beginning` keeps, is told at `Cache`.
    """

    def __init__(
        self,
        role: ModelRole,
        backend: Backend,
        sampler: Sampler,
        *,
        instructions: str = INSTRUCTIONS,
        keep_token_stats: bool = False,
        use_proposals: bool = True,
        keep_beginning: bool = False,
        first_sequence: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._role = role
        self._backend = backend
        self._sampler = sampler
        self._keep_evidence = keep_token_stats
        self._use_proposals = use_proposals
        self._planner = Planner()
        self._clock = clock
        self._cache = Cache(backend, instructions, keep_beginning=keep_beginning, first_sequence=first_sequence)
        self._jobs: dict[int, _Job] = {}
        self._spent = Cost()
        self._measured = Cost()
        self._lost: set[int] = set()  # control tokens that were written, and told of

    @property
    def card(self) -> ModelCard:
        return self._backend.card

    @property
    def busy(self) -> bool:
        """Whether any step is being written."""
        return bool(self._jobs)

    @property
    def seconds_per_token(self) -> float:
        """What a token takes that is decoded alone, of late; 0 if none was yet."""
        return self._planner.decode_seconds

    def open(self, slot: int, problem: Problem) -> None:
        """Take up a problem. ContextFullError if its prompt leaves no room for an answer."""
        self._cache.open(slot, problem)

    def close(self, slot: int) -> None:
        """Forget a problem; whatever was being written for it is gone."""
        self._jobs.pop(slot, None)
        self._cache.close(slot)

    def forget(self, slot: int) -> None:
        """Empty the cache of one problem. It costs time and changes no text (a law that the tests hold us to)."""
        self._cache.forget(slot)

    def start(self, slot: int, ask: WriteStep, speculator: Speculator | None = None) -> int:
        """Begin the step that is asked for; `tick` writes it. Returns how many tokens have to be read first.

        The `speculator`, if there is one, may be asked how it goes on. ContextFullError if what is to be read does not fit.
        """
        trace, proposal = ask.trace, ask.proposal
        unread, room = self._cache.want(slot, trace)
        budget = min(trace.limits.max_step_tokens, trace.limits.max_tokens - trace.num_tokens)
        self._jobs[slot] = _Job(
            trace=trace,
            unread=unread,
            max_tokens=budget,
            recorder=Recorder(self.card.vocabulary_size, greedy=self._sampler.is_greedy) if self._keep_evidence else None,
            proposal=Proposal(self._cache.proposed_ids(proposal.text) if proposal and self._use_proposals else ()),
            max_proposed=min(budget, room) - 1,  # the token after them ends the step anyway
            sampler=self._sampler.sample(ask.sample),
            early_stop=ask.early_stop,
            speculator=speculator if self._use_proposals else None,
        )
        return len(unread)

    def tick(self) -> list[Progress]:
        """Bring every step being written further: read what is unread, or decode a token or several, all in one batch."""
        reading = [slot for slot, job in self._jobs.items() if len(job.unread) > 1]
        decoding = [slot for slot, job in self._jobs.items() if len(job.unread) == 1]
        return [done for slot in reading for done in self._try(self._read, [slot])] + self._try(self._decode, decoding)

    def speculate(self, slot: int, trace: Trace, beginning: str, most: int) -> Speculation:
        """How this model would go on with a step that begins so: up to `most` tokens, fewer where it gets unsure of them.

        Nothing of that is a step of its own. ProblemError if there is no room.
        """
        if slot in self._jobs:
            raise ValueError("it is writing a step of its own there")
        unread, room = self._cache.want(slot, trace, beginning)
        text, chance = StepText(beginning), 1.0

        def goes_on(logits: Floats, token: int) -> bool:
            nonlocal chance
            chance *= probability_of(token, logits)
            if chance < UNSURE or self._backend.is_end(token):
                return False
            text.add(self._backend.piece(token))
            return not text.ended

        cost = self._write_on(slot, unread, min(most, room), goes_on)
        if cost.decode_tokens:
            self._planner.decoded(cost.decode_seconds / cost.decode_tokens)
        return Speculation(text.so_far[len(beginning) :], cost)

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        """Estimate of this model's time for the whole text of `trace`, had it written it alone: nothing is run for it.

        Prompt tokens at the measured cost of reading, text tokens at that of decoding: as measured in this trace if the
        model wrote enough of it, since a machine's speed changes, else in the whole run. Not slower than what `measure` found
        of a model that is fast enough to have been measured well: where another model has used the processor's cache in
        between, its first tokens take longer. None if it decoded nothing yet.
        """
        written = [step for decision in trace.decisions for step in (decision.draft, decision.target) if step]
        own = sum((step.cost for step in written if step.model == self._role), Cost())
        speeds = [own if own.decode_tokens >= ENOUGH_TOKENS else self._spent]
        if self._measured.decode_tokens >= ENOUGH_TOKENS:
            speeds.append(self._measured)
        decoding = [cost.decode_seconds / cost.decode_tokens for cost in speeds if cost.decode_tokens]
        reading = [cost.prefill_seconds / cost.prefill_tokens for cost in speeds if cost.prefill_tokens]
        if not decoding:
            return None
        num_tokens = sum(len(self._cache.step_ids(decision.kept.text)) for decision in trace.decisions) + 1
        return self._cache.num_prompt(slot) * min(reading, default=0.0) + num_tokens * min(decoding)

    def measure(self) -> Cost:
        """Time the reading of a short prompt and some tokens of decoding, so that speeds are known before any problem."""
        measured = Cost()
        self._cache.forget_beginning()
        try:
            self._cache.open(0, MEASURED)
        except ContextFullError:
            return measured  # nor will any problem fit, and each of them says so
        unread, room = self._cache.want(0, Trace(MEASURED, Limits()))
        if room > FEWEST_MEASURED:
            times: list[float] = []

            def goes_on(logits: Floats, token: int) -> bool:
                times.append(self._clock())
                is_soon = len(times) < FEWEST_MEASURED or times[-1] - times[0] < MEASURED_SECONDS
                return is_soon and not self._backend.is_end(token)

            measured = self._write_on(0, unread, min(room, MOST_MEASURED), goes_on)
        self._cache.close(0)
        self._cache.forget_beginning()
        self.know(measured)
        return measured

    def know(self, measured: Cost) -> None:
        """Take over what another engine of the same model has measured."""
        self._measured = measured
        self._spent += measured
        self._planner.read(measured.prefill_tokens, measured.prefill_seconds)
        if measured.decode_tokens:
            self._planner.decoded(measured.decode_seconds / measured.decode_tokens)

    # --- reading, decoding, drawing

    def _try(self, work: Callable[[list[int]], list[Progress]], slots: list[int]) -> list[Progress]:
        """Work on all slots at once. If a problem among them fails, on each alone, so that only that one ends.

        A proposal may be what fails, where it goes on as the model never would: then the step is written without it.
        """
        if not slots:
            return []
        try:
            return work(slots)
        except ProblemError as error:
            if len(slots) > 1:
                return [progress for slot in slots for progress in self._try(work, [slot])]
            job = self._jobs[slots[0]]
            if job.proposal:
                job.proposal, job.speculator = Proposal(), None
                return self._try(work, slots)
            del self._jobs[slots[0]]
            return [Progress(slots[0], error=error)]

    def _read(self, slots: list[int]) -> list[Progress]:
        """Read some of what one slot has unread, never the last token: `_decode` takes that, and gives the output after it.

        So whatever was read before, and whether evidence is kept or not, a step's tokens are computed in the same way.
        """
        (slot,) = slots
        job = self._jobs[slot]
        began = self._clock()
        num_read = self._cache.read(slot, job.unread[:-1])
        del job.unread[:num_read]
        seconds = self._clock() - began
        job.cost += Cost(prefill_tokens=num_read, prefill_seconds=seconds)
        self._planner.read(num_read, seconds)
        return [Progress(slot, num_unread=len(job.unread))]

    def _write_on(
        self, slot: int, unread: list[int], most: int, goes_on: Callable[[Floats, int], bool] = lambda logits, token: True
    ) -> Cost:
        """Read what is unread and decode up to `most` tokens, for no step: as long as it `goes_on`, by the logits and the token."""
        *before, token = unread
        num_read, num_decoded = len(before), 0
        began = self._clock()
        while before:
            del before[: self._cache.read(slot, before)]
        read = self._clock()
        is_going_on = True
        while is_going_on and num_decoded < most:
            logits = self._cache.decode([(slot, [token])]).logits[0]
            self._cache.keep(slot, token)
            num_decoded += 1
            token = self._sampler.choose(logits, self._cache.question(slot), self._cache.num_held(slot))
            is_going_on = goes_on(logits, token)
        seconds = self._clock() - read
        return Cost(num_read, read - began, num_decoded, seconds)

    def _decode(self, slots: list[int]) -> list[Progress]:
        """Decode one token of each slot, with some of those proposed to come after it, in one batch, and draw the next."""
        if len(slots) == 1:
            self._speculate_on(slots[0])
        began = self._clock()
        places = [self._place(slot) for slot in slots]
        batch = self._to_decode(slots, places)
        output = self._cache.decode(batch)
        drawn: list[list[str]] = []
        row = 0
        for slot, tokens in batch:
            drawn.append(self._draw_while_proposed(slot, tokens, output, row))
            row += len(tokens)
            if len(drawn[-1]) < len(tokens):
                self._cache.trim(slot)
        self._account(batch, places, drawn, self._clock() - began)
        return [progress for slot, texts in zip(slots, drawn, strict=True) for progress in self._tell(slot, texts)]

    def _account(self, batch: Batch, places: Sequence[Place], drawn: Sequence[list[str]], seconds: float) -> None:
        """Note what a batch cost: for the planner, and for each of its steps by its rows."""
        num_rows = sum(len(tokens) for _, tokens in batch)
        if num_rows == len(batch):
            self._planner.decoded(seconds, len(batch))
        else:
            kind: Kind = "speculated" if all(place.kind == "speculated" for place in places) else "drafted"
            self._planner.verified(seconds, num_rows, sum(map(len, drawn)), len(batch), kind=kind)
        for (slot, tokens), texts in zip(batch, drawn, strict=True):
            job, share = self._jobs[slot], seconds * len(tokens) / num_rows
            if len(tokens) == 1:
                job.decode_seconds += share
            else:
                job.cost += Cost(verify_tokens=len(tokens), verify_seconds=share, verify_kept=len(texts))

    def _speculate_on(self, slot: int) -> None:
        """Have the speculator say how the step might go on, where nothing is proposed any more and that is likely to save time."""
        job = self._jobs[slot]
        if job.speculator is None or self._place(slot).num_left or job.text.is_inside_character:
            return
        most = self._planner.plan_speculation(job.speculator.seconds_per_token, job.max_proposed - len(job.tokens))
        if not most:
            return
        try:
            told = job.speculator.speculate(slot, job.trace, job.text.so_far, most)
        except ProblemError:  # the other model's trouble: the step can do without
            job.speculator = None
            return
        job.speculation_cost += told.cost
        job.proposal.go_on_with(self._cache.proposed_ids(told.text, job.text.so_far))
        self._planner.asked(told.cost.decode_seconds)  # most of what was read for it would have been read for the next step

    def _place(self, slot: int) -> Place:
        """Where a step stands in its proposal, as far as there is room to read that."""
        job = self._jobs[slot]
        return job.proposal.place(job.max_proposed - len(job.tokens))

    def _to_decode(self, slots: Sequence[int], places: Sequence[Place]) -> list[tuple[int, list[int]]]:
        """Each slot with its unread token, and after it those of its proposal that are worth verifying."""
        counts = self._planner.plan(places) if any(place.num_left for place in places) else [0] * len(slots)
        jobs = [self._jobs[slot] for slot in slots]
        return [
            (slot, job.unread + job.proposal.upcoming(count) if count else job.unread)
            for slot, job, count in zip(slots, jobs, counts, strict=True)
        ]

    def _draw_while_proposed(self, slot: int, tokens: list[int], output: Output, row: int) -> list[str]:
        """Draw after each of `tokens`, from row `row` of the output on, while the next of them is the one drawn; the texts."""
        job = self._jobs[slot]
        texts: list[str] = []
        for index, token in enumerate(tokens, start=row):
            if texts and (job.stop or token != job.unread[0]):
                break
            self._cache.keep(slot, token)
            hidden = None if output.hidden is None else output.hidden[index]
            texts.append(self._draw(slot, job, output.logits[index], hidden))
        return texts

    def _draw(self, slot: int, job: _Job, logits: Floats, hidden: Floats | None) -> str:
        """Draw the next token from `logits` (n_vocab,), and note why the step ends with it if it does; returns its text."""
        token = job.sampler.choose(logits, self._cache.question(slot), self._cache.num_held(slot))
        if job.proposal:
            place = job.proposal.place(1)
            matched = job.proposal.wrote(token)
            if matched is not None:
                self._planner.compared(place, matched=matched)
        job.tokens.append(token)
        job.unread = [token]
        if job.recorder:
            job.recorder.add(logits, token, hidden)
        if self._backend.is_end(token):
            job.stop = "end"
            return ""
        piece = self._backend.piece(token)
        if not piece:
            self._tell_of_lost(token)
        text = job.text.add(piece)
        if job.recorder:
            job.recorder.add_text(text)
        if job.text.ended:
            job.stop = "separator"
        elif self._cache.is_full(slot):
            job.stop = "context"
        elif len(job.tokens) >= job.max_tokens and not job.text.is_inside_character:
            job.stop = "budget"
        return text

    def _tell_of_lost(self, token: int) -> None:
        """Once a token: it would be told at each step."""
        texts = [text for text, control in self._backend.control_tokens.items() if control == token]
        if texts and token not in self._lost:
            self._lost.add(token)
            log.warning(
                "%s wrote the control token %s, which has no text: it is lost where another model goes on, and in the results",
                self.card.name,
                texts[0],
            )

    def _tell(self, slot: int, texts: list[str]) -> list[Progress]:
        """What was drawn for a slot, token by token, and its step with the last if that ended it."""
        told = [Progress(slot, text) for text in texts[:-1]]
        return [*told, Progress(slot, texts[-1], step=self._finish_step(slot))]

    def _finish_step(self, slot: int) -> Step | None:
        """The step of a slot if its last token ended it, or is where it is stopped; its job is then over."""
        job = self._jobs[slot]
        if job.stop is None and self._is_to_be_stopped(job):
            job.stop = "early"
        if job.stop is None:
            return None
        began = self._clock()
        token_stats = job.recorder.so_far() if job.recorder else None
        num_decoded = len(job.tokens) - job.cost.verify_kept
        cost = job.cost + Cost(decode_tokens=num_decoded, decode_seconds=job.decode_seconds + self._clock() - began)
        step = Step(self._role, job.text.finish(), len(job.tokens), cost, job.stop, token_stats, job.speculation_cost)
        self._cache.wrote(slot, step, job.tokens)
        self._spent += cost
        del self._jobs[slot]
        return step

    def _is_to_be_stopped(self, job: _Job) -> bool:
        """Whether a step is not worth finishing. Not within a character, which the number then would not know."""
        if job.early_stop is None or job.text.is_inside_character or not job.early_stop.is_due(len(job.tokens)):
            return False
        began = self._clock()
        token_stats = job.recorder.so_far() if job.recorder else None
        job.decode_seconds += self._clock() - began
        beginning = Step(self._role, job.text.so_far, len(job.tokens), job.cost, "early", token_stats)
        return job.early_stop.is_bad(job.trace, beginning)

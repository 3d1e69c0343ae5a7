"""One model that writes steps, for many problems at once.

For each problem it knows which token ids stand in the model's cache. To write the next step it compares them with the
ids it wants there, drops the tail that differs, reads what is missing, and decodes until the step ends. Accepting a
step, escalating one and catching up after other models' steps need no other code. Knows no policy, no other model and
no terminal. Token ids never leave it: it keeps those of the steps it wrote, and tokenizes only text from elsewhere.

The beginning that every prompt shares (template and instructions) can stay in the cache when a problem ends, for the next one
in its slot. It is always read by itself, so that what follows is computed in the same way whether it was there or not.

A proposal is a step that the model may be about to write, or parts of it. Some of its tokens are read in the batch that
decodes, the model draws after each of them as it does when it decodes, and what it draws is kept as long as it is what was
proposed. So the text is the same with and without a proposal, as far as a model computes the same for one token and for many.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from arbitrage_cli.arbitrage import EarlyStop
from arbitrage_cli.backends import Backend, Floats, ModelCard, Output
from arbitrage_cli.errors import ContextFullError, ProblemError
from arbitrage_cli.evidence import Recorder
from arbitrage_cli.prompts import INSTRUCTIONS, ChatPrompt, Control, Segment
from arbitrage_cli.proposals import Planner, Proposal
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.steps import StepText
from arbitrage_cli.types import Cost, ModelRole, Problem, Step, StepStop, Trace

READ_TOKENS = 128  # at once: a reader who waits sees that it goes on
MEASURED_TOKENS = 4  # decoded by `measure`
ENOUGH_TOKENS = 16  # to know a model's speed from one trace
FEWEST_SHARED = 16  # tokens that are worth reading by themselves

log = logging.getLogger("arbitrage.engine")


@dataclass(slots=True)
class _Sequence:
    """One problem in the model's memory: the ids wanted so far, step by step, and the ids held in the cache.

    The first `num_shared` ids of the prompt are those of every prompt; `num_reused` of them were held from the beginning.
    """

    problem: Problem
    prompt: list[int]
    num_shared: int
    num_reused: int
    steps: list[tuple[Step, list[int]]] = field(default_factory=list)
    written: tuple[Step, list[int]] | None = None  # by this engine, and not yet known to be kept
    held: list[int] = field(default_factory=list)


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
    text: StepText = field(default_factory=StepText)
    tokens: list[int] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)  # but for that of decoding
    decode_seconds: float = 0.0
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

    A slot is one of the backend's sequences, counted from `first_sequence`: two engines may share a backend. With `keep_beginning`
    what all prompts begin with is read once a slot; no other engine may then use the same sequences, even in between.
    """

    def __init__(
        self,
        role: ModelRole,
        backend: Backend,
        sampler: Sampler,
        *,
        instructions: str = INSTRUCTIONS,
        keep_evidence: bool = False,
        use_proposals: bool = True,
        keep_beginning: bool = False,
        first_sequence: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._role = role
        self._backend = backend
        self._sampler = sampler
        self._keep_evidence = keep_evidence
        self._use_proposals = use_proposals
        self._first = first_sequence
        self._planner = Planner()
        self._clock = clock
        self._context_size = backend.card.context_size
        self._prompt = ChatPrompt(
            backend.chat_template,
            backend.control_tokens.keys(),
            backend.marker_tokens,
            instructions,
            backend.template_variables,
        )
        self._keep_beginning = keep_beginning
        self._shared = self._shared_ids()
        self._left_over: dict[int, list[int]] = {}  # by slot: what its cache still holds of them
        self._sequences: dict[int, _Sequence] = {}
        self._jobs: dict[int, _Job] = {}
        self._spent = Cost()
        self._lost: set[int] = set()  # control tokens that were written, and told of

    @property
    def card(self) -> ModelCard:
        return self._backend.card

    @property
    def busy(self) -> bool:
        """Whether any step is being written."""
        return bool(self._jobs)

    def open(self, slot: int, problem: Problem) -> None:
        """Take up a problem. ContextFullError if its prompt leaves no room for an answer."""
        prompt = self._prompt_ids(problem.question)
        if len(prompt) >= self._context_size:
            raise ContextFullError(
                f"the problem's prompt has {len(prompt)} tokens; the context of {self.card.name} holds {self._context_size}",
                "give a larger --ctx, or a shorter problem",
            )
        held = self._left_over.pop(slot, [])
        reused = _common_prefix(prompt, held)
        self._sequences[slot] = _Sequence(problem, prompt, _common_prefix(prompt, self._shared), reused, held=held)

    def close(self, slot: int) -> None:
        """Forget a problem; whatever was being written for it is gone."""
        self._jobs.pop(slot, None)
        sequence = self._sequences.pop(slot, None)
        if sequence is not None:
            kept = _common_prefix(self._shared, sequence.held) if self._keep_beginning else 0
            self._backend.drop(self._first + slot, kept)
            self._left_over[slot] = sequence.held[:kept]

    def forget(self, slot: int) -> None:
        """Empty the cache of one problem. It costs time and changes no text (a law that the tests hold us to)."""
        self._backend.drop(self._first + slot, 0)
        self._sequences[slot].held.clear()

    def start(
        self,
        slot: int,
        trace: Trace,
        proposal: Step | None = None,
        sample: int = 0,
        early_stop: EarlyStop | None = None,
    ) -> int:
        """Begin the next step of `trace`; `tick` writes it. Returns how many tokens have to be read first.

        `proposal` is a step that it may be about to write: where it does, it is sooner done, where not, nothing changes.
        `sample` numbers steps that are drawn from the same text. With `early_stop` only the step's beginning may be written.
        ContextFullError if what is to be read does not fit.
        """
        sequence = self._sequences[slot]
        wanted = self._wanted(sequence, trace)
        if len(wanted) >= self._context_size:
            raise ContextFullError(
                f"the solution so far has {len(wanted)} tokens; the context of {self.card.name} holds {self._context_size}",
                "give a larger --ctx, or a smaller --max-tokens",
            )
        common = min(_common_prefix(wanted, sequence.held), len(wanted) - 1)  # the last is read again for its logits
        if common < len(sequence.held):
            self._backend.drop(self._first + slot, common)
            del sequence.held[common:]
        budget = min(trace.limits.max_step_tokens, trace.limits.max_tokens - trace.num_tokens)
        recorder = Recorder(self.card.vocabulary_size, greedy=self._sampler.is_greedy) if self._keep_evidence else None
        most = min(budget, self._context_size - len(wanted)) - 1  # the token after them ends the step anyway
        proposed = Proposal(self._proposed(proposal.text) if proposal and self._use_proposals else ())
        sampler = self._sampler.sample(sample)
        self._jobs[slot] = _Job(trace, wanted[common:], budget, recorder, proposed, most, sampler, early_stop)
        return len(wanted) - common

    def tick(self) -> list[Progress]:
        """Bring every step being written further: read what is unread, or decode a token or several, all in one batch."""
        reading = [slot for slot, job in self._jobs.items() if len(job.unread) > 1]
        decoding = [slot for slot, job in self._jobs.items() if len(job.unread) == 1]
        return [done for slot in reading for done in self._try(self._read, [slot])] + self._try(self._decode, decoding)

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        """Estimate of this model's time for the whole text of `trace`, had it written it alone: nothing is run for it.

        Prompt tokens at the measured cost of reading, text tokens at that of decoding: as measured in this trace if the
        model wrote enough of it, since a machine's speed changes, else in the whole run. None if it decoded nothing yet.
        """
        written = [step for decision in trace.decisions for step in (decision.draft, decision.target) if step]
        own = sum((step.cost for step in written if step.model == self._role), Cost())
        measured = own if own.decode_tokens >= ENOUGH_TOKENS else self._spent
        per_second = measured.tokens_per_second
        if per_second is None:
            return None
        num_tokens = sum(len(self._step_ids(decision.kept.text)) for decision in trace.decisions) + 1
        reading = measured.prefill_seconds / measured.prefill_tokens if measured.prefill_tokens else 0.0
        sequence = self._sequences[slot]
        return (len(sequence.prompt) - sequence.num_reused) * reading + num_tokens / per_second

    def measure(self) -> None:
        """Time the reading of a short prompt and a few tokens of decoding, so that speeds are known before any problem."""
        *prompt, token = self._prompt_ids("1 + 1")
        if len(prompt) + MEASURED_TOKENS >= self._context_size:
            return  # nor will any problem fit, and each of them says so
        self._left_over.pop(0, None)
        self._backend.drop(self._first, 0)
        began = self._clock()
        self._backend.read(self._first, 0, prompt)
        read = self._clock()
        for position in range(len(prompt), len(prompt) + MEASURED_TOKENS):
            token = int(self._backend.decode([self._first], [position], [token]).logits[0].argmax())
        decoded = self._clock()
        self._spent += Cost(len(prompt), read - began, MEASURED_TOKENS, decoded - read)
        self._planner.read(len(prompt), read - began)
        self._planner.decoded((decoded - read) / MEASURED_TOKENS, 1)
        self._backend.drop(self._first, 0)

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
            if self._jobs[slots[0]].proposal:
                self._jobs[slots[0]].proposal = Proposal()
                return self._try(work, slots)
            del self._jobs[slots[0]]
            return [Progress(slots[0], error=error)]

    def _read(self, slots: list[int]) -> list[Progress]:
        """Read some of what one slot has unread, never the last token: `_decode` takes that, and gives the output after it.

        So whatever was read before, and whether evidence is kept or not, a step's tokens are computed in the same way.
        """
        (slot,) = slots
        job, sequence = self._jobs[slot], self._sequences[slot]
        most = min(READ_TOKENS, len(job.unread) - 1)
        if len(sequence.held) < sequence.num_shared:
            most = min(most, sequence.num_shared - len(sequence.held))
        tokens = job.unread[:most]
        began = self._clock()
        self._backend.read(self._first + slot, len(sequence.held), tokens)
        sequence.held += tokens
        del job.unread[: len(tokens)]
        seconds = self._clock() - began
        job.cost += Cost(prefill_tokens=len(tokens), prefill_seconds=seconds)
        self._planner.read(len(tokens), seconds)
        return [Progress(slot, num_unread=len(job.unread))]

    def _decode(self, slots: list[int]) -> list[Progress]:
        """Decode one token of each slot, with some of those proposed to come after it, in one batch, and draw the next."""
        began = self._clock()
        batch = self._to_decode(slots)
        sequences: list[int] = []
        positions: list[int] = []
        for slot, tokens in batch:
            held = len(self._sequences[slot].held)
            sequences += [self._first + slot] * len(tokens)
            positions += range(held, held + len(tokens))
        output = self._backend.decode(sequences, positions, [token for _, tokens in batch for token in tokens])
        drawn: list[list[str]] = []
        row = 0
        for slot, tokens in batch:
            drawn.append(self._draw_while_proposed(slot, tokens, output, row))
            row += len(tokens)
        for (slot, tokens), texts in zip(batch, drawn, strict=True):
            if len(texts) < len(tokens):
                self._backend.drop(self._first + slot, len(self._sequences[slot].held))
        seconds = self._clock() - began
        self._planner.decoded(seconds, row, num_drawn=sum(map(len, drawn)), num_problems=len(slots))
        for (slot, tokens), texts in zip(batch, drawn, strict=True):
            job, share = self._jobs[slot], seconds * len(tokens) / row
            if len(tokens) == 1:
                job.decode_seconds += share
            else:
                job.cost += Cost(verify_tokens=len(tokens), verify_seconds=share, verify_kept=len(texts))
        return [progress for slot, texts in zip(slots, drawn, strict=True) for progress in self._tell(slot, texts)]

    def _to_decode(self, slots: list[int]) -> list[tuple[int, list[int]]]:
        """Each slot with its unread token, and after it those of its proposal that are worth verifying."""
        jobs = [self._jobs[slot] for slot in slots]
        places = [job.proposal.place(job.max_proposed - len(job.tokens)) for job in jobs]
        counts = self._planner.plan(places) if any(place.num_left for place in places) else [0] * len(jobs)
        return [
            (slot, job.unread + job.proposal.upcoming(count) if count else job.unread)
            for slot, job, count in zip(slots, jobs, counts, strict=True)
        ]

    def _draw_while_proposed(self, slot: int, tokens: list[int], output: Output, row: int) -> list[str]:
        """Draw after each of `tokens`, from row `row` of the output on, while the next of them is the one drawn; the texts."""
        job, sequence = self._jobs[slot], self._sequences[slot]
        texts: list[str] = []
        for index, token in enumerate(tokens, start=row):
            if texts and (job.stop or token != job.unread[0]):
                break
            sequence.held.append(token)
            hidden = None if output.hidden is None else output.hidden[index]
            texts.append(self._draw(job, sequence, output.logits[index], hidden))
        return texts

    def _draw(self, job: _Job, sequence: _Sequence, logits: Floats, hidden: Floats | None) -> str:
        """Draw the next token from `logits` (n_vocab,), and note why the step ends with it if it does; returns its text."""
        token = job.sampler.choose(logits, sequence.problem.question, len(sequence.held))
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
        elif len(sequence.held) + 1 >= self._context_size:
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
        job, sequence = self._jobs[slot], self._sequences[slot]
        if job.stop is None and self._is_to_be_stopped(job):
            job.stop = "early"
        if job.stop is None:
            return None
        began = self._clock()
        evidence = job.recorder.so_far() if job.recorder else None
        num_decoded = len(job.tokens) - job.cost.verify_kept
        cost = job.cost + Cost(decode_tokens=num_decoded, decode_seconds=job.decode_seconds + self._clock() - began)
        step = Step(self._role, job.text.finish(), len(job.tokens), cost, job.stop, evidence)
        sequence.written = (step, job.tokens)
        self._spent += cost
        del self._jobs[slot]
        return step

    def _is_to_be_stopped(self, job: _Job) -> bool:
        """Whether a step is not worth finishing. Not within a character, which the number then would not know."""
        if job.early_stop is None or job.text.is_inside_character or not job.early_stop.is_due(len(job.tokens)):
            return False
        evidence = job.recorder.so_far() if job.recorder else None
        beginning = Step(self._role, job.text.so_far, len(job.tokens), job.cost, "early", evidence)
        return job.early_stop.is_bad(job.trace, beginning)

    # --- token ids

    def _prompt_ids(self, question: str) -> list[int]:
        return prompt_ids(self._backend, self._prompt.segments(question))

    def _shared_ids(self) -> list[int]:
        """The ids that every prompt begins with; none if they are few."""
        prompt = self._prompt_ids("a")
        count = _common_prefix(prompt, self._prompt_ids("1"))
        return prompt[:count] if count >= FEWEST_SHARED else []

    def _step_ids(self, text: str) -> list[int]:
        """Ids of a step that came as text."""
        fragments = self._prompt.fragments(text)
        return [token for fragment in fragments for token in self._backend.tokenize(fragment, continues=True)]

    def _proposed(self, text: str) -> list[int]:
        """Ids of a proposed step, without the one that ends it: nothing has to be read after that."""
        ids, step = self._step_ids(text), StepText()
        for index, token in enumerate(ids):
            step.add(self._backend.piece(token))
            if step.ended:
                return ids[:index]
        return ids

    def _wanted(self, sequence: _Sequence, trace: Trace) -> list[int]:
        """The ids of prompt and kept steps: this engine's own where it wrote them, the text's elsewhere."""
        del sequence.steps[len(trace.decisions) :]
        for index, decision in enumerate(trace.decisions):
            kept = decision.kept
            if index < len(sequence.steps) and sequence.steps[index][0] is kept:
                continue
            own = sequence.written is not None and sequence.written[0] is kept
            ids = sequence.written[1] if own and sequence.written else self._step_ids(kept.text)
            sequence.steps[index:] = [(kept, ids)]
        return [*sequence.prompt, *(token for _, ids in sequence.steps for token in ids)]


def prompt_ids(backend: Backend, segments: Iterable[Segment]) -> list[int]:
    """The ids of a prompt. Only control tokens that stand in the template itself become control tokens."""
    ids: list[int] = []
    goes_on = False  # plain text after plain text was cut apart, to keep a marker in data from being one
    for segment in segments:
        if isinstance(segment, Control):
            ids.append(backend.control_tokens[segment.text])
        else:
            ids += backend.tokenize(segment.text, continues=goes_on)
        goes_on = not isinstance(segment, Control)
    prefix = backend.prefix_token
    return ids if prefix is None or ids[:1] == [prefix] else [prefix, *ids]


def _common_prefix(wanted: list[int], held: list[int]) -> int:
    """Length of the longest common prefix."""
    if wanted[: len(held)] == held:  # nearly always, and compared in C
        return len(held)
    return next(index for index, token in enumerate(held) if index >= len(wanted) or token != wanted[index])

"""One model that writes steps, for many problems at once.

For each problem it knows which token ids stand in the model's cache. To write the next step it compares them with the
ids it wants there, drops the tail that differs, reads what is missing, and decodes until the step ends. Accepting a
step, escalating one and catching up after other models' steps need no other code. Knows no policy, no other model and
no terminal. Token ids never leave it: it keeps those of the steps it wrote, and tokenizes only text from elsewhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from arbitrage_cli.backends import Backend, Floats, ModelCard
from arbitrage_cli.errors import ContextFullError, ProblemError
from arbitrage_cli.evidence import Recorder
from arbitrage_cli.prompts import INSTRUCTIONS, ChatPrompt, Control
from arbitrage_cli.sampling import Sampler
from arbitrage_cli.steps import StepText
from arbitrage_cli.types import Cost, ModelRole, Problem, Step, StepStop, Trace

READ_TOKENS = 128  # at once: a reader who waits sees that it goes on
MEASURED_TOKENS = 4  # decoded by `measure`
ENOUGH_TOKENS = 16  # to know a model's speed from one trace


@dataclass(slots=True)
class _Sequence:
    """One problem in the model's memory: the ids wanted so far, step by step, and the ids held in the cache."""

    problem: Problem
    prompt: list[int]
    steps: list[tuple[Step, list[int]]] = field(default_factory=list)
    written: tuple[Step, list[int]] | None = None  # by this engine, and not yet known to be kept
    held: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    """One step being written. `unread` are the ids that the model must see before it can go on; never empty."""

    unread: list[int]
    max_tokens: int
    recorder: Recorder | None
    text: StepText = field(default_factory=StepText)
    tokens: list[int] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    stop: StepStop | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What one tick did for one slot: tokens still to be read, or else characters added, and the step or why there is none."""

    slot: int
    text: str = ""
    num_unread: int = 0
    step: Step | None = None
    error: ProblemError | None = None


class Engine:
    """Writes steps with one backend. `slot` numbers the problems in flight, from 0 below the backend's sequences."""

    def __init__(
        self,
        role: ModelRole,
        backend: Backend,
        sampler: Sampler,
        *,
        instructions: str = INSTRUCTIONS,
        keep_evidence: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._role = role
        self._backend = backend
        self._sampler = sampler
        self._keep_evidence = keep_evidence
        self._clock = clock
        self._context_size = backend.card.context_size
        self._prompt = ChatPrompt(
            backend.chat_template,
            backend.control_tokens.keys(),
            backend.marker_tokens,
            instructions,
            backend.template_variables,
        )
        self._sequences: dict[int, _Sequence] = {}
        self._jobs: dict[int, _Job] = {}
        self._spent = Cost()

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
        self._sequences[slot] = _Sequence(problem, prompt)

    def close(self, slot: int) -> None:
        """Forget a problem; whatever was being written for it is gone."""
        self._jobs.pop(slot, None)
        if slot in self._sequences:
            self.forget(slot)
            del self._sequences[slot]

    def forget(self, slot: int) -> None:
        """Empty the cache of one problem. It costs time and changes no text (a law that the tests hold us to)."""
        self._backend.drop(slot, 0)
        self._sequences[slot].held.clear()

    def start(self, slot: int, trace: Trace) -> int:
        """Begin the next step of `trace`; `tick` writes it. Returns how many tokens have to be read first.

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
            self._backend.drop(slot, common)
            del sequence.held[common:]
        budget = min(trace.limits.max_step_tokens, trace.limits.max_tokens - trace.num_tokens)
        recorder = Recorder(self.card.vocabulary_size) if self._keep_evidence else None
        self._jobs[slot] = _Job(wanted[common:], budget, recorder)
        return len(wanted) - common

    def tick(self) -> list[Progress]:
        """Bring every step being written further: read what is unread, or decode one token, all in one batch."""
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
        return len(self._sequences[slot].prompt) * reading + num_tokens / per_second

    def measure(self) -> None:
        """Time the reading of a short prompt and a few tokens of decoding, so that speeds are known before any problem."""
        *prompt, token = self._prompt_ids("1 + 1")
        if len(prompt) + MEASURED_TOKENS >= self._context_size:
            return  # nor will any problem fit, and each of them says so
        began = self._clock()
        self._backend.read(0, 0, prompt)
        read = self._clock()
        for position in range(len(prompt), len(prompt) + MEASURED_TOKENS):
            token = int(self._backend.decode([0], [position], [token]).logits[0].argmax())
        self._spent += Cost(len(prompt), read - began, MEASURED_TOKENS, self._clock() - read)
        self._backend.drop(0, 0)

    # --- reading, decoding, drawing

    def _try(self, work: Callable[[list[int]], list[Progress]], slots: list[int]) -> list[Progress]:
        """Work on all slots at once. If a problem among them fails, on each alone, so that only that one ends."""
        if not slots:
            return []
        try:
            return work(slots)
        except ProblemError as error:
            if len(slots) > 1:
                return [progress for slot in slots for progress in self._try(work, [slot])]
            del self._jobs[slots[0]]
            return [Progress(slots[0], error=error)]

    def _read(self, slots: list[int]) -> list[Progress]:
        """Read some of what one slot has unread, never the last token: `_decode` takes that, and gives the output after it.

        So whatever was read before, and whether evidence is kept or not, a step's tokens are computed in the same way.
        """
        (slot,) = slots
        job, sequence = self._jobs[slot], self._sequences[slot]
        tokens = job.unread[: min(READ_TOKENS, len(job.unread) - 1)]
        began = self._clock()
        self._backend.read(slot, len(sequence.held), tokens)
        sequence.held += tokens
        del job.unread[: len(tokens)]
        job.cost += Cost(prefill_tokens=len(tokens), prefill_seconds=self._clock() - began)
        return [Progress(slot, num_unread=len(job.unread))]

    def _decode(self, slots: list[int]) -> list[Progress]:
        """Decode one token of each slot in one batch, and draw the next."""
        pairs = [(self._jobs[slot], self._sequences[slot]) for slot in slots]
        began = self._clock()
        positions = [len(sequence.held) for _, sequence in pairs]
        output = self._backend.decode(slots, positions, [job.unread[0] for job, _ in pairs])
        texts = []
        for row, (job, sequence) in enumerate(pairs):
            sequence.held += job.unread
            hidden = None if output.hidden is None else output.hidden[row]
            texts.append(self._draw(job, sequence, output.logits[row], hidden))
        share = (self._clock() - began) / len(slots)
        for job, _ in pairs:
            job.cost += Cost(decode_tokens=1, decode_seconds=share)
        return [Progress(slot, text, step=self._finish_step(slot)) for slot, text in zip(slots, texts, strict=True)]

    def _draw(self, job: _Job, sequence: _Sequence, logits: Floats, hidden: Floats | None) -> str:
        """Draw the next token from `logits` (n_vocab,), and note why the step ends with it if it does; returns its text."""
        token = self._sampler.choose(logits, sequence.problem.question, len(sequence.held))
        job.tokens.append(token)
        job.unread = [token]
        if job.recorder:
            job.recorder.add(logits, token, hidden)
        if self._backend.is_end(token):
            job.stop = "end"
            return ""
        text = job.text.add(self._backend.piece(token))
        if job.text.ended:
            job.stop = "separator"
        elif len(sequence.held) + 1 >= self._context_size:
            job.stop = "context"
        elif len(job.tokens) >= job.max_tokens and not job.text.is_inside_character:
            job.stop = "budget"
        return text

    def _finish_step(self, slot: int) -> Step | None:
        """The step of a slot if its last token ended it; its job is then over."""
        job, sequence = self._jobs[slot], self._sequences[slot]
        if job.stop is None:
            return None
        began = self._clock()
        evidence = job.recorder.finish() if job.recorder else None
        cost = job.cost + Cost(decode_seconds=self._clock() - began)
        step = Step(self._role, job.text.finish(), len(job.tokens), cost, job.stop, evidence)
        sequence.written = (step, job.tokens)
        self._spent += cost
        del self._jobs[slot]
        return step

    # --- token ids

    def _prompt_ids(self, question: str) -> list[int]:
        """The prompt's ids. Only control tokens that stand in the template itself become control tokens."""
        ids: list[int] = []
        goes_on = False  # plain text after plain text was cut apart, to keep a marker in data from being one
        for segment in self._prompt.segments(question):
            if isinstance(segment, Control):
                ids.append(self._backend.control_tokens[segment.text])
            else:
                ids += self._backend.tokenize(segment.text, continues=goes_on)
            goes_on = not isinstance(segment, Control)
        prefix = self._backend.prefix_token
        return ids if prefix is None or ids[:1] == [prefix] else [prefix, *ids]

    def _step_ids(self, text: str) -> list[int]:
        """Ids of a step that came as text."""
        fragments = self._prompt.fragments(text)
        return [token for fragment in fragments for token in self._backend.tokenize(fragment, continues=True)]

    def _wanted(self, sequence: _Sequence, trace: Trace) -> list[int]:
        """The ids of prompt and kept steps: this engine's own where it wrote them, the text's elsewhere."""
        for index, decision in enumerate(trace.decisions):
            kept = decision.kept
            if index < len(sequence.steps) and sequence.steps[index][0] is kept:
                continue
            own = sequence.written is not None and sequence.written[0] is kept
            ids = sequence.written[1] if own and sequence.written else self._step_ids(kept.text)
            sequence.steps[index:] = [(kept, ids)]
        return [*sequence.prompt, *(token for _, ids in sequence.steps for token in ids)]


def _common_prefix(wanted: list[int], held: list[int]) -> int:
    """Length of the longest common prefix."""
    if wanted[: len(held)] == held:  # nearly always, and compared in C
        return len(held)
    return next(index for index, token in enumerate(held) if index >= len(wanted) or token != wanted[index])

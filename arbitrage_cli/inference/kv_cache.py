"""What one model holds of each problem: token ids in its KV cache, beside those that the text should have there.

Before a step is written the two are compared, the tail that differs is dropped, and what is missing is left to be read. So
accepting a step, escalating one and catching up after other models' steps need no other code. Ids that the model drew itself
are kept with their step; only text from elsewhere is tokenized.

The beginning that every prompt shares (template and instructions) can stay in the cache when a problem ends, for the next one
in its slot. It is always read by itself, so that what follows is computed in the same way whether it was there or not. Knows
no policy, no logits and no other model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.inference.backend import Backend, Output
from arbitrage_cli.inference.chat_template import ChatPrompt, Control, Segment
from arbitrage_cli.inference.step_text import StepText
from arbitrage_cli.types import Problem, Step, Trace

READ_TOKENS = 128  # at once: a reader who waits sees that it goes on
FEWEST_SHARED = 16  # tokens that are worth reading by themselves

Batch = Sequence[tuple[int, list[int]]]
"""Slots, and the tokens that each of them decodes."""


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
    written: tuple[Step, list[int]] | None = None  # by this model, and not yet known to be kept
    held: list[int] = field(default_factory=list)


class Cache:
    """The sequences of one model. `slot` numbers the problems in flight, from 0.

    A slot is one of the backend's sequences, counted from `first_sequence`: two caches may share a backend. With `keep_beginning`
    what all prompts begin with is read once a slot; no other cache may then use the same sequences, even in between.
    """

    def __init__(
        self, backend: Backend, instructions: str, *, keep_beginning: bool = False, first_sequence: int = 0
    ) -> None:
        self._backend = backend
        self._first = first_sequence
        self._context_size = backend.card.context_size
        self._prompt = chat_prompt(backend, instructions)
        self._keep_beginning = keep_beginning
        self._shared = self._shared_ids()
        self._left_over: dict[int, list[int]] = {}  # by slot: what its cache still holds of them
        self._sequences: dict[int, _Sequence] = {}

    def open(self, slot: int, problem: Problem) -> None:
        """Take up a problem. ContextFullError if its prompt leaves no room for an answer."""
        prompt = self.prompt_ids(problem.question)
        if len(prompt) >= self._context_size:
            raise ContextFullError(
                f"the problem's prompt has {len(prompt)} tokens; the context of {self._backend.card.name} holds {self._context_size}",
                "give a larger --ctx, or a shorter problem",
            )
        held = self._left_over.pop(slot, [])
        reused = _common_prefix(prompt, held)
        self._sequences[slot] = _Sequence(problem, prompt, _common_prefix(prompt, self._shared), reused, held=held)

    def close(self, slot: int) -> None:
        """Forget a problem."""
        sequence = self._sequences.pop(slot, None)
        if sequence is not None:
            kept = _common_prefix(self._shared, sequence.held) if self._keep_beginning else 0
            self._backend.drop(self._first + slot, kept)
            self._left_over[slot] = sequence.held[:kept]

    def forget(self, slot: int) -> None:
        """Empty one problem's part. It costs time and changes no text (a law that the tests hold us to)."""
        self._backend.drop(self._first + slot, 0)
        self._sequences[slot].held.clear()

    def forget_beginning(self) -> None:
        """Empty the first slot, in which no problem is."""
        self._left_over.pop(0, None)
        self._backend.drop(self._first, 0)

    # --- what is known of a slot

    def question(self, slot: int) -> str:
        return self._sequences[slot].problem.question

    def num_held(self, slot: int) -> int:
        return len(self._sequences[slot].held)

    def num_prompt(self, slot: int) -> int:
        """Tokens of the prompt that had to be read."""
        sequence = self._sequences[slot]
        return len(sequence.prompt) - sequence.num_reused

    def is_full(self, slot: int) -> bool:
        """Whether there is no place for one token more after the next one."""
        return self.num_held(slot) + 1 >= self._context_size

    # --- reading and decoding

    def want(self, slot: int, trace: Trace, beginning: str = "") -> tuple[list[int], int]:
        """Drop what is not of this trace and of the `beginning` of its next step. Returns the ids that are to be read, the last
        one in any case, for its logits, and for how many more there is room. ContextFullError if there is none.
        """
        sequence = self._sequences[slot]
        wanted = self._wanted(sequence, trace) + self.step_ids(beginning)
        if len(wanted) >= self._context_size:
            raise ContextFullError(
                f"the solution so far has {len(wanted)} tokens; the context of {self._backend.card.name} holds {self._context_size}",
                "give a larger --ctx, or a smaller --max-tokens",
            )
        common = min(_common_prefix(wanted, sequence.held), len(wanted) - 1)
        if common < len(sequence.held):
            del sequence.held[common:]
            self.trim(slot)
        return wanted[common:], self._context_size - len(wanted)

    def read(self, slot: int, tokens: Sequence[int]) -> int:
        """Read the next of these, or as many as are read at once. Returns how many that were. Errors as the backend's `read`."""
        sequence = self._sequences[slot]
        most = min(READ_TOKENS, len(tokens))
        if len(sequence.held) < sequence.num_shared:
            most = min(most, sequence.num_shared - len(sequence.held))
        self._backend.read(self._first + slot, len(sequence.held), tokens[:most])
        sequence.held += tokens[:most]
        return most

    def decode(self, batch: Batch) -> Output:
        """Decode the tokens of all slots in one batch. None of them is held before it was kept. Errors as the backend's `decode`."""
        sequences: list[int] = []
        positions: list[int] = []
        for slot, tokens in batch:
            held = self.num_held(slot)
            sequences += [self._first + slot] * len(tokens)
            positions += range(held, held + len(tokens))
        return self._backend.decode(sequences, positions, [token for _, tokens in batch for token in tokens])

    def keep(self, slot: int, token: int) -> None:
        """Hold the next token that was decoded."""
        self._sequences[slot].held.append(token)

    def trim(self, slot: int) -> None:
        """Drop what was decoded and not kept."""
        self._backend.drop(self._first + slot, self.num_held(slot))

    def wrote(self, slot: int, step: Step, tokens: list[int]) -> None:
        """Note the ids of a step that the model has written."""
        self._sequences[slot].written = (step, tokens)

    # --- token ids

    def prompt_ids(self, question: str) -> list[int]:
        """Ids of a problem's prompt."""
        return prompt_ids(self._backend, self._prompt.segments(question))

    def step_ids(self, text: str) -> list[int]:
        """Ids of a step, or a part of one, that came as text."""
        fragments = self._prompt.fragments(text)
        return [token for fragment in fragments for token in self._backend.tokenize(fragment, continues=True)]

    def proposed_ids(self, text: str, beginning: str = "") -> list[int]:
        """Ids of a proposed step, or of what may come after its `beginning`, without the one that ends it: nothing has to be read
        after that.
        """
        ids, step = self.step_ids(text), StepText(beginning)
        for index, token in enumerate(ids):
            step.add(self._backend.piece(token))
            if step.ended:
                return ids[:index]
        return ids

    def _shared_ids(self) -> list[int]:
        """The ids that every prompt begins with; none if they are few."""
        prompt = self.prompt_ids("a")
        count = _common_prefix(prompt, self.prompt_ids("1"))
        return prompt[:count] if count >= FEWEST_SHARED else []

    def _wanted(self, sequence: _Sequence, trace: Trace) -> list[int]:
        """The ids of prompt and kept steps: this model's own where it wrote them, the text's elsewhere."""
        del sequence.steps[len(trace.decisions) :]
        for index, decision in enumerate(trace.decisions):
            kept = decision.kept
            if index < len(sequence.steps) and sequence.steps[index][0] is kept:
                continue
            own = sequence.written is not None and sequence.written[0] is kept
            ids = sequence.written[1] if own and sequence.written else self.step_ids(kept.text)
            sequence.steps[index:] = [(kept, ids)]
        return [*sequence.prompt, *(token for _, ids in sequence.steps for token in ids)]


def chat_prompt(backend: Backend, instructions: str) -> ChatPrompt:
    """The prompt of a model, by its own template."""
    return ChatPrompt(
        backend.chat_template,
        backend.control_tokens.keys(),
        backend.marker_tokens,
        instructions,
        backend.template_variables,
    )


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

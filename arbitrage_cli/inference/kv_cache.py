"""The token ids that one model's KV cache holds for each problem, and those that it should hold.

Before a step is written the two are compared: the tail that differs is dropped, and what is missing is returned, to be read. So
accepting, escalating and catching up with other models' steps are one and the same code. Ids that the model drew itself are kept
with their step; only text from elsewhere is tokenized.

A model with recurrent layers cannot drop a tail: it goes back to a checkpoint, and reads again from there. Checkpoints are saved at
the end of the shared beginning, before each step, and at the end of a conversation.

The beginning that all prompts share (template and instructions) can stay in the cache for the next problem in the slot. It is
always read by itself, so that what follows is computed in the same way whether it was there or not. A whole conversation can stay
for its next question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from arbitrage_cli.errors import ContextFullError, ConversationError, ModelUnsupportedError, TemplateError
from arbitrage_cli.inference.backend import Backend, Deadline, Floats, Tokenizer, earlier
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, Control, Segment
from arbitrage_cli.inference.checkpoints import Checkpoints
from arbitrage_cli.inference.step_text import BLANK_LINE, THOUGHT_END, StepEnd, StepText
from arbitrage_cli.inference.thinking import ThinkFormat
from arbitrage_cli.types import Phase, Problem, Step, StepStop, Trace

READ_TOKENS = 128  # at once: someone who waits for text sees that it goes on
MIN_SHARED = 16  # tokens that are worth reading by themselves

Keep = Literal["nothing", "beginning", "conversation"]
"""What stays in the cache of a slot after a problem: the beginning of all prompts, or all of it, for a prompt that continues it."""

Batch = Sequence[tuple[int, list[int]]]
"""Slots, with the tokens that each decodes."""


@dataclass(slots=True)
class _Sequence:
    """One problem: the ids of its prompt and its steps, and the ids that the cache holds.

    All prompts share the first `num_shared` ids of this one; the cache held `num_reused` of them before the problem began. A prompt
    with the first `num_needed` ids of the cache continues the conversation that it holds.
    """

    problem: Problem
    deadline: Deadline | None
    prompt: list[int]
    num_shared: int
    num_reused: int
    num_needed: int
    begins: int = 0  # ids before the last one that is read for the step
    steps: list[tuple[Step, list[int]]] = field(default_factory=list)
    written: tuple[Step, list[int]] | None = None  # this model's latest step, kept or not
    held: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _LeftOver:
    """The ids that the cache holds for a slot without a problem. A prompt with the first `num_needed` of them goes on from there."""

    ids: list[int]
    num_needed: int


class Cache:
    """The sequences of one model. `slot` numbers the problems in flight, from 0.

    A slot is a sequence of the backend, counted from `first_sequence`, so two caches may share a backend. If a slot keeps anything
    for its next problem, no other cache may use its sequences, not even in between. At most `most_checkpoints` of a slot are kept.
    """

    def __init__(
        self,
        backend: Backend,
        instructions: str = INSTRUCTIONS,
        *,
        step_end: StepEnd = BLANK_LINE,
        keep: Keep = "nothing",
        first_sequence: int = 0,
        most_checkpoints: int | None = None,
        think_format: ThinkFormat | None = None,
    ) -> None:
        self.backend = backend
        self._memory = Checkpoints(backend, most_checkpoints)
        self._step_end = step_end
        self._first = first_sequence
        self._context_size = backend.card.context_size
        self._prompts = Prompts(chat_prompt(backend, instructions, think_format))
        self._think_end = self._prompts.think_format.end
        self._think_end_token = _only_token(backend.tokenizer, self._think_end)
        self._keep = keep
        self._shared, self._num_last = self._shared_ids()
        self._left_over: dict[int, _LeftOver] = {}  # by slot without a problem
        self._sequences: dict[int, _Sequence] = {}

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        """Take a problem. ContextFullError if the prompt fills the context; ConversationError if there is no prompt for it."""
        prompt = self.prompt_ids(problem)
        if len(prompt) >= self._context_size:
            raise ContextFullError(
                f"the problem's prompt has {len(prompt)} tokens; the context of {self.backend.card.name} holds {self._context_size}",
                "give a larger --ctx, or a shorter problem",
            )
        left, num_shared = self._left_over.pop(slot, _LeftOver([], 0)), _common_prefix(prompt, self._shared)
        common = _common_prefix(prompt, left.ids)
        goes_on = common >= left.num_needed
        held, num_needed = left.ids, left.num_needed if goes_on else 0
        if (end := common if goes_on else min(common, num_shared)) < len(held):
            self._memory.cut(self._first + slot, held, end)
        num_needed = min(num_needed, len(held))
        self._sequences[slot] = _Sequence(problem, deadline, prompt, num_shared, len(held), num_needed, held=held)

    def close(self, slot: int) -> None:
        """Forget a problem."""
        sequence = self._sequences.pop(slot, None)
        if sequence is not None:
            held = sequence.held
            self._memory.cut(self._first + slot, held, self._num_kept(held))
            if self._keep == "conversation":
                self._memory.save(self._first + slot, len(held))
            self._left_over[slot] = _LeftOver(held, min(len(held), sequence.num_needed))

    def forget(self, slot: int) -> None:
        """Empty the cache of one problem. It costs time and changes no text (a law that the tests hold us to)."""
        self._memory.cut(self._first + slot, self._sequences[slot].held, 0)

    def clear_first_slot(self) -> None:
        """Empty the first slot, which has no problem now."""
        self._left_over.pop(0, None)
        self._memory.cut(self._first, [], 0)

    # --- facts about a slot

    def question(self, slot: int) -> str:
        return self._sequences[slot].problem.question

    def num_held(self, slot: int) -> int:
        return len(self._sequences[slot].held)

    def prompt(self, slot: int) -> Sequence[int]:
        """The ids of a problem's prompt."""
        return self._sequences[slot].prompt

    def num_prompt_read(self, slot: int) -> int:
        """Tokens of the prompt that had to be read."""
        sequence = self._sequences[slot]
        return len(sequence.prompt) - sequence.num_reused

    def is_full(self, slot: int) -> bool:
        """Whether there is no room for another token after the next one."""
        return self.num_held(slot) + 1 >= self._context_size

    # --- reading and decoding

    def prepare(self, slot: int, trace: Trace, beginning: str = "") -> tuple[list[int], int]:
        """Drop all that is not in this trace or in the `beginning` of its next step.

        Returns the ids to read, with the last one in any case, for its logits, and the room for more. ContextFullError if none is
        left.
        """
        sequence = self._sequences[slot]
        wanted = self._ids_of(sequence, trace) + self.step_ids(beginning)
        if len(wanted) >= self._context_size:
            raise ContextFullError(
                f"the solution so far has {len(wanted)} tokens; the context of {self.backend.card.name} holds {self._context_size}",
                "give a larger --ctx, or a smaller --max-tokens",
            )
        sequence.num_needed = len(sequence.prompt) - self._num_last
        sequence.begins = len(wanted) - 1
        common = min(_common_prefix(wanted, sequence.held), sequence.begins)
        if common < len(sequence.held):
            self._memory.cut(self._first + slot, sequence.held, common)
        return wanted[len(sequence.held) :], self._context_size - len(wanted)

    def read(self, slot: int, tokens: list[int]) -> int:
        """Read the first of these tokens, as many as are read at once. Returns how many. Errors as the backend's `read`."""
        sequence = self._sequences[slot]
        most = min(READ_TOKENS, len(tokens))
        if len(sequence.held) < sequence.num_shared:
            most = min(most, sequence.num_shared - len(sequence.held))
        self._memory.read(self._first + slot, sequence.held, tokens[:most], sequence.deadline)
        if len(sequence.held) == sequence.num_shared and self._keep != "nothing":
            self._memory.save(self._first + slot, sequence.num_shared)
        return most

    def decode(self, batch: Batch) -> Floats:
        """Decode the tokens of all slots in one batch; call `keep` for those to hold. Errors as the backend's `decode`."""
        sequences: list[int] = []
        positions: list[int] = []
        deadline: Deadline | None = None
        for slot, new in batch:
            sequence = self._sequences[slot]
            if len(sequence.held) == sequence.begins:
                self._memory.save(self._first + slot, sequence.begins)
            sequences += [self._first + slot] * len(new)
            positions += range(len(sequence.held), len(sequence.held) + len(new))
            deadline = earlier(deadline, sequence.deadline)
        return self.backend.decode(sequences, positions, [token for _, new in batch for token in new], deadline=deadline)

    def keep(self, slot: int, token: int) -> None:
        """Hold the next token that was decoded."""
        self._sequences[slot].held.append(token)

    def trim(self, slot: int) -> None:
        """Drop what was decoded and not kept."""
        self.backend.drop(self._first + slot, self.num_held(slot))

    def remember(self, slot: int, step: Step, tokens: list[int]) -> None:
        """Remember the ids of a step that the model has written, but for those of a marker."""
        if step.stop == "thought":
            if tokens[-1] != self._think_end_token:
                return  # the marker may share tokens with the text: it is tokenized again
            tokens = tokens[:-1]
        self._sequences[slot].written = (step, tokens)

    # --- token ids

    def prompt_ids(self, problem: Problem) -> list[int]:
        """Ids of a problem's prompt. ModelUnsupportedError if it has none; ConversationError."""
        return prompt_ids(self.backend, self._prompts.segments(problem))

    def step_ids(self, text: str) -> list[int]:
        """Ids of a step, or of a part of one, that came as text."""
        tokenize = self.backend.tokenizer.tokenize
        return [token for fragment in self._prompts.fragments(text) for token in tokenize(fragment, continues=True)]

    def step_text(self, phase: Phase, beginning: str = "") -> StepText:
        """The text of a step, to be written."""
        return (
            StepText(beginning, self._step_end) if phase == "answer" else StepText(beginning, THOUGHT_END, self._think_end)
        )

    def ends(self, phase: Phase, token: int) -> StepStop | None:
        """Whether the token ends the sequence, or the thoughts; None for any other."""
        if token == self._think_end_token:
            if phase == "think":
                return "thought"
            if self._prompts.think_format.ends_turns:
                return "end"
        if not self.backend.tokenizer.is_end(token):
            return None
        return "thought" if phase == "think" else "end"

    def proposed_ids(self, text: str, phase: Phase, beginning: str = "") -> list[int]:
        """Ids of a proposed step, or of what may follow its `beginning`. Without the one that ends it: that need not be read."""
        return self.before_end(self.step_ids(text), self.step_text(phase, beginning))

    def _end_of_thoughts(self, last: Step) -> list[int]:
        """The ids between the last thought and the answer."""
        return segment_ids(self.backend.tokenizer, self._prompts.end_of_thoughts(last), continues=True)

    def before_end(self, tokens: list[int], text: StepText) -> list[int]:
        """Those of `tokens` that come before the one which ends a step with this `text` so far."""
        return tokens[: text.num_before_end(map(self.backend.tokenizer.piece, tokens))] if tokens else tokens

    def _num_kept(self, held: list[int]) -> int:
        """How many of these ids stay for the next problem."""
        if self._keep == "conversation":
            return len(held)
        return _common_prefix(self._shared, held) if self._keep == "beginning" else 0

    def _shared_ids(self) -> tuple[list[int], int]:
        """The ids that all prompts begin with, none if they are few; and how many they share at their end, after the question."""
        one, other = (self.prompt_ids(Problem("", question)) for question in ("a", "1"))
        num_first, num_last = _common_prefix(one, other), _common_prefix(one[::-1], other[::-1])
        return one[:num_first] if num_first >= MIN_SHARED else [], num_last

    def _ids_of(self, sequence: _Sequence, trace: Trace) -> list[int]:
        """The ids of prompt and kept steps: those that this model drew if it wrote the step, else those of the text."""
        del sequence.steps[len(trace.decisions) :]
        for index, decision in enumerate(trace.decisions):
            kept = decision.kept
            if index < len(sequence.steps) and sequence.steps[index][0] is kept:
                continue
            own = sequence.written is not None and sequence.written[0] is kept
            ids = sequence.written[1] if own and sequence.written else self.step_ids(kept.text)
            if kept.ends_thoughts:
                ids = ids + self._end_of_thoughts(kept)
            sequence.steps[index:] = [(kept, ids)]
        return [*sequence.prompt, *(token for _, ids in sequence.steps for token in ids)]


class Prompts:
    """The prompts of one model: after its usual instructions, or after a problem's own system prompt."""

    def __init__(self, prompt: ChatPrompt) -> None:
        self._prompt = prompt

    def segments(self, problem: Problem) -> list[Segment]:
        """The prompt of a problem. ConversationError if the template cannot show its earlier turns or its system prompt."""
        try:
            return self._prompt.segments(problem.question, problem.turns, problem.system, thinks=problem.thinks)
        except TemplateError as error:
            raise ConversationError(error.message, "begin a new conversation, or leave out the system prompt") from error

    def fragments(self, text: str) -> list[str]:
        """Data, cut inside every marker: see `ChatPrompt.fragments`."""
        return self._prompt.fragments(text)

    @property
    def think_format(self) -> ThinkFormat:
        """How the model marks its thoughts."""
        return self._prompt.think_format

    def end_of_thoughts(self, last: Step) -> list[Segment]:
        """What stands between the last thought and the answer."""
        return self._prompt.end_of_thoughts(forced=last.stop == "think_budget")


def chat_prompt(backend: Backend, instructions: str, think_format: ThinkFormat | None = None) -> ChatPrompt:
    """The prompt of a model, by its own template, with thoughts in the given format or the one that the template shows."""
    controls, markers = backend.tokenizer.control_tokens.keys(), backend.tokenizer.marker_tokens
    return ChatPrompt(backend.chat_template, controls, markers, instructions, backend.template_variables, think_format)


def prompt_ids(backend: Backend, segments: Iterable[Segment]) -> list[int]:
    """The ids of a prompt. Only the template's own control tokens are control tokens.

    ModelUnsupportedError if it has no token, as with a vocabulary of empty tokens: nothing could be decoded after it.
    """
    tokenizer = backend.tokenizer
    ids = segment_ids(tokenizer, segments)
    prefix = tokenizer.prefix_token
    if prefix is not None and ids[:1] != [prefix]:
        ids.insert(0, prefix)
    if not ids:
        raise ModelUnsupportedError(
            f"{backend.card.name}: its vocabulary gives a prompt no tokens", "the model file may be damaged: use another one"
        )
    return ids


def segment_ids(tokenizer: Tokenizer, segments: Iterable[Segment], *, continues: bool = False) -> list[int]:
    """The ids of segments. `continues`: there is plain text before them."""
    ids: list[int] = []
    for segment in segments:  # plain text after plain text was cut apart, so that no marker in data becomes a token
        if isinstance(segment, Control):
            ids.append(tokenizer.control_tokens[segment.text])
        else:
            ids += tokenizer.tokenize(segment.text, continues=continues)
        continues = not isinstance(segment, Control)
    return ids


def _only_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The token that is this text and nothing else, if the vocabulary has one."""
    if text in tokenizer.control_tokens:
        return tokenizer.control_tokens[text]
    tokens = tokenizer.tokenize(text, continues=True)
    return tokens[0] if len(tokens) == 1 else None


def _common_prefix(wanted: list[int], held: list[int]) -> int:
    """Length of the longest common prefix."""
    if wanted[: len(held)] == held:  # nearly always, and compared in C
        return len(held)
    return next(index for index, token in enumerate(held) if index >= len(wanted) or token != wanted[index])

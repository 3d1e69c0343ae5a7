"""Keeps one model's KV cache consistent with the traces of the problems in flight.

Before a step is written, the cached ids are compared with the required ids. Cached ids after the first difference are dropped,
and missing ids are returned for prefill.

A model that cannot remove trailing tokens restores a checkpoint, and reads again from there. A checkpoint is a copy of the
recurrent layers' state: a few kilobytes to 200 MB, regardless of the number of tokens. Checkpoints are saved after the shared
prompt prefix and before each step. In a conversation, checkpoints are also saved at the end and after the latest question,
because later prompts omit earlier thinking.

The prefix shared by all prompts with the same settings is prefilled separately, and the rest in batches of READ_TOKENS. A
problem that does not continue a conversation reuses only whole batches that it would prefill itself, so its logits do not
depend on earlier problems.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

from arbitrage_cli.errors import ContextFullError, ModelUnsupportedError
from arbitrage_cli.inference.backend import Backend, Deadline, Floats, SavedState, Tokenizer, earliest
from arbitrage_cli.inference.chat_template import DEFAULT_STYLE, INSTRUCTIONS, ChatPrompt, Control, PromptStyle, Segment
from arbitrage_cli.inference.step_text import StepText
from arbitrage_cli.model_files.gguf import num_checkpoints
from arbitrage_cli.types import Message, Phase, Problem, Step, StepStop, Trace, frozen

READ_TOKENS = 128  # prefilled at once; small, so that progress is visible
BUILT_IN_NAME = "arbitrage built-in"  # the beginning of the names in their files
MIN_SHARED = 16  # minimum length of a shared prefix that is prefilled separately
MAX_SHARED = 64  # shared prefixes that are remembered; clients of a server may use many system prompts

RetainedIds = Literal["nothing", "prefix", "conversation"]  # the ids that stay in a slot's cache after a problem


@frozen
class _Checkpoint:
    position: int
    state: SavedState
    pinned: bool


class CachedSequence:
    """Sequence `number` of a backend. `held` contains its token ids. Its computations end at the `deadline`.

    At most `max_checkpoints` are kept.
    """

    def __init__(self, backend: Backend, number: int, max_checkpoints: int | None = None) -> None:
        self.held: list[int] = []
        self.deadline: Deadline | None = None
        self.backend = backend
        self.number = number
        self._states = backend.states
        self._max_checkpoints = max_checkpoints
        self._saved: list[_Checkpoint] = []  # ordered by position

    @property
    def drops_tails(self) -> bool:
        return self._states is None

    def read(self, tokens: list[int]) -> None:
        """Prefill `tokens`. If an error is raised (see `Backend.read`), a checkpoint may have been restored."""
        try:
            self.backend.read(self.number, len(self.held), tokens, deadline=self.deadline)
        except BaseException:
            self.recover()
            raise
        self.held += tokens

    def recover(self) -> None:
        """Remove the tokens that were computed before an error, or restore a checkpoint."""
        if self._states:
            self._roll_back(len(self.held))
        else:
            self.backend.drop(self.number, len(self.held))

    def keep_common(self, wanted: list[int]) -> int:
        """Remove all ids from the first difference to `wanted` onward, and at least the last wanted id.

        Returns the index of the first difference. If a checkpoint was restored, fewer ids are held.
        """
        end = min(common_prefix(wanted, self.held), len(wanted) - 1)
        if end < len(self.held):
            self.cut(end)
        return end

    def cut(self, position: int) -> None:
        """Remove all ids from `position` onward. If the model cannot remove them, restore the latest earlier checkpoint."""
        states = self._states
        position = min(position, len(self.held))
        if states and position and states.num_held(self.number) == position:
            return
        if not states or states.can_drop(self.number, position):
            self.backend.drop(self.number, position)
            self._forget_after(position)
            del self.held[position:]
        else:
            self._roll_back(position)

    def save(self, *, pinned: bool = False) -> None:
        """Save a checkpoint after the held ids, unless the model can remove trailing tokens.

        Surplus checkpoints are evicted, the oldest first. The latest pinned checkpoint is never evicted. If none is pinned,
        the first checkpoint is kept, because it may hold the prefix of every prompt.
        """
        saved = self._saved
        position = len(self.held)
        if not self._states or not position or self._max_checkpoints == 0 or (saved and saved[-1].position == position):
            return
        state = self._states.save(self.number)
        saved.append(_Checkpoint(position, state, pinned))
        room = num_checkpoints(state.nbytes) if self._max_checkpoints is None else self._max_checkpoints
        if len(saved) > room:
            kept = max((index for index, checkpoint in enumerate(saved) if checkpoint.pinned), default=0)
            del saved[next((index for index in range(len(saved) - 1) if index != kept), 0)]

    def _roll_back(self, position: int) -> None:
        self._forget_after(position)
        if self._saved and self._states:
            self._states.restore(self.number, self._saved[-1].position, self._saved[-1].state)
            del self.held[self._saved[-1].position :]
        else:
            self.backend.drop(self.number, 0)
            self.held.clear()

    def _forget_after(self, position: int) -> None:
        """Forget checkpoints after `position`, because their ids may change."""
        while self._saved and self._saved[-1].position > position:
            self._saved.pop()


def decode(batch: Sequence[tuple[CachedSequence, list[int]]]) -> Floats:
    """Decode new tokens of several sequences in one batch. The caller must add the kept tokens to `held`."""
    sequences = [sequence.number for sequence, new in batch for _ in new]
    positions = [len(sequence.held) + index for sequence, new in batch for index in range(len(new))]
    tokens = [token for _, new in batch for token in new]
    deadline = earliest(sequence.deadline for sequence, _ in batch)
    try:
        return batch[0][0].backend.decode(sequences, positions, tokens, deadline=deadline)
    except BaseException:
        for sequence, _ in batch:
            sequence.recover()
        raise


def common_prefix(first: list[int], second: list[int]) -> int:
    """Return the number of leading ids that both lists share."""
    if first[: len(second)] == second:  # the usual case, compared in C
        return len(second)
    return next(index for index, token in enumerate(second) if index >= len(first) or token != first[index])


class StepIds:
    """The token ids of the steps in one trace. Steps written by this model keep their ids; other steps must be tokenized."""

    def __init__(self) -> None:
        self._steps: list[tuple[Step, list[int]]] = []
        self._written: dict[Step, list[int]] = {}

    @property
    def has_none_of_its_own(self) -> bool:
        """Whether this model has not written a step yet."""
        return not self._written

    def remember(self, step: Step, ids: list[int]) -> None:
        self._written[step] = ids

    def missing(self, trace: Trace) -> Iterator[tuple[Step, list[int]]]:
        """Forget the steps that are not in the trace, then yield its new steps with their ids.

        The ids of a step that another model wrote are [].
        """
        kept = [decision.kept for decision in trace.decisions]
        is_known = (step is known for step, (known, _) in zip(kept, self._steps, strict=False))
        del self._steps[sum(takewhile(bool, is_known)) :]
        for step in kept[len(self._steps) :]:
            yield step, self._written.get(step, [])

    def add(self, step: Step, ids: list[int]) -> None:
        self._steps.append((step, ids))

    def after(self, prompt: list[int]) -> list[int]:
        return [*prompt, *(token for _, ids in self._steps for token in ids)]


@dataclass(slots=True, eq=False)
class CachedProblem:
    """A problem's prompt, and the sequence that holds its ids.

    Prompts with the same settings share the first `num_shared` ids. The first `num_aligned` ids were prefilled in the batches
    of an empty cache. `num_reused` ids were already cached when the problem began. `first` is the problem that began the
    conversation. `question_end` is the index of the first id after the question; `last_index` is the index of the last id
    before the current step. `required` contains all ids that precede the next token.
    """

    cache: "KvCache"
    sequence: CachedSequence
    problem: Problem
    prompt: list[int]
    num_shared: int
    num_aligned: int
    num_reused: int
    first: Problem
    question_end: int
    last_index: int = 0
    steps: StepIds = field(default_factory=StepIds)
    required: list[int] = field(default_factory=list)

    @property
    def held(self) -> list[int]:
        return self.sequence.held

    @property
    def unread(self) -> list[int]:
        """The ids that must be computed before the next token is drawn."""
        return self.required[len(self.held) :]

    def prepare(self, trace: Trace, prefix: str = "") -> int:
        """Drop the cached ids that differ from the ids of the trace followed by the next step's `prefix`.

        Returns the number of tokens that fit after these ids. Raises ContextFullError if the context is full.
        """
        size = self.cache.context_size
        required = self._ids_of(trace) + self.cache.step_ids(prefix)
        if len(required) >= size:
            name = self.cache.backend.card.name
            raise ContextFullError(
                f"the problem and the solution so far ({len(required)} tokens) fill the context of {name} ({size} tokens)",
                "use a larger --ctx, a shorter problem or a smaller --max-tokens",
            )
        self.required = required
        self.last_index = len(required) - 1
        self.sequence.keep_common(required)
        self._note_cut()
        return size - len(required)

    def read(self, tokens: list[int]) -> int:
        """Prefill some of the tokens and return their number. Raises the same errors as `Backend.read`."""
        start = len(self.held)
        ends = [self.num_shared]
        if self.cache.keeps == "conversation" and not self.sequence.drops_tails:
            ends.append(self.question_end)
        count = min([READ_TOKENS, len(tokens), *(end - start for end in ends if end > start)])
        self.sequence.read(tokens[:count])
        if start == self.num_aligned:
            self.num_aligned = self.aligned(len(self.held))
        if len(self.held) in ends and self.cache.keeps != "nothing":
            self.sequence.save(pinned=len(self.held) == self.question_end)
        return count

    def cut(self, position: int) -> None:
        """Remove all ids from `position` onward. The text does not change."""
        self.sequence.cut(position)
        self._note_cut()

    def _note_cut(self) -> None:
        self.num_aligned = min(self.num_aligned, self.aligned(len(self.held)))

    def aligned(self, position: int) -> int:
        """Return the last position up to `position` at which a batch ends if the cache was empty."""
        start = self.num_shared if position >= self.num_shared else 0
        return position - (position - start) % READ_TOKENS

    def is_continued_by(self, problem: Problem) -> bool:
        """Return whether the problem's earlier messages begin with the first question of this conversation."""
        opening = (*self.first.turns, Message("user", self.first.question))
        return problem.system == self.first.system and problem.turns[: len(opening)] == opening

    def remember(self, step: Step, tokens: list[int]) -> None:
        """Store the token ids of a step written by this model, excluding any end marker."""
        if step.stop == "thought":
            if tokens[-1] != self.cache.think_end_token:
                return  # the marker may share tokens with the text, so the text is tokenized again
            tokens = tokens[:-1]
        self.steps.remember(step, tokens)

    def _ids_of(self, trace: Trace) -> list[int]:
        prompt = self.cache.prompt
        tokenizer = self.cache.backend.tokenizer
        for step, own in self.steps.missing(trace):
            self.steps.add(
                step, (own or self.cache.step_ids(step.text)) + segment_ids(tokenizer, prompt.after(step), continues=True)
            )
        return self.steps.after(self.prompt)


class KvCache:
    """The KV cache of one model. Slot n uses the backend's sequence n.

    If ids are kept after a problem, no other cache may ever use their sequences.
    """

    def __init__(
        self,
        backend: Backend,
        style: PromptStyle = DEFAULT_STYLE,
        *,
        keep: RetainedIds = "nothing",
        max_checkpoints: int | None = None,
    ) -> None:
        self.backend = backend
        self.context_size = backend.card.context_size
        self.keeps = keep
        self._max_checkpoints = max_checkpoints
        self._sequences: dict[int, CachedSequence] = {}  # by slot
        self.prompt = chat_prompt(backend, style)
        self.think_end_token = _only_token(backend.tokenizer, self.prompt.think_format.end)
        self._shared = functools.lru_cache(MAX_SHARED)(self._find_shared)
        self._shared(Problem("", ""))  # reject a model without a usable prompt
        self._closed: dict[int, CachedProblem] = {}  # by free slot

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> CachedProblem:
        """Start a problem. Raises ConversationError if the template rejects the prompt."""
        prompt = self.prompt_ids(problem)
        shared, num_last = self._shared(replace(problem, id="", question="", turns=()))
        num_shared = len(shared) if prompt[: len(shared)] == shared else 0
        num_aligned, first = self._reuse(slot, problem, prompt, num_shared)
        if slot not in self._sequences:
            self._sequences[slot] = CachedSequence(self.backend, slot, self._max_checkpoints)
        sequence = self._sequences[slot]
        sequence.deadline = deadline
        return CachedProblem(
            self,
            sequence,
            problem,
            prompt,
            num_shared,
            num_aligned=num_aligned,
            num_reused=len(sequence.held),
            first=first,
            question_end=len(prompt) - num_last,
        )

    def _reuse(self, slot: int, problem: Problem, prompt: list[int], num_shared: int) -> tuple[int, Problem]:
        """Drop the cached ids that the problem cannot reuse.

        Returns the number of aligned ids among the ids that are kept, and the first problem of the slot's conversation.
        """
        last = self._closed.pop(slot, None)
        if last is None:
            return 0, problem
        end = common_prefix(prompt, last.held)
        continues = last.is_continued_by(problem)
        if last.num_shared != num_shared:
            end = 0
        elif not continues:
            end = last.aligned(min(end, last.num_aligned, len(prompt) - 1))
        if end < len(last.held):
            last.cut(end)
        return last.num_aligned, last.first if continues else problem

    def close(self, slot: int, cached: CachedProblem) -> None:
        kept = {"nothing": 0, "prefix": cached.num_shared, "conversation": len(cached.held)}[self.keeps]
        cached.cut(kept)
        if self.keeps == "conversation":
            cached.sequence.save()
        self._closed[slot] = cached

    def read_shared(self, slot: int, problem: Problem) -> None:
        """Prefill the prefix that this problem's prompt shares with others, so that the first problem does not take longer."""
        cached = self.open(slot, problem)
        cached.required = cached.prompt
        try:
            while len(cached.held) < cached.num_shared:
                cached.read(cached.unread)
        finally:
            self.close(slot, cached)

    def decode(self, batch: Sequence[tuple[CachedProblem, list[int]]]) -> Floats:
        """Decode the tokens of all problems in one batch. The caller must add the kept tokens to `held`."""
        for cached, _ in batch:
            if len(cached.held) == cached.last_index:
                cached.sequence.save()
        return decode([(cached.sequence, new) for cached, new in batch])

    # --- token ids

    def prompt_ids(self, problem: Problem) -> list[int]:
        return prompt_ids(self.backend, self.prompt.for_problem(problem))

    def step_ids(self, text: str) -> list[int]:
        tokenize = self.backend.tokenizer.tokenize
        return [token for fragment in self.prompt.fragments(text) for token in tokenize(fragment, continues=True)]

    def ends(self, phase: Phase, token: int) -> StepStop | None:
        is_mark = token == self.think_end_token and (phase == "think" or self.prompt.think_format.ends_turns)
        if not is_mark and not self.backend.tokenizer.is_end(token):
            return None
        return "thought" if phase == "think" else "end"

    def proposed_ids(self, text: str, trace: Trace) -> list[int]:
        """Tokenize a proposed next step without the token that ends the step."""
        return self.before_end(self.step_ids(text), self.prompt.step_text(trace))

    def before_end(self, tokens: list[int], text: StepText) -> list[int]:
        """Return the leading tokens that can be appended to `text` before the step ends."""
        return tokens[: text.num_before_end(map(self.backend.tokenizer.piece, tokens))] if tokens else tokens

    def _find_shared(self, settings: Problem) -> tuple[list[int], int]:
        """Return the prefix that the prompts of all questions with these settings share and the length of their shared suffix.

        A short prefix is returned as [].
        """
        first, second = (self.prompt_ids(replace(settings, question=question)) for question in ("a", "1"))
        num_first = common_prefix(first, second)
        num_last = common_prefix(first[::-1], second[::-1])
        return first[:num_first] if num_first >= MIN_SHARED else [], num_last


def chat_prompt(backend: Backend, style: PromptStyle) -> ChatPrompt:
    """Return the prompt of a model. The built-in models were trained without the default instructions."""
    if style.instructions == INSTRUCTIONS and backend.card.name.startswith(BUILT_IN_NAME):
        style = replace(style, instructions="")
    controls = backend.tokenizer.control_tokens.keys()
    markers = backend.tokenizer.marker_tokens
    return ChatPrompt(backend.chat_template, controls, markers, style, backend.template_variables)


def prompt_ids(backend: Backend, segments: Iterable[Segment]) -> list[int]:
    """Tokenize a prompt. Raises ModelUnsupportedError if the tokenizer returns no tokens."""
    tokenizer = backend.tokenizer
    ids = segment_ids(tokenizer, segments)
    prefix = tokenizer.prefix_token
    if prefix is not None and ids[:1] != [prefix]:
        ids.insert(0, prefix)
    if not ids:
        raise ModelUnsupportedError(
            f"{backend.card.name}: the tokenizer returned no tokens for the prompt",
            "the file may be damaged; use another model file",
        )
    return ids


def segment_ids(tokenizer: Tokenizer, segments: Iterable[Segment], *, continues: bool = False) -> list[int]:
    ids: list[int] = []
    for segment in segments:  # adjacent plain segments were split inside a marker, so they are tokenized separately
        if isinstance(segment, Control):
            ids.append(tokenizer.control_tokens[segment.text])
        else:
            ids += tokenizer.tokenize(segment.text, continues=continues)
        continues = not isinstance(segment, Control)
    return ids


def _only_token(tokenizer: Tokenizer, text: str) -> int | None:
    if text in tokenizer.control_tokens:
        return tokenizer.control_tokens[text]
    tokens = tokenizer.tokenize(text, continues=True)
    return tokens[0] if len(tokens) == 1 else None

"""Keeps one sequence of a model's KV cache consistent with a list of token ids.

Ids are removed at the end or, if the model cannot remove them, by restoring a checkpoint and reading again from there. A
checkpoint is a copy of the recurrent layers' state: a few kilobytes to 200 MB, regardless of the number of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from arbitrage_cli.inference.backend import Backend, Deadline, Floats, State, earliest
from arbitrage_cli.model_files.gguf import num_checkpoints


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    position: int
    state: State
    pinned: bool


class CachedSequence:
    """Sequence `number` of a backend. `held` contains its token ids. Its computations end at the `deadline`.

    At most `max_checkpoints` are kept.
    """

    def __init__(self, backend: Backend, number: int, max_checkpoints: int | None = None) -> None:
        self.held: list[int] = []
        self.deadline: Deadline | None = None
        self.backend, self.number = backend, number
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
        states, position = self._states, min(position, len(self.held))
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
        saved, position = self._saved, len(self.held)
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

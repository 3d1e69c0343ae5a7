"""Rolls sequences back by removing trailing tokens or, if the model cannot remove them, by restoring a checkpoint.

A checkpoint is a copy of the recurrent layers' state: a few kilobytes to 200 MB, regardless of the number of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from arbitrage_cli.inference.backend import Backend, Deadline, Floats, State
from arbitrage_cli.model_files.facts import num_checkpoints


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    position: int
    state: State
    pinned: bool = False


class Checkpoints:
    """Prefills and rolls back sequences, and updates the lists of cached token ids. Keeps at most `max_checkpoints` per sequence."""

    def __init__(self, backend: Backend, max_checkpoints: int | None = None) -> None:
        self._backend = backend
        self._states = backend.states
        self._max_checkpoints = max_checkpoints
        self._saved: dict[int, list[_Checkpoint]] = {}  # by sequence, ordered by position

    @property
    def drops_tails(self) -> bool:
        return self._states is None

    def read(self, sequence: int, held: list[int], tokens: list[int], deadline: Deadline | None = None) -> None:
        """Prefill `tokens` after the `held` ids.

        If an error is raised (see `Backend.read`), a checkpoint may have been restored.
        """
        try:
            self._backend.read(sequence, len(held), tokens, deadline=deadline)
        except BaseException:
            self._recover(sequence, held)
            raise
        held += tokens

    def decode(self, rows: Sequence[tuple[int, list[int], list[int]]], deadline: Deadline | None = None) -> Floats:
        """Decode rows of (sequence, held ids, new tokens) in one batch. The caller must add the kept tokens to the held ids."""
        sequences = [sequence for sequence, _, new in rows for _ in new]
        positions = [len(held) + index for _, held, new in rows for index in range(len(new))]
        tokens = [token for *_, new in rows for token in new]
        try:
            return self._backend.decode(sequences, positions, tokens, deadline=deadline)
        except BaseException:
            for sequence, held, _ in rows:
                self._recover(sequence, held)
            raise

    def _recover(self, sequence: int, held: list[int]) -> None:
        """Remove the tokens that were computed before an error, or restore a checkpoint."""
        if self._states:
            self._roll_back(sequence, held, len(held))
        else:
            self._backend.drop(sequence, len(held))

    def cut(self, sequence: int, held: list[int], position: int) -> None:
        """Remove all ids from `position` onward. If the model cannot remove them, restore the latest earlier checkpoint."""
        states, position = self._states, min(position, len(held))
        if states and position and states.num_held(sequence) == position:
            return
        if not states or states.can_drop(sequence, position):
            self._backend.drop(sequence, position)
            self._forget_after(sequence, position)
            del held[position:]
        else:
            self._roll_back(sequence, held, position)

    def save(self, sequence: int, position: int, *, pinned: bool = False) -> None:
        """Save a checkpoint of a sequence that holds `position` tokens, unless the model can remove trailing tokens.

        Surplus checkpoints are evicted, the oldest first. The latest pinned checkpoint is never evicted. If none is pinned,
        the first checkpoint is kept, because it may hold the prefix of every prompt.
        """
        if not self._states or not position or self._max_checkpoints == 0:
            return
        saved = self._saved.setdefault(sequence, [])
        if saved and saved[-1].position == position:
            return
        state = self._states.save(sequence)
        saved.append(_Checkpoint(position, state, pinned))
        most = num_checkpoints(state.nbytes) if self._max_checkpoints is None else self._max_checkpoints
        if len(saved) > most:
            kept = max((index for index, checkpoint in enumerate(saved) if checkpoint.pinned), default=0)
            del saved[next((index for index in range(len(saved) - 1) if index != kept), 0)]

    def _roll_back(self, sequence: int, held: list[int], position: int) -> None:
        saved = self._forget_after(sequence, position)
        if saved and self._states:
            self._states.restore(sequence, saved[-1].position, saved[-1].state)
            del held[saved[-1].position :]
        else:
            self._backend.drop(sequence, 0)
            held.clear()

    def _forget_after(self, sequence: int, position: int) -> list[_Checkpoint]:
        """Forget checkpoints after `position`, because their ids may change. Return the remaining checkpoints."""
        saved = self._saved.get(sequence, [])
        while saved and saved[-1].position > position:
            saved.pop()
        return saved

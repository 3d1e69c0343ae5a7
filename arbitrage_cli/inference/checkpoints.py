"""Going back in a sequence: its tail is dropped, or, if a model's memory cannot do that, a checkpoint before it is restored.

A checkpoint is a copy of what a recurrent layer has made of all tokens so far: some kilobytes or 200 MB, but the same for any
length. Without one, the caller reads the tokens again.
"""

from dataclasses import dataclass

from arbitrage_cli.inference.backend import Backend, Deadline, State
from arbitrage_cli.types import num_checkpoints


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """The state of a sequence that held `position` tokens. The latest one that is `pinned` stays, if two may."""

    position: int
    state: State
    pinned: bool = False


class Checkpoints:
    """Reads tokens into the sequences of a backend, and takes them back. The caller's list of held ids is kept true.

    At most `most` checkpoints of a sequence are kept. By default that depends on their size.
    """

    def __init__(self, backend: Backend, most: int | None = None) -> None:
        self._backend = backend
        self._states = backend.states
        self._most = most
        self._saved: dict[int, list[_Checkpoint]] = {}  # by sequence, in the order of their positions

    def read(self, sequence: int, held: list[int], tokens: list[int], deadline: Deadline | None = None) -> None:
        """Read tokens after those `held`. Errors as the backend's `read`; then the caller holds what it held before, or less."""
        try:
            self._backend.read(sequence, len(held), tokens, deadline=deadline)
        except BaseException:
            if self._states:  # it may have read some of them
                self._go_back(sequence, held, len(held))
            raise
        held += tokens

    def cut(self, sequence: int, held: list[int], position: int) -> None:
        """Hold no id from `position` on; of a memory that cannot drop a tail, none from the last checkpoint before it on."""
        if not self._states:
            self._backend.drop(sequence, position)
            del held[position:]
        elif not position or self._states.num_held(sequence) != min(position, len(held)):
            self._go_back(sequence, held, position)

    @property
    def drops_tails(self) -> bool:
        return self._states is None

    def save(self, sequence: int, position: int, *, pinned: bool = False) -> None:
        """Make it possible to come back to where the sequence is, at `position`. Does nothing for a memory that drops tails.

        If there are too many checkpoints, the oldest goes, but the latest one that is pinned; or the first of all, which may be the
        beginning of every prompt.
        """
        if not self._states or not position or self._most == 0:
            return
        saved = self._saved.setdefault(sequence, [])
        if saved and saved[-1].position == position:
            return
        state = self._states.save(sequence)
        saved.append(_Checkpoint(position, state, pinned))
        most = num_checkpoints(state.nbytes) if self._most is None else self._most
        if len(saved) > most:
            stays = max((index for index, one in enumerate(saved) if one.pinned), default=0)
            del saved[next((index for index in range(len(saved) - 1) if index != stays), 0)]

    def _go_back(self, sequence: int, held: list[int], position: int) -> None:
        """Restore the last checkpoint at or before `position`, or empty the sequence."""
        saved = self._saved.get(sequence, [])
        while saved and saved[-1].position > position:
            saved.pop()
        if saved and self._states:
            self._states.restore(sequence, saved[-1].position, saved[-1].state)
            del held[saved[-1].position :]
        else:
            self._backend.drop(sequence, 0)
            held.clear()

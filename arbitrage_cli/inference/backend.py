"""The interface between the engine and a loaded model: token ids in, logits out."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from arbitrage_cli.errors import TimedOutError
from arbitrage_cli.types import Fields, frozen

Floats = npt.NDArray[np.float32]
SavedState = npt.NDArray[np.uint8]  # of a model's recurrent layers, for one sequence
Clock = Callable[[], float]  # in seconds

MAX_DECODE = 512  # tokens per batch, for every backend
MAX_SEQUENCES = 256  # per model; llama.cpp's maximum

ALL_LAYERS = -1  # are on the GPU


@frozen
class ModelCard:
    """Describes a loaded model. `context_size` is in tokens per sequence.

    `kv_cache` is the number format of the KV cache, such as "f16", or "keys/values" if keys and values have different formats.
    """

    name: str
    description: str
    context_size: int
    vocabulary_size: int
    threads: int
    gpu_layers: int
    kv_cache: str = ""

    @property
    def cores(self) -> int:
        """The number of cores that the model keeps busy. If all layers are on the GPU, one thread waits for the GPU."""
        return 1 if self.gpu_layers == ALL_LAYERS else self.threads


def clock_for(cards: Iterable[ModelCard]) -> Clock:
    """Return the clock for the work of models that are compared.

    If every model runs on a single thread, time is measured as CPU time of that thread, which other programs hardly affect.
    """
    is_own_time = all(card.gpu_layers == 0 and card.threads == 1 for card in cards)
    return time.thread_time if is_own_time else time.perf_counter


@frozen
class LoadOptions:
    """Options for loading a model. The backend chooses a value for each option that is None.

    `context_size` is in tokens per sequence. If `gpu_layers` is -1, all layers are offloaded. If `kv_type` is "auto", values
    are stored as f16, and keys as f16 or, if the CPU processes them faster, as q8_0. `rollback` is the number of rejected
    tokens that a model with recurrent layers should be able to remove.
    """

    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_type: str = "auto"
    num_sequences: int = 1
    rollback: int = 0
    template_variables: Fields = field(default_factory=dict)


@frozen
class Deadline:
    """A time limit of `seconds` for one problem. The limit is reached when `clock` returns `at`."""

    at: float
    seconds: float
    clock: Clock = time.perf_counter

    @property
    def has_passed(self) -> bool:
        return self.clock() > self.at

    @property
    def error(self) -> TimedOutError:
        return TimedOutError(f"not finished after {self.seconds:g} s", "use a longer --timeout")


def earliest(deadlines: Iterable[Deadline | None]) -> Deadline | None:
    return min(filter(None, deadlines), key=lambda deadline: deadline.at, default=None)


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """The ids of the control tokens, by text. `tokenize` never returns these ids."""

    @property
    def marker_tokens(self) -> Collection[str]:
        """The texts of user-defined tokens, except whitespace. `tokenize` always returns a single token for each."""

    @property
    def prefix_token(self) -> int | None:
        """The token that every prompt must begin with, if any."""

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        """Tokenize plain text. Set `continues` if the text follows other text."""

    def piece(self, token: int) -> bytes:
        """Return the token's bytes, or b"" for a control token."""

    def is_end(self, token: int) -> bool: ...


class States(Protocol):
    """Rolls back the sequences of a model that cannot remove arbitrary trailing tokens."""

    @property
    def max_dropped(self) -> int:
        """The maximum number of tokens that `drop` can remove from the latest batch."""

    def can_drop(self, sequence: int, position: int) -> bool:
        """Return whether `drop` can remove the tokens from `position` onward, all of which are in the latest batch."""

    def num_held(self, sequence: int) -> int: ...

    def save(self, sequence: int) -> SavedState: ...

    def restore(self, sequence: int, position: int, state: SavedState) -> None:
        """Roll back to `position`, where `state` was saved. Earlier tokens must not have changed since then."""


class Backend(Protocol):
    """A loaded model with a context for several sequences, numbered from 0. Not thread-safe."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def template_variables(self) -> Fields:
        """The variables in `LoadOptions`, plus `bos_token` and `eos_token`."""

    @property
    def states(self) -> States | None:
        """The model's rollback methods, or None if `drop` accepts any position.

        With rollback methods, `drop` accepts only 0 and the positions that `can_drop` allows.
        """

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        """Append `tokens` to a sequence that holds `position` tokens, without computing logits.

        Raises ContextFullError if the tokens do not fit; TimedOutError if the deadline passes; ComputeError if the computation
        fails. After an error, some of the tokens may have been appended, and the caller must restore the sequence.
        """

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        """Append n tokens (at most MAX_DECODE) to sequences and return the logits (n, n_vocab) after each token.

        The array is valid until the next call. The deadline may be ignored if each sequence receives only one token. Raises
        the same errors as `read`.
        """

    def drop(self, sequence: int, position: int) -> None:
        """Remove a sequence's tokens from `position` onward."""

    def close(self) -> None: ...

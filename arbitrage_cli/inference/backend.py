"""The seam between the engine and a loaded model: token ids in, logits out.

`llama` runs GGUF files through llama.cpp, `scripted` follows a script; the same
contract tests run on both.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from arbitrage_cli.errors import TimedOutError

Floats = npt.NDArray[np.float32]
State = npt.NDArray[np.uint8]
"""What the recurrent layers of a model hold for one sequence."""

MAX_DECODE = 512
"""Tokens that every backend decodes at once."""

MAX_SEQUENCES = 256
"""Sequences of one model: llama.cpp's own bound."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts about a loaded model. `context_size` is what was allocated for one sequence, not what the model was trained for.

    `kv_cache` names the number format of the KV cache (keys/values if they differ), "" without one.
    """

    source: str  # the name or path that the user gave
    name: str
    description: str  # architecture, size, quantization, in llama.cpp's words
    context_size: int
    trained_context_size: int
    vocabulary_size: int
    threads: int
    gpu_layers: int
    kv_cache: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How to load a model. None: the machine and the model decide.

    `gpu_layers` -1 puts every layer on the GPU. `context_size` is in tokens, for one sequence; by default at most what the model
    was trained for. `kv_type` is the number format of the KV cache: f16, q8_0, q4_0 or f32; auto is f16, except for keys that a
    processor reads faster in q8_0. `template_variables` are
    passed to the chat template.
    """

    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_type: str = "auto"
    num_sequences: int = 1
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a problem's time: `at` by `clock`, which is `seconds` after its start."""

    at: float
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.perf_counter) -> "Deadline":
        """The deadline this many seconds from now."""
        return cls(clock() + seconds, seconds, clock)

    @property
    def has_passed(self) -> bool:
        return self.clock() > self.at

    @property
    def error(self) -> TimedOutError:
        return TimedOutError(f"not finished after {self.seconds:g} s", "give a longer --timeout")


def earlier(one: Deadline | None, other: Deadline | None) -> Deadline | None:
    """The first of two deadlines; None is no deadline."""
    if one is None or other is None:
        return one or other
    return one if one.at <= other.at else other


class Tokenizer(Protocol):
    """The vocabulary of one model: text to token ids and back, and its special tokens."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Text and id of every control token. `tokenize` never returns one."""

    @property
    def marker_tokens(self) -> Collection[str]:
        """Texts, white space aside, that `tokenize` always makes one token: the user-defined tokens of the vocabulary."""

    @property
    def prefix_token(self) -> int | None:
        """The token that every prompt must begin with; None without one."""

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        """Ids of plain text. `continues`: there is text before it."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token as they appear in the text; empty for control tokens."""

    def is_end(self, token: int) -> bool:
        """Whether the token ends the sequence."""


class States(Protocol):
    """Saves and restores sequences of a model with recurrent layers, which cannot drop a tail."""

    def num_held(self, sequence: int) -> int:
        """How many tokens the sequence holds."""

    def save(self, sequence: int) -> State:
        """A copy of the sequence's state."""

    def restore(self, sequence: int, position: int, state: State) -> None:
        """Bring the sequence back to the `position` at which the state was saved. It has held the tokens before it ever since."""


class Backend(Protocol):
    """One loaded model with a context for several sequences, numbered from 0. Not thread-safe."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """What a chat template may refer to: `bos_token`, `eos_token`, and the variables of `Options`."""

    @property
    def states(self) -> States | None:
        """None if `drop` takes any position. If not, it takes 0 alone, and states are saved and restored."""

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        """Append `tokens` to a sequence that holds `position` tokens; computes no output.

        Errors: ContextFullError, TimedOutError, ComputeError; the sequence then holds what it held before. One with `states` may
        hold something else: restore or empty it.
        """

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        """Append n tokens at once, at most MAX_DECODE: one to each of n sequences, or several to some of them, in order.

        Returns the logits (n, n_vocab), row i after token i: a view into the backend's memory, valid until its next call. Errors as for `read`. The deadline need not be heeded if no sequence gets more than one token.
        """

    def drop(self, sequence: int, position: int) -> None:
        """Forget everything that a sequence holds from `position` on."""

    def close(self) -> None: ...

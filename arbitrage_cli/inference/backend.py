"""The seam between the engine and whatever computes: one loaded model, token ids in, logits and hidden states out.

Knows nothing of steps, problems or policies. `llama.py` runs GGUF files through llama.cpp, `scripted.py` follows a
script; the same contract tests run on both.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model says of itself. `context_size` is what was allocated for one sequence, not what it was trained for.

    `kv_cache` names the number format of its KV cache (keys/values where they differ), "" if it has none.
    """

    source: str  # the name or path that the user gave
    name: str
    description: str  # architecture, size, quantization, as llama.cpp words it
    context_size: int
    trained_context_size: int
    vocabulary_size: int
    hidden_size: int
    threads: int
    gpu_layers: int
    kv_cache: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What one decode of n tokens computed: `logits` (n, n_vocab), `hidden` (n, n_embd) or None; row i is after token i.

    Views into the backend's memory: valid until its next call.
    """

    logits: Floats
    hidden: Floats | None


@dataclass(frozen=True, slots=True)
class Options:
    """How to load a model. None means: as this machine and the model suggest.

    `gpu_layers` -1 puts every layer on the GPU. `context_size` is in tokens, for one sequence; at most what the model was
    trained for unless given. `kv_type` is the number format of the KV cache: f16, q8_0, q4_0 or f32; auto is f16, but for keys
    that a processor reads faster in q8_0. Without `hidden_states` there are none in the output, which then takes less time.
    `template_variables` is what the chat template is told, besides what the model's file says.
    """

    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_type: str = "auto"
    num_sequences: int = 1
    hidden_states: bool = True
    template_variables: Mapping[str, Any] = field(default_factory=dict)


MAX_DECODE = 512
"""Tokens that every backend decodes at once."""


MAX_SEQUENCES = 256
"""Of one model: llama.cpp's own bound."""


class Backend(Protocol):
    """One loaded model with a context for several sequences, numbered from 0. Not thread-safe."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Text and id of every control token. `tokenize` never gives one."""
        ...

    @property
    def marker_tokens(self) -> Collection[str]:
        """Texts, white space aside, that `tokenize` always takes for one token: a vocabulary's user-defined tokens."""
        ...

    @property
    def prefix_token(self) -> int | None:
        """The token that every prompt must begin with, where the vocabulary wants one."""
        ...

    @property
    def template_variables(self) -> Mapping[str, Any]:
        """What a chat template may refer to: `bos_token`, `eos_token`, and what the model was loaded with."""
        ...

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        """Ids of plain text; never a control token. `continues`: the text goes on from text before it."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token as they appear in the text; empty for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends the sequence."""
        ...

    def read(self, sequence: int, position: int, tokens: Sequence[int]) -> None:
        """Append `tokens` to a sequence that holds `position` tokens; computes no output.

        Errors: ContextFullError, ComputeError; the sequence then holds what it held before.
        """
        ...

    def decode(self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int]) -> Output:
        """Append n tokens at once, at most MAX_DECODE: one to each of n sequences, or several to some of them, in order.

        Errors as for `read`.
        """
        ...

    def drop(self, sequence: int, position: int) -> None:
        """Forget everything that a sequence holds from `position` on."""
        ...

    def close(self) -> None: ...

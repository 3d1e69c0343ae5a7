"""What a model knew while it wrote a step: log-probability, entropy and margin of its tokens, and its hidden states.

Knows nothing of what the numbers are for. All of them are at temperature 1, of the raw logits. Source of the formulas:
with z the logits and Z = sum exp z, log p_i = z_i - log Z, entropy = log Z - sum p_i z_i.
"""

import numpy as np
import numpy.typing as npt

from arbitrage_cli.backends import Floats
from arbitrage_cli.types import Evidence

CHUNK_BYTES = 1 << 20
"""Logits waiting to be measured: large vocabularies row by row while the row is in the cache, small ones many at once."""


class Recorder:
    """Collects the evidence of one step, token by token, and measures it in chunks."""

    def __init__(self, vocabulary_size: int) -> None:
        num_rows = max(1, CHUNK_BYTES // (vocabulary_size * 4))
        self._logits: Floats = np.empty((num_rows, vocabulary_size), np.float32)
        self._tokens: list[int] = []
        self._columns: list[Floats] = []
        self._hidden: list[Floats] = []

    def add(self, logits: Floats, token: int, hidden: Floats | None) -> None:
        """Record that `token` was drawn from `logits` (n_vocab,), and the hidden state (n_embd,) they came from."""
        self._logits[len(self._tokens)] = logits
        self._tokens.append(token)
        if hidden is not None:
            self._hidden.append(hidden.copy())
        if len(self._tokens) == len(self._logits):
            self._measure()

    def finish(self) -> Evidence:
        """The evidence of all tokens recorded. The recorder is empty again afterwards."""
        self._measure()
        log_probabilities, entropies, margins = np.concatenate(self._columns, axis=1).tolist()
        hidden = np.stack(self._hidden) if self._hidden else None
        self._columns, self._hidden = [], []
        return Evidence(tuple(log_probabilities), tuple(entropies), tuple(margins), hidden)

    def _measure(self) -> None:
        if self._tokens:
            self._columns.append(measure(self._logits[: len(self._tokens)], self._tokens))
            self._tokens = []


def measure(logits: Floats, tokens: list[int]) -> Floats:
    """Log-probability of the drawn token, entropy (nats) and top-2 margin of each row; shape (3, n).

    `logits` (n, n_vocab) is overwritten: the copies would cost more than the arithmetic.
    """
    rows = np.arange(len(tokens))
    top = logits.argmax(axis=1)
    highest = logits[rows, top]
    logits -= highest[:, None]
    chosen = logits[rows, tokens]
    logits[rows, top] = -np.inf
    margin = -logits.max(axis=1)
    logits[rows, top] = 0.0
    weights: npt.NDArray[np.float32] = np.exp(logits)
    total = weights.sum(axis=1)
    entropy = np.log(total) - np.einsum("ij,ij->i", weights, logits) / total
    return np.stack([chosen - np.log(total), np.maximum(entropy, 0.0), margin])

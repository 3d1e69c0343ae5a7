"""Computes the log-probability, entropy and margin of a step's tokens from the raw logits z, at temperature 1.

With Z = sum exp z, log p_i is z_i - log Z, and the entropy is log Z - sum p_i z_i.
"""

import numpy as np

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.types import TokenStats

CHUNK_BYTES = 1 << 20  # of logits that are processed together; small enough for the CPU cache
LOWEST = np.finfo(np.float32).min


class Recorder:
    """Computes the statistics of one step in chunks of tokens."""

    def __init__(self, vocabulary_size: int) -> None:
        shape = (max(1, CHUNK_BYTES // (vocabulary_size * 4)), vocabulary_size)
        self._shifted: Floats = np.empty(shape, np.float32)
        self._scratch: Floats = np.empty(shape, np.float32)
        self._tokens: list[int] = []
        self._top: list[int] = []
        self._columns: list[Floats] = []
        self._pieces: list[str] = []

    def add(self, logits: Floats, token: int) -> None:
        """Record that `token` was drawn from `logits` (n_vocab,)."""
        top = int(logits.argmax())
        np.subtract(logits, logits[top], out=self._shifted[len(self._tokens)])
        self._tokens.append(token)
        self._top.append(top)
        self._pieces.append("")
        if len(self._tokens) == len(self._shifted):
            self._measure()

    def add_text(self, piece: str) -> None:
        """Record the characters that the last token completes."""
        self._pieces[-1] = piece

    def so_far(self) -> TokenStats:
        """Return the statistics of all recorded tokens. At least one token must be recorded."""
        self._measure()
        columns = np.concatenate(self._columns, axis=1)
        self._columns = [columns]
        log_probabilities, entropies, margins = columns.tolist()
        return TokenStats(tuple(log_probabilities), tuple(entropies), tuple(margins), tuple(self._pieces))

    def _measure(self) -> None:
        num_rows = len(self._tokens)
        if num_rows:
            shifted, scratch = self._shifted[:num_rows], self._scratch[:num_rows]
            self._columns.append(_measure(shifted, self._tokens, self._top, scratch))
            self._tokens, self._top = [], []


def _measure(shifted: Floats, tokens: list[int], top: list[int], scratch: Floats) -> Floats:
    """Return log-probabilities, entropies in nats, and margins of the top two tokens as an array (3, n).

    `shifted` (n, n_vocab) contains logits, shifted so that the highest is 0. `scratch` has the same shape and is overwritten.
    """
    rows = np.arange(len(tokens))
    total = np.exp(shifted, out=scratch).sum(axis=1)
    with np.errstate(invalid="ignore"):
        means = np.vecdot(scratch, shifted) / total
    if np.isnan(means).any():  # for a logit of -inf, 0 * -inf counts as 0
        means = np.where(scratch > 0, scratch * np.maximum(shifted, LOWEST), 0).sum(axis=1) / total
    entropies = np.log(total) - means
    log_probabilities = shifted[rows, tokens] - np.log(total)
    shifted[rows, top] = -np.inf
    return np.stack([log_probabilities, np.maximum(entropies, 0.0), -shifted.max(axis=1)])

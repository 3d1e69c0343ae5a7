"""When a drafted step is looked at before its end, and what stops it there. Knows numbers; no head, no model and no text."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOOK_EVERY = 2  # tokens
ODDS = 1.5  # times the odds of tau stop a step: a head is trained on whole steps, and less sure of beginnings


def is_due(num_tokens: int) -> bool:
    """Whether to look at a step after so many tokens."""
    return num_tokens % LOOK_EVERY == 0


def clearly_above(tau: float) -> float:
    """The probability above which a beginning stops a step. A tau outside 0 to 1 escalates always or never: it stays as it is."""
    return ODDS * tau / (1 + (ODDS - 1) * tau) if 0 < tau < 1 else tau


@dataclass(frozen=True, slots=True, eq=False)
class Beginnings:
    """The beginnings of n drafted steps at which a head looks, as columns (m,): those of a step in a row, the shortest first.

    `state` is the number of the step, `tokens` the length of the beginning, `probability` the head's.
    """

    state: NDArray[np.int64]
    tokens: NDArray[np.float64]
    probability: NDArray[np.float64]

    def stops(self, tau: float, num_states: int) -> NDArray[np.float64]:
        """The tokens after which each step is stopped (n,): infinite if it is not."""
        stops = np.full(num_states, np.inf)
        above = self.probability > clearly_above(tau)
        np.minimum.at(stops, self.state[above], self.tokens[above])
        return stops

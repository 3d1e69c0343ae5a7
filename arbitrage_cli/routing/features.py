"""A drafted step as numbers: what a router's head looks at.

All of them come from what the draft computed while it wrote the step (its evidence), from the text, and from the steps
before; nothing is run. They do not depend on the model's size or vocabulary, so that one head can serve any pair. Knows no
head and no label. Python on short lists: for steps of 20 to 60 tokens it is faster than NumPy.

Log-probabilities of single tokens are given as log-odds, log(p / (1 - p)): on this scale 0.99 and 0.9999 are as far apart
as 0.01 and 0.0001, which is what a linear head needs. What there is nothing to measure of (no digit in the step, no step
before it) is as if it were certain.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.types import Step, TokenStats, Trace

Floats = NDArray[np.float32]

_SERIES = ("first", "last", "mean", "worst", "second", "10", "25", "50")
_PART = ("share", "logprob_mean", "logprob_sum", "logprob_worst", "logprob_second", "entropy_worst", "margin_worst")

FEATURES: tuple[str, ...] = (
    # the step's tokens: at the first, the last, on average, at the least sure two, and at quantiles from there
    *(f"logprob_{name}" for name in _SERIES),
    "logprob_sum",
    *(f"entropy_{name}" for name in _SERIES),
    *(f"margin_{name}" for name in _SERIES),
    "worst_position",  # of the least likely token, from 0 to 1
    # the same of digits and of operators apart; "share" is how many of the tokens are of the kind
    *(f"digit_{name}" for name in _PART),
    *(f"operator_{name}" for name in _PART),
    # the step's form and text
    "tokens",
    "ends_solution",
    "cut_off",
    "has_box",
    "numbers",
    "longest_number",
    "unseen_numbers",  # neither in the problem nor in the steps before
    "plus",
    "minus",
    "times",
    "over",
    "equals",
    "lines",
    # the problem, and where in its solution the step stands
    "problem_length",
    "problem_numbers",
    "problem_longest_number",
    "step",
    "tokens_before",
    # the steps before: the last one, and those of the draft that were accepted
    "last_by_draft",
    "last_by_target",
    "last_tokens",
    "last_logprob_mean",
    "last_logprob_worst",
    "last_entropy_worst",
    "accepted_logprob_worst",
    "accepted_logprob_sum",
    "escalated_share",
    "escalated",
)
"""Their names. A head is saved with the names of those it reads, so a name never gets another meaning: it is replaced."""

MAX_LOG_ODDS = 15.0
MAX_MARGIN = 20.0  # nats
LEAST_ENTROPY = 1e-4  # nats; entropies are given as logarithms
LEAST_SURPRISE = 1e-7  # nats: of a token that the model was sure of, as far as float32 tells
LEAST_LOGPROB = -30.0  # of a token that the model ruled out

Kind = Literal["digit", "operator", "other"]

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MINUS, _TIMES, _OVER = "\u2212", "\u00d7", "\u00f7"  # as typeset; the keyboard has others
_OPERATORS = frozenset(f"+-*/=^%<>{_MINUS}{_TIMES}{_OVER}")
_CERTAIN = (0.0, 0.0, 0.0, MAX_LOG_ODDS, MAX_LOG_ODDS, math.log(LEAST_ENTROPY), MAX_MARGIN)  # a `_PART` of no tokens


def features(trace: Trace, draft: Step) -> Floats:
    """The step, drafted to come next in `trace`, as finite numbers in the order of `FEATURES`.

    ValueError if its evidence was not kept.
    """
    token_stats = draft.known_token_stats
    kinds = [_kind(piece) for piece in token_stats.pieces or ()]
    values = [*_of_tokens(token_stats), *_of_kind(token_stats, kinds, "digit"), *_of_kind(token_stats, kinds, "operator")]
    values += _of_text(trace, draft)
    values += _of_history(trace)
    return np.array(values, np.float32)


def hidden_features(draft: Step) -> Floats:
    """The draft's own state when it ended the step, and its mean over the step: (2 * n_embd,).

    It has a meaning for this one draft only. ValueError if it was not kept.
    """
    hidden = draft.known_token_stats.hidden
    if not isinstance(hidden, np.ndarray):
        raise ValueError("this router reads the hidden states of the drafted step, and none were kept")
    return np.concatenate((hidden[-1], hidden.mean(axis=0)), dtype=np.float32)


# --- tokens


def _of_tokens(token_stats: TokenStats) -> Iterator[float]:
    """Log-probabilities, entropies and margins of all tokens, each from the least sure one up."""
    log_probabilities = _bounded(token_stats.log_probabilities, LEAST_LOGPROB, 0.0)
    last = len(log_probabilities) - 1
    total = sum(log_probabilities)
    ordered = sorted(log_probabilities)
    yield _log_odds(log_probabilities[0])
    yield _log_odds(log_probabilities[-1])
    yield total / (last + 1)
    for position in (0, min(1, last), last // 10, last // 4, last // 2):
        yield _log_odds(ordered[position])
    yield total
    entropies = token_stats.entropies
    falling = sorted(entropies, reverse=True)
    yield _log_entropy(entropies[0])
    yield _log_entropy(entropies[-1])
    yield _log_entropy(sum(entropies) / (last + 1))
    for position in (0, min(1, last), last // 10, last // 4, last // 2):
        yield _log_entropy(falling[position])
    margins = _bounded(token_stats.margins, 0.0, MAX_MARGIN)
    rising = sorted(margins)
    yield margins[0]
    yield margins[-1]
    yield sum(margins) / (last + 1)
    for position in (0, min(1, last), last // 10, last // 4, last // 2):
        yield rising[position]
    yield log_probabilities.index(ordered[0]) / max(1, last)


def _of_kind(token_stats: TokenStats, kinds: Sequence[Kind], kind: Kind) -> tuple[float, ...]:
    """What `_PART` names, of the tokens of one kind."""
    chosen = [index for index, one in enumerate(kinds) if one == kind]
    if not chosen:
        return _CERTAIN
    log_probabilities = _bounded([token_stats.log_probabilities[index] for index in chosen], LEAST_LOGPROB, 0.0)
    total = sum(log_probabilities)
    ordered = sorted(log_probabilities)
    return (
        len(chosen) / len(kinds),
        total / len(chosen),
        total,
        _log_odds(ordered[0]),
        _log_odds(ordered[1]) if len(ordered) > 1 else MAX_LOG_ODDS,
        _log_entropy(max([token_stats.entropies[index] for index in chosen])),
        min(MAX_MARGIN, max(0.0, min([token_stats.margins[index] for index in chosen]))),
    )


@lru_cache(maxsize=1 << 12)
def _kind(piece: str) -> Kind:
    if any(map(str.isdecimal, piece)):
        return "digit"
    return "operator" if not _OPERATORS.isdisjoint(piece) else "other"


def _bounded(values: Sequence[float], low: float, high: float) -> Sequence[float]:
    """The values, none outside the bounds; the same sequence where none is, as nearly always."""
    if min(values) >= low and max(values) <= high:
        return values
    return [min(high, max(low, value)) for value in values]


def _log_odds(log_probability: float) -> float:
    surprise = max(-log_probability, LEAST_SURPRISE)
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, -surprise - math.log(-math.expm1(-surprise))))


def _log_entropy(entropy: float) -> float:
    return math.log(entropy + LEAST_ENTROPY)


# --- text


def _of_text(trace: Trace, draft: Step) -> Iterator[float]:
    """The form of the step, then what the problem is like and where in its solution the step stands."""
    text, question = draft.text, trace.problem.question
    numbers, given = _NUMBER.findall(text), _NUMBER.findall(question)
    seen = {*given, *_NUMBER.findall(trace.text)}
    yield math.log1p(draft.num_tokens)
    yield draft.stop == "end"
    yield draft.stop in ("budget", "context")
    yield "\\boxed" in text
    yield len(numbers)
    yield max(map(len, numbers), default=0)
    yield sum([number not in seen for number in numbers])
    yield text.count("+")
    yield text.count("-") + text.count(_MINUS)
    yield text.count("*") + text.count(_TIMES) + text.count("\\times") + text.count("\\cdot")
    yield text.count("/") + text.count(_OVER) + text.count("\\frac") + text.count("\\div")
    yield text.count("=")
    yield text.count("\n")
    yield math.log1p(len(question))
    yield len(given)
    yield max(map(len, given), default=0)
    yield len(trace.decisions)
    yield math.log1p(trace.num_tokens)


# --- history


def _of_history(trace: Trace) -> Iterator[float]:
    """The step before this one, the accepted ones of the draft, and how often the target stepped in.

    What the target computed while it wrote a step is not looked at, even where it is there: it says nothing of the draft.
    """
    decisions = trace.decisions
    kept = [decision.kept for decision in decisions]
    accepted = [step.token_stats for step in kept if step.model == "draft" and step.token_stats]
    last = kept[-1] if kept else None
    escalated = sum([step.model == "target" for step in kept])
    yield last is not None and last.model == "draft"
    yield last is not None and last.model == "target"
    yield math.log1p(last.num_tokens) if last else 0.0
    if last and last.model == "draft" and last.token_stats:
        total, worst = sum(last.token_stats.log_probabilities), min(last.token_stats.log_probabilities)
        yield max(LEAST_LOGPROB, total / len(last.token_stats.log_probabilities))
        yield _log_odds(worst)
        yield _log_entropy(max(last.token_stats.entropies))
    else:
        yield 0.0
        yield MAX_LOG_ODDS
        yield math.log(LEAST_ENTROPY)
    yield _log_odds(min([min(one.log_probabilities) for one in accepted], default=0.0))
    yield max(len(accepted) * LEAST_LOGPROB, sum([sum(one.log_probabilities) for one in accepted]))
    yield escalated / len(kept) if kept else 0.0
    yield math.log1p(escalated)

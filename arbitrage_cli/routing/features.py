"""Computes the features of a drafted step, which a router takes as its inputs.

Features are computed from the draft's token statistics, the text and the earlier steps, without running a model. Features do
not depend on the size or the vocabulary of a model, so a router can be used with any pair. For steps of 20 to 60 tokens,
plain Python is faster than NumPy.

Log-probabilities of single tokens become log-odds, log(p / (1 - p)), so that a linear router can tell 0.99 from 0.9999. If
digits, operators or earlier steps are missing, their features have the values of a token with probability 1.
"""

import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import Literal

import numpy as np

from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.routing.equations import Equation, Value, check_equations, numbers_in
from arbitrage_cli.types import Cost, Decision, Phase, Problem, Step, TokenStats

FEATURES_VERSION = 1
"""The number of the features' meaning. A change of what any feature means needs the next number, and new routers."""

MAX_TOKEN_LOG_ODDS = 15.0
MAX_MARGIN = 20.0  # nats
LEAST_ENTROPY = 1e-4  # nats, added before taking the logarithm
LEAST_NEGATIVE_LOGPROB = 1e-7  # nats; float32 is too coarse below
LEAST_LOGPROB = -30.0  # nats

TokenKind = Literal["digit", "operator", "other"]

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_AT_END = re.compile(r"(?<![\d.,])[\d.,]*\Z")
_MINUS, _TIMES, _OVER = "\u2212", "\u00d7", "\u00f7"
_OPERATORS = frozenset(f"+-*/=^%<>{_MINUS}{_TIMES}{_OVER}")
_CERTAIN_TOKEN = TokenStats((0.0,), (0.0,), (MAX_MARGIN,), ("",))


class EarlierSteps:
    """Computes the features of the drafted steps of one solution.

    Each earlier step is read only once, because an unfinished step may be scored after every second token.
    """

    def __init__(self, problem: Problem) -> None:
        given = _NUMBER.findall(problem.question)
        operands = Counter(numbers_in(problem.question))
        self._of_problem = {
            "problem_length": math.log1p(len(problem.question)),
            "problem_numbers": len(given),
            "problem_longest_number": max(map(len, given), default=0),
        }
        self._ledger = _Ledger(operands, Counter(), operands.total())
        self._numbers = Counter(given)
        self._ends: dict[Phase, str] = {}  # the last characters of each phase, if the next step may continue their number
        self._num_steps = self._num_tokens = self._last_num_tokens = 0
        self._last_draft = _CERTAIN_TOKEN
        self._least_logprob = 0.0
        self._draft_sums: list[float] = []  # added up again, because Python 3.12 rounds sum() and += differently

    def features(self, decisions: Sequence[Decision], draft: Step) -> Floats:
        """Return the features of `draft` as the next step after these decisions, in the order of `FEATURES`.

        All values are finite. The decisions must begin with those of the previous call. Raises ValueError if the draft has no
        token statistics.
        """
        for decision in decisions[self._num_steps :]:
            self._add(decision)
        return np.array([*self.by_name(draft).values()], np.float32)

    def _add(self, decision: Decision) -> None:
        kept = decision.kept
        self._num_steps += 1
        self._num_tokens += kept.num_tokens
        self._last_num_tokens = kept.num_tokens
        end = self._ends.get(kept.phase, "")
        self._numbers.subtract(_NUMBER.findall(end))
        self._numbers.update(_NUMBER.findall(end + kept.text))
        self._ends[kept.phase] = _NUMBER_AT_END.findall(end + kept.text)[0]
        self._ledger.add(check_equations(kept.text, is_whole=kept.is_whole))
        if decision.draft and decision.draft.token_stats:
            self._last_draft = decision.draft.token_stats
            self._least_logprob = min(self._least_logprob, *self._last_draft.log_probabilities)
            self._draft_sums.append(sum(self._last_draft.log_probabilities))

    def by_name(self, draft: Step) -> dict[str, float]:
        token_stats = draft.known_token_stats
        kinds = [_kind(piece) for piece in token_stats.pieces]
        return {
            **_of_tokens(token_stats),
            **_of_kind("digit", token_stats, kinds),
            **_of_kind("operator", token_stats, kinds),
            **_of_text(draft, self._numbers),
            **_of_arithmetic(self._ledger, draft),
            **self._of_problem,
            "position": self._num_steps,
            "tokens_before": math.log1p(self._num_tokens),
            "previous_tokens": math.log1p(self._last_num_tokens),
            **self._of_earlier_drafts(),
        }

    def _of_earlier_drafts(self) -> dict[str, float]:
        """Return features of all earlier drafted steps, including discarded steps.

        No feature reveals which steps were kept. A feature that reveals the kept steps would leak the training labels, because
        the better step is kept during collection. In use, each escalation would make another escalation more likely.
        """
        log_probabilities = self._last_draft.log_probabilities
        return {
            "previous_draft_logprob_mean": max(LEAST_LOGPROB, sum(log_probabilities) / len(log_probabilities)),
            "previous_draft_logprob_min": _log_odds(min(log_probabilities)),
            "previous_draft_entropy_max": _log_entropy(max(self._last_draft.entropies)),
            "drafts_logprob_min": _log_odds(self._least_logprob),
            "drafts_logprob_sum": max(len(self._draft_sums) * LEAST_LOGPROB, sum(self._draft_sums)),
        }


def _of_tokens(token_stats: TokenStats) -> dict[str, float]:
    log_probabilities = _bounded(token_stats.log_probabilities, LEAST_LOGPROB, 0.0)
    entropies = token_stats.entropies
    margins = _bounded(token_stats.margins, 0.0, MAX_MARGIN)
    count = len(log_probabilities)
    total = sum(log_probabilities)
    return {
        "logprob_sum": total,
        "logprob_mean": total / count,
        **_summary("logprob", log_probabilities, _log_odds),
        "entropy_mean": _log_entropy(sum(entropies) / count),
        **_summary("entropy", entropies, _log_entropy, is_low_certain=True),
        "margin_mean": sum(margins) / count,
        **_summary("margin", margins, float),
        "least_likely_position": log_probabilities.index(min(log_probabilities)) / max(1, count - 1),  # from 0 to 1
    }


def _summary(
    name: str, values: Sequence[float], scale: Callable[[float], float], *, is_low_certain: bool = False
) -> dict[str, float]:
    """Return the scaled values of the first token, the last token and the least certain tokens."""
    ordered = sorted(values, reverse=is_low_certain)
    last = len(values) - 1
    least, *quantiles = ("max", "q90", "q75", "q50") if is_low_certain else ("min", "q10", "q25", "q50")
    chosen = {"first": values[0], "last": values[-1], least: ordered[0], f"2nd_{least}": ordered[min(1, last)]}
    for quantile, parts in zip(quantiles, (10, 4, 2), strict=True):
        chosen[quantile] = ordered[last // parts]
    return {f"{name}_{which}": scale(value) for which, value in chosen.items()}


def _of_kind(kind: TokenKind, token_stats: TokenStats, kinds: Sequence[TokenKind]) -> dict[str, float]:
    """Return the features that describe only tokens of this kind."""
    chosen = [found == kind for found in kinds]
    # Two tokens with probability 1 stand for missing tokens.
    log_probabilities = _bounded([*compress(token_stats.log_probabilities, chosen), 0.0, 0.0], LEAST_LOGPROB, 0.0)
    total = sum(log_probabilities)
    least, second, *_ = sorted(log_probabilities)
    margin = min(compress(token_stats.margins, chosen), default=MAX_MARGIN)
    return {
        f"{kind}_share": sum(chosen) / max(1, len(kinds)),
        f"{kind}_logprob_mean": total / max(1, sum(chosen)),
        f"{kind}_logprob_sum": total,
        f"{kind}_logprob_min": _log_odds(least),
        f"{kind}_logprob_2nd_min": _log_odds(second),
        f"{kind}_entropy_max": _log_entropy(max(compress(token_stats.entropies, chosen), default=0.0)),
        f"{kind}_margin_min": min(MAX_MARGIN, max(0.0, margin)),
    }


@lru_cache(maxsize=1 << 12)
def _kind(piece: str) -> TokenKind:
    if any(map(str.isdecimal, piece)):
        return "digit"
    return "operator" if not _OPERATORS.isdisjoint(piece) else "other"


def _bounded(values: Sequence[float], low: float, high: float) -> Sequence[float]:
    if min(values) >= low and max(values) <= high:
        return values
    return [min(high, max(low, value)) for value in values]


def _log_odds(log_probability: float) -> float:
    nats = max(-log_probability, LEAST_NEGATIVE_LOGPROB)
    return max(-MAX_TOKEN_LOG_ODDS, min(MAX_TOKEN_LOG_ODDS, -nats - math.log(-math.expm1(-nats))))


def _log_entropy(entropy: float) -> float:
    return math.log(entropy + LEAST_ENTROPY)


def _of_text(draft: Step, seen: Counter[str]) -> dict[str, float]:
    text = draft.text
    numbers = _NUMBER.findall(text)
    return {
        "tokens": math.log1p(draft.num_tokens),
        "ends_solution": draft.stop == "end",
        "cut_off": draft.stop in ("budget", "context"),
        "has_box": "\\boxed" in text,
        "is_thought": draft.phase == "think",
        "numbers": len(numbers),
        "longest_number": max(map(len, numbers), default=0),
        "unseen_numbers": sum([not seen[number] for number in numbers]),  # neither in the problem nor in earlier steps
        "plus_signs": text.count("+"),
        "minus_signs": text.count("-") + text.count(_MINUS),
        "times_signs": text.count("*") + text.count(_TIMES) + text.count("\\times") + text.count("\\cdot"),
        "division_signs": text.count("/") + text.count(_OVER) + text.count("\\frac") + text.count("\\div"),
        "equal_signs": text.count("="),
        "lines": text.count("\n"),
    }


@dataclass(slots=True)
class _Ledger:
    """Counts the numbers given in the question or computed in the solution, and the uses of each number as an operand.

    `unused` is the total excess of available numbers over their uses.
    """

    available: MutableMapping[Value, int]
    used: MutableMapping[Value, int]
    unused: int
    wrong: int = 0

    def add(self, equations: Sequence[Equation]) -> tuple[int, int]:
        """Record equations. Return the numbers of unknown and of overused operands."""
        unknown = overused = 0
        for equation in equations:
            for number in equation.operands:
                self.unused -= self.available[number] > self.used[number]
                self.used[number] += 1
            for number in {*equation.operands}:
                unknown += not self.available[number]
                overused += 0 < self.available[number] < self.used[number]
            if equation.operands:
                self.unused += self.available[equation.right] >= self.used[equation.right]
                self.available[equation.right] += 1
            self.wrong += not equation.is_right
        return unknown, overused


def _of_arithmetic(before: _Ledger, draft: Step) -> dict[str, float]:
    ledger = replace(before, available=ChainMap({}, before.available), used=ChainMap({}, before.used))
    equations = check_equations(draft.text, is_whole=draft.is_whole)
    unknown, overused = ledger.add(equations)
    return {
        "equations": len(equations),
        "wrong_equations": ledger.wrong - before.wrong,
        "last_equation_wrong": bool(equations) and not equations[-1].is_right,
        "equation_error": max([equation.error for equation in equations], default=0.0),  # the largest relative error
        "wrong_equations_before": before.wrong,
        "unknown_operands": unknown,  # neither given in the problem nor computed before
        "overused_operands": overused,  # used more often than given or computed
        "unused_numbers": ledger.unused,  # given or computed, but not used yet
        "unused_numbers_at_end": ledger.unused if draft.stop == "end" else 0,
    }


FEATURES = tuple(EarlierSteps(Problem("", "")).by_name(Step("draft", "", 1, Cost(), "end", _CERTAIN_TOKEN)))
"""Feature names. Router files refer to features by name, and to the meaning of all names by `FEATURES_VERSION`."""

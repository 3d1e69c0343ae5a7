"""Judges whether a pair is worth using on this machine, and with which policy.

The verdict has a probability, which can be computed after any number of problems. Before the first problem, the probability
is based on the expected effect of each policy (`evaluation.expected`). Each solved problem adds evidence. A policy is worth
using if its speed-up is at least MIN_SPEEDUP and it loses at most MAX_LOST of the target's answers. `app.sentences`
describes the verdict in words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arbitrage_cli.evaluation.expected import UNKNOWN, Expected, route_of
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import DEFAULT_TAU
from arbitrage_cli.stats.intervals import Interval, Z

Figures = Mapping[str, Any]

MIN_SPEEDUP = 1.1  # minimum speed-up of a policy worth using
MAX_LOST = 0.05  # maximum share of lost answers
SURE = 0.95  # confidence at which more problems are not needed
HOPELESS = 0.02  # confidence below which a policy is not run
SPREAD, SPREAD_PROBLEMS = 0.3, 5.0
"""The prior standard deviation of a problem's log speed-up, and the number of problems that the prior counts as."""
COMPUTED_ERROR = 0.03  # the standard deviation of the error of a computed log speed-up, which more problems do not reduce
GRID = 4000  # points of the numerical integration

SIMILAR = 1.2  # maximum ratio of two speed-ups that count as similar
MAX_POINTS = 1.0  # maximum loss of a preset, in percentage points of the target's reward


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy considered as a replacement for the target alone.

    `speedup` and `interval` were measured in the run or, before the first problem, are expected values. `is_fast` and
    `is_safe` are the probabilities that the policy reaches MIN_SPEEDUP, and that it loses at most MAX_LOST of the answers.
    """

    route: str
    policy: str
    speedup: float
    interval: Interval
    is_fast: float
    is_safe: float
    num_problems: int = 0
    num_compared: int = 0  # attempts with comparable answers
    num_lost: int = 0  # compared attempts that lost the target's answer
    num_graded: int = 0  # compared attempts with a known right answer
    num_attempts: int = 0
    saving: float | None = None  # of the target's price
    saving_interval: Interval | None = None
    draft_share: float | None = None  # the draft's share of the policy's time

    @property
    def confidence(self) -> float:
        """The probability that the policy is worth using."""
        return self.is_fast * self.is_safe


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a pair: the policy to use, and the probability that this choice is right.

    `candidates` is sorted by confidence, highest first. `ratio_needed` is the token ratio (the cost of a target token in
    draft tokens) from which the pair would be worth using. `ratio_needed` is None if no ratio would suffice, or if the ratio
    is unknown.
    """

    route: str  # "target" if no candidate is worth using
    confidence: float
    num_problems: int
    candidates: tuple[Candidate, ...]
    token_ratio: float | None = None
    ratio_needed: float | None = None

    @property
    def best(self) -> Candidate:
        """The recommended candidate. If the target alone is recommended, the most promising candidate."""
        return next((one for one in self.candidates if one.route == self.route), self.candidates[0])

    @property
    def is_final(self) -> bool:
        """Whether the verdict is certain enough, and no other candidate might be clearly faster."""
        possible = [one for one in self.candidates if one.confidence > 1 - SURE]
        return self.confidence >= SURE and not any(one.speedup > SIMILAR * self.best.speedup for one in possible)


def verdict(figures: Figures, expected: Mapping[str, Expected]) -> Verdict | None:
    """Return the verdict on a run. `expected` maps all routes, including those that were not run, to their expected effects.

    Return None if there is no policy to compare with the target alone.
    """
    made = {route_of(policy): policy for policy in figures["policies"]}
    routes = {route: route.partition("@")[0] for route in (*expected, *made)}
    found = [
        _candidate(route, policy, made.get(route), expected.get(route, UNKNOWN), figures)
        for route, policy in routes.items()
        if policy != "target" and POLICIES[policy].kind != "oracle"
    ]
    candidates = sorted(_considered(found), key=lambda one: one.confidence, reverse=True)
    if not candidates:
        return None
    count = max(one.num_problems for one in candidates)
    ratio, likely = figures["token_ratio"], [one for one in candidates if one.confidence >= 0.5]
    if likely:
        best = max(likely, key=lambda one: one.confidence * math.log(max(1.0, one.speedup)))
        return Verdict(best.route, best.confidence, count, tuple(candidates), ratio)
    confidence = max(0.5, math.prod(1 - one.confidence for one in candidates))
    return Verdict("target", confidence, count, tuple(candidates), ratio, _ratio_needed(candidates, ratio))


def chance_of_speedup(expected: Expected) -> float:
    """Return the probability of a speed-up of at least MIN_SPEEDUP."""
    if expected.most < MIN_SPEEDUP:
        return 0.0
    return math.erfc(math.log(MIN_SPEEDUP / expected.speedup) / expected.spread / math.sqrt(2)) / 2


def chance_of_few_lost(expected: Expected) -> float:
    """Return the probability that at most MAX_LOST of the answers are lost, from a beta distribution of the share."""
    lost = expected.loss * expected.answers
    shares = (np.arange(GRID) + 0.5) / GRID
    logs = lost * np.log(shares) + (expected.answers - lost) * np.log1p(-shares)
    weights = np.exp(logs - logs.max())
    return float(weights[shares <= MAX_LOST].sum() / weights.sum())


def after_problems(
    expected: Expected, speedup: float, interval: Interval | None, count: int, error: float = COMPUTED_ERROR
) -> Expected:
    """Return the expected effect, updated by `count` problems with this speed-up and 95% interval (None if unknown).

    Log speed-ups are assumed to be normally distributed. `error` is the standard deviation of an error that all problems share.
    """
    between = SPREAD_PROBLEMS * SPREAD**2 + (count * _log_spread(interval)) ** 2
    weight = 1 / (between / (SPREAD_PROBLEMS + (count if interval else 0)) / count + error**2)
    precision = expected.spread**-2 + weight
    mean = (expected.spread**-2 * math.log(expected.speedup) + weight * math.log(speedup)) / precision
    return replace(expected, speedup=math.exp(mean), spread=precision**-0.5)


def after_answers(expected: Expected, num_lost: float, num_compared: float) -> Expected:
    """Return the expected effect, updated by the numbers of lost and compared answers."""
    answers = expected.answers + num_compared
    return replace(expected, loss=(expected.loss * expected.answers + num_lost) / answers, answers=answers)


def _candidate(route: str, policy: str, made: Figures | None, expected: Expected, figures: Figures) -> Candidate:
    keeps_text = POLICIES[policy].speculates
    speedup = made and (made["speedup"] or made["throughput_ratio"])
    if not made or not speedup:
        is_safe = 1.0 if keeps_text else chance_of_few_lost(expected)
        return Candidate(route, policy, expected.speedup, expected.interval, chance_of_speedup(expected), is_safe)
    interval, samples = made["speedup_interval"] or made["throughput_ratio_interval"], figures["samples"]
    lost, attempts = made["ratios"]["answers_lost"], made["ratios"]["accuracy_difference"]["denominator"]
    share = _draft_share(made["time"])
    error = math.hypot(COMPUTED_ERROR, share * _log_spread(figures["token_ratio_interval"]))
    known = after_problems(expected, speedup, interval, max(1, attempts // samples), error)
    known = after_answers(known, lost["numerator"] / samples, lost["denominator"] / samples)
    return Candidate(
        route,
        policy,
        speedup,
        tuple(interval) if interval else known.interval,
        chance_of_speedup(known) if share or not keeps_text else 0.0,  # speculation may draft nothing
        1.0 if keeps_text else chance_of_few_lost(known),
        num_problems=attempts // samples,
        num_compared=lost["denominator"],
        num_lost=lost["numerator"],
        num_graded=made["answers_graded"],
        num_attempts=attempts,
        saving=made["saving"],
        saving_interval=made["saving_interval"] and tuple(made["saving_interval"]),
        draft_share=share,
    )


def _draft_share(time: Figures) -> float:
    parts = {name: float(seconds) for name, seconds in time.items() if name not in ("wall", "rest")}
    draft = math.fsum(seconds for name, seconds in parts.items() if name.startswith("draft"))
    return draft / (math.fsum(parts.values()) or 1.0)


def _log_spread(interval: Interval | None) -> float:
    """Return the standard deviation of the logarithm of a quantity, given its 95% interval."""
    return math.log(interval[1] / interval[0]) / (2 * Z) if interval and interval[0] > 0 else 0.0


def _considered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Omit a policy's lossy presets beside its lossless preset, because the advice would alternate between them."""
    lossless = {one.policy for one in candidates if one.route.endswith(f"@{DEFAULT_TAU}")}
    return [one for one in candidates if one.policy not in lossless or one.route.endswith(f"@{DEFAULT_TAU}")]


def _ratio_needed(candidates: Sequence[Candidate], ratio: float | None) -> float | None:
    """Return the lowest token ratio at which a candidate that keeps the target's answers would be worth using.

    The ratio depends strongly on the speed-up, so a cautious value from the lower half of the speed-up's interval is used.
    """
    needed = [
        ratio * one.draft_share / left
        for one in candidates
        if ratio and one.draft_share and one.is_safe >= 0.5
        if (left := math.sqrt(one.speedup * one.interval[0]) / MIN_SPEEDUP - 1 + one.draft_share) > 0
    ]
    return min(needed, default=None)


def best_preset(named: Mapping[str, float], rows: Sequence[Figures]) -> tuple[str, Figures] | None:
    """Return the strictest preset that reaches MIN_SPEEDUP and loses at most MAX_POINTS, with its row, or None."""
    for name, tau in named.items():
        for row in rows:
            is_fast = row["tau"] == tau and row["time"] is not None and row["time"] * MIN_SPEEDUP < 1
            if is_fast and row["change"] >= -MAX_POINTS:
                return name, row
    return None

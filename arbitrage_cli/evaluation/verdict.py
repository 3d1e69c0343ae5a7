"""Judges whether a pair is worth using, and with which policy. A pair is judged by its prices, if it has any, or by its times.

A policy is worth using if two conditions hold. It saves enough: its speed-up is at least MIN_SPEEDUP or, for a pair with
prices, it saves at least MIN_SAVING of the price. The comparison is with the best lossless alternative, which is the target
alone or speculation. Its net change of accuracy (answers gained minus answers lost) is at least -MAX_LOSS of all answers and
at least -MAX_LOST of the target's right answers.

Each finished problem updates the expected effect of a policy (`expected`). Only policies with at least MIN_PROBLEMS finished
and compared problems are measured, and may be recommended. A policy is ruled out earlier if its chance to be worth using is
below UNLIKELY: without a problem by its bound (`bounds`), or after FEW_PROBLEMS. The verdict has a confidence if each
policy is measured or ruled out. `display.verdict` describes the verdict in words.

If a server does not report all tokens of a policy that was run, its price is unknown, and the pair is judged by its times. So
is a pair whose target is free.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from arbitrage_cli.evaluation.bounds import UNLIKELY, Bound
from arbitrage_cli.evaluation.expected import (
    ALONE,
    MIN_PRICE_RATIO,
    MIN_SPEEDUP,
    UNKNOWN,
    Expected,
    after_answers,
    after_problems,
    chance_of_saving,
    chance_of_small_loss,
    net_changes,
)
from arbitrage_cli.evaluation.figures import Factor, PolicyFigures, flat
from arbitrage_cli.numbers.intervals import Interval, Ratio
from arbitrage_cli.routing.policies import DRAFT_ALONE, TARGET_ALONE
from arbitrage_cli.routing.presets import LOSSES
from arbitrage_cli.routing.route import DEFAULT_TAU, Route
from arbitrage_cli.types import Json, frozen

Basis = Literal["price", "time"]
"""The basis on which a pair is judged."""

LIKELY = 0.6  # confidence below which the verdict is undecided
UNSURE = 0.5  # maximum confidence in a policy whose interval includes the target's speed or price
SURE = 0.95  # confidence at which more problems are not needed
MIN_PROBLEMS = 5  # finished and compared problems of a policy with a confidence
FEW_PROBLEMS = 2  # finished problems after which a policy may be ruled out
HOPELESS = 0.02  # confidence below which a measured policy is not worth more problems
SIMILAR = 1.2  # maximum ratio of two speed-ups that count as similar


TARGET = Route(TARGET_ALONE)


@frozen
class Candidate:
    """A route that may replace the target alone.

    `saves` and `is_safe` are the probabilities that the route saves enough and that its net change is acceptable. `ratio` is
    the target's time or price divided by the route's: measured or, before the first problem, expected. `num_problems` counts
    the problems that the route and the target finished. A route is measured if enough of them were compared. `bound` is set
    if the route was not run because its bound excludes it.
    """

    route: Route
    ratio: float
    saves: float
    is_safe: float = 1.0
    change: float = 0.0  # the net change as a share of the answers
    change_interval: Interval = (0.0, 0.0)
    num_problems: int = 0
    is_measured: bool = False
    was_run: bool = False
    bound: Bound | None = None

    @property
    def confidence(self) -> float:
        """The probability that the route is worth using."""
        return self.saves * self.is_safe

    @property
    def is_excluded(self) -> bool:
        """Whether the route is ruled out before it is measured: by its bound, or by a few problems."""
        is_tried = not self.is_measured and self.num_problems >= FEW_PROBLEMS
        return self.bound is not None or (is_tried and self.confidence < UNLIKELY)

    @property
    def is_hopeless(self) -> bool:
        """Whether the route is not worth more problems."""
        return self.is_excluded or (self.is_measured and self.confidence < HOPELESS)

    def to_json(self) -> Json:
        names = {"route": self.route.name, "policy": self.route.policy.name}
        return flat(self) | names | {"bound": self.bound.to_json() if self.bound else None}


@frozen
class Verdict:
    """The verdict on a pair: the route to use, and the probability that this choice is right.

    `confidence` is None if the recommended route is not measured. For the target alone, it is None if a route is neither
    measured nor excluded. `candidates` is sorted by confidence, highest first.
    """

    route: Route  # TARGET if no candidate is probably worth using
    confidence: float | None  # at least 0.5; the verdict is undecided below LIKELY
    num_problems: int
    candidates: tuple[Candidate, ...]
    basis: Basis = "time"

    @property
    def best(self) -> Candidate:
        """The recommended candidate. The most promising candidate if the target alone is recommended."""
        return next((one for one in self.candidates if one.route == self.route), self.candidates[0])

    @property
    def is_worth_it(self) -> bool:
        return self.route != TARGET

    @property
    def is_decided(self) -> bool:
        return self.confidence is not None and self.confidence >= LIKELY

    @property
    def is_by_bounds(self) -> bool:
        """Whether the bounds alone exclude all routes that use both models."""
        pairs = _of_both_models(self.candidates)
        return bool(pairs) and all(one.bound for one in pairs)

    @property
    def is_final(self) -> bool:
        """Whether more problems would not change the verdict: it is certain enough, or no other candidate is worth trying."""
        if _excludes_all(self.candidates):
            return True
        if self.is_worth_it:
            chance = self.best.confidence
        else:
            tried = [one for one in self.candidates if not one.is_excluded]
            chance = _chance_of_none(tried) if all(one.is_measured for one in tried) else 0.0
        possible = [one for one in self.candidates if one.confidence > 1 - SURE and not one.is_excluded]
        return chance >= SURE and not any(one.ratio > SIMILAR * self.best.ratio for one in possible)

    def to_json(self) -> Json:
        return flat(self) | {
            "route": self.route.name,
            "candidates": [one.to_json() for one in self.candidates],
        }


def verdict(
    policies: Sequence[PolicyFigures],
    expected: Mapping[Route, Expected],
    bounds: Iterable[Bound] = (),
    *,
    samples: int = 1,
    basis: Basis = "time",
) -> Verdict | None:
    """Return the verdict on a run, given the figures of its policies, with `samples` attempts at each problem.

    `expected` maps all routes, including those that were not run, to their expected effects. The `bounds` of routes that were
    not run may exclude them.

    Return None if the target alone is the only policy.
    """
    made = {one.route: _Evidence(one, samples, basis) for one in policies if one.both_finished is not None}
    were_run = {one.route for one in policies if one.num_made or one.both_finished}
    routes = [route for route in dict.fromkeys((*expected, *made)) if route.policy.is_candidate]
    effects = {route: expected.get(route, UNKNOWN) for route in routes}
    effects |= {route: made[route].update(effects[route]) for route in routes if route in made}
    lossless = [effects[route] for route in routes if route.policy.is_lossless]
    least = MIN_PRICE_RATIO if basis == "price" else MIN_SPEEDUP
    found = [_candidate(route, effects[route], lossless, made.get(route), least) for route in routes]
    excluded = {bound.route: bound for bound in bounds if bound.is_excluded and bound.route not in were_run}
    found = [
        _excluded(excluded[one.route]) if one.route in excluded else replace(one, was_run=one.route in were_run)
        for one in found
    ]
    return _conclude(_considered(found), basis)


def _excluded(bound: Bound) -> Candidate:
    return Candidate(bound.route, bound.at_most, bound.chance, bound=bound)


def _conclude(found: Iterable[Candidate], basis: Basis) -> Verdict | None:
    """Return the verdict on these candidates, or None without candidates."""
    candidates = tuple(sorted(found, key=lambda one: one.confidence, reverse=True))
    if not candidates:
        return None
    count = max(one.num_problems for one in candidates)
    if worth := [one for one in candidates if one.is_measured and one.confidence >= LIKELY]:
        best = _preferred(worth)
        return Verdict(best.route, best.confidence, count, candidates, basis)
    known = [one for one in candidates if one.is_measured or one.is_excluded]
    is_known = len(known) == len(candidates) or _excludes_all(candidates)
    return Verdict(TARGET, max(0.5, _chance_of_none(known)) if is_known else None, count, candidates, basis)


def _excludes_all(candidates: Iterable[Candidate]) -> bool:
    """Return whether all candidates except the draft alone are excluded. The draft alone does not use both models."""
    pairs = _of_both_models(candidates)
    return bool(pairs) and all(one.is_excluded for one in pairs)


def _of_both_models(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.route.policy is not DRAFT_ALONE]


def _chance_of_none(candidates: Sequence[Candidate]) -> float:
    return math.prod(1 - one.confidence for one in candidates)


@frozen
class _Evidence:
    """The measurements of a route that was compared with the target, with `samples` attempts at each problem."""

    made: PolicyFigures
    samples: int
    basis: Basis

    @property
    def factor(self) -> Factor:
        """The ratio by which the route is judged."""
        return self.made.price_ratio if self.basis == "price" else self.made.speedup

    @property
    def num_finished(self) -> int:
        """The number of attempts that both the route and the target finished."""
        return self.made.both_finished or 0

    @property
    def num_compared(self) -> int:
        """The number of these attempts whose answers were compared. The text of a lossless policy needs no comparison."""
        if self.made.route.policy.is_lossless:
            return self.num_finished
        return round(_count(self.made.target_right).denominator + _count(self.made.answers_same).denominator)

    @property
    def is_enough(self) -> bool:
        return min(self.num_finished, self.num_compared) >= MIN_PROBLEMS * self.samples

    @property
    def drafts_nothing(self) -> bool:
        """Whether this is speculation in which the draft wrote no tokens."""
        return self.made.route.policy.speculates and self.made.draft_tokens_per_second is None

    def update(self, expected: Expected) -> Expected:
        """Return the expected effect of the route, updated by its figures. Each problem counts once."""
        gained, lost = (_count(one).numerator / self.samples for one in (self.made.answers_gained, self.made.answers_lost))
        right, graded = _problems(self.made.target_right, self.samples)
        same, ungraded = _problems(self.made.answers_same, self.samples)
        updated = after_answers(expected, gained, lost, ungraded - same, graded + ungraded)
        if graded:
            updated = replace(updated, right=(right + 1) / (graded + 2))  # rule of succession
        if not self.factor.value:
            return updated
        return after_problems(updated, self.factor.value, self.factor.log_error, self.num_finished / self.samples)


def _count(figure: Ratio | None) -> Ratio:
    return figure or Ratio(0, 0)


def _problems(figure: Ratio | None, samples: int) -> tuple[float, float]:
    """Return the numerator and the denominator of a share of the answers, in problems."""
    counted = _count(figure)
    return counted.numerator / samples, counted.denominator / samples


def _candidate(
    route: Route, effect: Expected, lossless: Sequence[Expected], evidence: _Evidence | None, least: float
) -> Candidate:
    """Return a candidate, given its updated effect, the effects of routes that lose nothing, and what was measured, if anything.

    The ratio must be at least `least`, also beside lossless routes.
    """
    policy, factor = route.policy, evidence.factor if evidence else Factor()
    others = [ALONE] if policy.is_lossless else [ALONE, *lossless]
    saves = min(chance_of_saving(effect, other, least) for other in others)
    if (factor.interval or effect.interval)[0] <= 1:
        saves = min(saves, UNSURE)
    if evidence and factor.value and evidence.drafts_nothing:
        saves = 0.0
    found = Candidate(route, factor.value or effect.ratio, saves)
    if not policy.is_lossless:
        low, high = map(float, np.quantile(net_changes(effect), [0.025, 0.975]))
        found = replace(found, is_safe=chance_of_small_loss(effect), change=effect.change, change_interval=(low, high))
    if not evidence or not factor.value:
        return found
    return replace(found, num_problems=evidence.num_finished // evidence.samples, is_measured=evidence.is_enough)


def _preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Return the most accurate of the candidates that are about as good as the most promising candidate, or better."""
    best = max(candidates, key=lambda one: one.confidence * math.log(max(1.0, one.ratio)))
    similar = [one for one in candidates if one.ratio * SIMILAR >= best.ratio]
    return max(similar, key=lambda one: (one.change, one.ratio))


def _considered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Omit the less strict presets of a policy that also has `careful`, because the advice would alternate between them."""
    has_careful = {one.route.policy for one in candidates if one.route.tau_name == DEFAULT_TAU}
    return [one for one in candidates if one.route.policy not in has_careful or one.route.tau_name not in LOSSES]

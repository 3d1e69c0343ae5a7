"""Judges whether a pair is worth using, and with which policy. A pair is judged by its prices, if it has any, or by its times.

A policy is worth using if two conditions hold. It saves enough: its speed-up is at least MIN_SPEEDUP or, for a pair with
prices, it saves at least MIN_SAVING of the price. The comparison is with the best lossless alternative, which is the target
alone or speculation. Its net change of accuracy (answers gained minus answers lost) is at least -MAX_LOSS of all answers and
at least -MAX_LOST of the target's right answers.

Before the first problem, the expected effect of a policy decides only whether to try it. It follows from the costs or prices
of tokens and from the router's card. Each finished problem adds evidence. A verdict has a probability only if it is based on
policies with at least MIN_PROBLEMS finished and compared problems. `display.verdict` describes the verdict in words.

If a server does not report all tokens of a policy that was run, its price is unknown, and the pair is judged by its times.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist
from types import MappingProxyType
from typing import Literal

import numpy as np

from arbitrage_cli.costs.pair import PairCosts, Prices, price_costs
from arbitrage_cli.evaluation.figures import Factor, PolicyFigures, flat
from arbitrage_cli.evaluation.speed import LEAST_PRICE
from arbitrage_cli.numbers.intervals import SEED, Interval, Numbers, Ratio, Z
from arbitrage_cli.routing.policies import DRAFT_ALONE, TARGET_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import DEFAULT_TAU, Route
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ByRole, Fields, Json, frozen

Basis = Literal["price", "time"]
"""By what a pair is judged."""

LOST_IF_DIFFERENT = 0.5, 0.5
"""The net loss per ungraded answer that differs from the target's: mean and standard deviation over pairs of models."""
MATCH_RATES = (0.5, 0.75, 0.9)  # the 10%, 50% and 90% quantiles of acceptance rates of draft tokens over all pairs
QUANTILE = 1.2816  # the 90% quantile of the normal distribution
PROMPT_TOKENS, WRITTEN_TOKENS = 100.0, 200.0  # of a problem, if there is no router whose table has them
CARD_SPREAD, OTHER_SPREAD, MIN_SPREAD, UNTRIED_SPREAD = 0.25, 0.5, 0.125, 0.01
"""The standard deviation of log speed-ups around a card's prediction, for its own pairs and for other pairs, the minimum
beside a measurement, and for speculation that drafts nothing."""
CARD_ANSWERS, OTHER_ANSWERS = 10, 4
"""The weight of a card's expected net change, in measured answers, for its own pairs (at most) and for other pairs."""
CHANGED = 0.5  # the answers that any expectation counts as gained, and as lost: Jeffreys' prior
DRAFT_CHANGE = -0.15  # the expected net change of the draft alone, as a share of the answers


@frozen
class Expected:
    """The expected effect of a policy: a log-normal ratio, and the outcomes of answers.

    The ratio is the target's time or price divided by the policy's. `ratio` is the median, and `spread` is the standard
    deviation of its logarithm. The expectation that shares of the answers are gained, lost and kept has the weight of that
    many measured answers. Answers without a grade are kept, or `differing` from the target's. `right` is the share of answers
    that the target has right.
    """

    ratio: float = 1.0
    spread: float = 0.7
    gained: float = 0.5
    lost: float = 0.7
    kept: float = 2.8
    differing: float = 0.0
    right: float = 1.0

    @property
    def change(self) -> float:
        """The net change of accuracy, as a share of the answers."""
        whole = self.gained + self.lost + self.kept + self.differing
        return (self.gained - self.lost - LOST_IF_DIFFERENT[0] * self.differing) / whole

    @property
    def interval(self) -> Interval:
        low, high = (self.ratio * math.exp(sign * Z * self.spread) for sign in (-1, 1))
        return low, high


UNKNOWN = Expected()


def expected_effects(run: Run, prices: Prices | None = None) -> dict[Route, Expected]:
    """Return the expected effect of each route of a run: on the price if there are prices, or on the time."""
    decided = run.decided
    costs = price_costs(prices) if prices else PairCosts.of(decided.unit_costs)
    card = decided.router.card if decided.router else None
    return effects_of(run.routes, costs, card, {role: one.sha256 for role, one in decided.models.items()})


def effects_of(
    routes: Iterable[Route],
    costs: PairCosts | None,
    card: Fields | None = None,
    models: ByRole[str | None] = MappingProxyType({}),
) -> dict[Route, Expected]:
    """Return the expected effect of each route. `models` contains checksums, and `card` is that of the router."""
    costs = costs if costs and costs.target.decode else None  # nothing is saved against a free target
    table = TauTable.from_json(card["taus"]) if card else None
    if table and costs:
        table = table.at_costs(costs)
    is_own = card is not None and any(_is_pair(models, pair) for pair in card["pairs"])
    candidates = (route for route in routes if route.policy.is_candidate)
    return {route: _expected(route, costs, table, is_own=is_own) for route in candidates}


def _expected(route: Route, costs: PairCosts | None, table: TauTable | None, *, is_own: bool) -> Expected:
    policy = route.policy
    if policy.speculates:
        return _speculation(costs, table)
    if policy is DRAFT_ALONE:
        return Expected(_of_draft(costs, table), OTHER_SPREAD, *_outcomes(DRAFT_CHANGE, OTHER_ANSWERS))
    if not policy.needs_router or table is None:
        return UNKNOWN
    row = table.row_at(route.tau or 0.0, stops_early=route.stops_early)
    time, spread = table.time(row), CARD_SPREAD if is_own else OTHER_SPREAD
    answers = max(OTHER_ANSWERS, min(table.num_solutions, CARD_ANSWERS)) if is_own else OTHER_ANSWERS
    outcomes = _outcomes(row.change / 100, answers)
    return Expected(1 / time, spread, *outcomes) if time else Expected(1.0, OTHER_SPREAD, *outcomes)


def _outcomes(change: float, answers: float) -> tuple[float, float, float]:
    """Return the numbers of gained, lost and kept answers of an expected net change with the weight of `answers`."""
    gained, lost = (CHANGED + answers * max(0.0, one) for one in (change, -change))
    return gained, lost, max(CHANGED, answers - gained - lost)


def _speculation(costs: PairCosts | None, table: TauTable | None) -> Expected:
    if costs is None:
        return UNKNOWN
    tokens = (table.prompt_tokens, table.alone_tokens) if table else (PROMPT_TOKENS, WRITTEN_TOKENS)
    speedups = (costs.alone(*tokens) / costs.speculative(*tokens, rate) for rate in MATCH_RATES)
    low, middle, high = speedups
    if high <= 1:  # the target drafts nothing
        return Expected(middle, UNTRIED_SPREAD)
    return Expected(middle, max(math.log(high / low) / (2 * QUANTILE), MIN_SPREAD))


def _of_draft(costs: PairCosts | None, table: TauTable | None) -> float:
    """Return the ratio if the draft writes every step. A draft may be free."""
    if table and (time := table.time(table.rows[-1])):
        return 1 / max(time, LEAST_PRICE)
    return costs.target.decode / max(costs.draft.decode, LEAST_PRICE * costs.target.decode) if costs else 1.0


def _is_pair(models: ByRole[str | None], pair: Fields) -> bool:
    return all(models.get(role) and models[role] == pair.get(role, {}).get("sha256") for role in WRITING)


MIN_SPEEDUP, MIN_SAVING = 1.1, 0.1  # minimum speed-up, or share of the price that is saved, of a policy worth using
MAX_LOSS, MAX_LOST = 0.02, 0.05  # maximum net loss, as shares of all answers and of the target's right answers
LIKELY = 0.6  # confidence below which the verdict is undecided
UNSURE = 0.5  # maximum confidence in a policy whose interval includes the target's speed or price
SURE = 0.95  # confidence at which more problems are not needed
MIN_PROBLEMS = 5  # finished and compared problems of a policy with a confidence
HOPELESS = 0.02  # confidence below which a policy is not run
SPREAD, SPREAD_PROBLEMS = 0.7, 3.0
"""The prior standard deviation of a problem's log speed-up, and the number of problems that the prior counts as."""
DRAWS = 10_000  # random net changes from which probabilities and intervals are computed
SIMILAR = 1.2  # maximum ratio of two speed-ups that count as similar


ALONE = Expected(spread=0.0)  # the effect of the target alone
TARGET = Route(TARGET_ALONE)


@frozen
class Candidate:
    """A route that may replace the target alone.

    `saves` and `is_safe` are the probabilities that the route saves enough and that its net change is acceptable. `ratio` is
    the target's time or price divided by the route's: measured or, before the first problem, expected. `num_problems` counts
    the problems that the route and the target finished. A route is measured if enough of them were compared.
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

    @property
    def confidence(self) -> float:
        """The probability that the route is worth using."""
        return self.saves * self.is_safe

    @property
    def is_hopeless(self) -> bool:
        """Whether the route is not worth more problems. A route that was tried needs MIN_PROBLEMS problems."""
        if self.is_measured:
            return self.confidence < HOPELESS
        return not self.num_problems and self.saves < HOPELESS

    def to_json(self) -> Json:
        return flat(self) | {"route": self.route.name, "policy": self.route.policy.name}


@frozen
class Verdict:
    """The verdict on a pair: the route to use, and the probability that this choice is right.

    `confidence` is None if the recommended route is not measured. For the target alone, it is None if a route that is worth
    trying is not measured, or if only the draft is. `candidates` is sorted by confidence, highest first.
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
    def is_final(self) -> bool:
        """Whether the verdict is certain enough, and no other candidate might be clearly better."""
        if self.is_worth_it:
            chance = self.best.confidence
        else:
            settled = all(one.is_measured or one.is_hopeless for one in self.candidates)
            chance = _chance_of_none(self.candidates) if settled else 0.0
        possible = [one for one in self.candidates if one.confidence > 1 - SURE]
        return chance >= SURE and not any(one.ratio > SIMILAR * self.best.ratio for one in possible)

    def to_json(self) -> Json:
        return flat(self) | {
            "route": self.route.name,
            "candidates": [one.to_json() for one in self.candidates],
        }


def verdict(
    policies: Sequence[PolicyFigures],
    expected: Mapping[Route, Expected],
    *,
    samples: int = 1,
    basis: Basis = "time",
) -> Verdict | None:
    """Return the verdict on a run, given the figures of its policies, with `samples` attempts at each problem.

    `expected` maps all routes, including those that were not run, to their expected effects.

    Return None if the target alone is the only policy.
    """
    made = {one.route: _Evidence(one, samples, basis) for one in policies if one.both_finished is not None}
    were_run = {one.route for one in policies if one.num_made or one.both_finished}
    routes = [route for route in dict.fromkeys((*expected, *made)) if route.policy.is_candidate]
    effects = {route: expected.get(route, UNKNOWN) for route in routes}
    effects |= {route: made[route].update(effects[route]) for route in routes if route in made}
    lossless = [effects[route] for route in routes if route.policy.is_lossless]
    least = 1 / (1 - MIN_SAVING) if basis == "price" else MIN_SPEEDUP
    found = [_candidate(route, effects[route], lossless, made.get(route), least) for route in routes]
    found = [replace(one, was_run=one.route in were_run) for one in found]
    return conclude(_considered(found), basis)


def conclude(found: Iterable[Candidate], basis: Basis = "time") -> Verdict | None:
    """Return the verdict on these candidates, or None if there are none."""
    candidates = tuple(sorted(found, key=lambda one: one.confidence, reverse=True))
    if not candidates:
        return None
    count = max(one.num_problems for one in candidates)
    if worth := [one for one in candidates if one.is_measured and one.confidence >= LIKELY]:
        best = _preferred(worth)
        return Verdict(best.route, best.confidence, count, candidates, basis)
    unmeasured = [one for one in candidates if not one.is_measured]
    is_tried = any(one.is_measured and one.route.policy is not DRAFT_ALONE for one in candidates)
    is_known = not unmeasured or (is_tried and all(one.is_hopeless for one in unmeasured))
    chance = max(0.5, _chance_of_none(candidates)) if is_known else None
    return Verdict(TARGET, chance, count, candidates, basis)


def chance_of_saving(expected: Expected, other: Expected = ALONE, least: float = MIN_SPEEDUP) -> float:
    """Return the probability that the ratio of a policy's speed or price to another's is at least `least`."""
    log_ratio = NormalDist(math.log(expected.ratio / other.ratio), math.hypot(expected.spread, other.spread))
    return 1 - log_ratio.cdf(math.log(least))


def chance_of_small_loss(expected: Expected) -> float:
    """Return the probability of an acceptable net change."""
    return 1 - float(np.searchsorted(_net_changes(expected), -min(MAX_LOSS, MAX_LOST * expected.right))) / DRAWS


@lru_cache(maxsize=256)
def _net_changes(expected: Expected) -> Numbers:
    """Return random net changes in ascending order. The shares of answers have a Dirichlet distribution."""
    dice = np.random.default_rng(SEED)
    weights = expected.gained, expected.lost, expected.kept, expected.differing + 1e-9
    gained, lost, _, differing = dice.dirichlet(weights, DRAWS).T
    return np.sort(gained - lost - differing * dice.normal(*LOST_IF_DIFFERENT, DRAWS))


def after_problems(expected: Expected, ratio: float, log_error: float | None, count: float) -> Expected:
    """Return the expected effect, updated by `count` problems with this ratio.

    Log ratios are assumed to be normally distributed. `log_error` is the standard error of the logarithm of the ratio, or None
    if it is unknown. However certain an expectation is, it weighs no more than one with MIN_SPREAD.
    """
    between = SPREAD_PROBLEMS * SPREAD**2 + (count * (log_error or 0.0)) ** 2
    weight = (SPREAD_PROBLEMS + (0 if log_error is None else count)) * count / between
    prior = max(expected.spread, MIN_SPREAD) ** -2
    precision = prior + weight
    mean = (prior * math.log(expected.ratio) + weight * math.log(ratio)) / precision
    return replace(expected, ratio=math.exp(mean), spread=precision**-0.5)


def after_answers(expected: Expected, gained: float, lost: float, differing: float, compared: float) -> Expected:
    """Return the expected effect, updated by the numbers of gained, lost, differing and compared answers."""
    kept = expected.kept + compared - gained - lost - differing
    added = {"gained": expected.gained + gained, "lost": expected.lost + lost, "differing": expected.differing + differing}
    return replace(expected, kept=kept, **added)


def _chance_of_none(candidates: Sequence[Candidate]) -> float:
    return math.prod(1 - one.confidence for one in candidates)


@frozen
class _Evidence:
    """What was measured of a route that was compared with the target, with `samples` attempts at each problem."""

    made: PolicyFigures
    samples: int
    basis: Basis

    @property
    def factor(self) -> Factor:
        """The ratio by which the route is judged."""
        return self.made.price_ratio if self.basis == "price" else self.made.speedup

    @property
    def num_finished(self) -> int:
        """The attempts that the route and the target finished."""
        return self.made.both_finished or 0

    @property
    def num_compared(self) -> int:
        """Those of them whose answers were compared. The text of a lossless policy needs no comparison."""
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
        low, high = map(float, np.quantile(_net_changes(effect), [0.025, 0.975]))
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
    """Omit a policy's lossy presets if its lossless preset is present, because the advice would alternate between them."""
    lossless = {one.route.policy for one in candidates if one.route.tau_name == DEFAULT_TAU}
    return [one for one in candidates if one.route.policy not in lossless or one.route.tau_name == DEFAULT_TAU]

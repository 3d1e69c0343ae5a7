"""Judges whether a pair is worth using, and with which policy. A pair is judged by its prices, if it has any, or by its times.

A policy is worth using if two conditions hold. It saves enough: its speed-up is at least MIN_SPEEDUP or, for a pair with
prices, it saves at least MIN_SAVING of the price. The comparison is with the best lossless alternative, which is the target
alone or speculation. Its net change of accuracy (answers gained minus answers lost) is at least -MAX_LOSS of all answers and
at least -MAX_LOST of the target's right answers.

Before the first problem, the expected effect of a policy decides only whether to try it. It follows from the costs or prices
of tokens and from the router's card. Each finished problem adds evidence. A verdict has a probability only if it is based on
policies with at least MIN_PROBLEMS finished and compared problems. `display.verdict` describes the verdict in words.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np

from arbitrage_cli.costs.pair import PairCosts, Prices, price_costs
from arbitrage_cli.evaluation.speed import LEAST_PRICE
from arbitrage_cli.numbers.intervals import SEED, Interval, Numbers, Z
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE, Policy
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import DEFAULT_TAU, Route, stored_route
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ByRole, Fields, frozen

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


def expected_effects(run: Run, prices: Prices | None = None) -> dict[str, Expected]:
    """Return the expected effect of each policy of a run, by route: on the price if there are prices, or on the time."""
    decided = run.decided
    costs = price_costs(prices) if prices else PairCosts.of(decided.unit_costs)
    card = decided.router.card if decided.router else None
    return effects_of(run.routes, costs, card, {role: one.sha256 for role, one in decided.models.items()})


def effects_of(
    routes: Iterable[Route],
    costs: PairCosts | None,
    card: Fields | None = None,
    models: ByRole[str | None] = MappingProxyType({}),
) -> dict[str, Expected]:
    """Return the expected effect of each route. `models` contains checksums, and `card` is that of the router."""
    costs = costs if costs and costs.target.decode else None  # nothing is saved against a free target
    table = TauTable.from_json(card["taus"]) if card else None
    if table and costs:
        table = table.at_costs(costs)
    is_own = card is not None and any(_is_pair(models, pair) for pair in card["pairs"])
    candidates = (route for route in routes if route.policy.is_candidate)
    return {route.name: _expected(route, costs, table, is_own=is_own) for route in candidates}


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


@frozen
class Candidate:
    """A policy that may replace the target alone.

    `saves` and `is_safe` are the probabilities that the policy saves enough and that its net change is acceptable. `ratio` is
    the target's time or price divided by the policy's: measured or, before the first problem, expected. `num_problems` counts
    the problems that the policy and the target finished. A policy is measured if enough of them were compared.
    """

    route: str
    policy: str
    ratio: float
    saves: float
    is_safe: float = 1.0
    change: float = 0.0  # the net change as a share of the answers
    change_interval: Interval = (0.0, 0.0)
    num_problems: int = 0
    is_measured: bool = False

    @property
    def confidence(self) -> float:
        """The probability that the policy is worth using."""
        return self.saves * self.is_safe

    @property
    def is_hopeless(self) -> bool:
        """Whether the policy is not worth more problems. A policy that was tried needs MIN_PROBLEMS problems."""
        if self.is_measured:
            return self.confidence < HOPELESS
        return not self.num_problems and self.saves < HOPELESS


@frozen
class Verdict:
    """The verdict on a pair: the policy to use, and the probability that this choice is right.

    `confidence` is None if the recommended policy is not measured. For the target alone, it is None if a policy that is
    worth trying is not measured, or if only the draft is. `candidates` is sorted by confidence, highest first.
    """

    route: str  # "target" if no candidate is probably worth using
    confidence: float | None  # at least 0.5; the verdict is undecided below LIKELY
    num_problems: int
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The recommended candidate. The most promising candidate if the target alone is recommended."""
        return next((one for one in self.candidates if one.route == self.route), self.candidates[0])

    @property
    def is_decided(self) -> bool:
        return self.confidence is not None and self.confidence >= LIKELY

    @property
    def is_final(self) -> bool:
        """Whether the verdict is certain enough, and no other candidate might be clearly better."""
        if self.route == TARGET_ALONE.name:
            settled = all(one.is_measured or one.is_hopeless for one in self.candidates)
            chance = _chance_of_none(self.candidates) if settled else 0.0
        else:
            chance = self.best.confidence
        possible = [one for one in self.candidates if one.confidence > 1 - SURE]
        return chance >= SURE and not any(one.ratio > SIMILAR * self.best.ratio for one in possible)


def verdict(figures: Fields, expected: Mapping[str, Expected]) -> Verdict | None:
    """Return the verdict on a run. `expected` maps all routes, including those that were not run, to their expected effects.

    Return None if the target alone is the only policy.
    """
    made = {stored_route(policy).name: policy for policy in figures["policies"] if "answers_lost" in policy["ratios"]}
    routes = [route for route in dict.fromkeys((*expected, *made)) if _policy_of(route).is_candidate]
    effects = {route: expected.get(route, UNKNOWN) for route in routes}
    effects |= {route: _updated(effects[route], made[route], figures) for route in routes if route in made}
    lossless = [effects[route] for route in routes if _policy_of(route).is_lossless]
    found = [_candidate(route, effects[route], lossless, made.get(route), figures) for route in routes]
    candidates = tuple(sorted(_considered(found), key=lambda one: one.confidence, reverse=True))
    if not candidates:
        return None
    count = max(one.num_problems for one in candidates)
    if worth := [one for one in candidates if one.is_measured and one.confidence >= LIKELY]:
        best = _preferred(worth)
        return Verdict(best.route, best.confidence, count, candidates)
    unmeasured = [one for one in candidates if not one.is_measured]
    is_tried = any(one.is_measured and _policy_of(one.route) is not DRAFT_ALONE for one in candidates)
    is_known = not unmeasured or (is_tried and all(one.is_hopeless for one in unmeasured))
    return Verdict("target", max(0.5, _chance_of_none(candidates)) if is_known else None, count, candidates)


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


def _policy_of(route: str) -> Policy:
    return POLICIES[route.partition("@")[0]]


def _measured_ratio(made: Fields, figures: Fields) -> list[Any]:
    """Return the ratio by which a policy is judged, the standard error of its logarithm, and its interval."""
    name = "price_ratio" if figures["is_priced"] else "speedup"
    return [made[f"{name}{suffix}"] for suffix in ("", "_log_error", "_interval")]


def _answers(made: Fields) -> list[float]:
    """Return the numbers of gained, lost, same and right answers, and those of graded and ungraded answers."""
    ratios = made["ratios"]
    names = "answers_gained", "answers_lost", "answers_same", "target_right"
    counted = [ratios[name]["numerator"] for name in names]
    return [*counted, ratios["target_right"]["denominator"], ratios["answers_same"]["denominator"]]


def _updated(expected: Expected, made: Fields, figures: Fields) -> Expected:
    """Return the expected effect of a policy, updated by its figures."""
    samples = figures["samples"]
    gained, lost, same, right, graded, ungraded = (count / samples for count in _answers(made))
    updated = after_answers(expected, gained, lost, ungraded - same, graded + ungraded)
    if graded:
        updated = replace(updated, right=(right + 1) / (graded + 2))  # rule of succession
    ratio, log_error, _ = _measured_ratio(made, figures)
    return after_problems(updated, ratio, log_error, made["both_finished"] / samples) if ratio else updated


def _candidate(
    route: str, effect: Expected, lossless: Sequence[Expected], made: Fields | None, figures: Fields
) -> Candidate:
    """Return a candidate, given its updated effect, the effects of policies that lose nothing, and its figures, if any."""
    policy, least = _policy_of(route), 1 / (1 - MIN_SAVING) if figures["is_priced"] else MIN_SPEEDUP
    ratio, _, interval = _measured_ratio(made, figures) if made else (None, None, None)
    saves = min(chance_of_saving(effect, other, least) for other in (ALONE, *([] if policy.is_lossless else lossless)))
    if (interval or effect.interval)[0] <= 1:
        saves = min(saves, UNSURE)
    if ratio and policy.speculates and made and made["draft_tokens_per_second"] is None:
        saves = 0.0
    found = Candidate(route, policy.name, ratio or effect.ratio, saves)
    if not policy.is_lossless:
        low, high = map(float, np.quantile(_net_changes(effect), [0.025, 0.975]))
        found = replace(found, is_safe=chance_of_small_loss(effect), change=effect.change, change_interval=(low, high))
    if not made or not ratio:
        return found
    finished, samples = made["both_finished"], figures["samples"]
    compared = finished if policy.is_lossless else sum(_answers(made)[-2:])
    is_measured = min(finished, compared) >= MIN_PROBLEMS * samples
    return replace(found, num_problems=finished // samples, is_measured=is_measured)


def _preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Return the most accurate of the candidates that are about as good as the most promising candidate, or better."""
    best = max(candidates, key=lambda one: one.confidence * math.log(max(1.0, one.ratio)))
    similar = [one for one in candidates if one.ratio * SIMILAR >= best.ratio]
    return max(similar, key=lambda one: (one.change, one.ratio))


def _considered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Omit a policy's lossy presets beside its lossless preset, because the advice would alternate between them."""
    lossless = {one.policy for one in candidates if one.route.endswith(f"@{DEFAULT_TAU}")}
    return [one for one in candidates if one.policy not in lossless or one.route.endswith(f"@{DEFAULT_TAU}")]

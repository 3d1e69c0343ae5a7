"""Judges whether a pair is worth using on this machine, and with which policy.

The verdict has a probability, which can be computed after any number of problems. Before the first problem, the probability
is based on the expected effect of each policy (`expected_effects`). Each solved problem adds evidence.

A policy is worth using if two conditions hold. Its speed-up over the best lossless alternative, which is the target alone or
speculation, is at least MIN_SPEEDUP. Its net change of accuracy (answers gained minus answers lost) is at least -MAX_LOSS of
all answers and at least -MAX_LOST of the target's right answers. `display.verdict` describes the verdict in words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.numbers.intervals import SEED, Interval, Numbers, Z
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import DEFAULT_TAU, stored_route
from arbitrage_cli.runs.results import unit_costs_of

Figures = Mapping[str, Any]

MIN_SPEEDUP = 1.1  # minimum speed-up of a policy worth using
MAX_LOSS, MAX_LOST = 0.02, 0.05  # maximum net loss, as shares of all answers and of the target's right answers
LIKELY = 0.6  # confidence below which the verdict is undecided
SURE = 0.95  # confidence at which more problems are not needed
HOPELESS = 0.02  # confidence below which a policy is not run
SPREAD, SPREAD_PROBLEMS = 0.7, 3.0
"""The prior standard deviation of a problem's log speed-up, and the number of problems that the prior counts as."""
DRAWS = 10_000  # random net changes from which probabilities and intervals are computed
SIMILAR = 1.2  # maximum ratio of two speed-ups that count as similar
MAX_POINTS = 1.0  # maximum loss of a preset, in percentage points of the target's reward

MATCH_RATES, MOST_MATCHES = (0.5, 0.75, 0.9), 0.97
"""The 10%, 50% and 90% quantiles of acceptance rates of draft tokens over all pairs, and the best case."""
QUANTILE = 1.2816  # the 90% quantile of the normal distribution
PROMPT_TOKENS, WRITTEN_TOKENS = 100.0, 200.0  # of a problem, if there is no router whose table has them
CARD_SPREAD, OTHER_SPREAD = 0.25, 0.5
"""The standard deviation of log speed-ups around a card's prediction, for its own pairs and for other pairs."""
CARD_ANSWERS, OTHER_ANSWERS = 10, 4
"""The weight of a card's expected net change, in measured answers, for its own pairs (at most) and for other pairs."""
CHANGED = 0.5  # the answers that any expectation counts as gained, and as lost: Jeffreys' prior
DRAFT_CHANGE = -0.15  # the expected net change of the draft alone, as a share of the answers


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected effect of a policy: a log-normal speed-up of at most `most`, and the outcomes of answers.

    `speedup` is the median, and `spread` is the standard deviation of its logarithm. The expectation that shares of the
    answers are gained, lost and kept has the weight of that many measured answers. `right` is the share of answers that the
    target has right.
    """

    speedup: float = 1.0
    spread: float = 0.7
    most: float = math.inf
    gained: float = 0.5
    lost: float = 0.7
    kept: float = 2.8
    right: float = 1.0

    @property
    def change(self) -> float:
        """The net change of accuracy, as a share of the answers."""
        return (self.gained - self.lost) / (self.gained + self.lost + self.kept)

    @property
    def interval(self) -> Interval:
        low, high = (self.speedup * math.exp(sign * Z * self.spread) for sign in (-1, 1))
        return low, max(low, min(high, self.most))


UNKNOWN = Expected()
ALONE = Expected(spread=0.0)  # the effect of the target alone


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy considered as a replacement for the target alone.

    If the run has an interval of the speed-up, `speedup` and `interval` are those of the run. Otherwise, `is_expected` is
    true, and they are the expected speed-up, updated by the problems of the run. `is_fast` and `is_safe` are the
    probabilities that the policy is fast enough and that its net change is acceptable.
    """

    route: str
    policy: str
    speedup: float
    interval: Interval
    is_fast: float
    is_safe: float
    is_expected: bool = False
    change: float = 0.0  # the net change as a share of the answers
    change_interval: Interval = (0.0, 0.0)
    num_problems: int = 0
    num_compared: int = 0  # attempts with comparable answers
    num_gained: int = 0  # compared attempts that are right where the target is wrong
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

    route: str  # "target" if no candidate is probably worth using
    confidence: float  # at least 0.5; the verdict is undecided below LIKELY
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

    Return None if the target alone is the only policy.
    """
    made = {stored_route(policy).name: policy for policy in figures["policies"] if "answers_lost" in policy["ratios"]}
    routes = [route for route in dict.fromkeys((*expected, *made)) if _policy_of(route).kind != "oracle"]
    effects = {route: expected.get(route, UNKNOWN) for route in routes}
    effects |= {route: _updated(effects[route], made[route], figures["samples"]) for route in routes if route in made}
    lossless = [effects[route] for route in routes if _policy_of(route).speculates]
    found = [_candidate(route, effects[route], lossless) for route in routes]
    found = [_with_figures(one, made[one.route], figures["samples"]) if one.route in made else one for one in found]
    candidates = tuple(sorted(_considered(found), key=lambda one: one.confidence, reverse=True))
    if not candidates:
        return None
    count, ratio = max(one.num_problems for one in candidates), figures["token_ratio"]
    if likely := [one for one in candidates if one.confidence >= LIKELY]:
        best = _preferred(likely)
        return Verdict(best.route, best.confidence, count, candidates, ratio)
    confidence = max(0.5, math.prod(1 - one.confidence for one in candidates))
    return Verdict("target", confidence, count, candidates, ratio, _ratio_needed(candidates, ratio))


def chance_of_speedup(expected: Expected, other: Expected = ALONE) -> float:
    """Return the probability that the speed-up of a policy over another is at least MIN_SPEEDUP."""
    if expected.most < MIN_SPEEDUP:
        return 0.0
    log_ratio = NormalDist(math.log(expected.speedup / other.speedup), math.hypot(expected.spread, other.spread))
    return 1 - log_ratio.cdf(math.log(MIN_SPEEDUP))


def chance_of_small_loss(expected: Expected) -> float:
    """Return the probability of an acceptable net change."""
    return 1 - float(np.searchsorted(_net_changes(expected), -min(MAX_LOSS, MAX_LOST * expected.right))) / DRAWS


@lru_cache(maxsize=256)
def _net_changes(expected: Expected) -> Numbers:
    """Return random net changes in ascending order. The three shares of answers have a Dirichlet distribution."""
    shares = np.random.default_rng(SEED).dirichlet((expected.gained, expected.lost, expected.kept), DRAWS)
    return np.sort(shares[:, 0] - shares[:, 1])


def after_problems(expected: Expected, speedup: float, log_error: float | None, count: float) -> Expected:
    """Return the expected effect, updated by `count` problems with this speed-up.

    Log speed-ups are assumed to be normally distributed. `log_error` is the standard error of the logarithm of the speed-up,
    or None if it is unknown.
    """
    between = SPREAD_PROBLEMS * SPREAD**2 + (count * (log_error or 0.0)) ** 2
    weight = (SPREAD_PROBLEMS + (0 if log_error is None else count)) * count / between
    precision = expected.spread**-2 + weight
    mean = (expected.spread**-2 * math.log(expected.speedup) + weight * math.log(speedup)) / precision
    return replace(expected, speedup=math.exp(mean), spread=precision**-0.5)


def after_answers(expected: Expected, gained: float, lost: float, compared: float) -> Expected:
    """Return the expected effect, updated by the numbers of gained, lost and compared answers."""
    kept = expected.kept + compared - gained - lost
    return replace(expected, gained=expected.gained + gained, lost=expected.lost + lost, kept=kept)


def _policy_of(route: str) -> Policy:
    return POLICIES[route.partition("@")[0]]


def _updated(expected: Expected, made: Figures, samples: int) -> Expected:
    """Return the expected effect of a policy, updated by its figures."""
    ratios, speedup = made["ratios"], made["speedup"]
    gained, lost, right = (
        ratios[name]["numerator"] / samples for name in ("answers_gained", "answers_lost", "target_right")
    )
    compared, count = (ratios[name]["denominator"] / samples for name in ("answers_lost", "accuracy_difference"))
    updated = after_answers(expected, gained, lost, compared)
    known = replace(updated, right=(right + 1) / (compared + 2))  # rule of succession
    return after_problems(known, speedup, made["speedup_log_error"], count) if speedup else known


def _candidate(route: str, effect: Expected, lossless: Sequence[Expected]) -> Candidate:
    """Return a candidate without figures, given its effect and the effects of policies that lose nothing."""
    policy, is_fast = _policy_of(route), chance_of_speedup(effect)
    found = Candidate(route, policy.name, effect.speedup, effect.interval, is_fast, 1.0, is_expected=True)
    if policy.speculates:
        return found
    low, high = np.quantile(_net_changes(effect), [0.025, 0.975])
    return replace(
        found,
        is_fast=min([is_fast, *(chance_of_speedup(effect, other) for other in lossless)]),
        is_safe=chance_of_small_loss(effect),
        change=effect.change,
        change_interval=(float(low), float(high)),
    )


def _with_figures(candidate: Candidate, made: Figures, samples: int) -> Candidate:
    lost = made["ratios"]["answers_lost"]
    if interval := made["speedup_interval"]:
        candidate = replace(candidate, speedup=made["speedup"], interval=tuple(interval), is_expected=False)
    share, attempts = _draft_share(made["time"]), made["ratios"]["accuracy_difference"]["denominator"]
    drafts_nothing = made["speedup"] and not share and _policy_of(candidate.route).speculates
    return replace(
        candidate,
        is_fast=0.0 if drafts_nothing else candidate.is_fast,
        num_problems=attempts // samples,
        num_compared=lost["denominator"],
        num_gained=made["ratios"]["answers_gained"]["numerator"],
        num_lost=lost["numerator"],
        num_graded=made["answers_graded"],
        num_attempts=attempts,
        saving=made["saving"],
        saving_interval=made["saving_interval"] and tuple(made["saving_interval"]),
        draft_share=share,
    )


def _preferred(candidates: Sequence[Candidate]) -> Candidate:
    """Return the most accurate of the candidates that are about as fast as the most promising candidate, or faster."""
    best = max(candidates, key=lambda one: one.confidence * math.log(max(1.0, one.speedup)))
    similar = [one for one in candidates if one.speedup * SIMILAR >= best.speedup]
    return max(similar, key=lambda one: (one.change, one.speedup))


def _draft_share(time: Figures) -> float:
    parts = {name: float(seconds) for name, seconds in time.items() if name not in ("wall", "rest")}
    draft = math.fsum(seconds for name, seconds in parts.items() if name.startswith("draft"))
    return draft / (math.fsum(parts.values()) or 1.0)


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


def best_preset(table: TauTable) -> str | None:
    """Return the strictest preset that loses at most MAX_POINTS and reaches MIN_SPEEDUP over every lossless policy, or None."""
    longest = table.time_lossless() / MIN_SPEEDUP
    for name, tau in table.named.items():
        row = table.faster_row(tau)
        time = table.time(row)
        if time is not None and time < longest and row.change >= -MAX_POINTS:
            return name
    return None


# --- the expected effect of a policy before the first problem


def expected_effects(run: Mapping[str, Any]) -> dict[str, Expected]:
    """Return the expected effect of each policy in run.json, by route."""
    costs, card = PairCosts.of(unit_costs_of(run)), (run["router"] or {}).get("card")
    table = TauTable.from_json(card["taus"]) if card else None
    if table and costs:
        table = table.at_costs(costs)
    is_own = card is not None and any(_is_pair(run["models"], pair) for pair in card["pairs"])
    return {
        stored_route(entry).name: _expected(entry, costs, table, is_own=is_own)
        for entry in run["policies"]
        if entry["policy"] != "target"
    }


def _expected(entry: Mapping[str, Any], costs: PairCosts | None, table: TauTable | None, *, is_own: bool) -> Expected:
    policy = POLICIES[entry["policy"]]
    if policy.speculates:
        return _speculation(costs, table)
    most = _of_draft(costs, table)
    if policy.name == "draft":
        return Expected(most or 1.0, OTHER_SPREAD, math.inf, *_outcomes(DRAFT_CHANGE, CARD_ANSWERS))
    if not policy.needs_router or table is None:
        return Expected(most=most * math.exp(OTHER_SPREAD)) if most else UNKNOWN
    row = table.faster_row(float(entry["tau"]))
    time, spread = table.time(row), CARD_SPREAD if is_own else OTHER_SPREAD
    answers = max(OTHER_ANSWERS, min(table.num_solutions, CARD_ANSWERS)) if is_own else OTHER_ANSWERS
    outcomes = _outcomes(row.change / 100, answers)
    if not time or not most:
        return Expected(1.0, OTHER_SPREAD, math.inf, *outcomes)
    return Expected(1 / time, spread, most * math.exp(spread), *outcomes)


def _outcomes(change: float, answers: float) -> tuple[float, float, float]:
    """Return the numbers of gained, lost and kept answers of an expected net change with the weight of `answers`."""
    gained, lost = (CHANGED + answers * max(0.0, one) for one in (change, -change))
    return gained, lost, max(CHANGED, answers - gained - lost)


def _speculation(costs: PairCosts | None, table: TauTable | None) -> Expected:
    if costs is None:
        return UNKNOWN
    tokens = (table.prompt_tokens, table.alone_tokens) if table else (PROMPT_TOKENS, WRITTEN_TOKENS)
    speedups = (costs.alone(*tokens) / costs.speculative(*tokens, rate) for rate in (*MATCH_RATES, MOST_MATCHES))
    low, middle, high, most = speedups
    spread = math.log(high / low) / (2 * QUANTILE)
    return Expected(middle, max(spread, CARD_SPREAD / 2), most)


def _of_draft(costs: PairCosts | None, table: TauTable | None) -> float | None:
    """Return the speed-up if the draft writes every step."""
    if table and (time := table.time(table.rows[-1])):
        return 1 / time
    return costs.token_ratio if costs else None


def _is_pair(models: Mapping[str, Any], pair: Mapping[str, Any]) -> bool:
    sha256s = [[known.get(role, {}).get("sha256") for known in (models, pair)] for role in ("draft", "target")]
    return all(own is not None and own == known for own, known in sha256s)

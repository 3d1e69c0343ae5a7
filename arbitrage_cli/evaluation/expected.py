"""Expects the effect of each policy before its first problem, and updates it with each problem.

The expectation follows from the costs or prices of tokens and from the router's card. The effect has two parts: a ratio of
times or prices, which is log-normal, and the answers that are gained, lost and kept, whose shares have a Dirichlet
distribution.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from arbitrage_cli.costs.pair import PairCosts, Prices, price_costs
from arbitrage_cli.evaluation.speed import LEAST_PRICE
from arbitrage_cli.numbers.intervals import SEED, Interval, Numbers, Z
from arbitrage_cli.routing.policies import DRAFT_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import RouterCard, TrainedModel
from arbitrage_cli.runs.run import ModelSetup, Run
from arbitrage_cli.types import WRITING, ByRole, frozen

MIN_SPEEDUP, MIN_SAVING = 1.1, 0.1  # minimum speed-up, or share of the price that is saved, of a policy worth using
MIN_PRICE_RATIO = 1 / (1 - MIN_SAVING)  # the same as MIN_SAVING, as the target's price divided by the policy's
MAX_LOSS, MAX_LOST = 0.02, 0.05  # maximum net loss, as shares of all answers and of the target's right answers
LOST_IF_DIFFERENT = 0.5, 0.5
"""The net loss per ungraded answer that differs from the target's: mean and standard deviation over pairs of models."""
USUAL_MATCH_RATE, HIGH_MATCH_RATE = 0.75, 0.9  # the 50% and 90% quantiles of acceptance rates of draft tokens over all pairs
QUANTILE = 1.2816  # the 90% quantile of the normal distribution
PROMPT_TOKENS, WRITTEN_TOKENS = 100.0, 200.0  # of a problem, if there is no router whose table has them
CARD_SPREAD, OTHER_SPREAD, MIN_SPREAD = 0.25, 0.5, 0.125
"""The standard deviation of log speed-ups around a card's prediction, for its own pairs and for other pairs, and the minimum
beside a measurement."""
CARD_ANSWERS, OTHER_ANSWERS = 10, 4
"""The weight of a card's expected net change, in measured answers, for its own pairs (at most) and for other pairs."""
CHANGED = 0.5  # the answers that any expectation counts as gained, and as lost: Jeffreys' prior
DRAFT_CHANGE = -0.15  # the expected net change of the draft alone, as a share of the answers
SPREAD, SPREAD_PROBLEMS = 0.7, 3.0
"""The prior standard deviation of a problem's log speed-up, and the number of problems that the prior counts as."""
DRAWS = 10_000  # random net changes from which probabilities and intervals are computed


@frozen
class Expected:
    """The expected effect of a policy: a log-normal ratio, and the outcomes of answers.

    The ratio is the target's time or price divided by the policy's. `ratio` is the median, and `spread` is the standard
    deviation of its logarithm. `gained`, `lost` and `kept` are the expected shares of the answers, multiplied by the weight
    of the expectation in measured answers. Answers without a grade are kept, or `differing` from the target's. `right` is
    the share of answers that the target has right.
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
ALONE = Expected(spread=0.0)  # the effect of the target alone


def expected_effects(run: Run, card: RouterCard | None, prices: Prices | None = None) -> dict[Route, Expected]:
    """Return the expected effect of each route of a run: on the price if there are prices, or on the time.

    `card` is the router's.
    """
    models = run.decided.models
    costs = price_costs(prices) if prices else PairCosts.of(run.decided.unit_costs)
    table = TauTable.from_json(card.taus) if card else None
    is_own = card is not None and any(_is_pair(models, pair) for pair in card.pairs)
    return effects_of(run.routes, costs, table, is_own=is_own)


def effects_of(
    routes: Iterable[Route], costs: PairCosts | None, table: TauTable | None = None, *, is_own: bool = False
) -> dict[Route, Expected]:
    """Return the expected effect of each route. If the table `is_own`, its router was trained on these models."""
    costs = costs if costs and costs.target.decode else None  # nothing is saved against a free target
    if table and costs:
        table = table.at_costs(costs)
    candidates = (route for route in routes if route.policy.is_candidate)
    return {route: _expected(route, costs, table, is_own=is_own) for route in candidates}


def _expected(route: Route, costs: PairCosts | None, table: TauTable | None, *, is_own: bool) -> Expected:
    policy = route.policy
    if policy.speculates:
        return expected_speculation(costs, tokens_of_problem(table)) if costs else UNKNOWN
    if policy is DRAFT_ALONE:
        return Expected(_of_draft(costs, table), OTHER_SPREAD, *_outcomes(DRAFT_CHANGE, OTHER_ANSWERS))
    if not policy.needs_router or table is None:
        return UNKNOWN
    row = table.row_at(route.tau or 0.0, stops_early=route.stops_early)
    time, spread = table.time(row), CARD_SPREAD if is_own else OTHER_SPREAD
    answers = max(OTHER_ANSWERS, min(table.num_solutions, CARD_ANSWERS)) if is_own else OTHER_ANSWERS
    outcomes = _outcomes(row.change / 100, answers)
    return Expected(1 / time, spread, *outcomes) if time else Expected(1.0, OTHER_SPREAD, *outcomes)


def tokens_of_problem(table: TauTable | None) -> tuple[float, float]:
    """Return the numbers of prompt tokens and of tokens that the target writes alone: those of the router's problems."""
    return (table.prompt_tokens, table.alone_tokens) if table else (PROMPT_TOKENS, WRITTEN_TOKENS)


def _outcomes(change: float, answers: float) -> tuple[float, float, float]:
    """Return the numbers of gained, lost and kept answers of an expected net change with the weight of `answers`."""
    gained, lost = (CHANGED + answers * max(0.0, one) for one in (change, -change))
    return gained, lost, max(CHANGED, answers - gained - lost)


def expected_speculation(costs: PairCosts, tokens: tuple[float, float]) -> Expected:
    """Return the expected effect of speculation on a problem with these numbers of prompt tokens and written tokens.

    The spread is that above the median, because below it speculation drafts nothing.
    """
    alone = costs.alone(*tokens)
    middle, high = (alone / costs.speculative(*tokens, rate) for rate in (USUAL_MATCH_RATE, HIGH_MATCH_RATE))
    cost_error = math.hypot(costs.draft.error, costs.target.error)
    return Expected(middle, max(math.log(high / middle) / QUANTILE, cost_error))


def _of_draft(costs: PairCosts | None, table: TauTable | None) -> float:
    """Return the ratio if the draft writes every step. A draft may be free."""
    if table and (time := table.time(table.rows[-1])):
        return 1 / max(time, LEAST_PRICE)
    return costs.target.decode / max(costs.draft.decode, LEAST_PRICE * costs.target.decode) if costs else 1.0


def _is_pair(models: ByRole[ModelSetup], pair: ByRole[TrainedModel]) -> bool:
    return all(role in models and models[role].sha256 == pair[role].sha256 is not None for role in WRITING)


def chance_of_saving(expected: Expected, other: Expected = ALONE, least: float = MIN_SPEEDUP) -> float:
    """Return the probability that the ratio of a policy's speed or price to another's is at least `least`."""
    log_ratio = NormalDist(math.log(expected.ratio / other.ratio), math.hypot(expected.spread, other.spread))
    return 1 - log_ratio.cdf(math.log(least))


def chance_of_small_loss(expected: Expected) -> float:
    """Return the probability of an acceptable net change."""
    return 1 - float(np.searchsorted(net_changes(expected), -min(MAX_LOSS, MAX_LOST * expected.right))) / DRAWS


@lru_cache(maxsize=256)
def net_changes(expected: Expected) -> Numbers:
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

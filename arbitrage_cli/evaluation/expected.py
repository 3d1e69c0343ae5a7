"""The expected effect of a policy before the first problem, from the costs or prices of tokens and from the router's card."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from arbitrage_cli.costs.pair import PairCosts, Prices, price_costs
from arbitrage_cli.evaluation.speed import LEAST_PRICE
from arbitrage_cli.numbers.intervals import Interval, Z
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import ModelRole

BOTH: tuple[ModelRole, ...] = ("draft", "target")

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


@dataclass(frozen=True, slots=True)
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
    card: Mapping[str, Any] | None = None,
    models: Mapping[ModelRole, str | None] = MappingProxyType({}),
) -> dict[str, Expected]:
    """Return the expected effect of each route. `models` contains checksums, and `card` is that of the router."""
    costs = costs if costs and costs.target.decode else None  # nothing is saved against a free target
    table = TauTable.from_json(card["taus"]) if card else None
    if table and costs:
        table = table.at_costs(costs)
    is_own = card is not None and any(_is_pair(models, pair) for pair in card["pairs"])
    others = (route for route in routes if route.policy.name != "target")
    return {route.name: _expected(route, costs, table, is_own=is_own) for route in others}


def _expected(route: Route, costs: PairCosts | None, table: TauTable | None, *, is_own: bool) -> Expected:
    policy = route.policy
    if policy.speculates:
        return _speculation(costs, table)
    if policy.name == "draft":
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


def _is_pair(models: Mapping[ModelRole, str | None], pair: Mapping[str, Any]) -> bool:
    return all(models.get(role) and models[role] == pair.get(role, {}).get("sha256") for role in BOTH)

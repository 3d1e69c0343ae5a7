"""Bounds what each policy can save, from the costs or prices of tokens alone, before a problem is solved.

There are two numbers, each a ratio of the target's time or price to the policy's. `at_most` assumes that every drafted
token, step and solution is accepted. `likely` assumes that the share ACCEPTED of them is accepted or, for routing, the
escalation rate on the router's card. Neither says anything about accuracy. `verdict` uses bounds for the policies that
`advise` does not run.
"""

from collections.abc import Iterable
from dataclasses import asdict

from arbitrage_cli.costs.pair import FREE, PairCosts, Prices, price_costs
from arbitrage_cli.evaluation.expected import (
    HIGH_MATCH_RATE,
    MIN_PRICE_RATIO,
    MIN_SPEEDUP,
    MIN_SPREAD,
    Expected,
    chance_of_saving,
    expected_speculation,
    tokens_of_problem,
)
from arbitrage_cli.inference.unit_costs import TOKEN_SECONDS, UnitCosts
from arbitrage_cli.routing.policies import DRAFT_ALONE, TARGET_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import DRAFT_SOLUTIONS, Route
from arbitrage_cli.routing.router import RouterCard
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Json, frozen

ACCEPTED = 0.9  # the share of the draft's solutions that is likely accepted at most
CERTAINLY = 0.999  # the match rate of a perfect draft
UNLIKELY = 0.1  # chance of saving enough below which a policy is not tried
GOOD_RATIO = 4.0  # the token ratio from which routing and speculation usually save time


@frozen
class Bound:
    """The highest ratios of a route, and its chance to reach the ratio `least`, assuming that it loses no answers.

    `escalates_all` is true if its tau escalates every step, so that it does not route.
    """

    route: Route
    at_most: float
    likely: float
    chance: float
    escalates_all: bool = False
    least: float = MIN_SPEEDUP

    @property
    def is_certain(self) -> bool:
        """Whether the route cannot save enough, whatever the draft is like."""
        return self.escalates_all or self.at_most < self.least

    @property
    def is_excluded(self) -> bool:
        """Whether the route cannot save enough, or is unlikely to."""
        return self.is_certain or self.chance < UNLIKELY

    def to_json(self) -> Json:
        return asdict(self) | {"route": self.route.name}


def bounds_of_run(run: Run, card: RouterCard | None, prices: Prices | None = None) -> list[Bound]:
    """Return the bounds of the routes of a run: on the price if there are prices, or on the time. `card` is the router's."""
    decided = run.decided
    table = TauTable.from_json(card.taus) if card else None
    has_checker = "check" in decided.models
    if prices:
        check = prices.get("check", FREE).unit_costs if has_checker else None
        return bounds_of(run.routes, price_costs(prices), table, check, MIN_PRICE_RATIO)
    check = decided.unit_costs.get("check")
    is_known = check is not None or not has_checker
    routes = [route for route in run.routes if is_known or not route.policy.compares_answers]
    return bounds_of(routes, PairCosts.of(decided.unit_costs), table, check)


def bounds_of(
    routes: Iterable[Route],
    costs: PairCosts | None,
    table: TauTable | None,
    check: UnitCosts | None = None,
    least: float = MIN_SPEEDUP,
) -> list[Bound]:
    """Return the bounds of the routes whose time follows from the costs. `check` are the costs of a checker.

    A route saves enough if its ratio is at least `least`. Without costs, there are no bounds. The draft alone has none,
    because only its accuracy can speak against it.
    """
    if costs is None or not costs.target.decode:  # nothing is saved against a free target
        return []
    at_costs = table.at_costs(costs) if table else None
    found = (_bound(route, costs, at_costs, check, least) for route in routes)
    return [bound for bound in found if bound]


def _bound(route: Route, costs: PairCosts, table: TauTable | None, check: UnitCosts | None, least: float) -> Bound | None:
    policy = route.policy
    tokens = tokens_of_problem(table)
    alone = costs.alone(*tokens)
    drafted = _alone(costs.draft, *tokens)
    if policy is TARGET_ALONE or policy is DRAFT_ALONE:
        return None
    if policy.speculates:
        at_most, likely = (max(1.0, alone / costs.speculative(*tokens, rate)) for rate in (CERTAINLY, HIGH_MATCH_RATE))
        chance = chance_of_saving(expected_speculation(costs, tokens), least=least)
        return Bound(route, at_most, likely, chance, least=least)
    if policy.compares_answers:
        solutions = drafted + _alone(check, *tokens) if check else DRAFT_SOLUTIONS * drafted
        return _unless_worse(route, alone / solutions, alone / (solutions + (1 - ACCEPTED) * alone), least)
    if policy.needs_router and table and route.tau is not None:
        row = table.row_at(route.tau, stops_early=route.stops_early)
        time = table.time(row)
        expected = 1 / time if time else 1.0
        if row.escalation_rate == 1:
            return Bound(route, expected, expected, 0.0, escalates_all=True, least=least)
        return _unless_worse(route, alone / drafted, expected, least)
    return None


def _unless_worse(route: Route, at_most: float, likely: float, least: float) -> Bound:
    """Return a bound for a route that is about as fast as is likely, unless the draft is worse than expected."""
    return Bound(route, at_most, likely, chance_of_saving(Expected(likely, MIN_SPREAD), least=least), least=least)


def _alone(costs: UnitCosts, prompt_tokens: float, tokens: float) -> float:
    return prompt_tokens * costs.prefill + tokens * (costs.decode + TOKEN_SECONDS)

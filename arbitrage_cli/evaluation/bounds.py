"""The most that each policy can save on this machine: computed from the costs of tokens, before a problem is solved.

There are two numbers. `at_most` is the speed-up over the target alone if every drafted token, step and solution is accepted.
`likely` is the speed-up if `ACCEPTED` of them are or, for routing, if as many steps are escalated as the router's card says.
Each is a ratio of computed times, and neither says anything about accuracy.
"""

import math
from collections.abc import Iterable

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.evaluation.verdict import (
    MIN_SPEEDUP,
    MIN_SPREAD,
    PROMPT_TOKENS,
    TARGET,
    WRITTEN_TOKENS,
    Candidate,
    Expected,
    Verdict,
    chance_of_saving,
    conclude,
)
from arbitrage_cli.inference.unit_costs import TOKEN_SECONDS, UnitCosts
from arbitrage_cli.routing.policies import DRAFT_ALONE, TARGET_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import DRAFT_SOLUTIONS, Route
from arbitrage_cli.types import frozen

ACCEPTED = 0.9  # the share of drafted tokens and solutions that is likely accepted at most
CERTAINLY = 0.999  # the acceptance of a perfect draft
UNLIKELY = 0.1  # chance of saving enough below which a policy is not tried
GOOD_RATIO = 4.0  # the token ratio from which routing and speculation usually save time


@frozen
class Bound:
    """The highest speed-ups of a route over the target alone. `escalates_all` is true if its tau escalates every step."""

    route: Route
    at_most: float
    likely: float
    escalates_all: bool = False

    @property
    def chance(self) -> float:
        """The probability that the policy saves enough, if it loses nothing."""
        return 0.0 if self.is_certain else chance_of_saving(Expected(self.likely, MIN_SPREAD))

    @property
    def is_certain(self) -> bool:
        """Whether the policy cannot save enough, whatever the draft is like. If it escalates every step, it does not route."""
        return self.escalates_all or self.at_most < MIN_SPEEDUP

    @property
    def is_excluded(self) -> bool:
        """Whether the policy cannot save enough, or is unlikely to."""
        return self.chance < UNLIKELY


def bounds_of(
    routes: Iterable[Route], costs: PairCosts | None, table: TauTable | None, check: UnitCosts | None = None
) -> list[Bound]:
    """Return the bounds of the routes whose time follows from the costs. `check` are the costs of a checker.

    Without costs, there are no bounds. The draft alone has none, because only its accuracy can speak against it.
    """
    if costs is None:
        return []
    found = (_bound(route, costs, table.at_costs(costs) if table else None, check) for route in routes)
    return [bound for bound in found if bound]


def _bound(route: Route, costs: PairCosts, table: TauTable | None, check: UnitCosts | None) -> Bound | None:
    policy = route.policy
    tokens = (table.prompt_tokens, table.alone_tokens) if table else (PROMPT_TOKENS, WRITTEN_TOKENS)
    alone = costs.alone(*tokens)
    drafted = _alone(costs.draft, *tokens)
    if policy is TARGET_ALONE or policy is DRAFT_ALONE or not alone:
        return None
    if policy.speculates:
        at_most, likely = (max(1.0, alone / costs.speculative(*tokens, rate)) for rate in (CERTAINLY, ACCEPTED))
        return Bound(route, at_most, likely)
    if policy.compares_answers:
        solutions = drafted + _alone(check, *tokens) if check else DRAFT_SOLUTIONS * drafted
        return Bound(route, alone / solutions, alone / (solutions + (1 - ACCEPTED) * alone))
    if policy.needs_router and table and route.tau is not None:
        row = table.row_at(route.tau, stops_early=route.stops_early)
        time = table.time(row)
        escalates_all = row.escalation_rate == 1
        expected = 1 / time if time else 1.0
        return Bound(route, expected if escalates_all else alone / drafted, expected, escalates_all)
    return None


def _alone(costs: UnitCosts, prompt_tokens: float, tokens: float) -> float:
    return prompt_tokens * costs.prefill + tokens * (costs.decode + TOKEN_SECONDS)


def decides(bounds: Iterable[Bound], routes: Iterable[Route]) -> bool:
    """Return whether the bounds exclude all these routes but the target and the draft alone."""
    excluded = {bound.route for bound in bounds if bound.is_excluded}
    others = [route for route in routes if route.policy is not TARGET_ALONE and route.policy is not DRAFT_ALONE]
    return bool(others) and all(route in excluded for route in others)


def verdict_beside(bounds: Iterable[Bound], found: Verdict) -> Verdict:
    """Return a verdict on a run for which the policies that the bounds exclude count only as far as they were measured."""
    excluded = {bound.route for bound in bounds if bound.is_excluded}
    kept = [one for one in found.candidates if one.num_problems or one.route not in excluded]
    return conclude(kept, found.basis) or found


def verdict_of(bounds: Iterable[Bound]) -> Verdict:
    """Return the verdict for the target alone if the bounds exclude all other policies, so that no problem is solved."""
    candidates = tuple(Candidate(one.route, one.at_most, one.chance) for one in bounds)
    certainty = math.prod(1 - one.saves for one in candidates)
    return Verdict(TARGET, certainty, 0, candidates)

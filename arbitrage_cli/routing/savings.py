"""Compares a route with the target alone by the costs of tokens: by those of this machine, prices, or those on the router's card."""

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import POLICIES, TARGET_ALONE, Policy
from arbitrage_cli.routing.presets import ALWAYS
from arbitrage_cli.routing.route import DEFAULT_TAU, DRAFT_SOLUTIONS, AvailableRouter, Route
from arbitrage_cli.types import frozen

EVERY_STEP = "tau {tau} escalates every step, so drafting only takes extra time; better: policy target"


@frozen
class Faster:
    """A policy that loses nothing, and that is expected to be faster or cheaper than routing. `reason` is a clause."""

    policy: Policy
    reason: str


def faster_than_routing(route: Route, available: AvailableRouter, least_gain: float = 1.0) -> Faster | None:
    """Return the policy that loses nothing, unless a route with a router is expected to be faster by the factor `least_gain`.

    This policy is the speculative target or, if speculation saves no time, the target alone. Raises UsageError if there is
    no router; ValueError if the route has no tau.
    """
    if route.tau is None:
        raise ValueError(f"policy {route.policy.name} has no tau")
    table = available.table
    time = table.time(table.row_at(route.tau, stops_early=route.stops_early))
    lossless = table.time_lossless() if available.costs else 1.0
    if route.tau > ALWAYS and (time is None or time * least_gain < lossless):
        return None
    policy = POLICIES["speculative"] if lossless < 1 else TARGET_ALONE
    likely = table.time(table.followed_row(table.likely_careful.tau))
    if route.tau_name == DEFAULT_TAU and table.shortage and (likely is None or likely < lossless):
        return Faster(policy, table.shortage)  # with more solutions, routing would be faster
    by = "by the pair's prices" if available.is_priced else f"by the token costs of {available.costs_of}"
    if time is None or route.tau <= ALWAYS:
        return Faster(policy, f"{by}, tau {_tau_of(route)} escalates every step")
    alone = policy.phrase or "the target alone"
    if time < lossless:
        what = "cheaper" if available.is_priced else "faster"
        return Faster(policy, f"{by}, routing is probably less than {least_gain - 1:.0%} {what} than {alone}")
    what = "costs {}x the price" if available.is_priced else "takes {}x the time"
    return Faster(policy, f"{by}, routing probably {what.format(formatting.number(time / lossless))} of {alone}")


def warning_by_costs(route: Route, available: AvailableRouter) -> str | None:
    """Return a warning if the costs of tokens show that a route saves nothing compared to the target alone."""
    policy, costs = route.policy, available.costs
    if policy.needs_router and route.tau is not None:
        if route.escalates_every_step:
            return EVERY_STEP.format(tau=_tau_of(route))
        faster = faster_than_routing(route, available)
        return f"{faster.reason}; better: policy {faster.policy.name}" if faster else None
    if costs is None or costs.concurrency != 1:
        return None
    if policy.speculates and not available.is_priced and costs.write() >= costs.target.decode:
        return f"by the token costs, policy {policy.name} is {_when_faster(costs)}"
    if policy.compares_answers:
        return _warning_about_solutions(policy, costs, available)
    return None


def _tau_of(route: Route) -> str:
    return route.tau_name or formatting.exact(route.tau or 0.0)


def _warning_about_solutions(policy: Policy, costs: PairCosts, available: AvailableRouter) -> str | None:
    """Return a warning if the compared solutions cost as much as the target's, assuming that all have the same length."""
    if not available.has_checker:
        compared, seconds = f"{DRAFT_SOLUTIONS} draft solutions", DRAFT_SOLUTIONS * costs.draft.decode
        remedy = "better: policy target, or a small second model (--check)"
    elif available.check:
        compared, seconds = "a solution by the draft and one by the checker", costs.draft.decode + available.check.decode
        remedy = "better: policy target, or a smaller checker"
    else:
        return None
    if seconds < costs.target.decode or not costs.target.decode:  # a price may be of prompts alone
        return None
    worse = "more expensive" if available.is_priced else "slower"
    share = formatting.number(seconds / costs.target.decode)
    return (
        f"policy {policy.name} is probably {worse} than policy target, because {compared} cost as much as {share} target "
        f"solutions; {remedy}"
    )


def _when_faster(costs: PairCosts) -> str:
    """Return how many draft tokens the target must keep for speculation to be faster than the target alone."""
    percent = next((percent for percent in range(1, 101) if costs.write(percent / 100) < costs.target.decode), None)
    if percent is None:
        return "not faster than policy target, even if the target keeps every draft token"
    return f"faster than policy target only if the target keeps at least {percent}% of the draft tokens"

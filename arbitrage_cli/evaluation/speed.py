"""Compares each policy's speed and price with those of the target alone. Seconds are computed, or those of the clock."""

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from arbitrage_cli.costs.prices import Prices, has_prompts
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Interval, Ratio, log_ratio
from arbitrage_cli.runs.results import PolicyResults, Result, paired_done, sums_by_problem
from arbitrage_cli.types import ModelRole

PRICED = ("price", "saving", "saving_interval")  # figures that need prices

Paired = Sequence[tuple[Result, Result]]  # the policy's and the target's results of the attempts that both finished


def latency(
    policy: PolicyResults, target: PolicyResults | None, units: Mapping[ModelRole, UnitCosts], *, has_clock: bool
) -> dict[str, Any]:
    """Return the mean seconds and the speed-up, computed from the counted work.

    If `has_clock` is true, they are also measured by the clock. Problems that are solved at once share the clock's time.
    """
    pairs, found = paired_done(policy, target) if target else [], dict[str, Any]()
    common = _cost_error(pairs, units)
    clocks = {"": attrgetter("computed_seconds"), "measured_": attrgetter("seconds")}
    for prefix, seconds in list(clocks.items())[: 1 + has_clock]:
        ratio, error, interval = speedup(pairs, seconds, common)
        mean = Ratio(math.fsum(map(seconds, policy.done)), len(policy.done))
        found |= {f"{prefix}seconds_mean": mean, f"{prefix}speedup": ratio}
        found |= {f"{prefix}speedup_log_error": error, f"{prefix}speedup_interval": interval}
    return found


def speedup(
    pairs: Paired, cost: Callable[[Result], float], common: float = 0.0
) -> tuple[Ratio | None, float | None, Interval | None]:
    """Return the target's cost divided by the policy's cost, the standard error of its logarithm, and its interval.

    The problems share an error with the standard deviation `common`. The target compared with itself has no interval.
    """
    if not pairs:
        return None, None, None
    table = sums_by_problem(((own.key[0], [cost(target), cost(own)]) for own, target in pairs), 2)
    error, interval = log_ratio(table, common)
    is_target = all(own is target for own, target in pairs)
    return Ratio(*(math.fsum(column) for column in table.T)), error, None if is_target else interval


def _cost_error(pairs: Paired, units: Mapping[ModelRole, UnitCosts]) -> float:
    """Return the standard deviation of the error of a log speed-up that comes from the unit costs.

    The errors of different models are independent. The error of a model affects a speed-up as far as the model's shares of
    the two times differ, so a policy that does the target's work has no such error.
    """

    def share(role: ModelRole, side: int) -> float:
        whole = math.fsum(pair[side].computed_seconds for pair in pairs) or 1.0
        return math.fsum(pair[side].computed.get(role, 0.0) for pair in pairs) / whole

    return math.hypot(*(costs.error * (share(role, 0) - share(role, 1)) for role, costs in units.items()))


def time_parts(policy: PolicyResults) -> dict[str, float]:
    total = policy.tally
    parts = {
        f"{model}_{kind}": getattr(cost, f"{kind}_seconds")
        for model, cost in total.costs.items()
        if model != "prm"
        for kind in ("decode", "prefill", "verify")
    }
    parts["router"] = math.fsum(result.router_seconds for result in policy.done)
    parts["reward"] = total.reward_cost.seconds
    wall = math.fsum(result.seconds or 0.0 for result in policy.done)
    return {"wall": wall, **parts, "rest": wall - math.fsum(parts.values())}


def price_figures(
    policy: PolicyResults, target: PolicyResults | None, run: Mapping[str, Any], prices: Prices | None
) -> dict[str, Any]:
    """Return the mean price of an attempt, and the saving. Speculation that drafted no tokens has the target's price."""
    if policy.policy.speculates and policy.done and not policy.tally.target_cost.verify_tokens:
        policy = target or policy
    if prices is None or not counts_tokens(run, policy):
        return dict.fromkeys(PRICED)

    def price(result: Result) -> float:
        return math.fsum(own.of(result.tally.costs[role]) for role, own in prices.items())

    ratio, _, interval = speedup(paired_done(policy, target) if target and counts_tokens(run, target) else [], price)
    return {
        "price": Ratio(math.fsum(map(price, policy.done)), len(policy.done)),
        "saving": 1 - ratio.denominator / ratio.numerator if ratio and ratio.numerator else None,
        "saving_interval": [1 - 1 / end for end in interval] if interval else None,
    }


def counts_tokens(run: Mapping[str, Any], policy: PolicyResults) -> bool:
    """Return whether servers reported all token counts. A stream that is closed at the end of a step reports none."""
    served = {role for role, facts in run["models"].items() if facts.get("served")}
    works = (
        [cost for role, cost in result.work if role == one and cost.seconds] for result in policy.done for one in served
    )
    return all(has_prompts(costs, is_single=policy.policy.kind in ("single", "checked")) for costs in works)

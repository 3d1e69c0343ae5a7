"""Compares each policy's speed and price with those of the target alone. Seconds are computed, or those of the clock."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.prices import Prices, has_prompts
from arbitrage_cli.costs.work import Work, by_kind, scale_of
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Interval, Ratio, log_ratio
from arbitrage_cli.runs.results import PolicyResults, Result, concurrency_of, paired_done, sums_by_problem, unit_costs_of
from arbitrage_cli.types import ModelRole

PRICED = ("price", "saving", "saving_interval")  # figures that need prices

Paired = Sequence[tuple[Result, Result]]  # the policy's and the target's results of the attempts that both finished


def with_computed_seconds(run: Mapping[str, Any], policies: Sequence[PolicyResults]) -> list[PolicyResults]:
    """Return the policies with the computed seconds of all finished attempts.

    The time spent on rating steps is measured, not computed, as is the time of models without unit costs. If several problems
    were solved at once, their steps shared batches, and the unit costs in run.json apply: the time of one problem at a time.
    """
    is_shared = concurrency_of(run) > 1
    units = unit_costs_of(run)
    everything = by_kind(_works(policies), units)

    def computed(policy: PolicyResults) -> PolicyResults:
        found = by_kind(_works(other for other in policies if _is_same_work(policy, other)), units)
        scales = {
            kind: 1.0 if is_shared and isinstance(kind, tuple) else scale_of(own, everything[kind])
            for kind, own in found.items()
        }

        def timed(result: Result) -> Result:
            return replace(result, computed=result.work.computed(units, scales)) if result.is_done else result

        return replace(policy, results={key: timed(result) for key, result in policy.results.items()})

    return [computed(policy) for policy in policies]


def _works(policies: Iterable[PolicyResults]) -> list[Work]:
    return [result.work for policy in policies for result in policy.done]


def _is_same_work(policy: PolicyResults, other: PolicyResults) -> bool:
    """Return whether the models wrote the same tokens in the same batches.

    For example, speculation that proposes nothing does the same work as the target alone.

    Prefill tokens are not compared, because a later policy reuses the prompt prefix that an earlier policy cached.
    """
    pairs = paired_done(policy, other)
    is_alike = bool(pairs) and policy.policy.reads_token_stats == other.policy.reads_token_stats
    return policy is other or (is_alike and all(_written(one) == _written(two) for one, two in pairs))


def _written(result: Result) -> list[tuple[ModelRole, int, int, int]]:
    return [(role, cost.decode_tokens, cost.verify_tokens, cost.verify_batches) for role, cost in result.work.steps]


def token_ratio(run: Mapping[str, Any], policies: Iterable[PolicyResults]) -> tuple[float | None, Interval | None]:
    """Return the cost of a decoded target token in draft tokens in this run, with an interval.

    Both are None if a model decoded nothing or has no measured unit costs.
    """
    units = unit_costs_of(run)
    pieces = by_kind(_works(policies), units)
    decoded = {role: [*pieces.get((role, "decode", False), ()), *pieces.get((role, "decode", True), ())] for role in units}
    if not (costs := PairCosts.of(units)) or not all(decoded.values()):
        return None, None
    factor = scale_of(decoded["target"], decoded["target"]) / scale_of(decoded["draft"], decoded["draft"])
    low, high = costs.token_ratio_interval
    return factor * costs.token_ratio, (factor * low, factor * high)


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
    parts["router"] = math.fsum(result.work.router_seconds for result in policy.done)
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
        [cost for role, cost in result.work.steps if role == one and cost.seconds]
        for result in policy.done
        for one in served
    )
    return all(has_prompts(costs, is_single=policy.policy.kind in ("single", "checked")) for costs in works)

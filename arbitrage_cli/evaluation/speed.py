"""Compares each policy's speed with that of the target alone, in seconds per problem or problems per second.

A throughput run solves several problems at once, and each row contains its share of the block's time
(`runs.summary.BlockShare`). Policies take turns after each block. Whole blocks are compared, because the times
of the problems in a block depend on each other. The time of a block includes interrupted and failed attempts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from arbitrage_cli.inference.unit_costs import COST_ERROR, UnitCosts
from arbitrage_cli.runs.results import PolicyResults, Result, SampleKey, paired_done, sums_by_problem
from arbitrage_cli.stats import rounding
from arbitrage_cli.stats.intervals import MIN_PROBLEMS, Interval, Ratio, log_ratio
from arbitrage_cli.types import ModelRole

Paired = Sequence[tuple[Result, Result]]  # the policy's and the target's results of the attempts that both finished

Block = Sequence[Result]  # a policy's results in one block, including superseded errors


def latency(policy: PolicyResults, target: PolicyResults | None, units: Mapping[ModelRole, UnitCosts]) -> dict[str, Any]:
    """Return the mean seconds and the speed-up. Both are computed from the counted work, and also measured by the clock."""
    pairs, found = paired_done(policy, target) if target else [], dict[str, Any]()
    common = _cost_error(pairs, units)
    for prefix, seconds in (("", attrgetter("computed_seconds")), ("measured_", attrgetter("seconds"))):
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
    differences: dict[str, float] = {}
    for results, sign in zip(zip(*pairs, strict=True), (1, -1), strict=False):
        total = math.fsum(result.computed_seconds for result in results) or 1.0
        for name, seconds in ((name, seconds) for result in results for name, seconds in result.computed.items()):
            differences[name] = differences.get(name, 0.0) + sign * seconds / total
    errors: dict[str, float] = {role: costs.error for role, costs in units.items()}
    return math.hypot(*(value * errors.get(name, COST_ERROR) for name, value in differences.items()))


def time_parts(policy: PolicyResults) -> dict[str, float]:
    total = policy.tally
    parts = {
        f"{model}_{kind}": getattr(cost, f"{kind}_seconds")
        for model, cost in (("draft", total.draft_cost), ("target", total.target_cost))
        for kind in ("decode", "prefill", "verify")
    }
    parts["router"] = math.fsum(result.router_seconds for result in policy.done)
    parts["reward"] = total.reward_cost.seconds
    wall = math.fsum(result.share.seconds if result.share else result.seconds or 0.0 for result in policy.done)
    return {"wall": wall, **parts, "rest": wall - math.fsum(parts.values())}


def throughput(policy: PolicyResults, target: PolicyResults | None) -> dict[str, Any]:
    """Return the problems per second, and their ratio to the target's over blocks with the same attempts."""
    own, others = _blocks(policy), _blocks(target) if target else {}
    shared = [number for number, block in own.items() if number in others and _keys(block) == _keys(others[number])]
    value, error, interval = _against_target([(own[number], others[number]) for number in shared])
    return {
        "problems_per_second": Ratio(sum(map(_num_done, own.values())), math.fsum(map(_block_seconds, own.values()))),
        "throughput_ratio": value,
        "throughput_ratio_log_error": error,
        "throughput_ratio_interval": None if policy is target else interval,
        "blocks_compared": len(shared),
    }


def throughput_notes(concurrency: int, policies: Sequence[PolicyResults], made: Iterable[Mapping[str, Any]]) -> list[str]:
    notes = [f"{concurrency} problems were solved at once, so seconds per problem and speed-ups are unavailable."]
    compared = [policy for policy in made if policy["throughput_ratio"] is not None and policy["policy"] != "target"]
    if any(policy["blocks_compared"] < MIN_PROBLEMS for policy in compared):
        notes.append(f"Throughput ratios over fewer than {MIN_PROBLEMS} blocks have no interval; use more problems.")
    broken = sum(not _is_whole(block) for policy in policies for block in _blocks(policy).values())
    if broken:
        notes.append(
            f"{rounding.count(broken, 'block')} interrupted and resumed; the time of interrupted attempts is included."
        )
    return notes


def _against_target(pairs: Sequence[tuple[Block, Block]]) -> tuple[Ratio | None, float | None, Interval | None]:
    blocks = [[_num_done(own), _block_seconds(own), _block_seconds(other), _num_done(other)] for own, other in pairs]
    table = np.array(blocks, np.float64).reshape(len(pairs), 4)
    done, seconds, target_seconds, target_done = map(math.fsum, table.T)
    rate, target_rate = Ratio(done, seconds).value, Ratio(target_done, target_seconds).value
    ratio = None if rate is None or target_rate is None else Ratio(rate, target_rate)
    return ratio, *log_ratio(table)


def _blocks(policy: PolicyResults) -> dict[int, list[Result]]:
    """Group results by block. Attempts that hung are excluded, because their time is unknown."""
    blocks: dict[int, list[Result]] = {}
    for result in (*policy.results.values(), *policy.superseded):
        if result.share is not None:
            blocks.setdefault(result.share.block, []).append(result)
    return blocks


def _keys(block: Block) -> set[SampleKey]:
    return {result.key for result in block}


def _num_done(block: Block) -> int:
    return sum(result.is_done for result in block)


def _block_seconds(block: Block) -> float:
    return math.fsum(result.share.seconds for result in block if result.share)


def _is_whole(block: Block) -> bool:
    counts = Counter(result.key[1] for result in block)
    return all(result.share.of == counts[result.key[1]] for result in block if result.share)

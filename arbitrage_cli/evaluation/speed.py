"""Compares each policy's speed with that of the target alone, in seconds per problem or problems per second.

A throughput run solves several problems at once, and each row contains its share of the block's time
(`runs.summary.BlockShare`). Policies take turns after each block. Whole blocks are compared and resampled, because the times
of the problems in a block depend on each other. The time of a block includes interrupted and failed attempts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from arbitrage_cli.runs.results import PolicyResults, Result, SampleKey, paired_done, sums_by_problem
from arbitrage_cli.stats import rounding
from arbitrage_cli.stats.intervals import Interval, Ratio, bootstrap, ratio_of_sums

MIN_PROBLEMS = MIN_BLOCKS = 5  # the minimum for an interval of a ratio of times

Paired = Sequence[tuple[Result, Result]]  # the policy's and the target's results of the attempts that both finished

Block = Sequence[Result]  # a policy's results in one block, including superseded errors


def latency(policy: PolicyResults, target: PolicyResults | None) -> dict[str, Any]:
    """Return the mean seconds and the speed-up. Both are computed from the counted work, and also measured by the clock."""
    pairs, found = paired_done(policy, target) if target else [], dict[str, Any]()
    for prefix, seconds in (("", attrgetter("computed_seconds")), ("measured_", attrgetter("seconds"))):
        ratio, interval = speedup(pairs, seconds)
        mean = Ratio(math.fsum(map(seconds, policy.done)), len(policy.done))
        found |= {f"{prefix}seconds_mean": mean, f"{prefix}speedup": ratio, f"{prefix}speedup_interval": interval}
    return found


def speedup(pairs: Paired, cost: Callable[[Result], float]) -> tuple[Ratio | None, Interval | None]:
    """Return the target's cost divided by the policy's cost. An interval requires at least MIN_PROBLEMS problems."""
    if not pairs:
        return None, None
    table = sums_by_problem(((own.key[0], [cost(target), cost(own)]) for own, target in pairs), 2)
    can_vary = len(table) >= MIN_PROBLEMS and any(own is not target for own, target in pairs)
    return Ratio(*(math.fsum(column) for column in table.T)), bootstrap(table, ratio_of_sums) if can_vary else None


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
    value, interval = _against_target([(own[number], others[number]) for number in shared], can_vary=policy is not target)
    return {
        "problems_per_second": Ratio(sum(map(_num_done, own.values())), math.fsum(map(_block_seconds, own.values()))),
        "throughput_ratio": value,
        "throughput_ratio_interval": interval,
        "blocks_compared": len(shared),
    }


def throughput_notes(concurrency: int, policies: Sequence[PolicyResults], made: Iterable[Mapping[str, Any]]) -> list[str]:
    notes = [f"{concurrency} problems were solved at once, so seconds per problem and speed-ups are unavailable."]
    compared = [policy for policy in made if policy["throughput_ratio"] is not None and policy["policy"] != "target"]
    if any(policy["blocks_compared"] < MIN_BLOCKS for policy in compared):
        notes.append(f"Throughput ratios over fewer than {MIN_BLOCKS} blocks have no interval; use more problems.")
    broken = sum(not _is_whole(block) for policy in policies for block in _blocks(policy).values())
    if broken:
        notes.append(
            f"{rounding.count(broken, 'block')} interrupted and resumed; the time of interrupted attempts is included."
        )
    return notes


def _against_target(pairs: Sequence[tuple[Block, Block]], *, can_vary: bool) -> tuple[Ratio | None, Interval | None]:
    table = np.array([[of(block) for block in pair for of in (_num_done, _block_seconds)] for pair in pairs], np.float64)
    done, seconds, target_done, target_seconds = map(math.fsum, table.reshape(len(pairs), 4).T)
    rate, target_rate = Ratio(done, seconds).value, Ratio(target_done, target_seconds).value
    ratio = None if rate is None or target_rate is None else Ratio(rate, target_rate)
    if not can_vary or len(pairs) < MIN_BLOCKS:
        return ratio, None
    return ratio, bootstrap(table, lambda sums: (sums[:, 0] * sums[:, 3]) / (sums[:, 1] * sums[:, 2]))


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

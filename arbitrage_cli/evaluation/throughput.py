"""Problems per second of a policy that solves several at once, and how that compares with the target alone.

Counted from rows: each tells what its problem added to the time of its block (`summary.Share`). A block is what policies take
turns with, so it is what they are compared over, and what is resampled: single problems of a block depend on each other.
A block that was broken off counts as it came, with the time that went into problems which were then begun anew, and so does
one of which problems failed and were tried again.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arbitrage_cli.runs.rows import Group, Key
from arbitrage_cli.runs.summary import Share
from arbitrage_cli.stats.intervals import Floats, bootstrap
from arbitrage_cli.stats.ratios import Ratios, over, ratio

MIN_BLOCKS = 5
"""With fewer there is nothing to resample from."""


@dataclass(slots=True)
class _Block:
    """A policy's results of one block: which attempts, how many of them are done, and the shares of all that was made."""

    keys: set[Key] = field(default_factory=set)
    num_done: int = 0
    shares: list[tuple[int, Share]] = field(default_factory=list)  # with the sample that each is of

    @property
    def seconds(self) -> float:
        """What it took, failed attempts that were made again included."""
        return math.fsum(share.seconds for _, share in self.shares)

    @property
    def is_whole(self) -> bool:
        """Whether each sample was solved in one go."""
        counts = Counter(sample for sample, _ in self.shares)
        return all(share.of == counts[sample] for sample, share in self.shares)


def throughput(group: Group, alone: Group | None, ratios: Ratios) -> dict[str, Any]:
    """Problems per second, and over the blocks in which both have the same attempts, those of the target alone beside them."""
    own = _blocks(group)
    made: dict[str, Any] = {
        "problems_per_second": ratio(ratios, "problems_per_second", *_sums(own.values())),
        "throughput_ratio": None,
        "throughput_ratio_interval": None,
        "blocks": len(own),
        "blocks_compared": 0,
    }
    if alone is None:
        return made
    others = _blocks(alone)
    shared = [number for number in own if number in others and own[number].keys == others[number].keys]
    table = np.array(
        [(own[one].num_done, own[one].seconds, others[one].num_done, others[one].seconds) for one in shared], np.float64
    ).reshape(len(shared), 4)
    done, seconds, done_alone, seconds_alone = (math.fsum(column) for column in table.T)
    rate, rate_alone = over(done, seconds), over(done_alone, seconds_alone)
    made["blocks_compared"] = len(shared)
    if rate is not None and rate_alone is not None:
        made["throughput_ratio"] = ratio(ratios, "throughput_ratio", rate, rate_alone)
    if group is not alone and len(shared) >= MIN_BLOCKS:
        made["throughput_ratio_interval"] = bootstrap(table, _ratio_of_rates)
    return made


def notes(concurrency: int, groups: Sequence[Group], policies: Iterable[Mapping[str, Any]]) -> list[str]:
    """What a reader of a throughput run must know."""
    told = [
        f"A throughput run, {concurrency} problems at once: seconds a problem, and speed-ups, are for a run of one at a time."
    ]
    few = [one for one in policies if one["throughput_ratio"] is not None and one["blocks_compared"] < MIN_BLOCKS]
    if any(one["policy"] != "target" for one in few):
        told.append(f"A ratio over fewer than {MIN_BLOCKS} blocks of problems has no interval: it takes more problems.")
    broken = sum(not block.is_whole for group in groups for block in _blocks(group).values())
    if broken:
        told.append(f"{broken} blocks were solved in more than one go, and count with what was done in vain.")
    return told


def _blocks(group: Group) -> dict[int, _Block]:
    """By number. A row without a share, that of an attempt that hung, took no time that is known."""
    blocks: dict[int, _Block] = {}
    for result in (*group.results.values(), *group.superseded):
        if result.share is not None:
            blocks.setdefault(result.share.block, _Block()).shares.append((result.key[1], result.share))
    for key, result in group.results.items():
        if result.share is not None:
            blocks[result.share.block].keys.add(key)
            blocks[result.share.block].num_done += result.is_done
    return blocks


def _sums(blocks: Iterable[_Block]) -> tuple[int, float]:
    found = list(blocks)
    return sum(block.num_done for block in found), math.fsum(block.seconds for block in found)


def _ratio_of_rates(sums: Floats) -> Floats:
    ratios: Floats = (sums[:, 0] * sums[:, 3]) / (sums[:, 1] * sums[:, 2])
    return ratios

"""What a router does with drafted steps: how many it accepts at each position, which probabilities it gives, and whether these
come true.

A probability comes true as often as the target's step was better. The oracle knows that of the steps that it saw as well: the
same draft after the same text. Knows no time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from arbitrage_cli.runs.results import PolicyResults, SampleKey
from arbitrage_cli.stats.intervals import wilson

MAX_POSITION = 10
"""Later steps are counted with this one."""
NUM_BINS = 10
"""Of probabilities, of equal width."""
WITH_PROBABILITY = "arbitrage"
"""The policy whose score is a probability."""

Advantages = Mapping[tuple[SampleKey, int], float]
"""The advantage of the target's step, by attempt and state."""


def drafted_steps(policy: PolicyResults, oracle: PolicyResults | None) -> dict[str, Any]:
    """Figures of one policy; None for those that it cannot have."""
    by_position = None if policy.tau is None else _by_position(policy)
    if policy.policy != WITH_PROBABILITY:
        return {"acceptance_by_position": by_position, "probability_counts": None, "calibration": None}
    bins = _bins(policy, _advantages(oracle))
    known = [[(number, advantage > 0) for number, advantage in one if advantage is not None] for one in bins]
    return {
        "acceptance_by_position": by_position,
        "probability_counts": list(map(len, bins)),
        "calibration": [_calibration(one) for one in known if one] or None,
    }


def _by_position(policy: PolicyResults) -> list[dict[str, Any]]:
    """Of each position, the last one with all after it: steps drafted and accepted there."""
    drafted, accepted = [0] * MAX_POSITION, [0] * MAX_POSITION
    for result in policy.done:
        for index, step in enumerate(result.drafted):
            position = min(index, MAX_POSITION - 1)
            drafted[position] += 1
            accepted[position] += step.is_accepted
    return [
        {"drafted": tried, "accepted": kept, "rate": kept / tried, "interval": wilson(kept, tried)}
        for tried, kept in zip(drafted, accepted, strict=True)
        if tried
    ]


def _advantages(oracle: PolicyResults | None) -> Advantages:
    steps = ((result.key, step) for result in (oracle.done if oracle else ()) for step in result.drafted)
    return {(key, step.state): step.advantage for key, step in steps if step.advantage is not None}


def _bins(policy: PolicyResults, advantages: Advantages) -> list[list[tuple[float, float | None]]]:
    """Probability and advantage, if known, of the steps in each bin."""
    bins: list[list[tuple[float, float | None]]] = [[] for _ in range(NUM_BINS)]
    steps = ((result.key, step) for result in policy.done for step in result.drafted)
    for key, step in steps:
        if step.score is not None:
            place = min(int(step.score * NUM_BINS), NUM_BINS - 1)
            bins[place].append((step.score, advantages.get((key, step.state))))
    return bins


def _calibration(steps: Iterable[tuple[float, bool]]) -> dict[str, Any]:
    """The steps of one bin."""
    numbers, better = zip(*steps, strict=True)
    count, true = len(numbers), sum(better)
    return {
        "n": count,
        "probability": sum(numbers) / count,
        "better": true,
        "share": true / count,
        "interval": wilson(true, count),
    }

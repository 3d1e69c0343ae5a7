"""Computes the time of each attempt from its counted work.

The amount of work on a problem is deterministic: tokens in prefill, decoding and verification, scores, and tokens that the
program handles. Only the time of the work is noisy. The unit costs are means over many steps. A disturbed step counts as a
usual step of the same kind at a similar place in a solution. A change of model may slow down the next step. The first steps
after a change are therefore a kind of their own, so that a policy pays for its changes. The computed time of an attempt is
its work multiplied by these unit costs. The work of a model without measured unit costs keeps its measured time: most of a
server's time is latency, which does not depend on counted work.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Literal, NamedTuple

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Interval
from arbitrage_cli.runs.results import PolicyResults, Result, concurrency_of, paired_done, unit_costs_of
from arbitrage_cli.types import ModelRole

Kind = tuple[ModelRole, str, bool] | Literal["score", "program"]
"""A kind of work: the scores of a policy, the tokens that the program handles, or a phase of a model's work.

The last part of the tuple is whether the step follows a step of another model, which may be slower.
"""
PHASES = ("prefill", "decode", "verify")

DISTURBED = 2.0  # the factor by which a disturbed step is slower or faster than the usual step
NEIGHBOURS = 7  # steps before a place, and after it, that define the usual step
MIN_STEPS = 8  # minimum steps of a policy; with fewer, all policies define the usual step


class Step(NamedTuple):
    """The expected and measured seconds of a piece of work, and its place: the number of tokens written before."""

    place: int
    expected: float
    measured: float


Steps = Mapping[Kind, Sequence[Step]]


def with_computed_seconds(run: Mapping[str, Any], policies: Sequence[PolicyResults]) -> list[PolicyResults]:
    """Return the policies with the computed seconds of all finished attempts.

    The time spent on rating steps is measured, not computed, as is the time of models without unit costs. If several problems
    were solved at once, their steps shared batches, and the unit costs in run.json apply: the time of one problem at a time.
    """
    is_shared = concurrency_of(run) > 1
    units = unit_costs_of(run)
    everything = _by_kind(policies, units)

    def computed(policy: PolicyResults) -> PolicyResults:
        found = _by_kind([other for other in policies if _is_same_work(policy, other)], units)
        scales = {
            kind: 1.0 if is_shared and isinstance(kind, tuple) else _scale(own, everything[kind])
            for kind, own in found.items()
        }

        def timed(result: Result) -> Result:
            return replace(result, computed=_computed(result, units, scales)) if result.is_done else result

        return replace(policy, results={key: timed(result) for key, result in policy.results.items()})

    return [computed(policy) for policy in policies]


def _computed(result: Result, units: Mapping[ModelRole, UnitCosts], scales: Mapping[Kind, float]) -> dict[str, float]:
    """Return the computed seconds of each model role, of the program and of the ratings."""
    seconds: dict[str, float] = defaultdict(float, rewards=result.tally.reward_cost.seconds)
    for kind, step in _steps(result, units):
        seconds[kind if isinstance(kind, str) else kind[0]] += scales[kind] * step.expected
    for role, cost in result.work:
        seconds[role] += 0.0 if role in units else cost.seconds
    return seconds


def token_ratio(run: Mapping[str, Any], policies: Iterable[PolicyResults]) -> tuple[float | None, Interval | None]:
    """Return the cost of a decoded target token in draft tokens in this run, with an interval.

    Both are None if a model decoded nothing or has no measured unit costs.
    """
    units = unit_costs_of(run)
    steps = _by_kind(policies, units)
    decoded = {role: [*steps.get((role, "decode", False), ()), *steps.get((role, "decode", True), ())] for role in units}
    if not (costs := PairCosts.of(units)) or not all(decoded.values()):
        return None, None
    factor = _scale(decoded["target"], decoded["target"]) / _scale(decoded["draft"], decoded["draft"])
    low, high = costs.token_ratio_interval
    return factor * costs.token_ratio, (factor * low, factor * high)


def _is_same_work(policy: PolicyResults, other: PolicyResults) -> bool:
    """Return whether the models wrote the same tokens in the same batches.

    For example, speculation that proposes nothing does the same work as the target alone.

    Prefill tokens are not compared, because a later policy reuses the prompt prefix that an earlier policy cached.
    """
    pairs = paired_done(policy, other)
    is_alike = bool(pairs) and policy.policy.reads_token_stats == other.policy.reads_token_stats
    return policy is other or (is_alike and all(_written(one) == _written(two) for one, two in pairs))


def _written(result: Result) -> list[tuple[ModelRole, int, int, int]]:
    return [(role, cost.decode_tokens, cost.verify_tokens, cost.verify_batches) for role, cost in result.work]


def _by_kind(policies: Iterable[PolicyResults], units: Mapping[ModelRole, UnitCosts]) -> Steps:
    found: dict[Kind, list[Step]] = {}
    for result in (result for policy in policies for result in policy.done):
        for kind, step in _steps(result, units):
            found.setdefault(kind, []).append(step)
    return found


def _steps(result: Result, units: Mapping[ModelRole, UnitCosts]) -> list[tuple[Kind, Step]]:
    """Return the pieces of work in an attempt that take time and that `units` cover."""
    found: list[tuple[Kind, Step]] = []
    place, previous = 0, None
    for role, cost in result.work:
        if role in units:
            measured = cost.prefill_seconds, cost.decode_seconds, cost.verify_seconds
            for phase, expected, seconds in zip(PHASES, units[role].seconds(cost), measured, strict=True):
                found.append(((role, phase, previous not in (None, role)), Step(place, expected, seconds)))
        place, previous = place + cost.decode_tokens + cost.verify_kept, role
    found.append(("score", Step(0, result.num_scores, result.router_seconds)))
    found.append(("program", Step(0, place, result.program_seconds)))
    return [(kind, step) for kind, step in found if step.expected]


def _scale(own: Sequence[Step], everything: Sequence[Step]) -> float:
    """Return the total measured seconds of a policy's steps of one kind, divided by their total expected seconds.

    A disturbed step gets the usual time of the steps at similar places.
    """
    ordered, total = sorted(own, key=lambda step: step.place), 0.0
    for index, step in enumerate(ordered):
        near = ordered[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1] if len(own) >= MIN_STEPS else everything
        usual = step.expected * median(one.measured / one.expected for one in near)
        is_usual = usual <= DISTURBED * step.measured and step.measured <= DISTURBED * usual
        total += step.measured if is_usual else usual
    return total / math.fsum(step.expected for step in own)

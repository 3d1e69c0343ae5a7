"""Computes the time of each attempt from its counted work.

The amount of work on a problem is deterministic: tokens in prefill, decoding and verification, scores, and tokens that the
program handles. Only the time of the work is noisy. The unit costs are means over many steps. Disturbed steps, which took
unusually long, are excluded. The computed time of an attempt is its work multiplied by these unit costs. The work of a model
without measured unit costs keeps its measured time: most of a server's time is latency, which does not depend on counted work.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from arbitrage_cli.inference.unit_costs import PER_TOKEN, UnitCosts
from arbitrage_cli.runs.results import PolicyResults, Result, concurrency_of, paired_done, sums_by_problem, unit_costs_of
from arbitrage_cli.stats.intervals import Interval, Ratio, log_ratio
from arbitrage_cli.types import Cost, ModelRole

Kind = tuple[ModelRole, Literal["prefill", "decode", "verify"]] | Literal["score", "program"]
"""A kind of work: a phase of a model, the scores of a policy, or the tokens that the program handles."""
Samples = dict[Kind, list[tuple[float, float]]]
"""The expected and measured seconds of each step, for each kind of work."""

DISTURBED = 2.0  # a step is left out if it took more than this multiple of the lower quartile
MIN_STEPS = 8  # minimum steps for a policy's own lower quartile; with fewer, the quartile of all policies is used


def with_computed_seconds(run: Mapping[str, Any], policies: Sequence[PolicyResults]) -> list[PolicyResults]:
    """Return the policies with the computed seconds of all finished attempts.

    The time spent on rating steps is measured, not computed, as is the time of models without unit costs. Nothing is computed
    if several problems were solved at once.
    """
    if concurrency_of(run) > 1:
        return [*policies]
    units = unit_costs_of(run)
    everything = _samples(policies, units)

    def computed(policy: PolicyResults) -> PolicyResults:
        own = _samples([other for other in policies if _is_same_work(policy, other)], units)
        scales = {kind: _scale(own[kind], everything[kind]) for kind in own}

        def timed(result: Result) -> Result:
            return replace(result, computed=_computed(result, units, scales)) if result.is_done else result

        return replace(policy, results={key: timed(result) for key, result in policy.results.items()})

    return [computed(policy) for policy in policies]


def _computed(result: Result, units: Mapping[ModelRole, UnitCosts], scales: Mapping[Kind, float]) -> dict[str, float]:
    """Return the computed seconds by model role, and of the program and the ratings."""
    seconds: dict[str, float] = defaultdict(float, rewards=result.tally.reward_cost.seconds)
    for kind, expected, _ in _steps(result, units):
        seconds[kind if isinstance(kind, str) else kind[0]] += scales[kind] * expected if expected else 0.0
    for role, cost in result.work:
        seconds[role] += 0.0 if role in units else cost.seconds
    return seconds


def decoding_factors(run: Mapping[str, Any], policies: Iterable[PolicyResults]) -> dict[ModelRole, float]:
    """Return each model's decoding time per token in this run, divided by its unit cost in run.json."""
    units = unit_costs_of(run)
    samples = _samples(policies, units)
    return {role: _scale(own, own) for role in units if (own := samples.get((role, "decode")))}


def token_ratio(run: Mapping[str, Any], policies: Sequence[PolicyResults]) -> tuple[Ratio | None, Interval | None]:
    """Return the cost of a decoded target token in draft tokens, with an interval.

    Both are None if a model decoded nothing or has no measured unit costs.
    """
    units = unit_costs_of(run)
    samples = _samples(policies, dict.fromkeys(units, PER_TOKEN))
    roles: tuple[ModelRole, ...] = ("draft", "target")
    usual = {role: _usual(samples[role, "decode"]) for role in roles if (role, "decode") in samples}
    if len(usual) < 2:
        return None, None

    def decoded(result: Result) -> list[float]:
        """Return the target's decoding seconds and tokens and the draft's tokens and seconds, without disturbed steps."""
        sums = {role: Cost() for role in ("target", "draft")}
        for role, cost in result.work:
            if cost.decode_seconds <= DISTURBED * usual[role] * cost.decode_tokens:
                sums[role] += cost
        target, draft = sums["target"], sums["draft"]
        return [target.decode_seconds, target.decode_tokens, draft.decode_tokens, draft.decode_seconds]

    table = sums_by_problem([(result.key[0], decoded(result)) for policy in policies for result in policy.done], 4)
    target_seconds, target_tokens, draft_tokens, draft_seconds = table.sum(axis=0)
    _, interval = log_ratio(table, math.hypot(*(units[role].error for role in usual)))
    return Ratio(target_seconds / target_tokens, draft_seconds / draft_tokens), interval


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


def _samples(policies: Iterable[PolicyResults], units: Mapping[ModelRole, UnitCosts]) -> Samples:
    found: Samples = {}
    for result in (result for policy in policies for result in policy.done):
        for kind, expected, measured in _steps(result, units):
            if expected:
                found.setdefault(kind, []).append((expected, measured))
    return found


def _steps(result: Result, units: Mapping[ModelRole, UnitCosts]) -> Iterator[tuple[Kind, float, float]]:
    """Yield the kind, the expected seconds and the measured seconds of each piece of work that `units` cover."""
    num_tokens = 0
    for role, cost in result.work:
        if role in units:
            prefill, decode, verify = units[role].seconds(cost)
            yield (role, "prefill"), prefill, cost.prefill_seconds
            yield (role, "decode"), decode, cost.decode_seconds
            yield (role, "verify"), verify, cost.verify_seconds
        num_tokens += cost.decode_tokens + cost.verify_kept
    yield "score", result.num_scores, result.router_seconds
    yield "program", num_tokens, result.program_seconds


def _usual(samples: Sequence[tuple[float, float]]) -> float:
    """Return the lower quartile of the ratio measured / expected, weighted by the expected seconds."""
    expected, measured = np.array(samples).T
    ratios = measured / expected
    order = np.argsort(ratios)
    weights = np.cumsum(expected[order])
    return float(ratios[order][np.searchsorted(weights, weights[-1] / 4)])


def _scale(own: Sequence[tuple[float, float]], everything: Sequence[tuple[float, float]]) -> float:
    """Return the total measured seconds of a policy's undisturbed steps, divided by their total expected seconds."""
    usual = _usual(own if len(own) >= MIN_STEPS else everything)
    kept = [(expected, measured) for expected, measured in own if measured <= DISTURBED * usual * expected]
    expected, measured = np.sum(kept, axis=0) if kept else (1.0, usual)
    return float(measured / expected)

"""Computes the time of each attempt from its counted work.

The work on a problem is deterministic: tokens in prefill, decoding and verification, scores, and tokens that the program
handles. Only its time is noisy. The unit costs of a policy are means over its steps, except unusually slow steps. The
computed time of an attempt is its work multiplied by these unit costs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from arbitrage_cli.inference.unit_costs import PER_TOKEN, UnitCosts
from arbitrage_cli.runs.results import PolicyResults, Result, paired_done, sums_by_problem, unit_costs_of
from arbitrage_cli.stats.intervals import Interval, Ratio, bootstrap
from arbitrage_cli.types import Cost, ModelRole

Work = tuple[ModelRole, Literal["prefill", "decode", "verify"]] | Literal["score", "program"]
"""A kind of work: a phase of a model, the scores of a policy, or the tokens that the program handles."""

DISTURBED = 2.0  # a step is left out if it took more than this multiple of the lower quartile
MIN_STEPS = 8  # minimum steps for a policy's own lower quartile; with fewer, the quartile of all policies is used

NOTHING: Mapping[ModelRole, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a kind of work: the expected seconds in proportion to the work, and the measured seconds."""

    expected: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.measured / self.expected


def with_computed_seconds(
    run: Mapping[str, Any], policies: Sequence[PolicyResults], factors: Mapping[ModelRole, float] = NOTHING
) -> list[PolicyResults]:
    """Return the policies with the computed seconds of all finished attempts.

    `factors` changes the cost of a model, for example {"target": 2.0} for a target that takes twice as long. The time of
    rating steps is not computed but measured.
    """
    units = unit_costs_of(run)
    found = [_samples(policy.done, units) for policy in policies]
    everything = _joined(found)
    computed = []
    for policy in policies:
        own = _joined(samples for other, samples in zip(policies, found, strict=True) if _is_same_work(policy, other))
        scales = {work: _scale(samples, everything[work]) for work, samples in own.items()}
        for role, factor in factors.items():
            scales |= {work: factor * scale for work, scale in scales.items() if work[0] == role}
        results = {
            key: replace(result, computed_seconds=_seconds(result, units, scales)) if result.is_done else result
            for key, result in policy.results.items()
        }
        computed.append(replace(policy, results=results))
    return computed


def decoding_factors(run: Mapping[str, Any], policies: Iterable[PolicyResults]) -> dict[ModelRole, float]:
    """Return how many times as long as in run.json's unit costs each model decoded a token."""
    everything = _joined(_samples(policy.done, unit_costs_of(run)) for policy in policies)
    decoding = {role: everything[role, "decode"] for role in unit_costs_of(run) if (role, "decode") in everything}
    return {role: _scale(samples, samples) for role, samples in decoding.items()}


def _is_same_work(policy: PolicyResults, other: PolicyResults) -> bool:
    """Return whether the models wrote the same tokens in the same batches, as in speculation that proposes nothing.

    Tokens of prefill are not compared, because a later policy reuses the cached prompt prefix of an earlier one.
    """
    pairs = paired_done(policy, other)
    is_alike = bool(pairs) and policy.policy.reads_token_stats == other.policy.reads_token_stats
    return policy is other or (
        is_alike and all([*map(_written, one.work)] == [*map(_written, two.work)] for one, two in pairs)
    )


def _written(step: tuple[ModelRole, Cost]) -> tuple[ModelRole, int, int, int]:
    role, cost = step
    return role, cost.decode_tokens, cost.verify_tokens, cost.verify_batches


def token_ratio(policies: Iterable[PolicyResults]) -> tuple[Ratio | None, Interval | None]:
    """Return how many draft tokens a decoded target token costs, with an interval over problems; None if unknown."""
    usual = {role: _usual(_decoding(policies, role)) for role in ("draft", "target")}
    rows = []
    for policy in policies:
        for result in policy.done:
            row = [0.0] * 4
            for role, cost in result.work:
                if cost.decode_tokens and cost.decode_seconds <= DISTURBED * usual[role] * cost.decode_tokens:
                    row[0 if role == "target" else 2] += cost.decode_seconds
                    row[1 if role == "target" else 3] += cost.decode_tokens
            rows.append((result.key[0], row))
    table = sums_by_problem(rows, 4)
    target_seconds, target_tokens, draft_seconds, draft_tokens = table.sum(axis=0)
    if not (target_tokens and draft_tokens and draft_seconds):
        return None, None
    ratio = Ratio(target_seconds / target_tokens, draft_seconds / draft_tokens)
    return ratio, bootstrap(table, lambda sums: sums[:, 0] * sums[:, 3] / (sums[:, 1] * sums[:, 2]))


def _decoding(policies: Iterable[PolicyResults], role: ModelRole) -> list[Sample]:
    costs = [cost for policy in policies for result in policy.done for own, cost in result.work if own == role]
    return [Sample(cost.decode_tokens, cost.decode_seconds) for cost in costs if cost.decode_tokens]


def _samples(results: Iterable[Result], units: Mapping[ModelRole, UnitCosts]) -> dict[Work, list[Sample]]:
    found: dict[Work, list[Sample]] = {}
    for result in results:
        for role, cost in result.work:
            measured = cost.prefill_seconds, cost.decode_seconds, cost.verify_seconds
            for (work, expected), seconds in zip(_expected_of_step(role, cost, units), measured, strict=True):
                found.setdefault(work, []).append(Sample(expected, seconds))
        found.setdefault("score", []).append(Sample(result.num_scores, result.router_seconds))
        found.setdefault("program", []).append(Sample(_num_tokens(result), result.program_seconds))
    return {work: kept for work, samples in found.items() if (kept := [one for one in samples if one.expected])}


def _expected_of_step(role: ModelRole, cost: Cost, units: Mapping[ModelRole, UnitCosts]) -> Iterator[tuple[Work, float]]:
    prefill, decode, verify = units.get(role, PER_TOKEN).seconds(cost)
    yield (role, "prefill"), prefill
    yield (role, "decode"), decode
    yield (role, "verify"), verify


def _num_tokens(result: Result) -> int:
    return sum(cost.decode_tokens + cost.verify_kept for _, cost in result.work)


def _joined(found: Iterable[Mapping[Work, list[Sample]]]) -> dict[Work, list[Sample]]:
    joined: dict[Work, list[Sample]] = {}
    for own in found:
        for work, samples in own.items():
            joined.setdefault(work, []).extend(samples)
    return joined


def _usual(samples: Sequence[Sample]) -> float:
    """Return the lower quartile of the ratios, weighted by the expected seconds."""
    ordered = sorted(samples, key=lambda sample: sample.ratio)
    weights = np.cumsum([sample.expected for sample in ordered])
    return ordered[int(np.searchsorted(weights, weights[-1] / 4))].ratio if ordered else 0.0


def _scale(own: Sequence[Sample], everything: Sequence[Sample]) -> float:
    """Return the mean ratio of a policy's undisturbed steps."""
    usual = _usual(own if len(own) >= MIN_STEPS else everything)
    kept = [sample for sample in own if sample.ratio <= DISTURBED * usual]
    return math.fsum(one.measured for one in kept) / math.fsum(one.expected for one in kept) if kept else usual


def _seconds(result: Result, units: Mapping[ModelRole, UnitCosts], scales: Mapping[Work, float]) -> float:
    parts = [
        scales[work] * expected
        for role, cost in result.work
        for work, expected in _expected_of_step(role, cost, units)
        if expected
    ]
    parts += [scales.get("score", 0.0) * result.num_scores, scales.get("program", 0.0) * _num_tokens(result)]
    return math.fsum([*parts, result.tally.reward_cost.seconds])

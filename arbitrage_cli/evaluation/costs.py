"""Cost of attempts in target-token equivalents, and what it would be at another cost ratio of the two models.

One equivalent is the time of one token that the target decodes, on average over the whole run. Token counts times mean
costs depend less on the machine's mood than clock time does, and answer "what if": for a pair whose target costs R times
as much a token as its draft,

    equivalents(R) = target units + draft units / R + fixed units

Target units are tokens that the target decoded, and those that it read (prefill, verify), each weighed by its measured
cost against a decoded one; draft units are the same for the draft; fixed units are the seconds of router and reward,
divided by those of a token that the target decoded. Knows no accuracy and no policy.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from arbitrage_cli.evaluation.speed import Pairs, speedup
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.summary import Tally
from arbitrage_cli.stats.intervals import Ratio
from arbitrage_cli.types import Cost

KINDS = ("decode", "prefill", "verify")


@dataclass(frozen=True, slots=True)
class Units:
    """Cost in tokens decoded by the target, in tokens decoded by the draft, and of neither model."""

    target: float = 0.0
    draft: float = 0.0
    fixed: float = 0.0

    def equivalents(self, cost_ratio: float | None) -> float | None:
        """Target-token equivalents at a cost ratio; None if the draft wrote and its cost is unknown."""
        if not self.draft:
            return self.target + self.fixed
        return self.target + self.fixed + self.draft / cost_ratio if cost_ratio else None


UnitsOf = Mapping[int, Units | None]
"""The units of attempts, by the `id` of their results."""


@dataclass(frozen=True, slots=True)
class RunCosts:
    """Tokens and seconds of each model over a whole run: of all attempts that are done, of all policies together."""

    draft: Cost
    target: Cost

    @property
    def cost_ratio(self) -> float | None:
        """Seconds per token that the target decodes / seconds per token that the draft decodes; None if one never did."""
        draft, target = _per_token(self.draft, "decode"), _per_token(self.target, "decode")
        return target / draft if draft and target else None

    def units(self, result: Result) -> Units | None:
        """The units of an attempt; None if the target decoded no token in this run: then there is no unit."""
        seconds = _per_token(self.target, "decode")
        if seconds is None:
            return None
        target, draft = _decoded(result.tally.target_cost, self.target), _decoded(result.tally.draft_cost, self.draft)
        return Units(target, draft, (result.router_seconds + result.reward_seconds) / seconds)


def run_costs(results: Iterable[Result]) -> RunCosts:
    """The costs of a run, from all its results."""
    total = sum((result.tally for result in results if result.is_done), Tally())
    return RunCosts(total.draft_cost, total.target_cost)


def equivalents(done: Sequence[Result], pairs: Pairs, costs: RunCosts) -> dict[str, Any]:
    """A policy's cost in target tokens, also against the target alone, and the terms of its projection."""
    units = {id(one): costs.units(one) for group in (done, *pairs) for one in group}  # once: there may be 100,000
    known = [cost for one in done if (cost := _equivalents(units[id(one)], costs.cost_ratio)) is not None]
    measured, interval = _speedup(pairs, units, costs.cost_ratio)
    return {
        "target_token_equivalents": Ratio(math.fsum(known), len(known)),
        "equivalent_speedup": measured,
        "equivalent_speedup_interval": interval,
        "projection_terms": _projection_terms(pairs, units),
    }


def _equivalents(units: Units | None, cost_ratio: float | None) -> float | None:
    """Target-token equivalents of an attempt; None if unknown."""
    return units.equivalents(cost_ratio) if units else None


def _speedup(pairs: Pairs, units: UnitsOf, cost_ratio: float | None) -> Any:
    """Ratio and interval; None twice if the cost of an attempt is unknown."""
    known = {id(one): _equivalents(units[id(one)], cost_ratio) for pair in pairs for one in pair}
    return (None, None) if None in known.values() else speedup(pairs, lambda one: known[id(one)] or 0.0)


def _projection_terms(pairs: Pairs, units: UnitsOf) -> dict[str, float] | None:
    """The terms of a projection to cost ratio R: speed-up = alone / (target + draft / R + fixed)."""
    own, alone = ([found for pair in pairs if (found := units[id(pair[side])])] for side in (0, 1))
    if not own:
        return None
    return {
        "alone": math.fsum(one.target + one.fixed for one in alone),
        "target": math.fsum(one.target for one in own),
        "draft": math.fsum(one.draft for one in own),
        "fixed": math.fsum(one.fixed for one in own),
    }


def _decoded(cost: Cost, of_run: Cost) -> float:
    """All tokens of a cost as tokens that the model decodes: each kind weighed by its mean cost in the run."""
    decode, prefill, verify = _weights(of_run)
    return decode * cost.decode_tokens + prefill * cost.prefill_tokens + verify * cost.verify_tokens


@lru_cache(maxsize=4)  # of the two models of a run: asked for with every attempt
def _weights(of_run: Cost) -> tuple[float, ...]:
    """What a token of each of `KINDS` costs, in decoded ones; only these count if they took no time."""
    decode = _per_token(of_run, "decode")
    return (1.0, 0.0, 0.0) if decode is None else tuple((_per_token(of_run, kind) or 0.0) / decode for kind in KINDS)


def _per_token(cost: Cost, kind: str) -> float | None:
    """Mean seconds of a token of this kind; None if there was none, or it took no time."""
    tokens, seconds = getattr(cost, f"{kind}_tokens"), getattr(cost, f"{kind}_seconds")
    return seconds / tokens if tokens and seconds > 0 else None

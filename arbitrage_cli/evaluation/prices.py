"""Computes the price of a run's tokens, and the share of the target's price that a policy saves."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.speed import speedup
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.runs.results import PolicyResults, Result, paired_done
from arbitrage_cli.runs.summary import tally
from arbitrage_cli.types import Cost, Finished, ModelRole

EXAMPLE = "dollars per million prompt tokens, cached prompt tokens (optional) and completion tokens: target=0.60/0.15/2.40"
ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm")
PRICED = ("price", "saving", "saving_interval")  # figures that need prices
NUMBER = r"\d{1,9}(\.\d{1,9})?"


@dataclass(frozen=True, slots=True)
class Price:
    """Prices per million prompt tokens, cached prompt tokens, and completion tokens."""

    prompt: float
    cached: float
    completion: float

    def bill(self, finished: Finished) -> tuple[float, float | None] | None:
        """Return the price of the target's work on a problem, and the estimated price for the target alone in one request.

        Returns None if a server did not report the tokens of a prompt. The estimate is None if the draft wrote no steps.
        """
        decisions = finished.trace.decisions
        costs = [decision.target.cost for decision in decisions if decision.target]
        is_routed = any(decision.draft for decision in decisions)
        if not _has_prompts(costs, is_single=not is_routed):
            return None
        whole = Cost(prefill_tokens=finished.prompt_tokens or 0, decode_tokens=finished.trace.num_tokens)
        return self.of(tally(decisions).target_cost), self.of(whole) if is_routed and finished.prompt_tokens else None

    def of(self, cost: Cost) -> float:
        prompt = cost.prefill_tokens * self.prompt + cost.cached_tokens * self.cached
        return (prompt + (cost.decode_tokens + cost.verify_kept) * self.completion) / 1e6


Prices = Mapping[ModelRole, Price]


def parse_prices(text: str) -> Prices:
    """Parse prices such as `draft=0.02/0.10`. Models without a price are free. Raises UsageError if the text is invalid."""
    found: dict[ModelRole, Price] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or role in found or not re.fullmatch(rf"{NUMBER}(/{NUMBER}){{1,2}}", value):
            raise UsageError(f"invalid value '{part.strip()}'", EXAMPLE, option="price")
        prompt, *cached, completion = map(float, value.split("/"))
        found[role] = Price(prompt, cached[0] if cached else prompt, completion)
    return found


def price_figures(
    policy: PolicyResults, target: PolicyResults | None, run: Mapping[str, Any], prices: Prices | None
) -> dict[str, Any]:
    """Return the mean price of an attempt, and the saving. Speculation that drafted no tokens has the target's price."""
    if policy.policy.speculates and policy.done and not policy.tally.target_cost.verify_tokens:
        policy = target or policy
    if prices is None or not counts_tokens(run, policy):
        return dict.fromkeys(PRICED)

    def price(result: Result) -> float:
        costs = dict(zip(ROLES, (result.tally.draft_cost, result.tally.target_cost, result.tally.reward_cost), strict=True))
        return math.fsum(own.of(costs[role]) for role, own in prices.items())

    ratio, _, interval = speedup(paired_done(policy, target) if target and counts_tokens(run, target) else [], price)
    return {
        "price": Ratio(math.fsum(map(price, policy.done)), len(policy.done)),
        "saving": 1 - ratio.denominator / ratio.numerator if ratio and ratio.numerator else None,
        "saving_interval": [1 - 1 / end for end in interval] if interval else None,
    }


def counts_tokens(run: Mapping[str, Any], policy: PolicyResults) -> bool:
    """Return whether servers reported all token counts. A stream that is closed at the end of a step reports none."""
    served = {role for role, facts in run["models"].items() if facts.get("served")}
    works = ([cost for role, cost in result.work if role in served and cost.seconds] for result in policy.done)
    return all(_has_prompts(costs, is_single=policy.policy.kind == "single") for costs in works)


def _has_prompts(costs: Sequence[Cost], *, is_single: bool) -> bool:
    """Return whether all prompts were counted. A single model writes many steps in one response, and only one has the counts."""
    counts = [cost.prefill_tokens + cost.cached_tokens for cost in costs]
    return all(counts) or (is_single and any(counts))

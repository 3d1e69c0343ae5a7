"""Prices of tokens, which servers charge per million."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.types import Cost, Finished, ModelRole

EXAMPLE = "dollars per million prompt tokens, cached prompt tokens (optional) and completion tokens: target=0.60/0.15/2.40"
ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm", "check")
NUMBER = r"\d{1,9}(\.\d{1,9})?"


@dataclass(frozen=True, slots=True)
class Price:
    """Prices per million prompt tokens, cached prompt tokens, and completion tokens."""

    prompt: float
    cached: float
    completion: float

    @property
    def unit_costs(self) -> UnitCosts:
        return UnitCosts(tuple(rows * self.completion for rows in ROWS), self.prompt)

    def of(self, cost: Cost) -> float:
        prompt = cost.prefill_tokens * self.prompt + cost.cached_tokens * self.cached
        return (prompt + (cost.decode_tokens + cost.verify_kept) * self.completion) / 1e6


Prices = Mapping[ModelRole, Price]


def bill(prices: Prices, finished: Finished) -> tuple[float, float | None] | None:
    """Return the price of the work on a problem, and the estimated price for the target alone in one request.

    Returns None if a server did not report the tokens of a prompt. The estimate is None if the target works alone.
    """
    trace, check = finished.trace, finished.trace.check
    is_routed = any(decision.draft for decision in trace.decisions)
    steps = [step for decision in trace.decisions for step in (decision.draft, decision.target) if step]
    steps += check.discarded if check else []
    costs = {role: [step.cost for step in steps if step.model == role] for role in prices}
    if not all(has_prompts(own, is_single=bool(check) or not is_routed) for own in costs.values()):
        return None
    whole = Cost(prefill_tokens=finished.prompt_tokens or 0, decode_tokens=trace.num_tokens)
    spent = math.fsum(price.of(sum(costs[role], Cost())) for role, price in prices.items())
    return spent, prices["target"].of(whole) if (is_routed or check) and finished.prompt_tokens else None


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


def price_costs(prices: Prices) -> PairCosts:
    """Return the prices as token costs, with which presets minimize the price instead of the time."""
    free = Price(0.0, 0.0, 0.0)
    draft, target = (prices.get(role, free) for role in ("draft", "target"))
    return PairCosts(draft.unit_costs, target.unit_costs, reread_token=target.cached)


def has_prompts(costs: Sequence[Cost], *, is_single: bool) -> bool:
    """Return whether all prompts were counted.

    A model that writes a whole solution writes many steps in one response, and only one has the counts.
    """
    counts = [cost.prefill_tokens + cost.cached_tokens for cost in costs]
    return all(counts) or (is_single and any(counts))

"""What attempts cost in money, from the tokens of each model and a price list. Knows no accuracy, no time and no currency."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.speed import Pairs, speedup
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.summary import Tally
from arbitrage_cli.stats.intervals import Ratio
from arbitrage_cli.types import Cost, ModelRole

EXAMPLE = "for a million tokens read, perhaps cached, and written: draft=0.02/0.10,target=0.60/0.15/2.40"
ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm")


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a million tokens: read, read from a server's cache, written."""

    read: float
    cached: float
    written: float

    def of(self, cost: Cost) -> float:
        """The price of what a model read and wrote."""
        read = cost.prefill_tokens * self.read + cost.cached_tokens * self.cached
        return (read + (cost.decode_tokens + cost.verify_kept) * self.written) / 1e6


Prices = Mapping[ModelRole, Price]


def parse_prices(text: str) -> Prices:
    """`draft=READ/WRITTEN,target=READ/CACHED/WRITTEN`; a model without a price costs nothing. UsageError."""
    prices: dict[ModelRole, Price] = {}
    for part in text.split(","):
        role, _, figures = part.strip().partition("=")
        numbers = [float(one) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", one) else math.nan for one in figures.split("/")]
        known = next((one for one in ROLES if one == role), None)
        if known is None or known in prices or len(numbers) not in (2, 3) or any(map(math.isnan, numbers)):
            raise UsageError(f"invalid price '{part.strip()}'", EXAMPLE, option="price")
        prices[known] = Price(numbers[0], numbers[-2] if len(numbers) == 3 else numbers[0], numbers[-1])
    return prices


def price_figures(done: Sequence[Result], pairs: Pairs, prices: Prices) -> dict[str, Any]:
    """The mean price of an attempt, and the share of the target's price that is saved, with its interval."""

    def price(result: Result) -> float:
        tally = result.tally
        costs: Mapping[ModelRole, Cost] = {"draft": tally.draft_cost, "target": tally.target_cost, "prm": tally.reward_cost}
        return math.fsum(own.of(costs[role]) for role, own in prices.items())

    ratio, interval = speedup(pairs, price)
    return {
        "price": Ratio(math.fsum(map(price, done)), len(done)),
        "saving": 1 - ratio.denominator / ratio.numerator if ratio and ratio.numerator else None,
        "saving_interval": [1 - 1 / end for end in interval] if interval else None,
    }


def tokens_of_models(done: Sequence[Result]) -> dict[str, dict[str, int]]:
    """What each model read, found in a server's cache and wrote, over the finished attempts."""
    total = sum((result.tally for result in done), Tally())
    costs = {"draft": total.draft_cost, "target": total.target_cost, "prm": total.reward_cost}
    return {
        role: {"read": cost.prefill_tokens, "cached": cost.cached_tokens, "written": cost.decode_tokens + cost.verify_kept}
        for role, cost in costs.items()
    }


def counts_tokens(run: Mapping[str, Any]) -> bool:
    """Whether every server of the run counts tokens: what one has read is not known here."""
    served = [facts["served"] for facts in run["models"].values() if facts.get("served")]
    return all(facts["counts_tokens"] for facts in served)

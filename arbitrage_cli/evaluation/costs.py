"""Cost of attempts in target-token equivalents: as measured, and projected to another cost ratio of the two models.

One equivalent is what one token decoded by the target takes, on average over the whole run. Counts of tokens times mean
costs depend less on the machine's mood than clock time does, and can be asked "what if": for a pair whose target costs R
times as much a token as its draft,

    equivalents(R) = target units + draft units / R + fixed units

where target units are tokens that the target decoded, and those that it read (prefill, verify), each weighed with its
measured cost against one that it decoded; draft units are the same for the draft; fixed units are the seconds of router
and reward, divided by those of a token that the target decoded. Knows no accuracy and no policy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from arbitrage_cli.runs.rows import Result, total
from arbitrage_cli.types import Cost

KINDS = ("decode", "prefill", "verify")


@dataclass(frozen=True, slots=True)
class Prices:
    """Mean costs of a token by what is done with it, in KINDS' order, against one that the same model decodes.

    `seconds` is what a decoded token takes; None if the model never decoded one. What it never did has the weight 0.
    """

    seconds: float | None
    weights: tuple[float, ...]

    @classmethod
    def of(cls, cost: Cost) -> Self:
        """The prices that a sum of costs comes to."""
        decode, *others = (per_token(cost, kind) for kind in KINDS)
        return cls(decode, (1.0, *(other / decode if other and decode else 0.0 for other in others)))

    def weigh(self, cost: Cost) -> float:
        """All tokens of a cost as tokens that the model decodes."""
        tokens = (cost.decode_tokens, cost.prefill_tokens, cost.verify_tokens)
        return sum(count * weight for count, weight in zip(tokens, self.weights, strict=True))


@dataclass(frozen=True, slots=True)
class Units:
    """What an attempt costs, in tokens decoded by the target, in tokens decoded by the draft, and beside the models."""

    target: float
    draft: float
    fixed: float

    def equivalents(self, cost_ratio: float | None) -> float | None:
        """Target-token equivalents at a cost ratio; None where the draft wrote and nothing is known of its cost."""
        if not self.draft:
            return self.target + self.fixed
        return self.target + self.fixed + self.draft / cost_ratio if cost_ratio else None


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens and seconds of each model over a whole run, and the prices that they come to."""

    draft: Cost
    target: Cost
    draft_prices: Prices
    target_prices: Prices

    @property
    def cost_ratio(self) -> float | None:
        """Seconds per token that the target decodes / seconds per token that the draft decodes; None if one never did."""
        draft, target = self.draft_prices.seconds, self.target_prices.seconds
        return target / draft if draft and target else None

    def units(self, result: Result) -> Units | None:
        """The units of an attempt; None where the run has no token that the target decoded, so that there is no unit."""
        if self.target_prices.seconds is None:
            return None
        return Units(
            self.target_prices.weigh(result.tally.target_cost),
            self.draft_prices.weigh(result.tally.draft_cost),
            (result.router_seconds + result.reward_seconds) / self.target_prices.seconds,
        )


def measure(results: Iterable[Result]) -> Measured:
    """The costs of a run: of all attempts that are done, of all policies together."""
    summed = total(result.tally for result in results if result.is_done)
    draft, target = summed.draft_cost, summed.target_cost
    return Measured(draft, target, Prices.of(draft), Prices.of(target))


def per_token(cost: Cost, kind: str) -> float | None:
    """Mean seconds of a token that was decoded, prefilled or verified; None if none was, or in no time."""
    tokens, seconds = tokens_and_seconds(cost, kind)
    return seconds / tokens if tokens and seconds > 0 else None


def tokens_and_seconds(cost: Cost, kind: str) -> tuple[int, float]:
    """Tokens of one kind and the seconds they took."""
    return getattr(cost, f"{kind}_tokens"), getattr(cost, f"{kind}_seconds")

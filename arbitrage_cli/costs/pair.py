"""Computes the time of a problem from the unit costs of a pair, and its price from the prices of tokens."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.speculation import speculative_pace
from arbitrage_cli.inference.unit_costs import ROWS, TOKEN_SECONDS, UnitCosts
from arbitrage_cli.numbers.intervals import Interval, Z
from arbitrage_cli.types import ROLES, Bill, ByRole, Cost, Finished, ModelRole, frozen

MATCH_RATE = 0.8  # assumed share of draft tokens that the target keeps

EXAMPLE = "dollars per million prompt tokens, cached prompt tokens (optional) and completion tokens: target=0.60/0.15/2.40"
NUMBER = r"\d{1,9}(\.\d{1,9})?"


@frozen
class PairCosts:
    """The unit costs of a draft and a target, for `concurrency` problems at once.

    Prices have the same form, with dollars per million tokens instead of seconds. A model on a server processes the earlier
    text again for each step; `draft_reread` and `target_reread` are the costs of a token of this text.
    """

    draft: UnitCosts
    target: UnitCosts
    draft_reread: float = 0.0
    target_reread: float = 0.0
    concurrency: int = 1

    @classmethod
    def of(cls, units: ByRole[UnitCosts], concurrency: int = 1) -> "PairCosts | None":
        """Return the costs of a pair, or None if a model was not measured."""
        if not {"draft", "target"} <= units.keys():
            return None
        return cls(units["draft"], units["target"], concurrency=concurrency)

    def divided(self, draft_tokens: float, target_tokens: float) -> "PairCosts":
        """Return the costs for one of the problems at once, if the models write these numbers of tokens.

        All problems advance by one token at a time, so these numbers determine the sizes of the models' batches.
        """
        if self.concurrency == 1:
            return self
        problems = self.concurrency / ((draft_tokens + target_tokens) or 1.0)
        return replace(self, draft=self.draft.at(problems * draft_tokens), target=self.target.at(problems * target_tokens))

    @property
    def token_ratio(self) -> float:
        """The cost of a decoded target token in draft tokens."""
        return self.target.decode / self.draft.decode

    @property
    def token_ratio_interval(self) -> Interval:
        factor = math.exp(Z * math.hypot(self.draft.error, self.target.error))
        return self.token_ratio / factor, self.token_ratio * factor

    @property
    def verify(self) -> float:
        """Seconds per token that the target verifies."""
        return self.target.batches[-1] / ROWS[-1]

    def write(self, match_rate: float = MATCH_RATE) -> float:
        """Return the mean seconds per token that the target writes, with speculation if speculation is faster.

        The draft speculates for one problem at a time. `match_rate` is the probability that the target keeps a draft token
        after it kept the earlier tokens of the batch.
        """
        return speculative_pace(self.target, self.draft, match_rate) if self.concurrency == 1 else self.target.decode

    def alone(self, prompt_tokens: float, tokens: float) -> float:
        """Return the seconds of the target alone for a problem with these numbers of tokens."""
        target = self.divided(0.0, tokens).target
        return prompt_tokens * target.prefill + tokens * (target.decode + TOKEN_SECONDS)

    def speculative(self, prompt_tokens: float, tokens: float, match_rate: float = MATCH_RATE) -> float:
        """Return the seconds that the target takes with speculation."""
        costs = self.divided(0.0, tokens)
        return prompt_tokens * (self.target.prefill + self.draft.prefill) + tokens * (
            costs.write(match_rate) + TOKEN_SECONDS
        )


# --- prices


@frozen
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


Prices = ByRole[Price]
FREE = Price(0.0, 0.0, 0.0)  # of a model without a price


def bill(prices: Prices, finished: Finished, served: Collection[ModelRole]) -> Bill | None:
    """Return the price of the work on a problem, and the estimated price for the target alone in one request.

    `served` names the models on servers. Returns None if a server did not report the tokens of a prompt. There is no
    estimate if the target works alone, or if a drafted step was kept.
    """
    trace = finished.trace
    check = trace.check
    is_single = not any(decision.choice for decision in trace.decisions)
    steps = [step for decision in trace.decisions for step in (decision.draft, decision.target) if step]
    steps += [*(check.discarded if check else []), *trace.rollouts, *finished.abandoned]
    costs = {role: [step.cost for step in steps if step.model == role] for role in prices}
    # These models are on this machine, which counts all tokens.
    others: ByRole[list[Cost]] = {"draft": [step.speculation_cost for step in steps], "prm": [finished.reward_cost]}
    # Unfinished steps on servers have no time.
    kept = [[cost for cost in own if cost.seconds] for role, own in costs.items() if role in served]
    if not all(has_prompts(own, is_single=is_single) for own in kept):
        return None
    whole = Cost(prefill_tokens=finished.prompt_tokens or 0, decode_tokens=trace.num_tokens)
    spent = math.fsum(price.of(sum([*costs[role], *others.get(role, [])], Cost())) for role, price in prices.items())
    has_drafts = check or any(decision.draft for decision in trace.decisions)
    is_estimated = finished.prompt_tokens and has_drafts and trace.is_by_target
    return Bill(spent, prices["target"].of(whole) if is_estimated else None)


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
    if not any(price.prompt + price.completion for price in found.values()):
        raise UsageError("all prices are 0", "enter the price of the target, or omit the option", option="price")
    return found


def price_costs(prices: Prices) -> PairCosts:
    """Return the prices as token costs, with which presets minimize the price instead of the time."""
    draft, target = (prices.get(role, FREE) for role in ("draft", "target"))
    return PairCosts(draft.unit_costs, target.unit_costs, draft_reread=draft.cached, target_reread=target.cached)


def has_prompts(costs: Sequence[Cost], *, is_single: bool) -> bool:
    """Return whether all prompts were counted.

    A model that writes a whole solution writes many steps in one response, and only one has the counts.
    """
    counts = [cost.prefill_tokens + cost.cached_tokens for cost in costs]
    return all(counts) or (is_single and any(counts))

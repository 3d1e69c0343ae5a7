"""Computes the price of a solution from the price of the target's tokens. The draft is free."""

from arbitrage_cli.evaluation.metrics import Price
from arbitrage_cli.types import Bill, Cost, Finished


def bill(price: Price, finished: Finished) -> Bill | None:
    """Return the price, or None if the server did not report the tokens of every prompt.

    The estimate for the target alone assumes a single request that generates the same number of tokens.
    """
    decisions = finished.trace.decisions
    targets = [decision.target.cost for decision in decisions if decision.target]
    drafts = [decision.draft.cost for decision in decisions if decision.draft]
    if not all(cost.prefill_tokens + cost.cached_tokens for cost in targets):
        return None
    spent = sum(map(price.of, targets))
    prompt = finished.prompt_tokens or (drafts[0].prefill_tokens if drafts else 0)
    whole = Cost(prefill_tokens=prompt, decode_tokens=finished.trace.num_tokens)
    return Bill(spent, price.of(whole) if drafts and prompt else None)

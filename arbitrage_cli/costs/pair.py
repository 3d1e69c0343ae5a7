"""Computes the time of a problem from the unit costs of a pair: for the target alone, for speculation, and of a token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from arbitrage_cli.inference.speculation import speculative_pace
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.numbers.intervals import Interval, Z
from arbitrage_cli.types import ModelRole

MATCH_RATE = 0.8  # assumed share of draft tokens that the target keeps
TOKEN_SECONDS = 3e-5  # Python's time per token, which matters for tiny models only: EPYC, built-in pair


@dataclass(frozen=True, slots=True)
class PairCosts:
    """The unit costs of a draft and a target, for `concurrency` problems at once.

    Prices have the same form, with dollars per million tokens instead of seconds. A target on a server processes the earlier
    text again in each call; `reread_token` is the cost of a token of this text.
    """

    draft: UnitCosts
    target: UnitCosts
    reread_token: float = 0.0
    concurrency: int = 1

    @classmethod
    def of(cls, units: Mapping[ModelRole, UnitCosts], concurrency: int = 1) -> "PairCosts | None":
        """Return the costs of a pair, or None if a model was not measured."""
        if not {"draft", "target"} <= units.keys():
            return None
        return cls(units["draft"], units["target"], concurrency=concurrency)

    def divided(self, draft_tokens: float, target_tokens: float) -> "PairCosts":
        """Return the costs for one of the problems at once, if the models write these numbers of tokens.

        All problems advance by one token at a time, so these numbers divide the problems between the models' batches.
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
        """Return the seconds of the target with speculation."""
        costs = self.divided(0.0, tokens)
        return prompt_tokens * (self.target.prefill + self.draft.prefill) + tokens * (
            costs.write(match_rate) + TOKEN_SECONDS
        )

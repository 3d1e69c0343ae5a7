"""The table of policies: what each policy is called, which models it needs, and which traits it has.

Whatever depends on a policy reads its traits, so a new policy is a row of the table, a flow (`flows.py`) and a paragraph in
the guide `routing`. A mark and a colour for charts are optional (`report.html` and `report.css` in `display/templates`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from types import MappingProxyType
from typing import Any, Literal

from arbitrage_cli.arbitrage import (
    Scorer,
    by_first_token,
    by_least_likely_token,
    by_reward,
    by_token_stats,
    first_token_entropy,
    max_negative_logprob,
    mean_negative_logprob,
    uniform_draw,
)
from arbitrage_cli.errors import unknown
from arbitrage_cli.routing.flows import MakeFlow, by_checker, by_one_model, by_oracle, by_scorer
from arbitrage_cli.types import WRITING, ModelRole, frozen

RewardKind = Literal["prm", "any"]
"""The source of a policy's rewards: a process reward model, or any source that the user chooses."""


@frozen
class Policy:
    """An entry in the table of policies.

    Traits that say what the policy does:

    - `has_tau`: it compares a score with a threshold. `score_is` describes the score in a noun phrase without an article.
      Without a `default_tau`, the router's presets choose the tau, up to `max_score`.
    - `routes_steps`: it chooses for each step which model writes it, so models continue each other's text.
    - `speculates`: the target writes every step, and verifies tokens that the draft proposes.
    - `compares_answers`: it compares the final answers of whole solutions.
    - `is_lossless`: its text is the target's own.
    - `keeps_every_token`: each token that it writes becomes part of the solution, so it can be shown at once.
    - `is_candidate`: it may be worth using instead of the target alone. The oracle is only a bound.
    - `is_offered`, `is_advised`: lists of policies for users include it; `advise` tries it.

    Traits that say what the policy needs:

    - `models`, and rewards from the source `reward`.
    - `needs_router`: a router scores the steps. Other policies with scores have `make_scorer`, which takes a seed.
    - `reads_token_stats`: the scores need the draft's token statistics.
    - `needs_local_models`: the models must run on this machine.

    `phrase` names the policy in a sentence, if `policy NAME` is not clear.
    """

    name: str
    models: tuple[ModelRole, ...]
    make_flow: MakeFlow
    _: KW_ONLY
    phrase: str = ""
    has_tau: bool = False
    score_is: str = ""
    default_tau: float | None = None
    max_score: float = math.inf
    routes_steps: bool = False
    speculates: bool = False
    compares_answers: bool = False
    is_lossless: bool = False
    keeps_every_token: bool = False
    is_candidate: bool = True
    is_offered: bool = True
    is_advised: bool = False
    reward: RewardKind | None = None
    needs_router: bool = False
    make_scorer: Callable[[int], Scorer] | None = None
    reads_token_stats: bool = False
    needs_local_models: bool = False

    def needs_prm(self, rewards: str | None) -> bool:
        """Whether a process reward model rates the steps, if `rewards` is the chosen source: "prm", "rollout" or None."""
        return self.reward == "prm" or (self.reward == "any" and rewards == "prm")

    @property
    def uses_both(self) -> bool:
        """Whether the draft and the target work together."""
        return {*WRITING} <= {*self.models}

    @property
    def mixes_models(self) -> bool:
        """Whether both models contribute to a solution or to its speed, so that both think or none does."""
        return self.routes_steps or self.speculates

    @property
    def depends_on_costs(self) -> bool:
        """Whether token costs decide how this policy works, or whether it is used."""
        return self.speculates or self.compares_answers or (self.routes_steps and self.is_candidate)

    @property
    def can_stop_early(self) -> bool:
        """Whether a drafted step can be escalated before its end."""
        return self.needs_router or self.has_growing_score

    @property
    def has_growing_score(self) -> bool:
        """Whether the score of a drafted step can only grow, so that the text stays the same if the step is stopped early."""
        return self.make_scorer is not None and self.make_scorer(0).early_stop is not None


_MEAN, _WORST = "negative mean log-probability (nats/token)", "negative log-probability of the least likely token (nats)"
_PROBABILITY, _DRAW = "probability that the target's step is better", "number drawn at random from 0 to 1"
_REWARD = "penalty of the drafted step (1 minus its reward)"


def _routed(name: str, score_is: str, **traits: Any) -> Policy:
    return Policy(name, WRITING, by_scorer, has_tau=True, routes_steps=True, score_is=score_is, **traits)


def _on_token_stats(name: str, score_is: str, default_tau: float, scorer: Scorer) -> Policy:
    return _routed(name, score_is, default_tau=default_tau, make_scorer=lambda seed: scorer, reads_token_stats=True)


_TABLE = (
    _routed("arbitrage", _PROBABILITY, max_score=1.0, needs_router=True, reads_token_stats=True, is_advised=True),
    _on_token_stats("entropy", "entropy of the step's first token (nats)", 1.0, by_first_token(first_token_entropy)),
    _on_token_stats("logprob", _MEAN, 0.3, by_token_stats(mean_negative_logprob)),
    _on_token_stats("logprob-min", _WORST, 1.0, by_least_likely_token(max_negative_logprob)),
    _routed(
        "random",
        _DRAW,
        default_tau=0.7,
        max_score=1.0,
        make_scorer=lambda seed: by_first_token(uniform_draw(seed)),
        is_offered=False,
    ),
    _routed("rsd", _REWARD, default_tau=0.3, max_score=1.0, make_scorer=lambda seed: by_reward(), reward="prm"),
    Policy(
        "oracle",
        WRITING,
        by_oracle,
        has_tau=True,
        routes_steps=True,
        score_is="advantage of the target's step",
        default_tau=0.0,
        reward="any",
        is_candidate=False,
    ),
    Policy("agree", ("draft", "check", "target"), by_checker, compares_answers=True, is_advised=True),
    Policy("draft", ("draft",), by_one_model("draft"), keeps_every_token=True, is_advised=True, phrase="the draft alone"),
    Policy(
        "target",
        ("target",),
        by_one_model("target"),
        is_lossless=True,
        keeps_every_token=True,
        is_candidate=False,
    ),
    Policy(
        "speculative",
        ("target", "draft"),
        by_one_model("target", speculates=True),
        speculates=True,
        is_lossless=True,
        keeps_every_token=True,
        is_advised=True,
        needs_local_models=True,
        phrase="speculation",
    ),
)
POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in _TABLE})
"""The policies by name. Default taus are not tuned to any pair. Policy `arbitrage` uses a router's presets instead."""

TARGET_ALONE, DRAFT_ALONE = POLICIES["target"], POLICIES["draft"]
"""The policy with which others are compared, and the one that shows how good the draft is."""


def find_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES, option="policy")
    return POLICIES[name]

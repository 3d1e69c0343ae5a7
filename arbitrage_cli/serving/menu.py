"""The names of models that requests may ask for: each stands for a policy at a tau. Loads nothing.

`arbitrage`, `arbitrage@fast`, `arbitrage@0.2`, `arbitrage@30%`, `target`, `draft`, `entropy@1` ...
"""

from dataclasses import dataclass

from arbitrage_cli.arbitrage import Flow, Router
from arbitrage_cli.errors import UsageError, unknown
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.routing.choice import AvailableHead, name_of_tau, resolve_tau, stops_early
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.thresholds import NAMES
from arbitrage_cli.types import Trace

ANY = Policy("any", ("draft", "target"), reads_token_stats=True)
"""What models are prepared for if every problem brings its own policy."""


@dataclass(frozen=True, slots=True)
class Route:
    """A policy at a tau, by the name it was asked for with. `tau_name` is the tau's own name, such as `fast`."""

    name: str
    policy: Policy
    tau: float | None
    tau_name: str | None = None
    stops_early: bool = False
    alternatives: int = 1

    def flow(self, trace: Trace, seed: int, router: Router | None) -> Flow:
        """The flow that solves `trace`. `router` is the head's; None without a head."""
        early, count = self.stops_early, self.alternatives
        return self.policy.flow(trace, self.tau, seed, router, stops_early=early, alternatives=count)


class Menu:
    """What can be asked for. `usual` is what the command line chose: also what its policy stands for if it is named without a tau."""

    def __init__(
        self,
        chosen: PolicyAtTau,
        available: AvailableHead,
        *,
        early_stop: bool | None = None,
        alternatives: int = 1,
        speculates: bool = True,
    ) -> None:
        """`early_stop` and `alternatives` are what the command line says. UsageError if the policy cannot be served.

        `speculates`: both models are here, so policy speculative can be asked for.
        """
        self._available = available
        self._early_stop, self._alternatives = early_stop, alternatives
        policies = [one for one in served_policies(available) if speculates or one.name != "speculative"]
        self._policies = {one.name: one for one in policies}
        if chosen.policy.name not in self._policies:
            raise UsageError(
                f"policy {chosen.policy.name} needs the rewards of steps, and a conversation has none",
                f"give one of: {', '.join(self._policies)}",
                option="policy",
            )
        self.usual = self._route(chosen.policy.name, chosen)

    @property
    def names(self) -> list[str]:
        """The usual one first; of taus only those with a name."""
        taus = [f"{name}@{tau}" for name, policy in self._policies.items() if policy.needs_head for tau in NAMES]
        return list(dict.fromkeys([self.usual.name, *self._policies, *taus]))

    def find(self, name: str) -> Route:
        """What a name stands for. UsageError."""
        policy_name, at, tau = name.partition("@")
        if policy_name not in self._policies:
            raise unknown("model", name, self.names)
        policy = self._policies[policy_name]
        if at and not policy.score_is:
            raise UsageError(f"policy {policy.name} has no tau", f"ask for {policy.name}")
        if not at and policy is self.usual.policy:
            return self.usual
        given = tau if at else None
        resolved = resolve_tau(policy, given, None, self._available)
        return self._route(name, PolicyAtTau(policy, resolved, name_of_tau(policy, given)))

    def _route(self, name: str, chosen: PolicyAtTau) -> Route:
        early = bool(stops_early(self._early_stop, [(chosen.policy, chosen.tau)], self._available))
        return Route(name, chosen.policy, chosen.tau, chosen.tau_name, early, self._alternatives)


def served_policies(available: AvailableHead) -> list[Policy]:
    """The policies that need no rewards, and no head if there is none."""
    return [one for one in POLICIES.values() if one.reward is None and not (one.needs_head and available.head is None)]

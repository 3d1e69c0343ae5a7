"""From the lists of policies and taus of a benchmark to its routes."""

from collections.abc import Sequence
from dataclasses import dataclass

from arbitrage_cli.app.options import BenchRoutingOptions
from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.choice import AvailableHead, has_tau, name_of_tau, resolve_tau
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.route import Route, parse_route
from arbitrage_cli.routing.thresholds import NAMES, NamedTaus


@dataclass(frozen=True, slots=True)
class PolicyList:
    """Policies, each with a tau as it was given: a number, a name or a budget; None for the default."""

    entries: Sequence[tuple[Policy, str | None]]

    @property
    def names(self) -> list[str]:
        """The names of taus in the list, each once."""
        named = (name_of_tau(policy, tau) for policy, tau in self.entries)
        return list(dict.fromkeys(name for name in named if name and name in NAMES))


def read_policies(options: BenchRoutingOptions, *, tau_is_flag: bool) -> PolicyList:
    """`target,entropy,logprob@0.2` and `0.5,1`: each policy with its own tau, else with each of these, else with its default.

    Taus that are a setting hold for the policies that accept them. UsageError for an unknown policy, and if none is named.
    """
    taus = _parts(options.tau or "")
    entries: list[tuple[Policy, str | None]] = []
    for part in _parts(options.policy or ""):
        policy, own = parse_route(part)
        fitting = [tau for tau in taus if policy.score_is and (tau_is_flag or has_tau(policy, tau))]
        given: Sequence[str | None] = [own] if own is not None else fitting
        entries += [(policy, tau) for tau in given or [None]]
    if not entries:
        raise UsageError("no policy is named", "known: " + ", ".join(POLICIES), option="policy")
    return PolicyList(entries)


def make_routes(policies: PolicyList, head: Head | None, named: NamedTaus | None) -> list[Route]:
    """The routes, each once; names of taus stand for what is `named`. UsageError for an invalid tau."""

    def route(policy: Policy, tau: str | None) -> Route:
        name = name_of_tau(policy, tau)
        if named and name and name in named.taus:
            return Route(policy, named.taus[name], name)
        return Route(policy, resolve_tau(policy, tau, AvailableHead(head, None)), name)

    return list(dict.fromkeys(route(policy, tau) for policy, tau in policies.entries))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

"""From the lists of policies and taus of a benchmark to its columns: one policy at one tau each."""

from collections.abc import Sequence
from dataclasses import dataclass

from arbitrage_cli.cli.invocation import Invocation
from arbitrage_cli.cli.options import BenchRoutingOptions
from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.routing.choice import AvailableHead, choose_policy, has_tau, name_of_tau, resolve_tau
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.thresholds import NamedTaus


@dataclass(frozen=True, slots=True)
class PolicyList:
    """Policies, each with a tau as it was given: a number, a name or a budget; None for the default."""

    entries: Sequence[tuple[Policy, str | None]]

    @property
    def names(self) -> list[str]:
        """The names of taus in the list, each once."""
        return list(dict.fromkeys(filter(None, (name_of_tau(policy, tau) for policy, tau in self.entries))))


def read_policies(invocation: Invocation, options: BenchRoutingOptions, head: Head | None) -> PolicyList:
    """`target,entropy,logprob@0.2` and `0.5,1`: each policy with its own tau, else with each of these, else with its default.

    Without a list: both models alone, and the head's policy (entropy without a head). If either list is no flag, the taus hold
    only for the policies they were set beside, as far as these accept them. UsageError for an unknown policy.
    """
    default = f"target,draft,{choose_policy(None, head).name}"
    taus = _parts(options.tau or "")
    is_strict = invocation.is_flag("policy") and invocation.is_flag("tau")
    beside = options.policy if invocation.is_flag("tau") else invocation.configured.get("policy")
    intended = {part.partition("@")[0].strip() for part in _parts(beside or default)}
    entries: list[tuple[Policy, str | None]] = []
    for part in _parts(default if options.policy is None else options.policy):
        name, at, own = part.partition("@")
        policy = choose_policy(name.strip(), head)
        if at and not policy.score_is:
            raise UsageError(f"policy {policy.name} has no tau", f"give it without one: {policy.name}", option="policy")
        fitting = taus if is_strict else [tau for tau in taus if policy.name in intended and has_tau(policy, tau)]
        given: Sequence[str | None] = [own.strip()] if at else fitting if policy.score_is else []
        entries += [(policy, tau) for tau in given or [None]]
    if not entries:
        raise UsageError("no policy is named", "known: " + ", ".join(POLICIES), option="policy")
    return PolicyList(entries)


def resolve_policies(policies: PolicyList, head: Head | None, named: NamedTaus | None) -> list[PolicyAtTau]:
    """The columns, each once; names of taus stand for what is `named`. UsageError for an invalid tau."""

    def column(policy: Policy, tau: str | None) -> PolicyAtTau:
        name = name_of_tau(policy, tau)
        if named and name and name in named.taus:
            return PolicyAtTau(policy, named.taus[name], name)
        budget = tau if tau and tau.endswith("%") else None
        return PolicyAtTau(policy, resolve_tau(policy, tau, None, AvailableHead(head, None)), budget)

    return list(dict.fromkeys(column(policy, tau) for policy, tau in policies.entries))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

"""What holds where routing options contradict each other: a flag wins over the environment, and that over a settings file."""

from collections.abc import Mapping
from dataclasses import replace

from arbitrage_cli.cli.invocation import Invocation
from arbitrage_cli.cli.options import RoutingOptions
from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.choice import choose_policy, has_tau
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import Policy


def resolve_conflicts(invocation: Invocation, options: RoutingOptions, head: Head | None) -> RoutingOptions:
    """The options without those that a stronger one rules out. Flags that contradict each other stay as they are.

    A policy that is a setting gives way to a flag that it does not accept; a tau or a budget that is a setting is left out if the
    policy does not accept it. UsageError for an unknown policy.
    """
    policy = choose_policy(options.policy, head)
    if not invocation.is_flag("policy"):
        flags = [name for name in accepted_options(policy) if invocation.is_flag(name)]
        if not all(accepted_options(policy)[name] and (name != "tau" or has_tau(policy, options.tau)) for name in flags):
            policy, options = choose_policy(None, head), replace(options, policy=None)
    if not has_tau(policy, options.tau) and not invocation.is_flag("tau"):
        options = replace(options, tau=None)
    if not policy.needs_head and not invocation.is_flag("budget"):
        options = replace(options, budget=None)
    if options.tau is None or options.budget is None:
        return options
    lead = invocation.origin("tau") - invocation.origin("budget")
    if lead == 0:
        return options
    return replace(options, budget=None) if lead > 0 else replace(options, tau=None)


def refuse_ignored(invocation: Invocation, policy: Policy) -> None:
    """UsageError for a flag that this policy does not accept; a setting may be there for other policies."""
    for name, is_accepted in accepted_options(policy).items():
        if not is_accepted and invocation.is_flag(name):
            raise UsageError(
                f"policy {policy.name} does not use it",
                "leave it out, or give a --policy that does",
                option=name.replace("_", "-"),
            )


def accepted_options(policy: Policy) -> Mapping[str, bool]:
    """Whether the policy uses each parameter that says how to route."""
    return {
        "tau": bool(policy.score_is),
        "budget": policy.needs_head,
        "head": policy.needs_head,
        "early_stop": policy.can_stop_early,
        "alternatives": policy.can_try_again,
    }

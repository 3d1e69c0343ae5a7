"""Chooses the policy of commands and calls that run one policy: the user's choice or, without one, a default.

The rule is a table: the first row that applies decides. It is a pure function of a `Situation`. Nothing else chooses a
default policy, and nothing about it is remembered between commands: to keep a policy, name it in pairs.toml.
"""

from collections.abc import Callable, Sequence

from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.policies import POLICIES, TARGET_ALONE, Policy
from arbitrage_cli.routing.route import AvailableRouter, accepts_tau, make_route
from arbitrage_cli.routing.savings import faster_than_routing
from arbitrage_cli.types import frozen

ROUTING, AGREE = POLICIES["arbitrage"], POLICIES["agree"]
LEAST_GAIN = 1.05
"""The factor by which routing must be faster than the policies that lose nothing.

Two measurements of the same costs differ by about this factor, and a smaller gain is not worth a loss. Measured costs choose
nothing else that changes texts.
"""
ANYWAY = "to route anyway, use policy arbitrage"


@frozen
class Situation:
    """The facts that determine the policy.

    - `policy` and `tau` come from an option, a variable or a setting. `pair_policy` and `pair_tau` come from the entry of the
      pair with the name `pair`.
    - `typed` contains "tau" and "router" if these were typed. `sets_routing` is true if a setting names a router.
    - `is_local` is false if the draft or the target is on a server.
    - `in_conversation` is true if answers cannot be compared, because questions follow each other.
    - `has_quick_answers` is true if the draft answers without thinking, and the target thinks. `unused_policy` is the name of
      a policy that was set, not typed, and that lets both models write a solution.
    - `writes_whole` is true if the draft or the target writes only whole solutions, and `available` contains the router and
      the costs. Before servers are asked and costs are measured, these two have their defaults.
    """

    task: Task
    policy: Policy | None = None
    tau: str | None = None
    pair: str = ""
    pair_policy: Policy | None = None
    pair_tau: str | None = None
    typed: frozenset[str] = frozenset()
    sets_routing: bool = False
    has_router: bool = True
    is_local: bool = True
    in_conversation: bool = False
    has_quick_answers: bool = False
    unused_policy: str = ""
    writes_whole: bool = False
    available: AvailableRouter | None = None

    @property
    def skips_policy_of_pair(self) -> bool:
        return self.in_conversation and self.pair_policy is not None and self.pair_policy.compares_answers

    @property
    def routing_tau(self) -> str | None:
        """The tau of a policy that nobody named. The tau of a pair that names a policy belongs to this policy."""
        return self.tau or (None if self.pair_policy else self.pair_tau)

    @property
    def compares_answers(self) -> bool:
        """Whether answers could be compared."""
        return self.task.has_answers and not self.in_conversation


@frozen
class Choice:
    """A policy, its tau as text, and the reason in a clause: "" if the user named the policy, or if it is `arbitrage`."""

    policy: Policy
    tau: str | None = None
    reason: str = ""

    @property
    def line(self) -> str:
        """The line that tells users about this choice, or "" if there is nothing to tell."""
        return f"policy {self.policy.name}: {self.reason}" if self.reason else ""


def choose_policy(situation: Situation) -> Choice:
    """Return the policy of the first row of the table that applies. A tau that was typed is kept even if it has no effect."""
    choice = next(choice for row in TABLE if (choice := row(situation)))
    if choice.tau is None or "tau" in situation.typed or accepts_tau(choice.policy, choice.tau):
        return choice
    return Choice(choice.policy, None, choice.reason)


def usual_policy(task: Task, *, has_router: bool, is_local: bool) -> Policy:
    """Return the policy for a task and models about which nothing else is known."""
    return choose_policy(Situation(task, has_router=has_router, is_local=is_local)).policy


def _named(given: Situation) -> Choice | None:
    return Choice(given.policy, given.tau) if given.policy else None


def _of_quick_answers(given: Situation) -> Choice | None:
    """Without a comparison of quick answers, the target thinks at once."""
    if not given.has_quick_answers or (given.pair_policy and not given.skips_policy_of_pair):
        return None
    if not given.compares_answers:
        return Choice(TARGET_ALONE)
    return Choice(AGREE, None, "the target thinks only if quick answers differ")


def _of_pair(given: Situation) -> Choice | None:
    if given.pair_policy is None or given.skips_policy_of_pair:
        return None
    reason = "" if given.pair_policy is ROUTING else f"the default of pair {given.pair}"
    return Choice(given.pair_policy, given.tau or given.pair_tau, reason)


def _of_whole_solutions(given: Situation) -> Choice | None:
    if not given.writes_whole or given.typed:
        return None
    reason = "a model writes only whole solutions, which cannot be routed step by step"
    if given.compares_answers:
        reason += "; to ask the target only if two small models disagree, use policy agree"
    return Choice(TARGET_ALONE, None, reason)


def _of_tau(given: Situation) -> Choice | None:
    """A tau or a router is for routing."""
    is_asked = given.routing_tau is not None or given.sets_routing or given.typed
    return Choice(ROUTING, given.routing_tau) if is_asked and given.has_router else None


def _of_task(given: Situation) -> Choice | None:
    """Without a router, the task has a policy of its own."""
    if given.has_router:
        return None
    policy, reason = POLICIES[given.task.policy], f"there is no router for task {given.task.name} and these models"
    if policy.needs_local_models and not given.is_local:
        policy, reason = TARGET_ALONE, f"{reason}, and models on a server cannot speculate"
    return Choice(policy, given.routing_tau, reason)


def _by_costs(given: Situation) -> Choice | None:
    """Routing or, unless it is expected to be faster by LEAST_GAIN, the policy that loses nothing."""
    if given.available is None or given.available.router is None:
        return Choice(ROUTING)
    faster = faster_than_routing(make_route(ROUTING, None, given.available), given.available, LEAST_GAIN)
    return Choice(faster.policy, None, f"{faster.reason}; {ANYWAY}") if faster else Choice(ROUTING)


TABLE: Sequence[Callable[[Situation], Choice | None]] = (
    _named,
    _of_quick_answers,
    _of_pair,
    _of_whole_solutions,
    _of_tau,
    _of_task,
    _by_costs,
)
"""The rows of the rule, in order. The last row always applies."""

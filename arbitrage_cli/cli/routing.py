"""What policies need beside their models: a trained head, whoever rates steps, and the tau that was meant.

Slow to import, as NumPy is: a command does so only when there is work to do.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import typer

from arbitrage_cli.arbitrage import Router
from arbitrage_cli.cli.sources import accepted_options, is_flag, strength
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater
from arbitrage_cli.model_files.pairs import UNIVERSAL_HEAD, head_file, local_files
from arbitrage_cli.rewards.judge import Judge
from arbitrage_cli.rewards.prm import ProcessReward
from arbitrage_cli.rewards.rollouts import Rollout
from arbitrage_cli.routing.head import Head, load
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.thresholds import ALWAYS, NAMES, NEVER, Costs, NamedTaus, TauTable
from arbitrage_cli.system.files import sha256_of
from arbitrage_cli.types import ModelRole

DEFAULT_TAU = "exact"
ON_CARD, HERE = "the head's card", "this machine"
"""Whose costs decide what a name of a tau means."""


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """How to route, as the options have it: None for what they leave open. `head` is one that was named, not the pair's own."""

    policy: str | None
    tau: str | None
    budget: float | None
    head: str | None

    @property
    def is_open(self) -> bool:
        """Whether nothing was asked for."""
        return all(value is None for value in (self.policy, self.tau, self.budget, self.head))


IsRight = Callable[[str, str], bool]
"""Whether a whole solution, the second, reaches the known answer of the problem with that id."""


def find_head(source: str | None) -> Head | None:
    """The head of that file, or the built-in one of that name; None for None. RouterError."""
    return load(head_file(source)) if source else None


def choose_policy(name: str | None, head: Head | None) -> Policy:
    """The policy of that name; without one the head, if there is a head, and else the draft's entropy. UsageError."""
    if name is None:
        return POLICIES["arbitrage" if head else "entropy"]
    if name not in POLICIES:
        raise UsageError(f"unknown policy '{name}'", "known policies: " + ", ".join(POLICIES))
    return POLICIES[name]


def resolve_conflicts(context: typer.Context, wanted: RoutingOptions, head: Head | None) -> RoutingOptions:
    """What holds where wishes do not go together: a flag wins over a setting, and the environment over a settings file.

    A policy that is a setting gives way to a flag that it does not go by; a tau or budget that is one is left out where the
    policy does not go by it. Flags that do not go together stay as they are. UsageError for an unknown policy.
    """
    policy = choose_policy(wanted.policy, head)
    if not is_flag(context, "policy"):
        flags = [name for name in accepted_options(policy) if is_flag(context, name)]
        if not all(accepted_options(policy)[name] and (name != "tau" or has_tau(policy, wanted.tau)) for name in flags):
            policy, wanted = choose_policy(None, head), replace(wanted, policy=None)
    if not has_tau(policy, wanted.tau) and not is_flag(context, "tau"):
        wanted = replace(wanted, tau=None)
    if not policy.needs_head and not is_flag(context, "budget"):
        wanted = replace(wanted, budget=None)
    if wanted.tau is None or wanted.budget is None:
        return wanted
    lead = strength(context, "tau") - strength(context, "budget")
    return replace(wanted, budget=None) if lead > 0 else replace(wanted, tau=None) if lead < 0 else wanted


def has_tau(policy: Policy, tau: str | None) -> bool:
    """Whether the policy may go by this tau: one without a head has no names for taus, and no budgets."""
    return bool(policy.number) and (policy.needs_head or not (tau in NAMES or str(tau).endswith("%")))


def choose_tau(
    policy: Policy, wanted: str | None, budget: float | None, head: Head | None, costs: Costs | None = None
) -> float | None:
    """The tau that is meant, or the default; None for a policy that has no tau. UsageError."""
    if not policy.number:
        return None
    if not policy.needs_head:
        if budget is not None:
            raise UsageError(f"policy {policy.name} has no budget", "give it a --tau, or use a policy with a head")
        return _number(wanted, policy) if wanted is not None else policy.default_tau
    return tau_of_head(wanted, budget, needed(head), costs)


def tau_of_head(wanted: str | None, budget: float | None, head: Head, costs: Costs | None) -> float:
    """The tau that is meant where a head decides: a number, a name or a budget of its table, else the default. UsageError.

    Names are taken anew by the costs of this machine where they are known.
    """
    table = TauTable.from_json(head.card.taus)
    if costs is not None:
        table = table.at_costs(costs)
    if budget is not None and wanted is not None:
        raise UsageError("both a tau and a budget are given", "give one of them")
    return table.at_budget(budget) if budget is not None else table.resolve(wanted or DEFAULT_TAU)


def choose_routing(
    wanted: RoutingOptions, head: Head | None, source: str | None, costs: Costs | None, *, early_stop: bool | None = None
) -> tuple[Policy, float | None, str | None]:
    """The policy and its tau, and what is to be said of them beforehand: that routing takes longer here than the target alone.

    If nobody asked for routing, the target alone then writes, speculating if that pays: where the costs are this machine's, and
    the head is this pair's. `source` is what the head is called, `costs` are None if they were not measured; `early_stop` is as it
    was asked for. UsageError.
    """
    policy = choose_policy(wanted.policy, head)
    tau = choose_tau(policy, wanted.tau, wanted.budget, head, costs)
    time = _expected_time(policy, tau, head, source, costs)
    if time is None or time < 1:
        return policy, tau, None
    told = f"at the costs of {ON_CARD if costs is None else HERE} routing takes about {time:.1f} times as long as the target alone"
    if stops_early(early_stop, [policy], head, source, costs):
        told += " (early stops, which save some of it, are not reckoned with)"
    if wanted.is_open and early_stop is None and costs is not None and source != UNIVERSAL_HEAD:
        alone = "speculative" if costs.write < costs.target_seconds_per_token else "target"
        how = "with the draft saying what may come next" if alone == "speculative" else "by itself"
        return POLICIES[alone], None, f"{told}, which therefore writes {how}; to route all the same: --policy arbitrage"
    return policy, tau, f"{told}: --policy target"


def _expected_time(
    policy: Policy, tau: float | None, head: Head | None, source: str | None, costs: Costs | None
) -> float | None:
    """Of a solution where a head decides at this tau, by that of the target alone; None where that is not known.

    As its card tells, by the costs of this machine where they are known. Of a universal head the card has another pair's.
    """
    if not policy.needs_head or tau is None or (costs is None and source == UNIVERSAL_HEAD):
        return None
    table = TauTable.from_json(needed(head).card.taus)
    row = min(table.rows, key=lambda one: abs(one.tau - min(max(tau, ALWAYS), NEVER)))
    return table.time(row, costs)


def stops_early(
    given: bool | None, policies: Iterable[Policy], head: Head | None, source: str | None, costs: Costs | None
) -> bool | None:
    """Whether drafted steps are stopped before they are finished: as asked for, else if that saves time at the costs that are
    known. None if no policy can.

    `source` is what the head is called: what a universal one says of beginnings is not known for this pair.
    """
    if not any(policy.can_stop_early for policy in policies):
        return None
    if given is not None:
        return given
    if head is None or source == UNIVERSAL_HEAD:
        return False
    return TauTable.from_json(head.card.taus).early_stop_pays(costs)


def whose_costs(policy: Policy, wanted: str | None, budget: float | None, costs: Costs | None) -> str | None:
    """Whose costs decided what a name of a tau means here; None where none did."""
    if budget is not None or name_of_tau(policy, wanted) is None:
        return None
    return ON_CARD if costs is None else HERE


def name_of_tau(policy: Policy, wanted: str | None) -> str | None:
    """The name that a tau is wanted by; None if it is a number, or the policy has no names for taus."""
    name = wanted or DEFAULT_TAU
    return name if policy.needs_head and name in NAMES else None


def taus_named_here(head: Head | None, costs: Costs | None) -> NamedTaus:
    """What names of taus stand for at the costs of this machine, or at those on the head's card. UsageError, RouterError."""
    table = TauTable.from_json(needed(head).card.taus)
    return NamedTaus(table.named, ON_CARD) if costs is None else NamedTaus(table.at_costs(costs).named, HERE)


def taus_named_in(run: Mapping[str, Any]) -> NamedTaus | None:
    """What names of taus stand for in a run, by its run.json; None where that is not known, or nothing was named yet."""
    if run.get("named_taus"):
        return NamedTaus(run["named_taus"], run["tau_costs"])
    if "named_taus" not in run and run.get("tau_costs") == ON_CARD:  # of an earlier version
        return NamedTaus(TauTable.from_json(run["router"]["card"]["taus"]).named, ON_CARD)
    return None


def needed(head: Head | None) -> Head:
    """The head. UsageError if there is none."""
    if head is None:
        raise UsageError(
            "policy arbitrage needs a trained head, and demo models have none",
            "give --head FILE.safetensors (arbitrage collect and arbitrage train make one), or another --policy",
        )
    return head


def about_concurrency(policies: Iterable[Policy], at_once: int) -> list[str]:
    """What is to be told of policies that gain nothing where so many problems are solved at once."""
    names = [policy.name for policy in policies if policy.models[0] == "target" and len(policy.models) > 1]
    told = (
        "saves time where one problem is solved at a time (--concurrency 1): here it does hardly more than the target alone"
    )
    return [f"policy {name} {told}" for name in dict.fromkeys(names)] if at_once > 1 else []


def reads_hidden(policies: Iterable[Policy], head: Head | None) -> bool:
    """Whether one of the policies decides by a head that reads the draft's hidden states."""
    return head is not None and head.reads_hidden and any(policy.needs_head for policy in policies)


def make_router(
    policy: Policy, head: Head | None, backends: Mapping[ModelRole, Backend], found: Mapping[ModelRole, str]
) -> Router | None:
    """The head's router, for a policy that needs it. RouterError if it reads what this draft does not have.

    `found` are the models' files; the draft's is read whole if the head depends on which it is.
    """
    if not policy.needs_head:
        return None
    known = needed(head)
    if known.reads_hidden:
        card = backends["draft"].card
        known.check({"name": card.name, "sha256": _sha256(found["draft"])}, 2 * card.hidden_size)
    return known.router()


def _sha256(source: str) -> str | None:
    """Of a model's files; None for a demo model, which has none."""
    files = local_files(source)
    return sha256_of(files) if files else None


def sequences(
    policies: Iterable[Policy], reward: str | None, rollouts: int = 1, concurrency: int = 1
) -> dict[ModelRole, int]:
    """How many sequences each model needs for so many problems at once: its own, and those of whoever rates with it."""
    kinds = {policy.reward for policy in policies}
    extra = int("judge" in kinds) + (rollouts if "any" in kinds and reward == "rollout" else 0)
    return {"draft": concurrency, "target": (1 + extra) * concurrency, "prm": concurrency}


def make_rater(
    policy: Policy,
    backends: Mapping[ModelRole, Backend],
    *,
    reward: str | None = None,
    instructions: str = "",
    is_right: IsRight | None = None,
    concurrency: int = 1,
    prm_style: str = "turns",
    rollouts: Sequence[Sampler] = (Sampler(),),
) -> Rater | None:
    """Whoever rates steps for this policy; None if it asks for no rewards. UsageError if that is not to be had.

    A process reward model is asked once here, and refused if it rates no steps: ModelUnsupportedError.
    `reward` (`prm` or `rollout`) decides where the policy leaves it open; a rollout goes on once with each of `rollouts`.
    The first `concurrency` sequences of a model are those that it writes with; whoever rates with it has others.
    """
    kind = policy.reward if policy.reward != "any" else reward or ("prm" if "prm" in backends else None)
    if policy.reward is None:
        return None
    if kind == "judge":
        return Judge(backends["target"], concurrency)
    if kind == "prm" and "prm" in backends:
        model = ProcessReward(backends["prm"], "steps" if prm_style == "steps" else "turns")
        model.check()
        return model
    if kind == "rollout" and is_right is not None:
        firsts = range(concurrency, concurrency * (len(rollouts) + 1), concurrency)
        engines = [
            Engine("target", backends["target"], sampler, instructions=instructions, first_sequence=first)
            for sampler, first in zip(rollouts, firsts, strict=True)
        ]
        return Rollout(engines, is_right)
    raise UsageError(
        f"policy {policy.name} needs rewards, and there is nothing that gives them",
        "give a process reward model: --prm MODEL" + ("; or --reward rollout" if is_right else ""),
    )


def _number(text: str, policy: Policy) -> float:
    try:
        tau = float(text)
    except ValueError:
        tau = math.nan
    if math.isnan(tau):
        raise UsageError(f"'{text}' is no tau of policy {policy.name}", "a number, inf or -inf: --tau 0.5")
    return tau

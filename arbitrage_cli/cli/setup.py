"""From options to a `Setup`: everything a command line stands for, resolved. Nothing is loaded but the head's small file.

Slow to import, as NumPy is: a command imports it only when there is work to do.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.cli.cautions import cautions
from arbitrage_cli.cli.conflicts import refuse_ignored, resolve_conflicts
from arbitrage_cli.cli.invocation import Invocation
from arbitrage_cli.cli.model_choice import (
    ModelChoice,
    choose_models,
    load_options,
    needed_models,
    reward_source,
    system_prompt,
)
from arbitrage_cli.cli.options import (
    BenchRoutingOptions,
    GenerationOptions,
    HeadOptions,
    HeadRoutingOptions,
    MachineOptions,
    RoutingOptions,
)
from arbitrage_cli.cli.policy_lists import PolicyList, read_policies, resolve_policies
from arbitrage_cli.cli.served import exposed, refuse_on_servers, served_models, stops_early_on_server
from arbitrage_cli.evaluation.benchmark import PolicyAtTau
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.address import Wanted
from arbitrage_cli.routing.choice import (
    AvailableHead,
    RoutingRequest,
    choose_routing,
    load_head,
    name_of_tau,
    named_taus_here,
    named_taus_in,
    source_of_costs,
    stops_early,
)
from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.thresholds import NamedTaus
from arbitrage_cli.serving.menu import ANY, Menu
from arbitrage_cli.tasks.registry import find_task
from arbitrage_cli.tasks.task import Task
from arbitrage_cli.tuning.placement import Placement, place
from arbitrage_cli.types import Limits, ModelRole


@dataclass(frozen=True, slots=True)
class Setup:
    """What a command does, resolved.

    `sources` are the models that are needed, as the user named them; `served` says how to reach those that are on servers. `stops_early` is None if no policy can stop a draft early,
    `reward` the source of rewards for a policy that leaves it open, `tau_costs` whose costs named taus were chosen by. `policy_list`
    is the list that a benchmark was given, `named_taus` what its names of taus stand for. `notes` are for the user.
    """

    invocation: Invocation
    choice: ModelChoice
    head: Head | None
    policies: Sequence[PolicyAtTau]
    sources: Mapping[ModelRole, str]
    load: Options
    placement: Placement
    sampler: Sampler
    limits: Limits
    task: Task
    system: str
    served: Mapping[ModelRole, Wanted] = field(default_factory=dict)
    offline: bool = False
    concurrency: str = "1"
    stops_early: bool | None = None
    alternatives: int = 1
    reward: str | None = None
    tau_costs: str | None = None
    policy_list: PolicyList | None = None
    named_taus: NamedTaus | None = None
    notes: Sequence[str] = ()

    @property
    def policy_at_tau(self) -> PolicyAtTau:
        """The policy of a command that has only one."""
        return self.policies[0]

    @property
    def uses_head(self) -> bool:
        """Whether a head decides in one of the policies."""
        return any(one.policy.needs_head for one in self.policies)

    @property
    def available_head(self) -> AvailableHead:
        """The head, if there is one, with what tokens cost on this machine."""
        return AvailableHead(self.head, self.choice.head_source, self.placement.costs)

    @property
    def deciding_head(self) -> Head | None:
        """The head, if a policy uses it."""
        return self.head if self.uses_head else None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options that every command with models has, how it was called, and the task of its data set, if that has one."""

    invocation: Invocation
    models: HeadOptions
    generation: GenerationOptions
    machine: MachineOptions
    task: str | None = None


def solve_setup(options: RunOptions, routing: RoutingOptions) -> Setup:
    """The setup of one policy at one tau. Errors: UsageError, RouterError, ModelFileError."""
    base = _base(options)
    available = base.available_head
    routing = replace(routing, policy=routing.policy or _policy_without_head(base))
    request = _request(options, routing, base.head)
    policy, tau, warning = choose_routing(request, available)
    refuse_ignored(options.invocation, policy)
    early = _stops_early(base, request.early_stop, [(policy, tau)])
    name = None if request.budget is not None else name_of_tau(policy, request.tau)
    setup = _with_policies(base, [PolicyAtTau(policy, tau, name)], early_stop=early)
    tau_costs = source_of_costs(policy, request.tau, request.budget, available.costs)
    notes = [*setup.notes, *([warning] if warning else [])]
    return replace(setup, tau_costs=tau_costs, alternatives=routing.alternatives, notes=notes)


def serve_setup(options: RunOptions, routing: RoutingOptions, *, concurrency: str) -> tuple[Setup, Menu]:
    """The setup of `solve_setup` with both models, and what a request, or a turn of a chat, may ask for. Errors as `solve_setup`."""
    setup = solve_setup(options, routing)
    usual, available = setup.policy_at_tau, setup.available_head
    early, count = routing.early_stop, routing.alternatives
    menu = Menu(usual, available, early_stop=early, alternatives=count, speculates=not setup.served)
    routed = [PolicyAtTau(POLICIES["arbitrage"], None)] if available.head else []
    both = _with_policies(setup, [usual, PolicyAtTau(ANY, None), *routed], early_stop=setup.stops_early)
    notes = list(dict.fromkeys([*setup.notes, *both.notes]))
    return replace(
        both, tau_costs=setup.tau_costs, concurrency=options.machine.concurrency or concurrency, notes=notes
    ), menu


def explain_setup(options: RunOptions, routing: HeadRoutingOptions, choice: ModelChoice, *, rates: bool) -> Setup:
    """The setup of the head's policy for these models, in which steps are rated as well if it `rates`. Errors as `solve_setup`."""
    base = _base(options, choice)
    wanted = RoutingOptions(routing.tau, routing.budget, routing.early_stop, policy="arbitrage")
    policy, tau, _ = choose_routing(_request(options, wanted, base.head), base.available_head)
    early = _stops_early(base, routing.early_stop, [(policy, tau)])
    setup = _with_policies(base, [PolicyAtTau(policy, tau)], early_stop=early)
    setup = replace(setup, alternatives=routing.alternatives)
    if not rates:
        return setup
    note = "if steps are rated, both models finish every step: --early-stop changes nothing"
    notes = [*setup.notes, *([note] if routing.early_stop else [])]
    return replace(setup, sources=needed_models([POLICIES["oracle"]], choice.models), reward="prm", notes=notes)


def bench_setup(options: RunOptions, routing: BenchRoutingOptions) -> Setup:
    """The setup of all policies that are compared. Errors as `solve_setup`."""
    base = _base(options)
    if routing.policy is None and (policy := _policy_without_head(base)):
        routing = replace(routing, policy=",".join(dict.fromkeys(("target", "draft", policy))))
    policy_list = read_policies(options.invocation, routing, base.head)
    named = named_taus_here(base.available_head) if policy_list.names else None
    policies = resolve_policies(policy_list, base.head, named)
    early = _stops_early(base, routing.early_stop, [(one.policy, one.tau) for one in policies])
    setup = _with_policies(base, policies, early_stop=early, reward=routing.reward)
    setup = replace(setup, alternatives=routing.alternatives)
    return replace(setup, policy_list=policy_list, named_taus=named)


def resumed_setup(setup: Setup, run: Mapping[str, Any] | None, *, early_stop: bool | None) -> Setup:
    """The setup of a benchmark whose run is resumed: it keeps its named taus, and its early stopping unless that is asked for."""
    if not run or setup.policy_list is None:
        return setup
    here, kept = setup.named_taus, named_taus_in(run)
    named = kept if here and kept else here
    head = setup.deciding_head
    is_same_head = (run.get("router") or {}).get("sha256") == (head.sha256 if head else None)
    notes = _changed_names(setup.policy_list, here, named) if is_same_head else []  # another one is refused
    began_with = run.get("early_stop")
    keeps_early = setup.stops_early is not None and early_stop is None and began_with is not None
    return replace(
        setup,
        policies=resolve_policies(setup.policy_list, setup.head, named),
        named_taus=named,
        stops_early=began_with if keeps_early else setup.stops_early,
        notes=[*notes, *setup.notes],
    )


def collect_setup(options: RunOptions, reward: str | None) -> Setup:
    """The setup in which both models write every step and both steps are rated. Errors as `solve_setup`."""
    base = replace(_base(options), concurrency=options.machine.concurrency or "8")
    return _with_policies(base, [PolicyAtTau(POLICIES["oracle"], 0.0)], reward=reward)


def _base(options: RunOptions, choice: ModelChoice | None = None) -> Setup:
    """What does not depend on the policies."""
    invocation, models, generation, machine = options.invocation, options.models, options.generation, options.machine
    task = find_task(generation.task or options.task)
    choice = choice or choose_models(invocation, models, task.name)
    load = load_options(choice.pair, machine, generation, machine.threads)
    head = load_head(choice.head_source)
    if head:
        head.check_steps(task.step_end)
    return Setup(
        invocation,
        choice,
        head,
        policies=(),
        sources={},
        load=load,
        placement=place(choice.models, load),
        sampler=Sampler(generation.temperature, generation.top_p, generation.seed),
        limits=Limits(generation.max_steps, generation.max_tokens, generation.max_step_tokens),
        task=task,
        system=system_prompt(generation.system, choice.pair, task.instructions),
        served=served_models(choice, models, load, os.environ),
        offline=models.offline,
        concurrency=machine.concurrency or "1",
    )


def _policy_without_head(base: Setup) -> str | None:
    """The task's own policy; None if there is a head. No server speculates on another model's text: then the target writes alone."""
    if base.head:
        return None
    return "target" if base.task.policy == "speculative" and base.served else base.task.policy


def _request(options: RunOptions, routing: RoutingOptions, head: Head | None) -> RoutingRequest:
    """The routing options after conflicts are resolved."""
    settled = resolve_conflicts(options.invocation, routing, head)
    head_is_given = options.models.head is not None
    return RoutingRequest(settled.policy, settled.tau, settled.budget, settled.early_stop, head_is_given)


def _stops_early(base: Setup, asked: bool | None, policies: Sequence[tuple[Policy, float | None]]) -> bool | None:
    """Whether drafted steps are stopped before their end; None if no policy can. UsageError."""
    return stops_early_on_server(asked, stops_early(asked, policies, base.available_head), base.choice.models["draft"])


def _with_policies(
    base: Setup, policies_at_tau: Sequence[PolicyAtTau], *, early_stop: bool | None = None, reward: str | None = None
) -> Setup:
    """The setup with its policies, the models that they need, and what the user should know of these.

    `early_stop` is None if no policy can, else whether that was asked for or pays.
    """
    policies = [one.policy for one in policies_at_tau]
    sources = needed_models(policies, base.choice.models, reward)
    refuse_on_servers(policies, sources, base.head)
    setup = replace(
        base, policies=policies_at_tau, sources=sources, stops_early=early_stop, reward=reward_source(policies, reward)
    )
    notes = cautions(base.choice, sources, uses_head=setup.uses_head, threads=base.load.threads)
    return replace(setup, notes=[*exposed([base.served[role] for role in sources if role in base.served]), *notes])


def _changed_names(listed: PolicyList, here: NamedTaus | None, kept: NamedTaus | None) -> list[str]:
    """Names that stand for another tau in the run than they would here."""
    if not here or not kept:
        return []
    return [
        f"{name} is tau {kept.taus[name]:g} in this run, as when it began; by the costs of {here.costs_of} it would be "
        f"{here.taus[name]:g}: to use that, give the run another folder (--output)"
        for name in listed.names
        if here.taus[name] != kept.taus[name]
    ]

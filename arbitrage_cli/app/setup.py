"""Converts options to a `Setup`, which describes what a command runs. Only the router's small file is loaded.

`app.resolved` adds settings from the model files. This module imports NumPy, so commands import it only when they need it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from arbitrage_cli.app.model_choice import (
    ModelChoice,
    choose_models,
    load_options,
    needed_models,
    needs_prm,
    refuse_on_servers,
    served_models,
    warnings_about,
)
from arbitrage_cli.app.options import (
    BenchRoutingOptions,
    CollectOptions,
    GenerationOptions,
    MachineOptions,
    ModelOptions,
    RouterOptions,
    RoutingOptions,
)
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.evaluation.prices import Price, parse_prices
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import is_served, local_files, router_file
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.presets import PRESETS, Costs, NamedTaus
from arbitrage_cli.routing.route import (
    AvailableRouter,
    Menu,
    ParsedRoute,
    Route,
    accepts_tau,
    choose_policy,
    make_route,
    make_routes,
    parse_route,
    parse_routes,
    presets_in,
    route_or_target_alone,
    stops_early,
)
from arbitrage_cli.routing.router import Router
from arbitrage_cli.routing.router import load as load_router
from arbitrage_cli.stats import rounding
from arbitrage_cli.tasks.task import Task
from arbitrage_cli.tuning.placement import Placement, loading_of, machine_here, place, tuned_file
from arbitrage_cli.tuning.store import AdvisedPair, read_advice
from arbitrage_cli.types import Limits, ModelRole

THINK_TOKENS = 16384
"""The default limit on tokens for solutions with thinking."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options shared by all commands that use models. `explicit` names the options that were set by flags or arguments."""

    models: RouterOptions
    generation: GenerationOptions
    machine: MachineOptions
    task: Task
    explicit: frozenset[str] = frozenset()
    command: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Basis:
    """The part of a setup that is the same for all policies."""

    options: RunOptions
    choice: ModelChoice
    router: Router | None
    load: Options
    placement: Placement
    task: Task
    served: Mapping[ModelRole, ServedSource]
    concurrency: str

    @property
    def available_router(self) -> AvailableRouter:
        costs = _costs_of_prices(self.price) if self.price else Costs.of(self.placement.unit_costs)
        return AvailableRouter(self.router, self.choice.router_source, costs, self.price is not None)

    @property
    def advised_pair(self) -> AdvisedPair:
        """The conditions for an advice on these models. Raises ModelUnsupportedError if llama.cpp cannot be imported."""
        named = self.choice.writing.items()
        models = {role: sha256_seen(files) if (files := local_files(name)) else name for role, name in named}
        router = self.router.sha256 if self.router else None
        return AdvisedPair(machine_here(), loading_of(self.load), models, router, self.task.name)

    @property
    def price(self) -> str | None:
        """The prices in the pair's entry, in the syntax of --price."""
        pair = self.choice.pair if self.choice.is_pairs_own else None
        return f"target={pair.target.price}" if pair and pair.target.price else None

    @property
    def system(self) -> str:
        pair, instructions = self.choice.pair, self.task.instructions
        if self.options.generation.system is not None:
            return self.options.generation.system
        return instructions if pair is None or pair.system is None else pair.system


@dataclass(frozen=True, slots=True)
class Setup(Basis):
    """A command's policies, models and settings, before model files are read.

    `sources` contains the required models, as named by the user. `reward` is the reward source for policies that accept any
    source. `parsed_routes` contains the policies of a benchmark; `named_taus` contains the taus of their presets.
    """

    routes: Sequence[Route]
    sources: Mapping[ModelRole, str]
    reward: str | None
    notes: Sequence[str]
    parsed_routes: Sequence[ParsedRoute] = ()
    named_taus: NamedTaus | None = None

    @property
    def route(self) -> Route:
        return self.routes[0]

    @property
    def stops_early(self) -> bool | None:
        """Whether drafted steps are stopped early, or None if no policy supports early stops."""
        stopping = [route for route in self.routes if route.policy.can_stop_early]
        return any(route.stops_early for route in stopping) if stopping else None

    @property
    def tau_costs(self) -> str | None:
        if self.named_taus:
            return self.named_taus.costs_of
        return self.available_router.costs_of if any(route.tau_name in PRESETS for route in self.routes) else None

    @property
    def deciding_router(self) -> Router | None:
        return self.router if any(route.policy.needs_router for route in self.routes) else None


# --- the setup of each command


def for_solve(options: RunOptions, routing: RoutingOptions) -> Setup:
    """Return the setup for a policy. Raises UsageError if an option is invalid or has no effect."""
    basis = _basis(options)
    route, warnings = _route_and_warnings(basis, routing, options.explicit)
    return _setup(basis, [route], warnings=warnings)


def for_pair(options: RunOptions, routing: RoutingOptions) -> Setup:
    """Return the setup for `open_pair`, which loads all named models except the pair's own PRM."""
    basis = _basis(options)
    route, warnings = _route_and_warnings(basis, routing, options.explicit - {"router", "prm"})
    prm = options.models.prm if isinstance(options.models, ModelOptions) else None
    named = {role: source for role, source in basis.choice.models.items() if source and (role != "prm" or prm)}
    setup = _setup(basis, [route], warnings=warnings)
    return replace(setup, sources={**named, **setup.sources}, reward=setup.reward or ("prm" if prm else None))


def for_serve(options: RunOptions, routing: RoutingOptions, *, concurrency: str) -> Setup:
    """Return the setup for a chat or a server. Raises the same errors as `for_solve`."""
    basis = _basis(options, concurrency)
    route, warnings = _route_and_warnings(basis, routing, options.explicit)
    return _setup(basis, [route, Route(choose_policy(None, basis.router))], warnings=warnings)


def menu_of(setup: Setup, routing: RoutingOptions) -> Menu:
    """Return the routes that users of a chat or a server can select."""
    early = False if "draft" in setup.served else routing.early_stop
    return Menu(setup.route, setup.available_router, early_stop=early, speculates=not setup.served)


def for_bench(options: RunOptions, routing: BenchRoutingOptions) -> Setup:
    """Return the setup for a comparison of policies. Raises the same errors as `for_solve`."""
    basis = _basis(options)
    parsed = parse_routes(_default_policies(basis) if routing.policy is None else routing.policy)
    named = basis.available_router.named_taus if presets_in(parsed) else None
    routes = make_routes(parsed, basis.router, named)
    _refuse_unused([route.policy for route in routes], options.explicit, routing.reward)
    early = _early_stop(routing.early_stop, basis, *(route.policy for route in routes))
    routes = _with_early_stop(routes, stops_early(early, routes, basis.available_router))
    return _setup(basis, routes, reward=routing.reward, parsed_routes=parsed, named_taus=named)


def for_resumed_bench(setup: Setup, run: Mapping[str, Any] | None, *, early_stop: bool | None) -> Setup:
    """Return the setup to resume a benchmark, with the run's presets and, unless an option is set, its early stopping."""
    if not run:
        return setup
    current, kept = setup.named_taus, NamedTaus(run["named_taus"], run["tau_costs"]) if run.get("named_taus") else None
    named = kept if current and kept else current
    router = setup.deciding_router
    is_same_router = (run["router"] or {}).get("sha256") == (router.sha256 if router else None)
    notes = _changed_presets(setup.parsed_routes, current, named) if is_same_router else []  # another router is refused
    early = run.get("early_stop") if early_stop is None else None
    routes = make_routes(setup.parsed_routes, setup.router, named)
    routes = _with_early_stop(routes, setup.stops_early if early is None else early)
    return replace(setup, routes=routes, named_taus=named, notes=[*notes, *setup.notes])


def for_collect(options: RunOptions, collect: CollectOptions) -> Setup:
    """Return the setup for `collect`. Raises the same errors as `for_solve`."""
    _refuse(options.explicit, "router", "collect uses no router")
    if collect.reward == "rollout":
        _refuse(options.explicit, "prm", "rollouts rate the steps", "omit it, or use --reward prm")
    else:
        _refuse(options.explicit, "rollouts", "a process reward model rates the steps", "use --reward rollout")
    return _setup(_basis(options, "8"), [Route(POLICIES["oracle"], 0.0)], reward=collect.reward)


def route_for(basis: Basis, routing: RoutingOptions, explicit: frozenset[str]) -> Route:
    routing = _with_pairs_routing(routing, basis.choice)
    policy = choose_policy(routing.policy or _policy_without_router(basis), basis.router)
    _refuse_unused([policy], explicit)
    tau = routing.tau if "tau" in explicit or accepts_tau(policy, routing.tau) else None
    return make_route(policy, tau, basis.available_router, early_stop=_early_stop(routing.early_stop, basis, policy))


def sampler_of(generation: GenerationOptions) -> Sampler:
    return Sampler(generation.temperature, generation.top_p, generation.seed, generation.top_k, generation.min_p)


def limits_of(generation: GenerationOptions, task: Task, think_tokens: int | None) -> Limits:
    return Limits(
        generation.max_steps,
        generation.max_tokens or (Limits().max_tokens if think_tokens == 0 else THINK_TOKENS),
        generation.max_step_tokens,
        think_tokens,
    )


def think_tokens(generation: GenerationOptions) -> int | None:
    """Return the maximum number of thinking tokens: None if unlimited, 0 if thinking is off."""
    match generation.think:
        case None | "off":
            return 0
        case "on":
            return None
        case text if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
    hint = "use on, off, or the maximum number of thinking tokens, such as 2000"
    raise UsageError(f"invalid value '{generation.think}'", hint, option="think")


# --- parts of a setup


def _basis(options: RunOptions, default_concurrency: str = "1") -> Basis:
    task = options.task
    if not task.runs_code:
        _refuse(options.explicit, "run_code", f"task {task.name} runs no programs")
    thinks = think_tokens(options.generation) != 0
    choice = choose_models(options.explicit, options.models, task.name, thinks=thinks)
    load = load_options(choice.pair, options.machine)
    router = load_router(router_file(choice.router_source)) if choice.router_source else None
    if router:
        router.check_steps(task.step_end)
    served = served_models(choice, load, os.environ)
    concurrency = options.machine.concurrency or default_concurrency
    basis = Basis(options, choice, router, load, place(choice.models, load), task, served, concurrency)
    if basis.price and choice.pair:
        try:
            parse_prices(basis.price)
        except UsageError as error:
            message = f"pair '{choice.pair.name}': target.price: invalid value '{choice.pair.target.price}'"
            raise UsageError(message, "use dollars per million tokens, such as 0.60/0.15/2.40") from error
    return basis


def _costs_of_prices(price: str) -> Costs:
    free, prices = Price(0.0, 0.0, 0.0), parse_prices(price)
    draft, target = (prices.get(role, free) for role in ("draft", "target"))
    return Costs(
        draft_seconds_per_token=draft.completion,
        target_seconds_per_token=target.completion,
        target_prefill_seconds_per_token=target.prompt,
        draft_prefill_seconds_per_token=draft.prompt,
        target_verify_seconds_per_token=target.completion,
        target_cached_seconds_per_token=target.cached,
    )


def _setup(
    basis: Basis, routes: Sequence[Route], *, reward: str | None = None, warnings: Sequence[str] = (), **details: Any
) -> Setup:
    policies = [route.policy for route in routes]
    sources = needed_models(policies, basis.choice.models, reward)
    refuse_on_servers(policies, sources)
    served = [basis.served[role] for role in sources if role in basis.served]
    uses_router, threads = any(policy.needs_router for policy in policies), basis.load.threads
    notes = [*warnings_about(basis.choice, sources, served, uses_router=uses_router, threads=threads), *warnings]
    source = (reward or "prm") if any(policy.reward == "any" for policy in policies) else None
    shared = {field.name: getattr(basis, field.name) for field in fields(basis)}
    return Setup(**shared, routes=routes, sources=sources, reward=source, notes=list(dict.fromkeys(notes)), **details)


def _route_and_warnings(basis: Basis, routing: RoutingOptions, explicit: frozenset[str]) -> tuple[Route, list[str]]:
    route = route_for(basis, routing, explicit)
    routing, notes = _with_pairs_routing(routing, basis.choice), list[str]()
    is_default = (routing.policy, routing.tau, routing.early_stop, basis.options.models.router) == (None,) * 4
    try:
        if is_default and (advised := _advised_route(basis)):
            return advised
    except ArbitrageError as error:
        notes = [f"the stored advice is ignored: {error.message}"]
    route, warning = route_or_target_alone(route, basis.available_router, is_default=is_default)
    return route, [*notes, *([warning] if warning else [])]


def _advised_route(basis: Basis) -> tuple[Route, list[str]] | None:
    """Return the route of the last advice on this pair, and a note, or None. Raises ArbitrageError if the advice is invalid."""
    advice = next((one for one in read_advice(tuned_file()) if one.pair == basis.advised_pair), None)
    if advice is None or basis.price:
        return None
    policy, tau = parse_route(advice.route)
    refuse_on_servers([policy], needed_models([policy], basis.choice.models, None))
    route = make_route(policy, tau, basis.available_router, early_stop=_early_stop(None, basis, policy))
    return route, [f"using policy {route.name}, as advised on {advice.created[:10]}; to use another policy, add --policy"]


def _with_pairs_routing(routing: RoutingOptions, choice: ModelChoice) -> RoutingOptions:
    if choice.pair is None or not choice.is_pairs_own or (routing.policy, routing.tau) != (None, None):
        return routing
    return replace(routing, policy=choice.pair.policy, tau=choice.pair.tau)


def _policy_without_router(basis: Basis) -> str | None:
    """Return the task's default policy if there is no router. If a model is on a server, `target` replaces speculation."""
    if basis.router:
        return None
    return "target" if POLICIES[basis.task.policy].speculates and basis.served else basis.task.policy


def _default_policies(basis: Basis) -> str:
    speculative = ["speculative"] if not basis.served and basis.concurrency == "1" else []
    policy = _policy_without_router(basis) or choose_policy(None, basis.router).name
    baseline = ["logprob"] if POLICIES[policy].needs_router else []
    return ",".join(dict.fromkeys(["target", "draft", *speculative, policy, *baseline]))


def _early_stop(option: bool | None, basis: Basis, *policies: Policy) -> bool | None:
    draft = basis.choice.models["draft"]
    if not draft or not is_served(draft):
        return option
    if option and any(policy.can_stop_early for policy in policies):
        raise UsageError("a draft on a server cannot be stopped early", "leave it out", option="early_stop")
    return False


def _with_early_stop(routes: Sequence[Route], early: bool | None) -> list[Route]:
    return [replace(route, stops_early=bool(early) and route.policy.can_stop_early) for route in routes]


def _refuse_unused(policies: Sequence[Policy], explicit: frozenset[str], reward: str | None = None) -> None:
    uses = {
        "tau": any(policy.has_tau for policy in policies),
        "router": any(policy.needs_router for policy in policies),
        "early_stop": any(policy.can_stop_early for policy in policies),
        "prm": any(needs_prm(policy, reward) for policy in policies),
        "reward": any(policy.reward == "any" for policy in policies),
    }
    names = list(dict.fromkeys(policy.name for policy in policies))
    subject = f"policy {names[0]} does" if len(names) == 1 else f"policies {', '.join(names)} do"
    for name in (name for name, is_used in uses.items() if not is_used):
        _refuse(explicit, name, f"{subject} not use it", "omit it, or choose another --policy")


def _refuse(explicit: frozenset[str], name: str, reason: str, hint: str = "leave it out") -> None:
    """Raise UsageError if this option was set explicitly. In a settings file, it may be meant for other commands."""
    if name in explicit:
        raise UsageError(reason, hint, option=name)


def _changed_presets(parsed: Sequence[ParsedRoute], current: NamedTaus | None, kept: NamedTaus | None) -> list[str]:
    """Return a note for each preset whose tau in the run differs from the tau of a new run."""
    if not current or not kept:
        return []
    return [
        f"the resumed run uses tau {rounding.tau(kept.taus[name])} for {name}, as before; with the token costs of "
        f"{current.costs_of}, tau is {rounding.tau(current.taus[name])}; to use it, choose another folder (--output)"
        for name in presets_in(parsed)
        if current.taus[name] != kept.taus[name]
    ]

"""Resolves a request to a `Spec`: the models, routes, limits and settings of a command. No model is loaded."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from arbitrage_cli.app.options import Options
from arbitrage_cli.app.request import WRITING, Request
from arbitrage_cli.costs.pair import PairCosts, parse_prices, price_costs
from arbitrage_cli.costs.store import AdvisedPair, Placement, Tuned, loading_of, machine_here, place, read_cache, tuned_file
from arbitrage_cli.errors import ArbitrageError, TemplateError, UsageError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, PromptStyle
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.servers.address import ServedSource
from arbitrage_cli.inference.thinking import FORMATS
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.gguf import read_facts, read_header
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, local_files
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.policies import Policy, Thinking
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import (
    AvailableRouter,
    Menu,
    Route,
    make_route,
    parse_route,
    route_or_target_alone,
    stops_early,
    stored_route,
)
from arbitrage_cli.routing.router import Router
from arbitrage_cli.runs.results import unit_costs_of
from arbitrage_cli.system.machine import logical_processors
from arbitrage_cli.types import THINK_TOKENS, Limits, ModelRole

Run = dict[str, Any]  # run.json

THINK_CONTEXT_SIZE = 16384
"""The default context size, in tokens, for models that think, or the size with which they were trained if that is smaller."""

NO_SPECULATION = (
    "policy speculative saves time only with one problem at a time (--concurrency 1); with several problems, it is hardly faster "
    "than the target alone"
)
CHOICE_LOSES = (
    "policy agree lost 2.4 points on published multiple-choice answers, because two models often agree on a wrong letter"
)
UNIVERSAL = (
    "no router is set for these models, so the universal router is used; to choose one, use --router, and to train one, "
    "use arbitrage collect and arbitrage train"
)
PromptOfRole = Callable[[ModelRole], ChatPrompt | None]
Note = Callable[[str], None]

UNKNOWN_THINKING = "cannot tell from the chat template whether the model thinks; if it does, use --think on"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to load. `files` is empty for models that are not GGUF files, and `served` describes a model on a server.

    `threads` is None for a model on a server, and `costs` is None if the model was not measured.
    """

    source: str
    files: tuple[Path, ...]
    served: ServedSource | None
    threads: int | None
    costs: UnitCosts | None

    @property
    def path(self) -> str:
        """The first file, or the name of a model that has no file."""
        return str(self.files[0]) if self.files else self.source


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that determines how a command solves problems. The context of `load` does not apply to a checker.

    `reward` is the source of rewards for policies that accept any source. `concurrency` is the number of problems that are
    solved at once. `check_thinking` is None without a checker.
    """

    request: Request
    models: Mapping[ModelRole, ModelSpec]
    routes: Sequence[Route]
    available_router: AvailableRouter
    reward: str | None
    load: LoadOptions
    limits: Limits
    sampler: Sampler
    check_thinking: Thinking | None
    check_context: int | None
    notes: Sequence[str]
    concurrency: int = 1

    @property
    def route(self) -> Route:
        return self.routes[0]

    @property
    def task(self) -> Task:
        return self.request.task

    @property
    def sources(self) -> dict[ModelRole, str]:
        return {role: model.source for role, model in self.models.items()}

    @property
    def thinking(self) -> dict[str, Any]:
        """The settings that depend on the models' chat templates."""
        return {"think tokens": self.limits.think_tokens, "check thinking": self.check_thinking}

    @property
    def tau_costs(self) -> str | None:
        """The name of the costs on which the presets are based, if any are used."""
        return self.available_router.costs_of if any(route.tau_name in PRESETS for route in self.routes) else None

    @property
    def deciding_router(self) -> Router | None:
        return self.available_router.router if any(route.policy.needs_router for route in self.routes) else None

    @property
    def loaded(self) -> dict[ModelRole, ModelSpec]:
        """The models to load. A draft that checks itself is loaded once."""
        checks_itself = self.request.named.checks_itself
        return {role: model for role, model in self.models.items() if role != "check" or not checks_itself}

    def load_of(self, role: ModelRole) -> LoadOptions:
        return replace(self.load, context_size=self.check_context) if role == "check" else self.load

    def menu(self) -> Menu:
        """Return the routes that users of a chat or a server can select."""
        request, speculates = self.request, not self.request.named.served
        checks = request.loads == "served" and "check" in self.models
        return Menu(self.route, self.available_router, early_stop=request.early_stop, speculates=speculates, checks=checks)


def make_spec(
    request: Request,
    earlier: Run | None = None,
    served_prompt: PromptOfRole = lambda role: None,
    measured: Mapping[ModelRole, Tuned] | None = None,
    concurrency: int = 1,
    *,
    asks_servers: bool = True,
) -> Spec:
    """Resolve a request with the token costs (by default, those that are stored) and the model files on this machine.

    `earlier` is the run.json of a run to resume, whose threads and token costs are kept, so that presets have the same taus.
    `served_prompt` returns the prompt of a model on a server, or None if this is unknown. If `asks_servers` is false, models
    on servers think as in the earlier run. The costs of tokens are those of `concurrency` problems at once.

    Raises UsageError or ModelFileError if a setting or a file cannot be used, and the same errors as `served_prompt`.
    """
    named = request.named
    checker = request.models_for(request.asked).get("check")  # another checker's files are not read
    here = place({**named.sources, "check": checker}, named.load, measured)
    notes = list[str]()
    placement = _as_before(here, earlier, named.load, notes.append)
    at_once = 1 if request.loads == "served" else concurrency  # a server's limit, which a single user does not reach
    costs = price_costs(parse_prices(named.price)) if named.price else PairCosts.of(placement.unit_costs, at_once)
    available = AvailableRouter(named.router, named.router_source, costs, named.price is not None)
    routes = _routes(request, available)
    if not request.compares:
        routes[0] = _default_route(request, earlier, routes[0], available, notes.append)
    policies = [route.policy for route in routes]
    models = {
        role: ModelSpec(
            source, local_files(source), named.served.get(role), placement.threads.get(role), placement.unit_costs.get(role)
        )
        for role, source in request.models_for(policies).items()
    }
    find_prompt = partial(_find_prompt, request, models, served_prompt)
    began = {} if asks_servers or not earlier else earlier["settings"]
    tokens = _think_tokens(request.options, models, find_prompt, notes.append, began)
    checking = None
    if "check" in models:
        known = began.get("check_thinking") if models["check"].served else None
        checking = known or _check_thinking(request, find_prompt("check"))
    writing = [models[role] for role in WRITING if role in models] if tokens != 0 else []
    return Spec(
        request,
        models,
        routes,
        available,
        reward=_reward(request, policies, models),
        load=replace(named.load, context_size=_thinking_context(named.load, writing)),
        limits=limits_of(request.options, tokens),
        sampler=sampler_of(request.options),
        check_thinking=checking,
        check_context=_thinking_context(named.load, [models["check"]] if checking == "on" else []),
        notes=[*_warnings(request, policies, models, concurrency), *notes],
        concurrency=concurrency,
    )


def sampler_of(options: Options) -> Sampler:
    return Sampler(options.temperature, options.top_p, options.seed, options.top_k, options.min_p)


def limits_of(options: Options, think_tokens: int | None) -> Limits:
    return Limits(
        options.max_steps,
        options.max_tokens or (Limits().max_tokens if think_tokens == 0 else THINK_TOKENS),
        options.max_step_tokens,
        think_tokens,
        is_thinking_chosen=options.think is not None,
    )


# --- the parts of a spec


def _warnings(
    request: Request, policies: Sequence[Policy], models: Mapping[ModelRole, ModelSpec], concurrency: int
) -> Iterator[str]:
    """Yield warnings about the choice of models, policies and threads."""
    named, threads = request.named, request.options.threads
    served = [model.served for model in models.values() if model.served]
    for host in dict.fromkeys(model.address.host for model in served if model.address.is_exposed):
        yield f"{host}: problems are sent unencrypted (http); use https"
    if named.router_source == UNIVERSAL_ROUTER and any(policy.needs_router for policy in policies):
        yield UNIVERSAL
    checker, draft = models.get("check"), models.get("draft")
    if checker and draft and checker.source == draft.source and not named.checks_itself:
        yield "the checker is the draft, so they make the same mistakes; use another --check"
    if request.task.name == "choice" and checker:
        yield CHOICE_LOSES
    if {"draft", "target"} <= models.keys():
        sizes = [sum(file.stat().st_size for file in models[role].files) for role in WRITING]
        if 0 < sizes[1] < sizes[0]:
            yield "the draft's file is larger than the target's; --draft should be the fast model"
    processors = logical_processors()
    if threads and threads > processors and any(model.files for model in models.values()):
        yield f"{threads} threads are slow on {processors} logical processors; use --threads {processors} or fewer"
    if concurrency > 1 and any(policy.speculates for policy in policies):
        yield NO_SPECULATION


def _routes(request: Request, router: AvailableRouter) -> list[Route]:
    routes = list(dict.fromkeys(make_route(policy, tau, router, early_stop=False) for policy, tau in request.policies))
    early = bool(stops_early(request.early_stop, routes, router))
    return [replace(route, stops_early=early and route.policy.can_stop_early) for route in routes]


def _default_route(request: Request, earlier: Run | None, route: Route, router: AvailableRouter, note: Note) -> Route:
    """Return the advised route or the target alone, if this is better than the default route.

    A resumed run keeps its default route, because the advice, the costs or the concurrency may have changed.
    """
    if earlier and request.is_default:
        began = earlier["policies"][0]
        policy, tau = parse_route(stored_route(began).name)
        return make_route(policy, tau, router, early_stop=earlier["settings"]["early_stop"])
    try:
        if request.is_default and (advised := _advised_route(request, router, note)):
            return advised
    except ArbitrageError as error:
        note(f"the stored advice is ignored: {error.message}")
    route, warning = route_or_target_alone(route, router, is_default=request.is_default)
    if warning:
        note(warning)
    return route


def _advised_route(request: Request, router: AvailableRouter, note: Note) -> Route | None:
    """Return the route of the last advice on this pair, or None. Raises ArbitrageError if the advice is invalid.

    An advice is for times, and for one problem at a time.
    """
    is_for_times = request.named.price is None and (router.costs is None or router.costs.concurrency == 1)
    known = read_cache(tuned_file()).advice if is_for_times else ()
    advice = next((one for one in known if one.pair == advised_pair(request)), None)
    if advice is None:
        return None
    policy, tau = parse_route(advice.route)
    request.models_for([policy])
    route = make_route(policy, tau, router, early_stop=request.named.early_stop(None, [policy]))
    note(f"using policy {route.name}, as advised on {advice.created[:10]}; to use another policy, add --policy")
    return route


def advised_pair(request: Request) -> AdvisedPair:
    """Return the conditions for an advice on these models. Raises ModelUnsupportedError if llama.cpp cannot be imported."""
    named = request.named
    models: dict[ModelRole, str] = {
        role: sha256_seen(files) if (files := local_files(source)) else source
        for role, source in named.sources.items()
        if role != "prm"
    }
    router = named.router.sha256 if named.router else None
    return AdvisedPair(machine_here(), loading_of(named.load), models, router, request.task.name)


def _as_before(current: Placement, earlier: Run | None, load: LoadOptions, note: Note) -> Placement:
    """Return the threads and the token costs of an earlier run, so that a resumed run computes in the same way."""
    if not earlier:
        return current
    recorded = {role: facts.get("threads") for role, facts in earlier["models"].items()} if load.threads is None else {}
    threads = {role: recorded.get(role) or count for role, count in current.threads.items()}
    for role, count in threads.items():
        if (now := current.threads[role]) != count:
            fastest = f"is now fastest with {formatting.count(now, 'thread')}"
            note(f"the {role} was measured again and {fastest}; this run keeps {count}")
    costs = unit_costs_of(earlier)
    if "target" in costs or "target" not in earlier["models"]:  # a target that began without costs verifies no draft tokens
        costs = {**current.unit_costs, **costs}
    return Placement(threads, costs)


def _find_prompt(
    request: Request, models: Mapping[ModelRole, ModelSpec], served_prompt: PromptOfRole, role: ModelRole
) -> ChatPrompt | None:
    """Return the prompt of a model, or None if it does not think or this is unknown."""
    if models[role].served:
        return served_prompt(role)
    files, variables = models[role].files, request.named.load.template_variables
    return prompt_of(files[0], variables, request.system) if files else None


def _think_tokens(
    options: Options,
    models: Mapping[ModelRole, ModelSpec],
    find_prompt: PromptOfRole,
    note: Note,
    began: Mapping[str, Any],
) -> int | None:
    """Return the limit on thinking tokens, and note each model that may think. Servers are asked only if necessary.

    `began` contains the settings of an earlier run, which are used instead of asking a server.

    Raises UsageError if thinking is turned off, but a model always thinks.
    """
    if options.think_tokens != 0:
        return options.think_tokens
    prompts: dict[str, ChatPrompt] = {}
    for role in sorted((role for role in WRITING if role in models), key=lambda role: models[role].served is not None):
        if began and models[role].served:
            return began["think_tokens"] if options.think is None else 0
        if prompt := find_prompt(role):
            prompts[models[role].source] = prompt
            if prompt.thinks_by_itself and options.think is None:
                return None
    if options.think is not None:
        refuse_without_thinking(prompts)
        return 0
    for source, prompt in prompts.items():
        if prompt.thinks_by_itself is None:
            note(f"{source}: {UNKNOWN_THINKING}")
    return 0


def _check_thinking(request: Request, prompt: ChatPrompt | None) -> Thinking:
    """Return whether the checker thinks. A checker that is not the draft thinks if its chat template does so by default.

    Raises UsageError if the checker is the draft, and the draft cannot turn its thinking on or off.
    """
    if request.named.checks_itself:
        is_fixed = prompt is None or prompt.own_format is None or prompt.always_thinks
        if is_fixed and "check" not in request.named.served:
            message = "the draft cannot turn its thinking on and off, so it cannot check itself"
            raise UsageError(message, "use --check MODEL", option="check")
        return "other"
    is_off = request.options.think == "off"
    return "on" if prompt and (prompt.always_thinks if is_off else prompt.thinks_by_itself) else "off"


def refuse_without_thinking(prompts: Mapping[str, ChatPrompt]) -> None:
    """Raise UsageError if one of the models, given by name, always thinks."""
    for name, prompt in prompts.items():
        if prompt.always_thinks:
            hint = "use --think=on, a limit such as --think=500, or another model"
            raise UsageError(f"{name} cannot answer without thinking", hint, option="think")


def prompt_of(path: Path, variables: Mapping[str, Any], instructions: str = INSTRUCTIONS) -> ChatPrompt | None:
    """Return the prompt of a file whose chat template has a thinking format, otherwise None."""
    template = read_header(path).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not any(form.end in template for form in FORMATS.values()):
        return None
    try:
        return ChatPrompt(template, None, (), PromptStyle(instructions), variables)
    except TemplateError:  # loading the model reports the error with the model's name
        return None


def _thinking_context(load: LoadOptions, models: Iterable[ModelSpec]) -> int | None:
    """Return the context size for models that think, or None if the backend chooses it."""
    files = [model.files for model in models if model.files]
    if load.context_size is not None or not files:
        return load.context_size
    trained = [read_facts(paths).trained_context_size or THINK_CONTEXT_SIZE for paths in files]
    return min(THINK_CONTEXT_SIZE, *trained)


def _reward(request: Request, policies: Sequence[Policy], models: Collection[ModelRole]) -> str | None:
    if any(policy.reward == "any" for policy in policies):
        return request.reward or "prm"
    return "prm" if request.loads == "named" and "prm" in models else None  # calls may use other policies

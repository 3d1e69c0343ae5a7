"""Decides how a command solves problems: its models, routes, limits and settings. No model is loaded, and no file is read.

`decide` is a pure function of a request and of the facts that `app.deciding.gather` collects. A command calls it once. A resumed run
keeps its decisions; `extend` decides only what is added.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from arbitrage_cli.app.asking.naming import NamedRouter, word_for
from arbitrage_cli.app.asking.request import Request, Use
from arbitrage_cli.app.deciding.thinking import (
    limits_by_role,
    limits_of_quick_answers,
    refuse_without_thinking,
    with_checker,
)
from arbitrage_cli.app.options import Options
from arbitrage_cli.costs.pair import FREE, PairCosts, parse_prices, price_costs
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import THOUGHT_END
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE
from arbitrage_cli.routing.default_policy import Choice, choose_policy
from arbitrage_cli.routing.policies import DRAFT_ALONE, Policy
from arbitrage_cli.routing.route import AvailableRouter, ParsedRoute, Route, make_route
from arbitrage_cli.routing.savings import warning_by_costs
from arbitrage_cli.runs.run import ModelSetup, RouterSetup, RouteSetup, Settings, Setup
from arbitrage_cli.types import WRITING, ByRole, Fields, Json, Limits, ModelRole, Note, RoleLimits, frozen

THINK_CONTEXT_SIZE = 16384
"""The default context size, in tokens, for models that think, or the size with which they were trained if that is smaller."""

NO_SPECULATION = (
    "speculation saves time only with one problem at a time (--concurrency 1); with several problems, it is hardly faster "
    "than the target alone"
)
CHOICE_LOSES = (
    "policy agree lost 2.4 points on published multiple-choice answers, because two models often agree on a wrong letter"
)
NO_CHECKS = "it compares whole solutions with a final answer, which a conversation does not have"
UNIVERSAL = (
    "no router is set for these models, so the universal router is used; to choose one, use --router, and to train one, "
    "use arbitrage collect and arbitrage train"
)
UNKNOWN_SWITCH = "cannot tell from the chat template whether the model thinks"
UNKNOWN_THINKING = "cannot tell from the chat template whether the model thinks; if it does, use --think on"


@frozen
class ModelFacts:
    """The facts about a model, from files, servers and measurements. `prompt` is None if the model does not think.

    The context size of `setup` is not decided yet. `cannot_continue` is the error of a server that writes only whole
    solutions, for policies that route steps.
    """

    setup: ModelSetup
    prompt: ChatPrompt | None = None
    trained_context_size: int | None = None
    has_files: bool = False
    cannot_continue: ArbitrageError | None = None
    sends_token_stats: bool = True


ModelsFacts = ByRole[ModelFacts]


@frozen
class RequestFacts:
    """The known facts about the models of a request and about this machine."""

    models: ModelsFacts
    machine: Fields
    router: NamedRouter | None = None

    @property
    def unit_costs(self) -> dict[ModelRole, UnitCosts]:
        return {role: one.setup.costs for role, one in self.models.items() if one.setup.costs}


def decide(request: Request, facts: RequestFacts) -> Setup:
    """Return everything that determines how the problems of a request are solved.

    Raises UsageError if a setting cannot be used with these models.
    """
    notes, price = list[str](), request.named.price
    available = available_router(request, facts.router, facts.unit_costs, price)
    if request.situation:
        routes = [_route_by_rule(request, facts.models, available, notes.append)]
    else:
        routes = _routes(request.policies, available, notes.append)
    left_out = _left_out(routes, facts.models) if request.advises else {}
    if left_out:
        routes = [route for route in routes if route.name not in left_out]
        routes += [Route(DRAFT_ALONE)] if len(routes) == 1 else []  # nothing else can be compared with the target
    notes += [f"not tried: {name}, because {reason}" for name, reason in left_out.items()]
    policies = [route.policy for route in routes]
    models = _models_for(request, policies, facts)
    notes[:0] = _warnings(request, policies, models, available)
    settings = _settings(request, policies, models, notes.append)
    return Setup(
        models={role: _decided_model(role, models, settings.limits, request) for role in models},
        routes=list(map(RouteSetup.of, routes)),
        left_out=left_out,
        router=_decided_router(facts.router, policies),
        tau_costs=available.costs_for(routes),
        price=price,
        concurrency=request.concurrency,
        settings=settings,
        machine=dict(facts.machine),
        notes=notes,
    )


def extend(setup: Setup, request: Request, facts: RequestFacts) -> Setup:
    """Return a setup with the policies that a request adds to it.

    What is decided stays: the new policies get the costs, the price and the settings of the setup. What it lacks is decided
    now: a model, its costs, the router, the reward and whether the checker thinks. The notes are those about the new policies.
    Raises UsageError if the models of a policy do not support a setting.
    """
    notes = list[str]()
    costs = {**facts.unit_costs, **setup.unit_costs}
    available = available_router(request, facts.router, costs, setup.price)
    routes = _routes(request.policies, available, notes.append)
    policies = [route.policy for route in routes]
    models = _models_for(request, policies, facts)
    notes[:0] = _warnings(request, policies, models, available)
    settings = _completed(setup.settings, request, policies, models)
    known = {role: _measured(model, facts.models.get(role)) for role, model in setup.models.items()}
    joining = {role: _decided_model(role, models, settings.limits, request) for role in models if role not in known}
    of_run = [one.route for one in setup.routes]
    return setup.model_copy(
        update={
            "models": {**known, **joining},
            "routes": [*setup.routes, *(RouteSetup.of(route) for route in routes if route not in of_run)],
            "router": setup.router or _decided_router(facts.router, policies),
            "tau_costs": setup.tau_costs or available.costs_for(routes),
            "settings": settings,
            "notes": notes,
        }
    )


def _measured(model: ModelSetup, facts: ModelFacts | None) -> ModelSetup:
    """Return a model of a run, with the costs that were measured now if it has none."""
    if model.costs or facts is None:
        return model
    return model.model_copy(update={"costs": facts.setup.costs, "costs_are_approximate": facts.setup.costs_are_approximate})


def _completed(settings: Settings, request: Request, policies: Sequence[Policy], models: ModelsFacts) -> Settings:
    """Return the settings of a run, with those that only the new policies need."""
    lacking: Json = {}
    if settings.reward is None:
        lacking["reward"] = _reward(request, policies, models)
    if settings.limits.check is None and "check" in models:
        lacking["limits"] = with_checker(settings.limits, models["check"].prompt)
    return settings.model_copy(update=lacking)


def available_router(
    request: Request, router: NamedRouter | None, units: ByRole[UnitCosts], price: str | None
) -> AvailableRouter:
    """Return a router with the costs of the request's pair: the price, or the costs of tokens.

    Token costs depend on how many problems share a batch. For `bench`, which measures policies for a single user, and for
    `serve`, whose limit is rarely reached, they are the costs of one problem at a time.
    """
    at_once = 1 if request.compares or request.use == "serve" else request.concurrency
    prices = parse_prices(price) if price else None
    costs = price_costs(prices) if prices else PairCosts.of(units, at_once)
    check = prices.get("check", FREE).unit_costs if prices else units.get("check")
    found, source = (router.router, router.source) if router else (None, None)
    named = request.named
    return AvailableRouter(
        found,
        source,
        costs,
        is_priced=price is not None,
        can_stop_early="draft" not in named.served,
        has_checker="check" in named.sources,
        check=check,
    )


def _models_for(request: Request, policies: Sequence[Policy], facts: RequestFacts) -> ModelsFacts:
    needed = request.models_for(policies)
    return {role: one for role, one in facts.models.items() if role in needed}


def sampler_of(options: Options) -> Sampler:
    return Sampler(
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        top_k=options.top_k,
        min_p=options.min_p,
    )


def limits_of(options: Options) -> Limits:
    """Return the limits without the thinking, which is decided for each role."""
    return Limits(options.max_steps, options.max_tokens, options.max_step_tokens)


def approximate_costs(roles: Iterable[ModelRole]) -> str:
    names = " and ".join(map(word_for, roles))
    return f"other programs disturbed the measurement of token costs, so those of the {names} are approximate"


# --- routes


def _routes(parsed: Iterable[ParsedRoute], router: AvailableRouter, note: Note) -> list[Route]:
    """Return the routes. Presets with the same tau count as one route."""
    found: dict[Route, Route] = {}
    for policy, tau in parsed:
        route = make_route(policy, tau, router)
        first = found.setdefault(route, route)
        if first.name != route.name:
            note(f"{route.name} and {first.name} have the same tau, so only {first.label} is run")
    return list(found.values())


def _left_out(routes: Iterable[Route], models: ModelsFacts) -> dict[str, str]:
    """Return the names of the routes that the servers of these models do not support, and the reasons."""
    refusals = [one.cannot_continue for role, one in models.items() if role in WRITING and one.cannot_continue]
    draft, found = models.get("draft"), dict[str, str]()
    for route in routes:
        if route.policy.routes_steps and refusals:
            found[route.name] = refusals[0].message
        elif route.policy.reads_token_stats and draft and not draft.sends_token_stats:
            found[route.name] = f"{draft.setup.name} does not send log-probabilities"
    return found


def _route_by_rule(request: Request, models: ModelsFacts, available: AvailableRouter, note: Note) -> Route:
    """Return the route of the policy that the rule chooses, with notes about the choice and about its costs."""
    choice = choice_of(request, models, available)
    route = make_route(choice.policy, choice.tau, available)
    warning = None if request.options.has_quick_answers else warning_by_costs(route, available)  # thinking is much longer
    for line in (choice.line, warning):
        if line:
            note(line)
    return route


def choice_of(request: Request, models: ModelsFacts, available: AvailableRouter, *, in_conversation: bool = False) -> Choice:
    """Return the policy that the rule chooses with the facts about models and costs.

    Raises ValueError if the request compares policies.
    """
    if request.situation is None:
        raise ValueError("the request has no single policy")
    writes_whole = any(one.cannot_continue for role, one in models.items() if role in WRITING)
    return choose_policy(
        replace(
            request.situation,
            writes_whole=writes_whole,
            available=available,
            in_conversation=in_conversation or request.situation.in_conversation,
        )
    )


# --- settings


def _settings(request: Request, policies: Sequence[Policy], models: ModelsFacts, note: Note) -> Settings:
    load, step_end = request.named.load, request.task.step_end
    limits = _limits(request.options, models, note)
    for role, one in models.items():
        if one.cannot_continue and limits.of(role).thinking.is_on:
            note(f"{one.setup.name} answers without thinking, as do all models behind chat APIs")
    return Settings(
        task=request.task.name,
        step_separator=step_end.separator,
        step_min_chars=step_end.min_chars,
        think_min_chars=THOUGHT_END.min_chars if limits.target.thinking.is_on else None,
        system=request.system,
        chat_template_kwargs=dict(load.template_variables),
        sampler=sampler_of(request.options),
        limits=limits,
        reward=_reward(request, policies, models),
        kv_type=load.kv_type,
        gpu_layers="auto" if load.gpu_layers is None else load.gpu_layers,
        flash_attention="auto" if load.flash_attention is None else load.flash_attention,
    )


def _reward(request: Request, policies: Sequence[Policy], models: ModelsFacts) -> str | None:
    if any(policy.reward == "any" for policy in policies):
        return request.reward or "prm"
    return "prm" if request.use == "calls" and "prm" in models else None  # calls may use other policies


def _limits(options: Options, models: ModelsFacts, note: Note) -> RoleLimits:
    """Return the limits of each role, and note each model of which it is unknown whether it thinks.

    Raises UsageError if thinking is turned off, but the draft or the target always thinks.
    """
    asked = options.thinking
    if options.has_quick_answers:
        return _limits_of_quick_answers(options, models, note)
    writing = {one.setup.name: one.prompt for role, one in models.items() if role in WRITING and one.prompt}
    if asked and asked.is_off:
        refuse_without_thinking(writing)
    prompts = {role: one.prompt for role, one in models.items()}
    limits = limits_by_role(limits_of(options), asked, prompts, has_checker="check" in models)
    if limits.target.thinking.switch is None:
        for name, prompt in writing.items():
            if prompt.thinks_by_itself is None:
                note(f"{name}: {UNKNOWN_THINKING}")
    return limits


def _limits_of_quick_answers(options: Options, models: ModelsFacts, note: Note) -> RoleLimits:
    """Return the limits if only the target thinks. Raises UsageError if it cannot, or if the draft always thinks."""
    draft, target = models.get("draft"), models.get("target")
    if draft and draft.prompt and draft.prompt.always_thinks:
        hint = "use --think on, or another --draft"
        raise UsageError(f"{draft.setup.name} always thinks, so it cannot give quick answers", hint, option="think")
    if target and (target.prompt.own_format is None if target.prompt else target.has_files):
        hint = "use a --target that thinks, or omit --think auto"
        raise UsageError(
            f"{target.setup.name} has no known thinking format, so it cannot be told to think", hint, option="think"
        )
    if target and target.prompt and target.prompt.thinks_by_itself is None:
        note(f"{target.setup.name}: {UNKNOWN_SWITCH}")
    prompts = {role: one.prompt for role, one in models.items()}
    return limits_of_quick_answers(limits_of(options), prompts, has_checker="check" in models)


# --- the parts of a decision


def _decided_model(role: ModelRole, models: ModelsFacts, limits: RoleLimits, request: Request) -> ModelSetup:
    size = request.named.load.context_size or _default_context_size(role, models, limits, request.use)
    return models[role].setup.model_copy(update={"context_size": size})


def _default_context_size(role: ModelRole, models: ModelsFacts, limits: RoleLimits, use: Use) -> int | None:
    """Return the default context size of a model, or None if it has no file.

    All models that read thoughts have the same size: the smallest size with which a model that writes thoughts was trained,
    among the models with files. The checker reads only its own thoughts, as does a target beside quick answers. A call or a
    request may turn thinking on, so models that are opened for them have room for it if they can think.
    """
    own = models[role]
    if not own.has_files:
        return None
    is_alone = role == "check" or limits.has_quick_answers
    together = [models[one] for one in ([role] if is_alone else WRITING) if one in models]
    may_turn_on = use in ("calls", "serve") and not limits.has_quick_answers and any(one.prompt for one in together)
    thinks = limits.of(role).thinking.is_on or may_turn_on
    most = THINK_CONTEXT_SIZE if thinks else DEFAULT_CONTEXT_SIZE
    files = [one for one in together if one.has_files] if thinks else [own]
    return min(most, *(one.trained_context_size or most for one in files or [own]))


def _decided_router(named: NamedRouter | None, policies: Iterable[Policy]) -> RouterSetup | None:
    if named is None or not any(policy.needs_router for policy in policies):
        return None
    router = named.router
    return RouterSetup(name=router.card.name, sha256=router.sha256)


def _warnings(
    request: Request, policies: Sequence[Policy], models: ModelsFacts, available: AvailableRouter
) -> Iterator[str]:
    """Yield warnings about the choice of models and policies."""
    named = request.named
    if request.situation and request.situation.unused_policy:
        yield f"policy {request.situation.unused_policy} is not used with --think auto"
    if request.situation and request.situation.skips_policy_of_pair and named.pair:
        yield f"policy {named.pair.policy} of pair {named.pair.name} is not used: {NO_CHECKS}"
    addresses = [named.served[role].address for role in models if role in named.served]
    for host in dict.fromkeys(address.host for address in addresses if address.is_exposed):
        yield f"{host}: problems are sent unencrypted (http); use https"
    if available.is_universal and named.router is None and any(policy.needs_router for policy in policies):
        yield UNIVERSAL
    yield from _warnings_about_models(request, {role: one.setup for role, one in models.items()})
    uses_costs = request.compares or any(policy.depends_on_costs for policy in request.asked)
    if uses_costs and (roles := [role for role, one in models.items() if one.setup.costs_are_approximate]):
        yield approximate_costs(roles)
    if request.concurrency > 1 and any(policy.speculates for policy in policies):
        yield NO_SPECULATION


def _warnings_about_models(request: Request, models: ByRole[ModelSetup]) -> Iterator[str]:
    named = request.named
    checker, draft, target = models.get("check"), models.get("draft"), models.get("target")
    if checker and draft and (checker.name, checker.sha256) == (draft.name, draft.sha256):
        yield "the checker is the draft, so they make the same mistakes; use another --check model, or omit --check"
    if request.task.name == "choice" and (checker or request.options.has_quick_answers):
        yield CHOICE_LOSES
    if named.priced and not named.price:
        priced = " and the ".join(map(word_for, named.priced))
        yield f"the price of the {priced} is not used, because the pair's target has no price"
    if draft and target and draft.size and target.size and target.size < draft.size:
        yield "the draft's file is larger than the target's; --draft should be the fast model"

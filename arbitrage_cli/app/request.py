"""Checks what a command or a call asks for, and selects its models and its router, before token costs are measured.

No model is loaded, and no request is sent. `app.decide` decides the rest. This module imports NumPy, so commands import it
only when they need it.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from arbitrage_cli.app.options import Options, RewardSource
from arbitrage_cli.costs.memory import check_concurrency
from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.errors import ArbitrageError, UsageError, unknown
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.servers.address import Address, ServedSource, find_keys
from arbitrage_cli.inference.servers.dialects import CONTINUATIONS
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import (
    DEFAULT_PAIR,
    UNIVERSAL_ROUTER,
    PairEntry,
    backend_of,
    find_pair,
    hub_name,
    is_served,
    local_files,
    router_file,
    user_pairs,
)
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE, Policy, find_policy
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import (
    DEFAULT_TAU,
    AvailableRouter,
    ParsedRoute,
    accepts_tau,
    choose_policy,
    parse_routes,
    refuse_in_conversation,
    resolve_tau,
    selectable,
)
from arbitrage_cli.routing.router import Router, included_router, load
from arbitrage_cli.system.files import read_text
from arbitrage_cli.types import ROLES, WRITING, ByRole, ModelRole, frozen

MAX_TEMPLATE_BYTES = 1 << 20

Models = ByRole[str]


@frozen
class NamedModels:
    """The models and the router for a command.

    `pair` is None if the draft or the target was named separately. `price` contains the prices of the pair's models, in the
    syntax of --price.
    """

    pair: PairEntry | None
    sources: Models
    router: Router | None
    router_source: str | None
    load: LoadOptions
    served: ByRole[ServedSource]
    price: str | None

    @property
    def names(self) -> list[str]:
        return [self.pair.name] if self.pair else list(self.writing.values())

    @property
    def arguments(self) -> list[str]:
        """The options that name the pair, or its models."""
        named = {"pair": self.pair.name} if self.pair else self.writing
        return [part for name, value in named.items() for part in (f"--{name}", value)]

    @property
    def writing(self) -> dict[ModelRole, str]:
        return {role: source for role, source in self.sources.items() if role in WRITING}

    @property
    def priced(self) -> list[ModelRole]:
        """The models to which the pair's entry gives a price."""
        return list(_prices(self.pair, self.sources))

    def early_stop(self, option: bool | None, policies: Iterable[Policy]) -> bool | None:
        """Return the option --early-stop for these policies. Raises UsageError if the draft's server cannot stop early."""
        if "draft" not in self.served:
            return option
        if option and any(policy.can_stop_early for policy in policies):
            raise UsageError("a draft on a server cannot be stopped early", "leave it out", option="early_stop")
        return False


def choose_models(options: Options, task: Task) -> NamedModels:
    """Return the models and the router that the options name.

    If the user turned thinking on or off, use the pair that thinks, or the pair that does not.

    Raises UsageError if the pair is unknown, or an address, an API key or a setting of the pair is invalid; RouterError if
    the router cannot be used.
    """
    for name in ("pair", "draft", "target", "router", "prm", "check", "policy", "tau"):
        if getattr(options, name) == "":
            raise UsageError("the value is empty", "enter a value, or omit the option", option=name)
    pair = _choose_pair(options)
    named = options.explicit if "pair" in options.explicit else ROLES
    models: Models = {role: source for role in ROLES if role in named and (source := getattr(options, role))}
    if pair:
        models = {**pair.sources, **models}
    if is_served(models.get("prm", "")):
        raise UsageError("a process reward model cannot run on a server", "use a GGUF file", option="prm")
    pair = pair if pair and _is_pair(pair, models) else None  # its settings do not apply to other models
    price = _price_of(pair, models)
    router_source = options.router or _default_router(pair, models, task)
    router = load(router_file(router_source)) if router_source else None
    if router:
        router.check_steps(task.step_end)
    load_options = LoadOptions(
        pair.ctx if pair and options.ctx is None else options.ctx,
        options.threads,
        options.gpu_layers,
        options.flash_attention,
        options.kv_type,
        template_variables=dict(pair.chat_template_kwargs or {}) if pair else {},
    )
    served = _served_models(pair, models, load_options)
    return NamedModels(pair, models, router, router_source, load_options, served, price)


def _choose_pair(options: Options) -> PairEntry | None:
    models = (options.draft, options.target)
    if any(models) and (not options.pair or (all(models) and "pair" not in options.explicit)):
        return None
    pairs = user_pairs()
    pair = find_pair(options.pair or DEFAULT_PAIR, pairs)
    if any(models) or options.think is None:
        return pair
    if options.think_tokens != 0:
        return find_pair(pair.thinking_pair, pairs) if pair.thinking_pair else pair
    return next((other for other in pairs.values() if other.thinking_pair == pair.name), pair)


def _default_router(pair: PairEntry | None, models: Models, task: Task) -> str | None:
    """Return the router of the pair or of these models' files, or the universal router.

    Code and models of registered backends have no default router. Files on the Hub may not have been downloaded yet, so they
    have the universal router, before and after the download.
    """
    if task.name == "code":
        return None
    if pair and pair.router:
        return pair.router
    if any(map(backend_of, models.values())):
        return None
    files = {role: local_files(source) for role, source in models.items() if not hub_name(source)}
    return included_router(files) or UNIVERSAL_ROUTER


def needed_models(policies: Iterable[Policy], models: Models, reward: str | None) -> dict[ModelRole, str]:
    """Return the models that the policies need. Raises UsageError if such a model was not named."""
    needed: dict[ModelRole, str] = {}
    for policy in policies:
        for role in (*policy.models, *(("prm",) if needs_prm(policy, reward) else ())):
            if role in models:
                needed[role] = models[role]
            elif role != "check":  # without a checker, the draft checks itself
                raise _missing_model(policy, role)
    return {role: needed[role] for role in models if role in needed}


def needs_prm(policy: Policy, reward: str | None) -> bool:
    return policy.reward == "prm" or (policy.reward == "any" and reward != "rollout")


def _is_pair(pair: PairEntry, models: Models) -> bool:
    return (models.get("draft"), models.get("target")) == (pair.draft.source, pair.target.source)


def _prices(pair: PairEntry | None, models: Models) -> dict[ModelRole, str]:
    entries = pair.entries if pair else {}
    return {role: one.price for role, one in entries.items() if one.price and one.source == models.get(role)}


def _price_of(pair: PairEntry | None, models: Models) -> str | None:
    """Return the prices of the pair's models, in the syntax of --price, or None if the target has no price.

    Raises UsageError if a price is invalid.
    """
    prices = _prices(pair, models)
    if "target" not in prices:
        return None
    price = ",".join(f"{role}={price}" for role, price in prices.items())
    try:
        if not parse_prices(price)["target"].completion:
            raise UsageError("the completion tokens of the target must cost more than 0", "omit the price of a free target")
    except UsageError as error:
        raise UsageError(f"pair '{pair and pair.name}': price: {error.message}", error.hint) from error
    return price


def _missing_model(policy: Policy, role: ModelRole) -> UsageError:
    if role == "prm":
        rollouts = "; bench and collect also support --reward rollout" if policy.reward == "any" else ""
        hint = f"use --prm MODEL, or a --pair with a process reward model (builtin, llama3){rollouts}"
        return UsageError(f"policy {policy.name} needs a process reward model", hint)
    hint = f"use --{role} MODEL.gguf or --pair NAME (see arbitrage models list)"
    return UsageError(f"policy {policy.name} needs a {role} model", hint)


# --- models on servers


def _served_models(pair: PairEntry | None, models: Models, load: LoadOptions) -> dict[ModelRole, ServedSource]:
    addresses = {role: _address(role, source) for role, source in models.items() if is_served(source)}
    entries, continuation = (pair.entries, pair.target.continuation) if pair else ({}, None)
    entries = {role: entry for role, entry in entries.items() if models.get(role) == entry.source}
    if continuation and continuation not in CONTINUATIONS:
        raise unknown("continuation", continuation, CONTINUATIONS)
    keys = find_keys(addresses, {role: entry.api_key_env for role, entry in entries.items()}, os.environ)
    templates = {role: _read_template(entry.template) for role, entry in entries.items() if entry.template}
    return {
        role: ServedSource(
            address,
            keys.get(role),
            templates.get(role),
            load.template_variables,
            load.context_size,
            continuation if role == "target" else None,
        )
        for role, address in addresses.items()
    }


def refuse_on_servers(policies: Iterable[Policy], sources: ByRole[str]) -> None:
    served = [role for role, source in sources.items() if is_served(source)]
    for policy in policies:
        if policy.needs_local_models and served:
            raise UsageError(
                f"policy {policy.name} needs both models on this machine, but the {served[0]} is on a server",
                "use --policy target, and enable speculation on the server (vLLM: --speculative-config; llama-server: "
                "--spec-type)",
                option="policy",
            )


def _address(role: ModelRole, source: str) -> Address:
    try:
        return Address.parse(source)
    except UsageError as error:
        raise UsageError(error.message, error.hint, option=role) from error


def _read_template(file: str) -> str:
    path, place = Path(file).expanduser(), f"the pair's template {file}"
    hint = "use a Jinja file, or a GGUF file with a chat template"
    try:
        if path.suffix == ".gguf":
            template = read_header(path).metadata.get("tokenizer.chat_template")
        else:
            template = read_text(path, MAX_TEMPLATE_BYTES)
    except (OSError, ValueError, ArbitrageError) as error:
        raise UsageError(f"{place}: cannot be read ({error})", hint) from error
    if not isinstance(template, str) or not template.strip():
        raise UsageError(f"{place}: contains no chat template", hint)
    return template


Loads = Literal["needed", "both", "served", "named"]
"""The models to load: those that the policies need, also draft and target (chat), also a checker (serve), or all named models."""


@frozen
class Request:
    """What a command asks for: its options, the models that they name, and each policy with its tau as text.

    If `compares` is false, one policy runs. `is_default` is true if no option chose this policy. If `early_stop` is None,
    drafted steps are stopped early where this saves time.
    """

    options: Options
    task: Task
    named: NamedModels
    policies: Sequence[ParsedRoute]
    concurrency: int
    loads: Loads = "needed"
    compares: bool = False
    is_default: bool = False
    early_stop: bool | None = None
    reward: RewardSource | None = None

    @property
    def system(self) -> str:
        pair = self.named.pair
        if self.options.system is not None:
            return self.options.system
        return self.task.instructions if pair is None or pair.system is None else pair.system

    @property
    def style(self) -> PromptStyle:
        return PromptStyle(self.system, self.task.step_end)

    @property
    def asked(self) -> list[Policy]:
        return [policy for policy, _ in self.policies]

    @property
    def writes_whole(self) -> bool:
        """Whether answers are compared and all models write only whole solutions, so that no answer has to be continued."""
        if self.loads != "needed" or any(policy.routes_steps for policy in self.asked):
            return False
        return any(policy.compares_answers for policy in self.asked)

    def solve_command(self, route: str, of_data: str | None) -> str:
        """Return the command line that solves a problem with a route. `of_data` is the task that the data set names."""
        options, (policy, _, tau) = self.options, route.partition("@")
        explicit = options.explicit if POLICIES[policy].needs_router else options.explicit - {"router"}
        return shlex.join(
            [
                *("arbitrage", "solve", *([] if explicit & {"draft", "target", "pair"} else self.named.arguments)),
                *replace(options, explicit=explicit).arguments,
                *(["--task", of_data] if of_data and options.task is None else []),
                *("--policy", policy, *(["--tau", tau] if tau else []), "PROBLEM"),
            ]
        )

    def models_for(self, policies: Sequence[Policy]) -> dict[ModelRole, str]:
        """Return the models to load for these policies. Raises UsageError if a model is missing or cannot be on a server."""
        models = self.named.sources
        others = [choose_policy(None, self.named.router)] if self.loads in ("both", "served") else []
        if self.loads == "served" and self.task.has_answers:
            others += [policy for policy in POLICIES.values() if policy.compares_answers]
        needed = needed_models([*policies, *others], models, self.reward)
        refuse_on_servers(policies, needed)
        if self.loads != "named":
            return needed
        named = {role for role in models if role in WRITING or getattr(self.options, role)}  # not by the pair
        return {role: source for role, source in models.items() if role in named} | needed


def ask(options: Options, task: Task, *, loads: Loads = "needed", concurrency: int = 1) -> Request:
    """Return a request for one policy. `concurrency` is the command's default.

    Raises UsageError if an option is invalid or has no effect; RouterError if the router cannot be used.
    """
    named = _models_of(options, task)
    routing = with_pairs_routing(options, named)
    if loads == "both" and options.policy is None and routing.policy and find_policy(routing.policy).compares_answers:
        routing = options
    for_calls = {"named": {"router", "prm", "check"}, "served": {"check"}}.get(loads, set())
    route = choose_route(task, named, replace(routing, explicit=options.explicit - for_calls))
    if loads in ("both", "served"):
        compares_answers = loads == "served" and task.has_answers
        offered = selectable(named.router, is_local=not named.served, compares_answers=compares_answers)
        refuse_in_conversation(route[0], offered)
    is_default = (routing.policy, routing.tau, routing.early_stop, options.router) == (None,) * 4
    return _request(options, task, named, [route], concurrency, loads=loads, is_default=is_default)


def policies_of_bench(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `bench` compares if the user names none."""
    speculative = ["speculative"] if not named.served and options.concurrency in (None, 1) else []
    policy = _policy_without_router(named, task) or choose_policy(None, named.router).name
    baseline = ["logprob"] if POLICIES[policy].needs_router else []
    return ",".join(dict.fromkeys(["target", "draft", *speculative, policy, *baseline]))


def policies_of_advice(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `advise` compares. `draft` is included if its answers can be compared."""
    pair = named.pair
    preset = pair.tau if pair and pair.tau in PRESETS else DEFAULT_TAU
    tried = [policy for policy in POLICIES.values() if policy.is_advised and _is_possible(policy, named, task)]
    if task.name == "free" and tried != [DRAFT_ALONE]:
        tried.remove(DRAFT_ALONE)
    tried.sort(key=lambda policy: not policy.keeps_every_token)
    names = [f"{policy.name}@{preset}" if policy.needs_router else policy.name for policy in tried]
    return ",".join([TARGET_ALONE.name, *names])


def _is_possible(policy: Policy, named: NamedModels, task: Task) -> bool:
    if policy.needs_local_models and named.served:
        return False
    if policy.needs_router and not named.router:
        return False
    return task.has_answers or not policy.compares_answers


def ask_to_compare(
    options: Options,
    task: Task,
    reward: RewardSource | None = None,
    default: Callable[[NamedModels, Options, Task], str] = policies_of_bench,
) -> Request:
    """Return a request for a comparison of policies. Raises the same errors as `ask`."""
    named = _models_of(options, task)
    parsed = parse_routes(default(named, options, task) if options.policy is None else options.policy)
    _refuse_useless([policy for policy, _ in parsed], options.explicit, task, reward)
    return _request(options, task, named, parsed, compares=True, reward=reward)


def ask_to_collect(options: Options, task: Task, reward: RewardSource | None) -> Request:
    """Return a request for the steps of both models and their rewards. Raises the same errors as `ask`."""
    if reward == "rollout":
        _refuse(options.explicit, "prm", "rollouts rate the steps", "omit it, or use --reward prm")
    oracle = (POLICIES["oracle"], None)
    return _request(options, task, _models_of(options, task), [oracle], 8, reward=reward)


def choose_route(task: Task, named: NamedModels, routing: Options) -> ParsedRoute:
    """Return the policy that the options or the task select, and its tau as text."""
    policy = choose_policy(routing.policy or _policy_without_router(named, task), named.router)
    _refuse_useless([policy], routing.explicit, task)
    return policy, routing.tau if "tau" in routing.explicit or accepts_tau(policy, routing.tau) else None


# --- the parts of a request


def _models_of(options: Options, task: Task) -> NamedModels:
    if not task.runs_code:
        _refuse(options.explicit, "run_code", f"task {task.name} runs no programs")
    return choose_models(options, task)


def _request(
    options: Options, task: Task, named: NamedModels, routes: Sequence[ParsedRoute], concurrency: int = 1, **more: Any
) -> Request:
    """Return a request whose concurrency is that of the options or this default.

    Raises UsageError if a model is missing or a tau is invalid.
    """
    early_stop = named.early_stop(options.early_stop, [policy for policy, _ in routes])
    request = Request(options, task, named, routes, options.concurrency or concurrency, early_stop=early_stop, **more)
    request.models_for(request.asked)
    if not named.served:
        check_concurrency(request.concurrency)
    for policy, tau in routes:
        resolve_tau(policy, tau, AvailableRouter(named.router, named.router_source))
    return request


def with_pairs_routing(options: Options, named: NamedModels) -> Options:
    pair = named.pair
    if pair is None or options.policy is not None:
        return options
    return replace(options, policy=pair.policy, tau=pair.tau if options.tau is None else options.tau)


def _policy_without_router(named: NamedModels, task: Task) -> str | None:
    """Return the task's default policy if there is no router, or `target` if a model on a server cannot speculate."""
    if named.router:
        return None
    return TARGET_ALONE.name if POLICIES[task.policy].needs_local_models and named.served else task.policy


def _refuse_useless(policies: Sequence[Policy], explicit: frozenset[str], task: Task, reward: str | None = None) -> None:
    """Raise UsageError if the task has no answers that a policy could compare, or if an explicit option has no effect."""
    for policy in policies:
        if policy.compares_answers and not task.has_answers:
            message = f"policy {policy.name} compares final answers, and solutions of task {task.name} have none"
            raise UsageError(message, "use another --policy, or another --task", option="policy")
    uses = {
        "tau": any(policy.has_tau for policy in policies),
        "router": any(policy.needs_router for policy in policies),
        "early_stop": any(policy.can_stop_early for policy in policies),
        "prm": any(needs_prm(policy, reward) for policy in policies),
        "check": any("check" in policy.models for policy in policies),
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

"""Checks what a command or a call asks for, before token costs are measured. Only the router's small file is read.

`app.spec` resolves a request. This module imports NumPy, so commands import it only when they need it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from arbitrage_cli.app.model_choice import NamedModels, choose_models, needed_models, needs_prm, refuse_on_servers
from arbitrage_cli.app.options import CollectOptions, Options, RewardSource
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.problems.task import Task
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.route import (
    AvailableRouter,
    ParsedRoute,
    accepts_tau,
    choose_policy,
    parse_routes,
    resolve_tau,
)
from arbitrage_cli.types import ModelRole

_BOTH: Collection[ModelRole] = ("draft", "target")
Loads = Literal["needed", "both", "served", "named"]
"""The models to load: those that the policies need, also draft and target (chat), also a checker (serve), or all named models."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks for: its options, the models that they name, and each policy with its tau as text.

    If `compares` is false, one policy runs. `is_default` is true if no option chose this policy. If `early_stop` is None,
    drafted steps are stopped early where this saves time.
    """

    options: Options
    task: Task
    named: NamedModels
    policies: Sequence[ParsedRoute]
    concurrency: str
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
        """Whether policy `agree` runs and all models write only whole solutions, so that no answer has to be continued."""
        kinds = {policy.kind for policy in self.asked}
        return self.loads == "needed" and "checked" in kinds and kinds <= {"checked", "single"}

    def models_for(self, policies: Sequence[Policy]) -> dict[ModelRole, str]:
        """Return the models to load for these policies. Raises UsageError if a model is missing or cannot be on a server."""
        models = self.named.sources
        others = [choose_policy(None, self.named.router)] if self.loads in ("both", "served") else []
        others += [POLICIES["agree"]] if self.loads == "served" and models["check"] and self.task.has_answers else []
        needed = needed_models([*policies, *others], models, self.reward)
        refuse_on_servers(policies, needed)
        if self.loads != "named":
            return needed
        named = {role: getattr(self.options, role) for role in models}  # not by the pair
        return {role: source for role, source in models.items() if source and (role in _BOTH or named[role])} | needed


def ask(options: Options, task: Task, *, loads: Loads = "needed", concurrency: str = "1") -> Request:
    """Return a request for one policy. `concurrency` is the command's default.

    Raises UsageError if an option is invalid or has no effect; RouterError if the router cannot be used.
    """
    named = _models_of(options, task)
    routing = _with_pairs_routing(options, named)
    for_calls = {"named": {"router", "prm", "check"}, "served": {"check"}}.get(loads, set())
    policy, tau = choose_route(named, task, replace(routing, explicit=options.explicit - for_calls))
    chosen = (routing.policy, routing.tau, routing.early_stop, options.router)
    return _checked(
        Request(
            options,
            task,
            named,
            [(policy, tau)],
            options.concurrency or concurrency,
            loads,
            is_default=chosen == (None,) * 4,
            early_stop=named.early_stop(options.early_stop, [policy]),
        )
    )


def policies_of_bench(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `bench` compares if the user names none."""
    speculative = ["speculative"] if not named.served and options.concurrency in (None, "1") else []
    policy = _policy_without_router(named, task) or choose_policy(None, named.router).name
    baseline = ["logprob"] if POLICIES[policy].needs_router else []
    return ",".join(dict.fromkeys(["target", "draft", *speculative, policy, *baseline]))


def ask_to_compare(
    options: Options,
    task: Task,
    reward: RewardSource | None = None,
    default: Callable[[NamedModels, Options, Task], str] = policies_of_bench,
) -> Request:
    """Return a request for a comparison of policies. Raises the same errors as `ask`."""
    named = _models_of(options, task)
    parsed = parse_routes(default(named, options, task) if options.policy is None else options.policy)
    policies = [policy for policy, _ in parsed]
    _check_answers(policies, task)
    _refuse_unused(policies, options.explicit, reward)
    return _checked(
        Request(
            options,
            task,
            named,
            parsed,
            options.concurrency or "1",
            compares=True,
            early_stop=named.early_stop(options.early_stop, policies),
            reward=reward,
        )
    )


def ask_to_collect(options: Options, task: Task, collect: CollectOptions) -> Request:
    """Return a request for the steps of both models and their rewards. Raises the same errors as `ask`."""
    _refuse(options.explicit, "router", "collect uses no router")
    if collect.reward == "rollout":
        _refuse(options.explicit, "prm", "rollouts rate the steps", "omit it, or use --reward prm")
    else:
        _refuse(options.explicit, "rollouts", "a process reward model rates the steps", "use --reward rollout")
    named, oracle = _models_of(options, task), (POLICIES["oracle"], None)
    return _checked(Request(options, task, named, [oracle], options.concurrency or "8", reward=collect.reward))


def choose_route(named: NamedModels, task: Task, options: Options) -> ParsedRoute:
    """Return the policy that the options, the pair or the task select, and its tau as text."""
    routing = _with_pairs_routing(options, named)
    policy = choose_policy(routing.policy or _policy_without_router(named, task), named.router)
    _check_answers([policy], task)
    _refuse_unused([policy], options.explicit)
    return policy, routing.tau if "tau" in options.explicit or accepts_tau(policy, routing.tau) else None


# --- the parts of a request


def _models_of(options: Options, task: Task) -> NamedModels:
    if not task.runs_code:
        _refuse(options.explicit, "run_code", f"task {task.name} runs no programs")
    return choose_models(options, task)


def _checked(request: Request) -> Request:
    """Return the request. Raises UsageError if a model is missing or a tau is invalid."""
    request.models_for(request.asked)
    for policy, tau in request.policies:
        resolve_tau(policy, tau, AvailableRouter(request.named.router, request.named.router_source))
    return request


def _with_pairs_routing(options: Options, named: NamedModels) -> Options:
    pair = named.own_pair
    if pair is None or (options.policy, options.tau) != (None, None):
        return options
    return replace(options, policy=pair.policy, tau=pair.tau)


def _policy_without_router(named: NamedModels, task: Task) -> str | None:
    """Return the task's default policy if there is no router. If a model is on a server, `target` replaces speculation."""
    if named.router:
        return None
    return "target" if POLICIES[task.policy].speculates and named.served else task.policy


def _check_answers(policies: Sequence[Policy], task: Task) -> None:
    for policy in policies:
        if policy.kind == "checked" and not task.has_answers:
            message = f"policy {policy.name} compares final answers, and solutions of task {task.name} have none"
            raise UsageError(message, "use another --policy, or another --task", option="policy")


def _refuse_unused(policies: Sequence[Policy], explicit: frozenset[str], reward: str | None = None) -> None:
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

"""Checks what a command or a call asks for, before anything is measured. `app.deciding.decide` decides the rest.

If the command resumes a run, its options were restored before (`app.asking.resume`), and its models are found where they lie now
(`app.asking.locate`). No model is loaded, and no server of a model is asked. The only models that are downloaded here are those that
are typed when a run is resumed.
This module imports NumPy, so commands import it only when they need it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from arbitrage_cli.app.asking.default_policies import (
    policies_of_advice,
    policies_of_bench,
    policies_of_quick_answers,
    routing_of_pair,
)
from arbitrage_cli.app.asking.locate import models_of_run
from arbitrage_cli.app.asking.naming import NamedModels, NamedRouter, choose_models, system_of
from arbitrage_cli.app.asking.needs import (
    needed_models,
    needed_roles,
    refuse,
    refuse_on_servers,
    refuse_quick_answers,
    refuse_useless,
    with_tau_of_policy,
)
from arbitrage_cli.app.asking.resume import Resumed, restore
from arbitrage_cli.app.options import Options, RewardSource
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.memory import check_concurrency
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.routing.default_policy import ROUTING, Situation, choose_policy
from arbitrage_cli.routing.policies import POLICIES, Policy, find_policy
from arbitrage_cli.routing.route import (
    AvailableRouter,
    ParsedRoute,
    parse_route,
    parse_routes,
    refuse_in_conversation,
    resolve_tau,
    selectable,
)
from arbitrage_cli.runs.folder import file_to_resume
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ModelRole, frozen

Use = Literal["run", "chat", "serve", "calls"]
"""The use of the models. It determines which ones are opened: those of the policies; for chat, also draft and target; for serve,
also the checker; for calls from Python, all models that were named."""

FOR_OTHER_POLICIES: Mapping[Use, frozenset[str]] = {
    "chat": frozenset({"router"}),
    "serve": frozenset({"router", "check"}),
    "calls": frozenset({"router", "check", "prm"}),
}
"""Options that may be used although the default policy does not need them: a later question or call may select another."""


@frozen
class Request:
    """The request of a command: its options, the models that they name, and each policy with its tau as text.

    If the request resumes a run, the options are those of the run. `others` contains options beside the shared ones, which
    run.json keeps. If `compares` is false, one policy runs; if
    `advises` is true, the comparison is for advice. A command that runs one policy has a `situation`, from which `decide`
    chooses the policy; `policies` then contains the choice that is made without facts about the models.
    """

    options: Options
    task: Task
    named: NamedModels
    policies: Sequence[ParsedRoute]
    concurrency: int
    use: Use = "run"
    compares: bool = False
    advises: bool = False
    situation: Situation | None = None
    reward: RewardSource | None = None
    others: Sequence[Any] = ()
    resumed: Resumed | None = None

    @property
    def run(self) -> Run | None:
        """The run that the request resumes."""
        return self.resumed.run if self.resumed else None

    @property
    def typed(self) -> frozenset[str]:
        """The options that were typed now. Those of `options.explicit` were typed now, or when the run began."""
        return self.resumed.typed if self.resumed else self.options.explicit

    @property
    def system(self) -> str:
        return self.run.decided.settings.system if self.run else system_of(self.options, self.named.pair, self.task)

    @property
    def style(self) -> PromptStyle:
        return PromptStyle(self.system, self.task.step_end)

    @property
    def typed_router(self) -> str | None:
        """The router, if it was typed now or when the run began."""
        typed = self.options.explicit.union(self.run.asked.typed if self.run else ())
        return self.named.router.source if self.named.router and "router" in typed else None

    @property
    def asked(self) -> list[Policy]:
        return [policy for policy, _ in self.policies]

    @property
    def all_policies(self) -> list[Policy]:
        """The policies of the run that the request resumes, and those that are asked for now."""
        of_run = [route.policy for route in self.run.routes] if self.run else []
        return [*of_run, *self.asked]

    def models_for(self, policies: Sequence[Policy]) -> dict[ModelRole, str]:
        """Return the models to load for these policies. Raises UsageError if a model is missing or cannot be on a server."""
        sources = self.named.sources
        selectable_later: list[Policy] = []
        if self.use in ("chat", "serve"):
            selectable_later.append(ROUTING)
        if self.use == "serve" and self.task.has_answers:
            selectable_later += [policy for policy in POLICIES.values() if policy.compares_answers]
        needed = needed_models([*policies, *selectable_later], sources, self.reward)
        refuse_on_servers(policies, needed)
        if self.use != "calls":
            return needed
        named = {role for role in sources if role in WRITING or getattr(self.options, role)}  # not by the pair
        return {role: source for role, source in sources.items() if role in named} | needed


def ask(options: Options, task: Task, resumed: Resumed | None = None, *, use: Use = "run", concurrency: int = 1) -> Request:
    """Return a request for one policy. `concurrency` is the command's default. `restore` has restored a run's options.

    Raises UsageError if an option is invalid or has no effect; RouterError if the router cannot be used.
    """
    request = _without_policies(options, task, resumed, use=use)
    named, situation = request.named, _situation(request)
    choice = choose_policy(situation)
    typed = with_tau_of_policy(options).explicit
    refuse_useless([choice.policy], typed - FOR_OTHER_POLICIES.get(use, frozenset()), task)
    if use in ("chat", "serve"):
        compares_answers = use == "serve" and task.has_answers
        offered = selectable(has_router=named.has_router, is_local=named.is_local, compares_answers=compares_answers)
        refuse_in_conversation(choice.policy, offered)
    return _checked(
        replace(
            request,
            policies=[(choice.policy, choice.tau)],
            concurrency=options.concurrency or concurrency,
            situation=situation,
        )
    )


def ask_to_solve(options: Options, output: Path | None, display: Display | None = None) -> Request:
    """Return the request of `solve`. If the output file has results, the request resumes their run.

    Raises the same errors as `ask`, `file_to_resume` and `restore`.
    """
    resumed = Resumed.of(file_to_resume(output), output, options, display) if output else None
    (options,) = restore(resumed, options)
    return ask(options, find_task(options.task), resumed)


def ask_to_compare(
    options: Options,
    task: Task,
    reward: RewardSource | None = None,
    resumed: Resumed | None = None,
    *,
    advises: bool = False,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request for a comparison of policies. Raises the same errors as `ask`."""
    if advises and options.has_quick_answers:  # the estimates of advise assume that both models write equally long texts
        raise UsageError(
            "advise does not compare quick answers with thinking", "use arbitrage bench --think auto", option="think"
        )
    request = _without_policies(options, task, resumed, reward=reward, others=others)
    return _checked(
        replace(
            request,
            policies=_policies_to_compare(request, advises=advises),
            concurrency=options.concurrency or 1,
            compares=True,
            advises=advises,
        )
    )


def ask_to_collect(
    options: Options,
    task: Task,
    reward: RewardSource | None,
    resumed: Resumed | None = None,
    *,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request for the steps of both models and their rewards. Raises the same errors as `ask`."""
    request = _without_policies(options, task, resumed, reward=reward, others=others)
    if options.has_quick_answers:
        message = "collect compares steps of both models, so both must think, or neither"
        raise UsageError(message, "use --think on, off or N", option="think")
    if reward == "rollout":
        hint = "omit this option, or use --reward prm"
        refuse(options.explicit, "prm", "is not used with --reward rollout", hint)
    oracle = (POLICIES["oracle"], None)
    return _checked(replace(request, policies=[oracle], concurrency=options.concurrency or 8))


# --- the parts of a request


def _without_policies(
    options: Options,
    task: Task,
    resumed: Resumed | None,
    *,
    use: Use = "run",
    reward: RewardSource | None = None,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request whose policies are not chosen yet."""
    if not task.runs_code:
        typed = resumed.typed if resumed else options.explicit
        refuse(typed, "run_code", f"task {task.name} runs no programs")
    return Request(
        options=options,
        task=task,
        named=_models_of(options, task, resumed, reward),
        policies=(),
        concurrency=1,
        use=use,
        reward=reward,
        others=others,
        resumed=resumed,
    )


def _policies_to_compare(request: Request, *, advises: bool) -> Sequence[ParsedRoute]:
    """Return the policies that were typed, those of the run to resume, or the default ones.

    Raises UsageError if an option that was typed has no effect on them.
    """
    options = request.options
    parsed: Sequence[ParsedRoute]
    if request.run and "policy" not in request.typed:
        parsed = [(route.policy, None) for route in request.run.routes]
    else:
        default = policies_of_advice if advises else policies_of_bench
        names = options.policy
        if options.has_quick_answers and "policy" not in options.explicit:
            names = policies_of_quick_answers()
        parsed = parse_routes(names or default(request.named, options, request.task))
    refuse_useless([policy for policy, _ in parsed], request.typed, request.task, request.reward)
    return parsed


def _situation(request: Request) -> Situation:
    """Return what is known about the policy before the models are. A run to resume has its policy.

    A policy such as `logprob@0.5` also names the tau. Raises UsageError if a policy is invalid, or two taus are named.
    """
    options, named = with_tau_of_policy(request.options), request.named
    policy, tau = find_policy(options.policy) if options.policy else None, options.tau
    pair_policy, pair_tau, unused = None, None, ""
    if policy and _is_unused(policy, options):
        unused, policy, tau = policy.name, None, None
    if policy is None and request.run:
        policy, tau_of_run = parse_route(request.run.routes[0].name)
        tau = tau or tau_of_run
    elif policy is None:
        pair_policy, pair_tau = routing_of_pair(named.pair)
        if pair_policy and _is_unused(pair_policy, options):
            unused, pair_policy, pair_tau = pair_policy.name, None, None
    return Situation(
        request.task,
        policy,
        tau,
        pair=named.pair.name if named.pair else "",
        pair_policy=pair_policy,
        pair_tau=pair_tau,
        typed=options.explicit & {"tau", "router"},
        sets_routing=options.router is not None,
        has_router=named.has_router,
        is_local=named.is_local,
        in_conversation=request.use == "chat",
        has_quick_answers=options.has_quick_answers,
        unused_policy=unused,
    )


def _is_unused(policy: Policy, options: Options) -> bool:
    """Return whether a policy of a settings file or a pair is not used, because only the target thinks."""
    return options.has_quick_answers and policy.mixes_models and "policy" not in options.explicit


def _models_of(options: Options, task: Task, resumed: Resumed | None, reward: RewardSource | None) -> NamedModels:
    if resumed is None:
        return choose_models(options, task)
    return models_of_run(options, resumed, _needed_now(options, resumed, reward), task)


def _needed_now(options: Options, resumed: Resumed, reward: RewardSource | None) -> set[str]:
    """Return the roles of the models, and "router", that the policies need: those that were typed, or all of the run."""
    policies: Sequence[Policy] = [route.policy for route in resumed.run.routes]
    if "policy" in resumed.typed and options.policy:
        policies = [policy for policy, _ in parse_routes(options.policy)]
    router = {"router"} if any(policy.needs_router for policy in policies) else set[str]()
    return router.union(needed_roles(policies, reward))


def _checked(request: Request) -> Request:
    """Return the request. Raises UsageError if a model is missing or a tau is invalid."""
    options, named = request.options, request.named
    if options.has_quick_answers:
        refuse_quick_answers(request.asked, request.task, in_conversation=request.use == "chat")
    request.models_for(request.asked)
    if named.is_local:
        check_concurrency(request.concurrency)
    if not request.resumed:
        _check_taus(request.policies, named)
    return request


def _check_taus(policies: Iterable[ParsedRoute], named: NamedModels) -> None:
    """Raise UsageError if a tau is invalid.

    The router of these models may not be known yet. The universal router has the same presets.
    """
    router = named.router
    if router is None and named.finds_router:
        router = NamedRouter.of(UNIVERSAL_ROUTER)
    available = AvailableRouter(router.router, router.source) if router else AvailableRouter(None, None)
    for policy, tau in policies:
        resolve_tau(policy, tau, available)

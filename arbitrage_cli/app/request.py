"""Checks what a command or a call asks for, before anything is measured. `app.decide` decides the rest.

If the command continues a run, what was not typed now is restored from the run first (`app.resume`). No model is loaded, and
no server of a model is asked. The only models that are downloaded here are those that were typed when a run is continued.
This module imports NumPy, so commands import it only when they need it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from arbitrage_cli.app.default_policies import policies_of_advice, policies_of_bench, routing_of_pair
from arbitrage_cli.app.naming import NamedModels, NamedRouter, choose_models
from arbitrage_cli.app.needs import (
    needed_models,
    needed_roles,
    refuse,
    refuse_on_servers,
    refuse_useless,
    with_tau_of_policy,
)
from arbitrage_cli.app.options import Options, RewardSource
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.resume import begun_reward, keep_concurrency, models_of_run, restored_options
from arbitrage_cli.costs.memory import check_concurrency
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.model_files.checksums import OnProgress, no_progress
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, find_files
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.routing.default_policy import ROUTING, Situation, choose_policy
from arbitrage_cli.routing.policies import POLICIES, Policy, find_policy, refuse_sampling
from arbitrage_cli.routing.route import (
    AvailableRouter,
    ParsedRoute,
    parse_route,
    parse_routes,
    refuse_in_conversation,
    resolve_tau,
    selectable,
)
from arbitrage_cli.runs.folder import begun_file
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ModelRole, frozen

Use = Literal["run", "chat", "serve", "calls"]
"""The use of the models. It determines which ones are opened: those of the policies; for chat, also draft and target; for serve,
also the checker; for calls from Python, all models that were named."""

FOR_OTHER_POLICIES: Mapping[Use, frozenset[str]] = {
    "chat": frozenset({"router", "early_stop"}),
    "serve": frozenset({"router", "early_stop", "check"}),
    "calls": frozenset({"router", "early_stop", "check", "prm"}),
}
"""Options that may be used although the default policy does not need them: a later question or call may select another."""


@frozen
class Begun:
    """A run to continue, and where it was found. `fetch` downloads a model that was typed, if it is not on this machine."""

    run: Run
    folder: Path
    fetch: Callable[[str], object] = lambda source: None

    @classmethod
    def of(cls, run: Run | None, folder: Path, options: Options, display: Display | None) -> Self | None:
        """Return the run that the command continues, or None for a new run. The display shows downloads of its models."""
        if run is None:
            return None
        on_progress: OnProgress = display.fetching if display else no_progress
        return cls(run, folder, lambda source: find_files(source, offline=options.offline, on_progress=on_progress))


@frozen
class Request:
    """The request of a command: its options, the models that they name, and each policy with its tau as text.

    If the request continues a run (`began`), the options are those of the run, and `typed` names those that were typed now.
    `others` contains options beside the shared ones, which run.json keeps. If `compares` is false, one policy runs; if
    `advises` is true, the comparison is for advice. A command that runs one policy has a `situation`, from which `decide`
    chooses the policy; `policies` then contains the choice that is made without facts about the models. If `early_stop` is
    None, drafted steps are stopped early where this saves time.
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
    early_stop: bool | None = None
    reward: RewardSource | None = None
    typed: frozenset[str] = frozenset()
    others: Sequence[Any] = ()
    began: Begun | None = None

    @property
    def run(self) -> Run | None:
        """The run that the request continues."""
        return _run_of(self.began)

    @property
    def system(self) -> str:
        pair = self.named.pair
        if self.run:
            return self.run.decided.settings.system
        if self.options.system is not None:
            return self.options.system
        return self.task.instructions if pair is None or pair.system is None else pair.system

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
        """The policies of the run that the request continues, and those that are asked for now."""
        begun = [route.policy for route in self.run.routes] if self.run else []
        return [*begun, *self.asked]

    @property
    def writes_whole(self) -> bool:
        """Whether all models write only whole solutions, so that no answer has to be continued.

        A default policy may be replaced by another one, and calls and requests may select another policy.
        """
        is_default = self.situation is not None and self.situation.policy is None
        may_change = self.use != "run" or is_default
        return not may_change and not any(policy.routes_steps for policy in self.all_policies)

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


def ask(
    options: Options,
    task: Task,
    began: Begun | None = None,
    *,
    use: Use = "run",
    concurrency: int = 1,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request for one policy. `concurrency` is the command's default.

    Raises UsageError if an option is invalid or has no effect; RouterError if the router cannot be used.
    """
    request = _without_policies(options, task, began, use=use, others=others)
    named, situation = request.named, _situation(request)
    choice = choose_policy(situation)
    typed = with_tau_of_policy(request.options).explicit
    refuse_useless([choice.policy], typed - FOR_OTHER_POLICIES.get(use, frozenset()), task)
    if use in ("chat", "serve"):
        compares_answers = use == "serve" and task.has_answers
        offered = selectable(has_router=named.has_router, is_local=named.is_local, compares_answers=compares_answers)
        refuse_in_conversation(choice.policy, offered)
    return _checked(
        replace(
            request,
            policies=[(choice.policy, choice.tau)],
            concurrency=request.options.concurrency or concurrency,
            situation=situation,
        )
    )


def ask_to_solve(options: Options, output: Path | None, display: Display | None = None) -> Request:
    """Return the request of `solve`. If the output file has results, the request continues their run.

    Raises the same errors as `ask`, `begun_file` and `restored_options`.
    """
    if output is None:
        return ask(options, find_task(options.task))
    earlier = begun_file(output)
    task = find_task(restored_options(options, earlier).task)
    return ask(options, task, Begun.of(earlier, output, options, display))


def ask_to_compare(
    options: Options,
    task: Task,
    reward: RewardSource | None = None,
    began: Begun | None = None,
    *,
    advises: bool = False,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request for a comparison of policies. Raises the same errors as `ask`."""
    options = keep_concurrency(options, _run_of(began))
    request = _without_policies(options, task, began, reward=reward, others=others)
    return _checked(
        replace(
            request,
            policies=_policies_to_compare(request, advises=advises),
            concurrency=request.options.concurrency or 1,
            compares=True,
            advises=advises,
        )
    )


def ask_to_collect(
    options: Options, task: Task, reward: RewardSource | None, began: Begun | None = None, *, others: Sequence[Any] = ()
) -> Request:
    """Return a request for the steps of both models and their rewards. Raises the same errors as `ask`."""
    request = _without_policies(options, task, began, reward=reward, others=others)
    if request.reward == "rollout":
        hint = "omit this option, or use --reward prm"
        refuse(request.options.explicit, "prm", "is not used with --reward rollout", hint)
    oracle = (POLICIES["oracle"], None)
    return _checked(replace(request, policies=[oracle], concurrency=request.options.concurrency or 8))


# --- the parts of a request


def _run_of(began: Begun | None) -> Run | None:
    return began.run if began else None


def _without_policies(
    options: Options,
    task: Task,
    began: Begun | None,
    *,
    use: Use = "run",
    reward: RewardSource | None = None,
    others: Sequence[Any] = (),
) -> Request:
    """Return a request whose policies are not chosen yet.

    If it continues a run, the options that were not typed now, and the reward, are those of the run.
    """
    run = _run_of(began)
    restored = restored_options(options, run)
    reward = begun_reward(reward, options.explicit, run)
    return Request(
        options=restored,
        task=task,
        named=_models_of(restored, task, began, options.explicit, reward),
        policies=(),
        concurrency=1,
        use=use,
        reward=reward,
        typed=options.explicit,
        others=others,
        began=began,
    )


def _policies_to_compare(request: Request, *, advises: bool) -> Sequence[ParsedRoute]:
    """Return the policies that were typed, those of the run to continue, or the default ones.

    Raises UsageError if an option that was typed has no effect on them.
    """
    options = request.options
    parsed: Sequence[ParsedRoute]
    if request.run and "policy" not in request.typed:
        parsed = [(route.policy, None) for route in request.run.routes]
    else:
        default = policies_of_advice if advises else policies_of_bench
        parsed = parse_routes(default(request.named, options, request.task) if options.policy is None else options.policy)
    refuse_useless([policy for policy, _ in parsed], request.typed, request.task, request.reward)
    return parsed


def _situation(request: Request) -> Situation:
    """Return what is known about the policy before the models are. A run to continue has its policy.

    A policy such as `logprob@0.5` also names the tau. Raises UsageError if a policy is invalid, or two taus are named.
    """
    options, named = with_tau_of_policy(request.options), request.named
    policy, tau = find_policy(options.policy) if options.policy else None, options.tau
    pair_policy, pair_tau = None, None
    if policy is None and request.run:
        policy, tau_of_run = parse_route(request.run.routes[0].name)
        tau = tau or tau_of_run
    elif policy is None:
        pair_policy, pair_tau = routing_of_pair(named.pair)
    return Situation(
        request.task,
        policy,
        tau,
        pair=named.pair.name if named.pair else "",
        pair_policy=pair_policy,
        pair_tau=pair_tau,
        typed=options.explicit & {"tau", "router"},
        sets_routing=options.router is not None or options.early_stop is not None,
        has_router=named.has_router,
        is_local=named.is_local,
        in_conversation=request.use == "chat",
    )


def _models_of(
    options: Options, task: Task, began: Begun | None, typed: frozenset[str], reward: RewardSource | None
) -> NamedModels:
    if not task.runs_code:
        refuse(typed, "run_code", f"task {task.name} runs no programs")
    if began is None:
        return choose_models(options, task)
    today = replace(options, explicit=typed)
    needed = _needed_now(options, began.run, typed, reward)
    return models_of_run(today, began.run, needed, task, began.folder, began.fetch)


def _needed_now(options: Options, run: Run, typed: frozenset[str], reward: RewardSource | None) -> set[str]:
    """Return the roles of the models, and "router", that the policies need: those that were typed, or all of the run."""
    policies: Sequence[Policy] = [route.policy for route in run.routes]
    if "policy" in typed and options.policy:
        policies = [policy for policy, _ in parse_routes(options.policy)]
    router = {"router"} if any(policy.needs_router for policy in policies) else set[str]()
    return router.union(needed_roles(policies, reward or run.decided.settings.reward))


def _checked(request: Request) -> Request:
    """Return the request, with the early stops that its models support.

    Raises UsageError if a model is missing or a tau is invalid.
    """
    options, named = request.options, request.named
    refuse_sampling(request.asked, options.temperature)
    early_stop = named.early_stop(options.early_stop, request.asked)
    request.models_for(request.asked)
    if named.is_local:
        check_concurrency(request.concurrency)
    if not request.began:
        _check_taus(request.policies, named)
    return replace(request, early_stop=early_stop)


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

"""Checks what a command or a call asks for, before anything is measured. `app.decide` decides the rest.

If the command continues a run, what was not typed now is restored from the run first (`app.resume`). No model is loaded, and
no server of a model is asked. Only two things are downloaded here: a data set, and the models that were typed when a run is
continued. This module imports NumPy, so commands import it only when they need it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from arbitrage_cli.app.naming import NamedModels, NamedRouter, choose_models, names_of
from arbitrage_cli.app.needs import (
    needed_models,
    needed_roles,
    refuse,
    refuse_on_servers,
    refuse_useless,
    with_tau_of_policy,
)
from arbitrage_cli.app.options import BenchOptions, CollectOptions, Options, ProblemOptions, RewardSource
from arbitrage_cli.app.problem_source import Selection, default_folder, permitted, select_problems
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.resume import (
    begun_reward,
    keep_concurrency,
    models_of_run,
    restored,
    restored_options,
)
from arbitrage_cli.costs.memory import check_concurrency
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.model_files.checksums import OnProgress, no_progress
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER, PairEntry, find_files
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE, Policy, find_policy, refuse_sampling
from arbitrage_cli.routing.presets import PRESETS
from arbitrage_cli.routing.route import (
    DEFAULT_TAU,
    AvailableRouter,
    ParsedRoute,
    accepts_tau,
    choose_policy,
    parse_route,
    parse_routes,
    refuse_in_conversation,
    resolve_tau,
    selectable,
)
from arbitrage_cli.runs.folder import begun_file, begun_run
from arbitrage_cli.runs.records import BENCH, Kind
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ModelRole, frozen

Use = Literal["run", "chat", "serve", "calls"]
"""What the models are opened for: for the policies of a run; for chat, also draft and target; for serve, also the checker; for
calls from Python, all models that were named."""

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


@frozen
class Request:
    """What a command asks for: its options, the models that they name, and each policy with its tau as text.

    If the request continues a run (`began`), the options are those of the run, and `typed` names those that were typed now.
    `others` contains options beside the shared ones, which run.json keeps. If `compares` is false, one policy runs; if
    `advises` is true, the comparison is for an advice. `is_default` is true if no option chose this policy. If `early_stop`
    is None, drafted steps are stopped early where this saves time.
    """

    options: Options
    task: Task
    named: NamedModels
    policies: Sequence[ParsedRoute]
    concurrency: int
    use: Use = "run"
    compares: bool = False
    advises: bool = False
    is_default: bool = False
    early_stop: bool | None = None
    reward: RewardSource | None = None
    typed: frozenset[str] = frozenset()
    others: Sequence[Any] = ()
    began: Begun | None = None

    @property
    def system(self) -> str:
        pair = self.named.pair
        if self.began:
            return self.began.run.decided.settings.system
        if self.options.system is not None:
            return self.options.system
        return self.task.instructions if pair is None or pair.system is None else pair.system

    @property
    def style(self) -> PromptStyle:
        return PromptStyle(self.system, self.task.step_end)

    @property
    def typed_router(self) -> str | None:
        """The router, if it was typed now or when the run began."""
        typed = self.options.explicit.union(self.began.run.asked.typed if self.began else ())
        return self.named.router.source if self.named.router and "router" in typed else None

    @property
    def asked(self) -> list[Policy]:
        return [policy for policy, _ in self.policies]

    @property
    def all_policies(self) -> list[Policy]:
        """The policies of the run that the request continues, and those that are asked for now."""
        begun = [route.policy for route in self.began.run.routes] if self.began else []
        return [*begun, *self.asked]

    @property
    def writes_whole(self) -> bool:
        """Whether answers are compared and all models write only whole solutions, so that no answer has to be continued."""
        if self.use != "run" or any(policy.routes_steps for policy in self.all_policies):
            return False
        return any(policy.compares_answers for policy in self.all_policies)

    def models_for(self, policies: Sequence[Policy]) -> dict[ModelRole, str]:
        """Return the models to load for these policies. Raises UsageError if a model is missing or cannot be on a server."""
        sources = self.named.sources
        others = [POLICIES[usual_policy(self.named)]] if self.use in ("chat", "serve") else []
        if self.use == "serve" and self.task.has_answers:
            others += [policy for policy in POLICIES.values() if policy.compares_answers]
        needed = needed_models([*policies, *others], sources, self.reward)
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
    typed, options = options.explicit, restored_options(options, _run_of(began))
    named = _models_of(options, task, began, typed)
    routing = _with_usual_routing(options, named, _run_of(began))
    if use == "chat" and options.policy is None and routing.policy and find_policy(routing.policy).compares_answers:
        routing = options
    for_others = FOR_OTHER_POLICIES.get(use, frozenset())
    route = choose_route(task, named, replace(routing, explicit=routing.explicit - for_others))
    if use in ("chat", "serve"):
        compares_answers = use == "serve" and task.has_answers
        offered = selectable(has_router=named.has_router, is_local=named.is_local, compares_answers=compares_answers)
        refuse_in_conversation(route[0], offered)
    is_default = (routing.policy, routing.tau, routing.early_stop, options.router) == (None, None, None, None)
    return _checked(
        Request(
            options,
            task,
            named,
            [route],
            options.concurrency or concurrency,
            use=use,
            is_default=is_default,
            typed=typed,
            others=others,
            began=began,
        )
    )


def ask_to_solve(options: Options, output: Path | None, display: Display | None = None) -> Request:
    """Return the request of `solve`. If the output file has results, the request continues their run.

    Raises the same errors as `ask`, `begun_file` and `restored_options`.
    """
    began: Begun | None = None
    if output and (earlier := begun_file(output)):
        began = Begun(earlier, output, fetching(options, display))
    return ask(options, find_task(restored_options(options, _run_of(began)).task), began)


def _run_of(began: Begun | None) -> Run | None:
    return began.run if began else None


def usual_policy(named: NamedModels) -> str:
    return choose_policy(None, has_router=named.has_router).name


def policies_of_bench(named: NamedModels, options: Options, task: Task) -> str:
    """Return the policies that `bench` compares if the user names none."""
    speculative = ["speculative"] if named.is_local and options.concurrency in (None, 1) else []
    policy = _policy_without_router(named, task) or usual_policy(named)
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
    if policy.needs_local_models and not named.is_local:
        return False
    if policy.needs_router and not named.has_router:
        return False
    return task.has_answers or not policy.compares_answers


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
    default = policies_of_advice if advises else policies_of_bench
    typed, run = options.explicit, _run_of(began)
    options = keep_concurrency(restored_options(options, run), run)
    reward = begun_reward(reward, run)
    named = _models_of(options, task, began, typed, reward)
    parsed: Sequence[ParsedRoute]
    if run and "policy" not in typed:
        parsed = [(route.policy, None) for route in run.routes]
    else:
        parsed = parse_routes(default(named, options, task) if options.policy is None else options.policy)
        refuse_useless([policy for policy, _ in parsed], options.explicit, task, reward)
    return _checked(
        Request(
            options,
            task,
            named,
            parsed,
            options.concurrency or 1,
            compares=True,
            advises=advises,
            reward=reward,
            typed=typed,
            others=others,
            began=began,
        )
    )


def ask_to_collect(
    options: Options, task: Task, reward: RewardSource | None, began: Begun | None = None, *, others: Sequence[Any] = ()
) -> Request:
    """Return a request for the steps of both models and their rewards. Raises the same errors as `ask`."""
    typed, options = options.explicit, restored_options(options, _run_of(began))
    reward = begun_reward(reward, _run_of(began))
    if reward == "rollout":
        refuse(options.explicit, "prm", "is not used with --reward rollout", "omit this option, or use --reward prm")
    oracle = (POLICIES["oracle"], None)
    named = _models_of(options, task, began, typed, reward)
    concurrency = options.concurrency or 8
    return _checked(
        Request(options, task, named, [oracle], concurrency, reward=reward, typed=typed, others=others, began=began)
    )


@dataclass(frozen=True, slots=True)
class AskedRun:
    """The request of `bench` or `collect`, its problems, its number of samples, and its run folder."""

    request: Request
    selected: Selection
    path: Path
    samples: int = 1


def ask_for_run(
    ask: Callable[..., Request],
    options: Options,
    problems: ProblemOptions,
    run: BenchOptions | CollectOptions,
    kind: Kind,
    display: Display | None = None,
    *,
    runs_programs: bool = True,
) -> AskedRun:
    """Return the request of `bench` or `collect`.

    If the folder has a run, the request continues it: the run is found before problems are drawn or models are found. Raises
    the same errors as `ask`, `restored` and `permitted`.
    """
    path = run.output_folder or _folder_of(kind, problems, options)
    earlier = None if run.fresh else begun_run(path, kind)
    run = restored(run, options.explicit, earlier)
    kept = _restored_problems(problems, options.explicit, earlier)
    offline = options.offline or kept.dataset != problems.dataset  # a run chooses no download
    found = restored_options(options, earlier)
    selected = select_problems(kept, seed=found.seed, offline=offline, needs_answers=kind == BENCH)
    task = find_task(found.task or selected.dataset.task)
    if runs_programs:
        task = permitted(task, problems.run_code)
    began = Begun(earlier, path, fetching(options, display)) if earlier else None
    request = ask(options, task, run.reward, began, others=(kept, run))
    samples = getattr(run, "samples", 1)
    refuse_sampling(request.all_policies, request.options.temperature, samples)
    return AskedRun(request, selected, path, samples)


def _folder_of(kind: Kind, problems: ProblemOptions, options: Options) -> Path:
    """Return the default folder of a run. Concurrent problems have another one, because their times differ."""
    if kind == BENCH:
        return default_folder(problems.dataset, names_of(options), concurrency=options.concurrency or 1)
    return default_folder(problems.dataset, names_of(options), prefix="collect-")


def _restored_problems(problems: ProblemOptions, typed: frozenset[str], began: Run | None) -> ProblemOptions:
    """Return the problems as `restored` does. A limit that was typed takes the place of the run's ids."""
    if problems.ids and "limit" in typed:
        raise UsageError("cannot be combined with --limit", "use one of the two options", option="ids")
    kept = restored(problems, typed, began)
    return replace(kept, ids=None) if "limit" in typed else kept


def fetching(options: Options, display: Display | None) -> Callable[[str], object]:
    """Return a function that downloads a model if it is not on this machine."""
    on_progress: OnProgress = display.fetching if display else no_progress
    return lambda source: find_files(source, offline=options.offline, on_progress=on_progress)


def choose_route(task: Task, named: NamedModels, routing: Options) -> ParsedRoute:
    """Return the policy that the options or the task select, and its tau as text."""
    policy = choose_policy(routing.policy or _policy_without_router(named, task), has_router=named.has_router)
    refuse_useless([policy], routing.explicit, task)
    return policy, routing.tau if "tau" in routing.explicit or accepts_tau(policy, routing.tau) else None


# --- the parts of a request


def _models_of(
    options: Options, task: Task, began: Begun | None, typed: frozenset[str], reward: RewardSource | None = None
) -> NamedModels:
    if not task.runs_code:
        refuse(typed, "run_code", f"task {task.name} runs no programs")
    if began is None:
        return choose_models(options, task)
    today = replace(options, explicit=typed)
    roles = _roles_of_run(options, began.run, typed, reward)
    return models_of_run(today, began.run, roles, task, began.folder, began.fetch)


def _roles_of_run(options: Options, run: Run, typed: frozenset[str], reward: RewardSource | None) -> list[ModelRole]:
    """Return the models to find: those of the policies that run now, or of all policies of the run."""
    policies: Iterable[Policy] = [route.policy for route in run.routes]
    if "policy" in typed and options.policy:
        policies = [policy for policy, _ in parse_routes(options.policy)]
    needed = needed_roles(policies, reward or run.decided.settings.reward)
    return [role for role in (*WRITING, "prm", "check") if role in needed]


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
        available = AvailableRouter(None, None)
        if router := named.router or (NamedRouter.of(UNIVERSAL_ROUTER) if named.finds_router else None):
            available = AvailableRouter(router.router, router.source)
        for policy, tau in request.policies:
            resolve_tau(policy, tau, available)
    return replace(request, early_stop=early_stop)


def _with_usual_routing(options: Options, named: NamedModels, began: Run | None) -> Options:
    """Return the options with the policy and the tau of the run to continue or of the pair, if the user chose no policy.

    A policy such as `logprob@0.5` also names the tau. Raises UsageError if another tau is named, too.
    """
    if options.policy is not None:
        return with_tau_of_policy(options)
    policy, tau = _routing_of_run(began) if began else _routing_of_pair(named.pair)
    return replace(options, policy=policy, tau=tau if options.tau is None else options.tau)


def _routing_of_run(began: Run) -> tuple[str, str | None]:
    policy, tau = parse_route(began.routes[0].name)
    return policy.name, tau


def _routing_of_pair(pair: PairEntry | None) -> tuple[str | None, str | None]:
    """Return the policy and the tau of a pair's entry. Raises UsageError if they are invalid, or if it has two taus."""
    if pair is None or pair.policy is None:
        return None, pair.tau if pair else None
    try:
        policy, tau = parse_route(pair.policy)
        if tau and pair.tau not in (None, tau):
            raise UsageError(f"policy {pair.policy} has a tau, and tau is {pair.tau}", "specify tau only once")
    except UsageError as error:
        raise UsageError(f"pair {pair.name}: {error.message}", error.hint) from error
    return policy.name, tau or pair.tau


def _policy_without_router(named: NamedModels, task: Task) -> str | None:
    """Return the task's default policy if there is no router, or `target` if a model on a server cannot speculate."""
    if named.has_router:
        return None
    return TARGET_ALONE.name if POLICIES[task.policy].needs_local_models and not named.is_local else task.policy

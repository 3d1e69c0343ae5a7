"""Compares what a user asks for now with what was asked when a run began. What was decided then is read, never compared.

An option that was not typed now is no difference: the run keeps its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from arbitrage_cli.app.decide import RequestFacts, available_router, decide
from arbitrage_cli.app.options import BenchOptions, CollectOptions, Options, ProblemOptions, RewardSource
from arbitrage_cli.app.problem_source import Selection, default_folder, permitted, select_problems
from arbitrage_cli.app.request import Request, choose_models
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.problems.tasks import Task, find_task
from arbitrage_cli.routing.route import AvailableRouter, ParsedRoute, Route, make_route, preset_or_budget
from arbitrage_cli.runs.folder import begun_run
from arbitrage_cli.runs.records import BENCH, Kind
from arbitrage_cli.runs.run import DataSet, Run, Setup
from arbitrage_cli.types import Json

PAIR = ("pair", "draft", "target")
PARTS = ("router", "prm", "check")  # compared by their checksums, like the pair
ROUTING = ("policy", "tau")  # a run of bench may get further policies
FREE = ("offline", "threads", "concurrency", "explicit", "command")  # they change no answer
ELSEWHERE = "leave it out, or use another path (--output)"


def asked_options(options: Options) -> Json:
    """Return the options that were typed or set, for run.json."""
    default = Options()
    names = [one.name for one in fields(options) if one.name not in ("explicit", "command")]
    return {name: value for name in names if (value := getattr(options, name)) != getattr(default, name)}


def settings_of(options: Options) -> Json:
    """Return the options that a run cannot change, and that were typed or set."""
    asked = asked_options(options)
    return {name: asked[name] for name in _compared() if name in asked}


def ask_for_run(
    ask: Callable[[Options, Task, RewardSource | None], Request],
    options: Options,
    problems: ProblemOptions,
    run: BenchOptions | CollectOptions,
    kind: Kind,
) -> tuple[Request, Selection, Path]:
    """Return the request of `bench` or `collect`, its problems and its run folder.

    If the folder has a run, the request continues it. Raises the same errors as `ask`, `begun_options` and `permitted`.
    """
    is_bench, path = kind == BENCH, run.output_folder
    if problems.ids and "limit" in options.explicit:
        raise UsageError("cannot be combined with --limit", "use one of the two options", option="ids")
    selected = select_problems(problems, seed=options.seed, offline=options.offline, needs_answers=is_bench)
    if path is None:
        named = choose_models(options, find_task(options.task or selected.dataset.task))
        concurrency = options.concurrency if is_bench and options.concurrency else 1
        path = default_folder(
            selected.dataset.name, named.names, prefix="" if is_bench else "collect-", concurrency=concurrency
        )
    began = None if run.fresh else begun_run(path, kind)
    options = begun_options(options, began)
    task = permitted(find_task(options.task or selected.dataset.task), problems.run_code)
    return ask(options, task, begun_reward(run.reward, began)), selected, path


def begun_options(options: Options, began: Run | None) -> Options:
    """Return the options, with those of the run to continue in place of what was not typed now.

    Raises UsageError if an option was typed that has another value in the run.
    """
    if began is None:
        return options
    kept: Json = {}
    asked, typed, default = began.asked.options, options.explicit, Options()
    for group in (PAIR, ROUTING, *((name,) for name in (*PARTS, *_compared()))):
        if not typed.intersection(group):
            kept |= {name: asked.get(name, getattr(default, name)) for name in group}
    for name in typed.intersection(_compared()):
        now, before = getattr(options, name), asked.get(name, getattr(default, name))
        if now != before:
            raise differs(name, before, now)
    if began.kind == BENCH and options.concurrency not in (None, began.decided.concurrency):  # times would be mixed
        raise differs("concurrency", began.decided.concurrency, options.concurrency)
    return replace(options, **kept)


def begun_reward(reward: RewardSource | None, began: Run | None) -> RewardSource | None:
    """Return the source of rewards, of the run to continue if none was typed. Raises UsageError if they differ."""
    before: Any = began.decided.settings.reward if began else None
    if before and reward and before != reward:
        raise differs("reward", before, reward)
    return reward or before


def differs(option: str, before: object, now: object) -> UsageError:
    """Return the error that an option has another value than in the run to continue."""
    shown = "without it" if before is None else f"with {before!s:.80}"
    return UsageError(f"this run began {shown}, not with {now!s:.80}", ELSEWHERE, option=option)


def check_models(request: Request, began: Run) -> None:
    """Raise UsageError if a model or the router is not that of the run, by its checksum or its name."""
    for role, model in began.decided.models.items():
        source = request.named.sources[role]
        sha256 = sha256_seen(files) if model.sha256 and (files := local_files(source)) else None
        if sha256 and sha256 != model.sha256 and source == model.source:
            hint = "restore the file, or use another path (--output)"
            raise UsageError(f"{source}: the file changed since this run began", hint, option=role)
        if (sha256 or source) != (model.sha256 or model.source):
            raise differs(role, _shown(model.source, model.sha256), _shown(source, sha256))
    before, now = began.decided.router, request.named.router
    if before and (now is None or now.sha256 != before.sha256):
        found = now and _shown(now.card.name, now.sha256)
        raise differs("router", _shown(before.name, before.sha256), found)


def continued(request: Request, began: Run, facts_of: Callable[[Request], RequestFacts]) -> Setup:
    """Return what was decided when a run began, and the policies that the request adds, given the facts about their models.

    Raises UsageError if a model, the router or the only policy is another one.
    """
    check_models(request, began)
    added = with_policies(request, began)
    return decide(added, facts_of(added), began.decided) if added else began.decided


def with_policies(request: Request, began: Run) -> Request | None:
    """Return the request with only the policies that the run does not have, or None if the run has them all.

    Raises UsageError if the run has a single policy, and another one was typed.
    """
    if not request.options.explicit.intersection(ROUTING):
        return None
    router = available_router(request, began.decided.unit_costs, began.decided.price)
    new = [parsed for parsed in request.policies if _route_of(parsed, began.routes, router) is None]
    if not new or request.compares:
        return replace(request, policies=new) if new else None
    (policy, tau), route = new[0], began.routes[0]
    if policy is route.policy:
        raise differs("tau", route.label.partition("@")[2], tau)
    raise differs("policy", route.label, policy.name)


def routes_of(request: Request, decided: Setup) -> list[Route]:
    """Return the routes that a command runs: those that were typed, or all of the run."""
    routes = [one.route for one in decided.routes]
    if not request.compares or "policy" not in request.options.explicit:
        return routes
    router = available_router(request, decided.unit_costs, decided.price)
    typed = (_route_of(parsed, routes, router) for parsed in request.policies)
    return list(dict.fromkeys(route for route in typed if route))


def _route_of(parsed: ParsedRoute, routes: Iterable[Route], router: AvailableRouter) -> Route | None:
    """Return the route of a run that was written in the same way, or has the same tau."""
    known = [route for route in routes if route.policy is parsed[0]]
    name = preset_or_budget(*parsed)
    if named := [route for route in known if name and route.tau_name == name]:
        return named[0]
    return next((route for route in known if route == make_route(*parsed, router)), None)


def check_data_set(before: DataSet | None, now: Dataset) -> None:
    """Raise UsageError if the data set is not that of the run, or that with more problems at its end."""
    if before and before.sha256 != now.sha256_of_first(before.count):
        raise differs("dataset", _shown(before.name, before.sha256), _shown(now.name, now.sha256))


def _compared() -> list[str]:
    others = {*PAIR, *PARTS, *ROUTING, *FREE}
    return [one.name for one in fields(Options) if one.name not in others]


def _shown(name: str, sha256: str | None) -> str:
    return f"{name} (sha256 {sha256[:12]})" if sha256 else name

"""The plan of a command: what is decided, the routes that it runs, and the current locations of its models.

A plan is made of a request, and nothing after it sees the request.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from arbitrage_cli.app.asking.naming import NamedRouter, places_of, router_now
from arbitrage_cli.app.asking.needs import needed_roles
from arbitrage_cli.app.asking.request import Request, Use
from arbitrage_cli.app.asking.resume import GROWING, Resumed, added_policies, asked_of, find_route
from arbitrage_cli.app.deciding.decide import ModelsFacts, RequestFacts, available_router, choice_of, decide, extend
from arbitrage_cli.app.deciding.gather import OpenServed, fetch_and_gather, gather
from arbitrage_cli.app.deciding.prepare import fetch
from arbitrage_cli.app.deciding.solve_command import SolveCommand
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.store import find_measurements, threads_without_costs
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.model_files.pairs import hub_name, is_served, local_files
from arbitrage_cli.problems.tasks import Task
from arbitrage_cli.routing.route import AvailableRouter, ParsedRoute, Route
from arbitrage_cli.runs.run import Asked, Run, Setup
from arbitrage_cli.types import ByRole, ModelRole, frozen

SPARE = 2
"""The number of requests to `serve` that find a sequence while `concurrency` others wait for the server of a model."""

FactsOf = Callable[[Request], RequestFacts]
"""Collects what is known about the models of a request and about this machine."""


@frozen
class Plan:
    """The plan of a command.

    - `setup` was decided now or, if the command resumes a run, when the `resumed` run began. `notes` are new.
    - `routes` are those that this command runs. `usual` is the policy that was asked for, or the default one, with its tau
      as text. `usual_in_conversation` is the same for a conversation, whose answers cannot be compared.
    - `sources` say where the models to load lie today; `named` also has those that are not loaded.
    - `threads` and `concurrency` are those of this command.
    - `asked`, `places` and `command`, the command line, are for run.json.
    - `solve_command` solves a problem with the same models and settings.
    - `thinking_pair` names the pair that replaces this pair if thinking is turned on.
    """

    setup: Setup
    routes: Sequence[Route]
    task: Task
    use: Use
    sources: ByRole[str]
    named: ByRole[str]
    router: AvailableRouter
    threads: ByRole[int]
    concurrency: int
    usual: ParsedRoute
    usual_in_conversation: ParsedRoute
    notes: Sequence[str]
    asked: Asked
    places: Mapping[str, str]
    command: Sequence[str]
    resumed: Run | None
    solve_command: SolveCommand
    thinking_pair: str | None

    @property
    def num_spare(self) -> int:
        """The number of problems, beyond `concurrency`, for which the models on this machine have sequences."""
        return SPARE if self.use == "serve" and any(map(is_served, self.sources.values())) else 0

    @property
    def style(self) -> PromptStyle:
        return PromptStyle(self.setup.settings.system, self.task.step_end)

    @property
    def missing_roles(self) -> set[ModelRole]:
        """The models that are not on this machine yet."""
        return {role for role, source in self.sources.items() if hub_name(source) and not local_files(source)}


def make_plan(request: Request, display: Display, open_served: OpenServed, cost_seconds: float | None = None) -> Plan:
    """Return the plan for a request, after missing files are downloaded and missing costs are measured.

    Costs are measured in at most `cost_seconds`. Raises the same errors as `fetch_and_gather`, `decide` and `extend`.
    """
    return _plan(request, lambda asked: fetch_and_gather(asked, display, open_served, cost_seconds))


def plan_without_models(request: Request) -> Plan:
    """Return the plan as far as it is known. Nothing is downloaded or measured, and no server is asked."""
    return _plan(request, gather)


def _plan(request: Request, facts_of: FactsOf) -> Plan:
    models: ModelsFacts = {}
    if request.resumed:
        setup, router, notes = _resumed(request, request.resumed, facts_of)
    else:
        facts = facts_of(request)
        setup = decide(request, facts)
        models, router, notes = facts.models, facts.router, setup.notes
    available = available_router(request, router, setup.unit_costs, setup.price)
    routes = _routes_now(request, setup, available)
    sources = _sources_to_load(request, setup, routes)
    return Plan(
        setup=setup,
        routes=routes,
        task=request.task,
        use=request.use,
        sources=sources,
        named=request.named.sources,
        router=available,
        threads=_threads(request, setup, sources),
        concurrency=setup.concurrency if request.compares else request.concurrency,
        usual=request.policies[0],
        usual_in_conversation=_usual_in_conversation(request, models, available),
        notes=notes,
        asked=_asked(request),
        places=places_of(request.named.sources, router if setup.router else None),
        command=request.options.command,
        resumed=request.run,
        solve_command=SolveCommand.of(request),
        thinking_pair=request.named.pair.thinking_pair if request.named.pair else None,
    )


def _resumed(request: Request, resumed: Resumed, facts_of: FactsOf) -> tuple[Setup, NamedRouter | None, Sequence[str]]:
    """Return what was decided when a run began, with the policies that the request adds, the router, and new notes."""
    setup = resumed.run.decided
    router = router_now(request.named, request.task)
    available = available_router(request, router, setup.unit_costs, setup.price)
    added = added_policies(request.policies, resumed, available, compares=request.compares)
    if not added:
        return setup, router, ()
    adding = replace(request, policies=added)
    facts = facts_of(adding)  # which may fetch the files that determine the router
    setup = extend(setup, adding, facts)
    return setup, facts.router, setup.notes


def _usual_in_conversation(request: Request, models: ModelsFacts, router: AvailableRouter) -> ParsedRoute:
    if request.use != "calls":
        return request.policies[0]
    choice = choice_of(request, models, router, in_conversation=True)
    return choice.policy, choice.tau


def with_models_for(plan: Plan, request: Request, display: Display, open_served: OpenServed) -> Plan:
    """Return the plan with the models that a request needs in addition, after their missing files are downloaded.

    Everything that was decided stays: routes, token costs and presets, whatever costs and settings are today. The notes are
    new. Raises the same errors as `fetch_and_gather` and `extend`.
    """
    fetch(request.models_for(request.asked), display, offline=request.options.offline)
    began = plan.setup
    facts = gather(request, None, lambda role: None if role in began.models else open_served(role))
    setup = extend(began, request, facts)
    available = available_router(request, facts.router, setup.unit_costs, setup.price)
    sources = _sources_to_load(request, setup, plan.routes)
    notes = [note for note in setup.notes if note not in began.notes]
    return replace(
        plan,
        setup=setup.model_copy(update={"routes": began.routes, "notes": notes}),
        sources=sources,
        named=request.named.sources,
        router=replace(plan.router, has_checker=available.has_checker, check=available.check),
        threads={**_threads(request, setup, sources), **plan.threads},
        notes=notes,
    )


def _routes_now(request: Request, setup: Setup, router: AvailableRouter) -> list[Route]:
    """Return the routes that a command runs: those that were typed, or all that are decided."""
    routes = [one.route for one in setup.routes]
    chooses_routes = request.run is not None and request.compares and "policy" in request.typed
    if not chooses_routes:
        return routes
    typed = (find_route(parsed, routes, router) for parsed in request.policies)
    return list(dict.fromkeys(route for route in typed if route))


def _sources_to_load(request: Request, setup: Setup, routes: Sequence[Route]) -> dict[ModelRole, str]:
    """Return the places of the decided models or, if the request resumes a run, of those that its routes need now."""
    roles: Collection[ModelRole] = setup.models.keys()
    if request.run:
        roles = needed_roles([route.policy for route in routes], setup.settings.reward) & setup.models.keys()
    return {role: source for role, source in request.named.sources.items() if role in roles}


def _threads(request: Request, setup: Setup, sources: ByRole[str]) -> dict[ModelRole, int]:
    """Return the threads of the models on this machine, which may differ from the machine on which the run began."""
    if not request.resumed:
        return {role: threads for role in sources if (threads := setup.models[role].threads)}
    here = {role: source for role, source in sources.items() if setup.models[role].threads}
    measured = find_measurements(here, request.named.load)
    return {
        role: measured[role].threads if role in measured else threads_without_costs(source, request.named.load)
        for role, source in here.items()
    }


def _asked(request: Request) -> Asked:
    """Return what was asked when the run began, with the problems and samples that are asked for now."""
    asked = asked_of(request.options.command, request.typed, request.options, *request.others)
    if request.run is None:
        return asked
    of_run = request.run.asked
    kept = {name: value for name, value in of_run.options.items() if name not in GROWING}
    grown = {name: asked.options[name] for name in GROWING if name in asked.options}
    return of_run.model_copy(update={"options": kept | grown})

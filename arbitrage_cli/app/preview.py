"""Plans a benchmark without running it: what would be decided, the attempts that are left, and how long they would take."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from arbitrage_cli.app.bench import plan
from arbitrage_cli.app.loop import missing
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.resume import check_data_set, routes_of
from arbitrage_cli.app.session import decide_without_models
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.model_files.pairs import hub_name, local_files
from arbitrage_cli.routing.policies import TARGET_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import AvailableRouter, Route
from arbitrage_cli.runs.folder import begun_run, read_run_folder
from arbitrage_cli.runs.records import BENCH, Key
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.run import Setup
from arbitrage_cli.types import frozen


@frozen
class Preview:
    """What a benchmark would decide, the models that it would download, and how many attempts are left.

    `seconds` is the expected time of the attempts that are left, without those of the `unknown` routes.
    """

    decided: Setup
    missing: Collection[str]
    num_attempts: int
    num_todo: int
    is_resumed: bool
    seconds: float
    unknown: Sequence[str]


def preview(request: Request, selected: Selection, path: Path, options: BenchOptions) -> Preview:
    """Plan a benchmark without running it. No server is asked.

    Raises UsageError or DamagedRunError if the folder's run cannot be continued.
    """
    began, results = None if options.fresh else begun_run(path, BENCH), list[Result]()
    decided = decide_without_models(request, began)
    statuses: dict[Key, str] = {}
    if began:
        check_data_set(began.dataset, selected.dataset)
        rows = list(read_run_folder(path).rows)
        statuses = {row.key: row.status for row in rows}
        results = [Result.of(row) for row in rows]
    attempts = plan(selected.items, routes_of(request, decided), options.samples)
    todo = missing(attempts, statuses)
    fetched = {source for source in decided.sources.values() if hub_name(source) and not local_files(source)}
    expected = expected_seconds({attempt.route.label: attempt.route for attempt in todo}, request, decided, results)
    seconds = [expected[attempt.route.label] for attempt in todo]
    return Preview(
        decided,
        fetched,
        len(attempts),
        len(todo),
        began is not None,
        sum(one for one in seconds if one is not None),
        [label for label, one in expected.items() if one is None],
    )


def expected_seconds(
    routes: Mapping[str, Route], request: Request, decided: Setup, results: Iterable[Result]
) -> dict[str, float | None]:
    """Return the time that an attempt adds to the run, by route, or None where it is unknown.

    It is the mean of the run's own attempts. If there are none, the router's table tells how many tokens a solution takes.
    """
    measured: dict[str, list[float]] = {label: [] for label in routes}
    for result in results:
        if result.seconds is not None and result.route.label in measured:
            measured[result.route.label].append(result.seconds / decided.concurrency)
    table = _table(request, decided)
    return {
        label: mean(measured[label]) if measured[label] else _by_table(route, table) if table else None
        for label, route in routes.items()
    }


def _table(request: Request, decided: Setup) -> TauTable | None:
    """Return the router's table with the costs of one of the problems at once, or None without a router of this pair."""
    named = request.named
    costs = PairCosts.of(decided.unit_costs, decided.concurrency)
    available = AvailableRouter(named.router, named.router_source, costs, early_stop=request.early_stop)
    return available.table if named.router and costs and not available.is_universal else None


def _by_table(route: Route, table: TauTable) -> float | None:
    policy = route.policy
    share: float | None = None
    if policy.needs_router and route.tau is not None:
        share = table.time(table.row_at(route.tau, stops_early=route.stops_early))
    elif policy == TARGET_ALONE:
        share = 1.0
    elif policy.models == ("draft",):
        share = table.time(table.rows[-1])
    elif policy.speculates:
        share = table.time_lossless()
    return None if share is None else share * table.alone_seconds

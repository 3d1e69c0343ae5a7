"""Plans a benchmark without running it: what would be decided, the attempts that are left, and how long they would take."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from arbitrage_cli.app.asking.resume import check_data_set
from arbitrage_cli.app.attempts.attempts import missing
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.commands.bench import plan_attempts
from arbitrage_cli.app.deciding.plan import Plan
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.routing.policies import TARGET_ALONE
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import AvailableRouter, Route
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.records import AttemptKey
from arbitrage_cli.runs.results import Result
from arbitrage_cli.types import frozen


@frozen
class Preview:
    """The plan of a benchmark, and its number of attempts that are left (`num_todo`).

    `seconds` is the expected time of the attempts that are left, without those of the `unknown` routes.
    """

    plan: Plan
    num_attempts: int
    num_todo: int
    is_resumed: bool
    seconds: float
    unknown: Sequence[str]


def preview(plan: Plan, selected: Selection, path: Path, samples: int) -> Preview:
    """Count the attempts of a benchmark without running it.

    Raises UsageError or DamagedRunError if the folder's run cannot be continued.
    """
    results = list[Result]()
    statuses: dict[AttemptKey, str] = {}
    if plan.resumed:
        check_data_set(plan.resumed.dataset, selected.dataset)
        rows = list(read_run_folder(path).rows)
        statuses = {row.key: row.status for row in rows}
        results = [Result.of(row) for row in rows]
    attempts = plan_attempts(selected.items, plan.routes, samples)
    todo = missing(attempts, statuses)
    expected = expected_seconds({attempt.route.label: attempt.route for attempt in todo}, plan, results)
    seconds = [expected[attempt.route.label] for attempt in todo]
    return Preview(
        plan,
        num_attempts=len(attempts),
        num_todo=len(todo),
        is_resumed=plan.resumed is not None,
        seconds=sum(one for one in seconds if one is not None),
        unknown=[label for label, one in expected.items() if one is None],
    )


def expected_seconds(routes: Mapping[str, Route], plan: Plan, results: Iterable[Result]) -> dict[str, float | None]:
    """Return the time that an attempt adds to the run, by route, or None where it is unknown.

    The time is the mean over the run's finished attempts. Without such attempts, it is computed from token costs and the
    router's table.
    """
    measured: dict[str, list[float]] = {label: [] for label in routes}
    for result in results:
        if result.seconds is not None and result.route.label in measured:
            measured[result.route.label].append(result.seconds / plan.concurrency)
    table = _table(plan)
    return {
        label: mean(measured[label]) if measured[label] else _by_table(route, table) if table else None
        for label, route in routes.items()
    }


def _table(plan: Plan) -> TauTable | None:
    """Return the router's table at the costs of one of the concurrent problems, or None if the pair has no router of its own."""
    router, costs = plan.router, PairCosts.of(plan.setup.unit_costs, plan.concurrency)
    if router.router is None or router.is_universal or costs is None:
        return None
    return AvailableRouter(router.router, router.source, costs, can_stop_early=router.can_stop_early).table


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

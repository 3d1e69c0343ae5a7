"""Plans and runs a benchmark, storing a row for each attempt."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from arbitrage_cli.app.benchmark import Attempt, Bench, Standings, plan
from arbitrage_cli.app.executor import Executor, Remaining, how_to_resume, prepare, remaining
from arbitrage_cli.app.manifest import add_loaded, problem_facts, resume, settings_of, with_grown
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.protocol import Display, RunProgress, offering_to_resume
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session, open_session
from arbitrage_cli.app.spec import Run, Spec, limits_of, make_spec
from arbitrage_cli.app.stored_run import open_run
from arbitrage_cli.costs.memory import AUTO, MOST
from arbitrage_cli.problems.task import Grader, is_correct
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RUN, RunFolder, read_run_folder
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A planned benchmark. `manifest` is written to run.json."""

    session: Session
    title: str
    routes: Sequence[Route]
    attempts: Sequence[Attempt]
    folder: RunFolder
    todo: Remaining
    manifest: Run

    @property
    def how_to_resume(self) -> str:
        num_safe = len({attempt.key for attempt in self.attempts} & self.folder.statuses.keys())
        return how_to_resume(num_safe, len(self.attempts), "attempts", self.folder.path, self.session.spec)

    @property
    def selected(self) -> tuple[Run, list[Result]]:
        run, ids = self.folder.run or {}, {attempt.item.problem.id for attempt in self.attempts}
        levels = {name: level for name, level in run.get("levels", {}).items() if name in ids}
        return {**run, "levels": levels}, [result for result in self.folder.results if result.key[0] in ids]

    @property
    def num_errors(self) -> int:
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)


def run_bench(request: Request, selected: Selection, path: Path, options: BenchOptions, display: Display) -> BenchRun:
    with (
        open_run(path, display, fresh=options.fresh) as folder,
        open_session(request, display, folder.earlier, most=_most_at_once(request, selected)) as session,
    ):
        run = plan_run(session, selected, folder, samples=options.samples)
        with offering_to_resume(display, lambda error: run.how_to_resume):
            if run.todo.all:
                measure(run, display, Pace(options.timeout))
    return run


def _most_at_once(request: Request, selected: Selection) -> int:
    return len(selected.items) if request.concurrency == AUTO else MOST


def plan_run(session: Session, selected: Selection, folder: RunFolder, *, samples: int = 1) -> BenchRun:
    """Plan a benchmark. Raises UsageError if an earlier run has other settings."""
    spec, items = session.spec, selected.items
    attempts = plan(items, spec.routes, samples, session.concurrency)
    router, warnings = spec.deciding_router, []
    if router and (known := sum(router.card.known(item.problem.question for item in items))):
        which = f"{known} of these {len(items)} problems"
        warnings = [f"router {router.card.name} was trained on {which}, so its results are too optimistic"]
    todo_and_manifest = prepare(
        session, selected, folder, attempts, samples=samples, warnings=warnings, concurrency=session.concurrency
    )
    return BenchRun(session, f"bench {selected.title}", spec.routes, attempts, folder, *todo_and_manifest)


@dataclass(frozen=True, slots=True)
class Preview:
    """A benchmark plan: the remaining attempts, and the expected seconds per attempt for each route (None if unknown)."""

    spec: Spec
    num_attempts: int
    todo: Sequence[Attempt]
    is_resumed: bool
    seconds: Mapping[str, float | None]


def preview(request: Request, selected: Selection, path: Path, options: BenchOptions) -> Preview:
    """Plan a benchmark without running it. Raises UsageError or DamagedRunError if the folder's run cannot be resumed."""
    contents = read_run_folder(path) if (path / RUN).exists() and not options.fresh else None
    results = list(contents.results) if contents else []
    earlier = contents.run if contents and results else None
    at_once = int(request.concurrency) if request.concurrency.isdecimal() else 1
    spec = make_spec(request, earlier, concurrency=at_once)
    if earlier:
        known = settings_of(spec) | problem_facts(selected.dataset, [item.problem.id for item in selected.items])
        limits = limits_of(request.options, earlier["limits"]["think_tokens"])  # as its models decided
        known |= {"limits": asdict(limits)} | {name: earlier[name] for name in ("think_min_chars", "check_thinking")}
        resume(with_grown(earlier, selected.dataset), {**earlier, **known}, path)
    attempts = plan(selected.items, spec.routes, options.samples)
    todo = remaining(attempts, {one.attempt: "done" if one.is_done else "error" for one in results}, {}).all
    routes = {attempt.route for attempt in todo}
    seconds = {route.label: _expected(route, spec, results) for route in spec.routes if route in routes}
    return Preview(spec, len(attempts), todo, contents is not None, seconds)


def _expected(route: Route, spec: Spec, results: Iterable[Result]) -> float | None:
    known = [one.seconds for one in results if one.seconds is not None and one.route == (route.policy.name, route.tau)]
    return mean(known) if known else spec.available_router.expected_seconds(route)


class Pace:
    """Decides which attempts are made and how long each may take. By default, the limit is `timeout` seconds."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def is_needed(self, attempt: Attempt) -> bool:
        return True

    def seconds_for(self) -> float | None:
        """Return the time limit of the next attempt, or None."""
        return self._timeout

    def seconds_left(self) -> float:
        return math.inf

    def keeps(self, row: AttemptRow) -> bool:
        """Return whether the row of an attempt is stored."""
        return True


def measure(run: BenchRun, display: Display, pace: Pace) -> None:
    session, limits = run.session, run.session.spec.limits
    with session.spec.task.open_grader() as grader:
        session.load({attempt.route.policy for attempt in run.todo.all})
        bench = _make_bench(run, grader, pace)
        for attempt in run.todo.all:
            session.writers(attempt.route, attempt.sample)
        run.folder.save_run({**add_loaded(run.manifest, session.models), "protections": list(grader.protections)})
        executor = Executor(run.folder, display, _Progress(run, pace), pace.keeps)
        executor.run(run.todo, bench.run, bench.row, limits)


def _make_bench(run: BenchRun, grader: Grader, pace: Pace) -> Bench:
    session, spec = run.session, run.session.spec
    policies = {attempt.route.policy.name: attempt.route.policy for attempt in run.todo.all}
    golds = {attempt.item.problem.id: attempt.item.gold for attempt in run.todo.all}
    rollouts = Rollouts(lambda problem, text: is_correct(grader, text, golds[problem]))
    scorers = {name: session.scorer(policy) for name, policy in policies.items()}
    raters = {name: session.rater(policy, rollouts) for name, policy in policies.items()}
    return Bench(
        session.writers,
        grader.grade,
        spec.limits,
        spec.sampler.seed,
        pace.seconds_for,
        is_needed=pace.is_needed,
        scorer_for=lambda policy: scorers[policy.name],
        rater_for=lambda policy: raters[policy.name],
        concurrency=session.concurrency,
        find_answer=session.spec.task.find_answer,
        timer=session.writing.clock,
    )


class _Progress:
    def __init__(self, run: BenchRun, pace: Pace) -> None:
        self._pace = pace
        self._title, self._planned = run.title, len(run.attempts)
        self._standings = Standings(run.routes, self._planned // len(run.routes), run.session.concurrency)
        self._waiting = Counter(attempt.route for attempt in run.todo.all)
        done = {attempt.key: attempt.route for attempt in run.attempts}
        for result in run.folder.results:
            if result.is_done and (route := done.get(result.attempt)):
                self._standings.add(route, result)

    def add(self, attempt: Attempt, row: AttemptRow) -> None:
        self._standings.add(attempt.route, Result.of(row))
        self._waiting[attempt.route] -= 1

    def now(self) -> RunProgress:
        finished = self._planned - self._waiting.total()
        left = self._standings.seconds_left(self._waiting)
        left = None if left is None else min(left, self._pace.seconds_left())
        return RunProgress(self._title, finished, self._planned, self._standings.now(), left)

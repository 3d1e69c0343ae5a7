"""Makes the attempts of a benchmark: loads the models, follows what happens, writes each row as soon as it is there."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from arbitrage_cli.app.executor import Executor, Left, how_to_resume, left
from arbitrage_cli.app.manifest import Run, add_loaded, resume, with_grown, with_problems
from arbitrage_cli.app.protocol import Display, RunProgress
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session
from arbitrage_cli.evaluation.benchmark import Attempt, Bench, plan
from arbitrage_cli.evaluation.standings import Standings
from arbitrage_cli.runs.folder import Row, RunFolder, key_of, latest
from arbitrage_cli.tasks.task import Grader, reaches
from arbitrage_cli.tuning.memory import AUTO, MOST


@dataclass(frozen=True, slots=True)
class BenchRun:
    """All attempts that were asked for, those that are left to make, and where their rows go. `manifest` becomes run.json."""

    session: Session
    title: str
    attempts: Sequence[Attempt]
    left: Left
    folder: RunFolder
    manifest: Run

    @property
    def how_to_resume(self) -> str:
        """What is safe, and the command that resumes the run; "" if nothing is safe yet."""
        num_safe = len({attempt.key for attempt in self.attempts} & self.folder.statuses.keys())
        return how_to_resume(
            num_safe, len(self.attempts), "attempts", self.folder.path, self.session.setup.invocation.resuming
        )

    @property
    def asked(self) -> tuple[Run, Iterator[Row]]:
        """What was asked for of run.json and its rows: the folder may have other problems as well."""
        run, ids = self.folder.run or {}, {attempt.item.problem.id for attempt in self.attempts}
        levels = {name: level for name, level in run.get("levels", {}).items() if name in ids}
        return {**run, "levels": levels}, (row for row in self.folder.rows if row["id"] in ids)

    @property
    def num_errors(self) -> int:
        """How many of the attempts that were asked for ended in an error."""
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)


def plan_run(session: Session, selected: Selection, folder: RunFolder, *, samples: int) -> BenchRun:
    """What there is to do. UsageError if the folder holds a run that was made with something else."""
    earlier, items = folder.run if folder.rows else None, selected.items
    most = len(items) if session.setup.concurrency == AUTO else MOST
    concurrency = session.choose_concurrency(most=most, earlier=earlier["concurrency"] if earlier else None)
    attempts = plan(items, session.setup.routes, samples, concurrency)
    todo = left(attempts, folder.statuses, folder.crashes)
    manifest = with_problems(
        session.manifest(reads_models=bool(todo.all)),
        selected.dataset,
        [item.problem.id for item in items],
        grader=session.setup.task.grader_version(),
        concurrency=concurrency,
    )
    manifest["sampling"]["samples"] = samples
    head = session.setup.deciding_head
    if head and (known := head.card.count_known(item.problem.question for item in items)):
        which = f"{known} of these {len(items)} problems"
        manifest["warnings"].append(f"head {head.card.name} was trained on {which}: it looks better here than it is")
    if earlier:
        manifest = resume(with_grown(earlier, selected.dataset), manifest, folder.path)
        session.resume(manifest)
    return BenchRun(session, selected.title, attempts, todo, folder, manifest)


def measure(run: BenchRun, display: Display, timeout: float | None, enough: Callable[[], bool] = lambda: False) -> None:
    """Make the attempts that are left, until there are `enough`. Loading and warm-up are not timed."""
    session, limits = run.session, run.session.setup.limits
    with session.setup.task.open_grader() as grader:
        session.load({attempt.route.policy for attempt in run.left.all})
        bench = replace(_make_bench(run, grader, timeout), enough=enough)
        for attempt in run.left.all:
            session.engines(attempt.route, attempt.sample)
        run.folder.save_run({**add_loaded(run.manifest, session.models), "protections": list(grader.protections)})
        executor = Executor(run.folder, display, _Progress(run), session.check_files)
        executor.run(run.left, bench.run, bench.row, limits)


def _make_bench(run: BenchRun, grader: Grader, timeout: float | None) -> Bench:
    """What the policies need: engines, routers, raters. UsageError, RouterError."""
    session, setup = run.session, run.session.setup
    policies = {attempt.route.policy.name: attempt.route.policy for attempt in run.left.all}
    golds = {attempt.item.problem.id: attempt.item.gold for attempt in run.left.all}
    rollouts = Rollouts(lambda problem, text: reaches(grader, text, golds[problem]))
    routers = {name: session.router(policy) for name, policy in policies.items()}
    raters = {name: session.rater(policy, rollouts) for name, policy in policies.items()}
    return Bench(
        session.engines,
        grader.grade,
        setup.limits,
        setup.sampler.seed,
        timeout,
        router_for=lambda policy: routers[policy.name],
        rater_for=lambda policy: raters[policy.name],
        concurrency=session.concurrency,
        find_answer=setup.task.find_answer,
    )


class _Progress:
    """How the policies stand, and how long the rest will take."""

    def __init__(self, run: BenchRun) -> None:
        self._title, self._planned = f"bench {run.title}", len(run.attempts)
        routes = list(dict.fromkeys(attempt.route for attempt in run.attempts))
        self._standings = Standings(routes, self._planned // len(routes), run.session.concurrency)
        self._waiting = Counter(attempt.route for attempt in run.left.all)
        by_key = {attempt.key: attempt for attempt in run.attempts}
        for row in latest(run.folder.rows):
            if attempt := by_key.get(key_of(row)):
                self._standings.add(attempt, row)

    def add(self, attempt: Attempt, row: Row) -> None:
        """Count a row."""
        self._standings.add(attempt, row)
        self._waiting[attempt.route] -= 1

    def now(self) -> RunProgress:
        """What a display shows."""
        finished = self._planned - self._waiting.total()
        left = self._standings.seconds_left(self._waiting)
        return RunProgress(self._title, finished, self._planned, self._standings.now(), left)

"""Makes the attempts of a benchmark: loads the models, follows what happens, writes each row as soon as it is there."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from arbitrage_cli.app.manifest import ChosenProblems, Run, add_loaded, resume, with_grown, with_problems
from arbitrage_cli.app.protocol import AttemptEnded, AttemptStarted, Display, RunProgress
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session
from arbitrage_cli.cli.output import only_figures_on_stdout
from arbitrage_cli.display import rounding
from arbitrage_cli.evaluation.benchmark import Attempt, Began, Bench, Ended, left, plan
from arbitrage_cli.evaluation.standings import Standings
from arbitrage_cli.runs.folder import Row, RunFolder, key_of, latest, statuses
from arbitrage_cli.system.held_signals import noted_signals
from arbitrage_cli.tasks.task import Grader, reaches
from arbitrage_cli.tuning.memory import AUTO, MOST


@dataclass(frozen=True, slots=True)
class BenchRun:
    """All attempts that were asked for, those that are left to make, and where their rows go. `manifest` becomes run.json."""

    session: Session
    title: str
    attempts: Sequence[Attempt]
    left: Sequence[Attempt]
    folder: RunFolder
    manifest: Run

    @property
    def how_to_resume(self) -> str:
        """What is safe, and the command that resumes the run; "" if nothing is safe yet."""
        num_safe = len({attempt.key for attempt in self.attempts} & statuses(self.folder.rows).keys())
        safe = f"{num_safe} of {len(self.attempts)} attempts are safe in {self.folder.path}"
        return f"{safe}; to resume: {self.session.setup.invocation.resuming}" if num_safe else ""

    @property
    def asked(self) -> tuple[Run, Iterator[Row]]:
        """What was asked for of run.json and its rows: the folder may have other problems as well."""
        run, ids = self.folder.run or {}, {attempt.item.problem.id for attempt in self.attempts}
        levels = {name: level for name, level in run.get("levels", {}).items() if name in ids}
        return {**run, "levels": levels}, (row for row in self.folder.rows if row["id"] in ids)

    @property
    def conclusion(self) -> str:
        """Where the results are, and what to do with them."""
        folder = shlex.quote(str(self.folder.path))
        done = (
            f"{folder} has all {len(self.attempts)} attempts" if self.left else f"nothing to do: {folder} has all attempts"
        )
        others = len((self.folder.run or {}).get("ids", ())) - len({attempt.item.problem.id for attempt in self.attempts})
        more = f", and those at {rounding.count(others, 'other problem')}" if others else ""
        errors = f"; errors: {count} (the same command tries these again)" if (count := self.num_errors) else ""
        return f"{done}{more}{errors}; a page with every trace: arbitrage report {folder} -o report.html"

    @property
    def num_errors(self) -> int:
        """How many of the attempts that were asked for ended in an error."""
        status = statuses(self.folder.rows)
        return sum(status.get(attempt.key) == "error" for attempt in self.attempts)


def plan_run(session: Session, selected: Selection, folder: RunFolder, *, samples: int) -> BenchRun:
    """What there is to do. UsageError if the folder holds a run that was made with something else."""
    earlier, items = folder.run if folder.rows else None, selected.items
    most = len(items) if session.setup.concurrency == AUTO else MOST
    concurrency = session.choose_concurrency(most=most, earlier=earlier["concurrency"] if earlier else None)
    chosen = ChosenProblems(
        selected.dataset,
        [item.problem.id for item in items],
        session.setup.task.grader_version(),
        {"concurrency": concurrency},
    )
    manifest = with_problems(session.manifest(), chosen)
    manifest["sampling"]["samples"] = samples
    head = session.setup.deciding_head
    if head and (known := head.card.count_known(item.problem.question for item in items)):
        which = f"{known} of these {rounding.count(len(items), 'problem')}"
        manifest["warnings"].append(f"head {head.card.name} was trained on {which}: it looks better here than it is")
    if earlier:
        manifest = resume(with_grown(earlier, selected.dataset), manifest, folder.path)
        session.resume(manifest)
    attempts = plan(items, session.setup.routes, samples, concurrency)
    todo = left(attempts, folder.rows, deaths=folder.deaths)
    return BenchRun(session, selected.title, attempts, todo, folder, manifest)


def measure(run: BenchRun, display: Display, timeout: float | None) -> None:
    """Make the attempts that are left. Loading and warm-up are not timed."""
    session = run.session
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_figures_on_stdout())
        grader = stack.enter_context(session.setup.task.open_grader())
        session.load({attempt.route.policy for attempt in run.left})
        bench = _make_bench(run, grader, timeout)
        for attempt in run.left:
            session.engines(attempt.route, attempt.sample)
        run.folder.save_run({**add_loaded(run.manifest, session.models), "protections": list(grader.protections)})
        _follow(bench, run, display)


def _make_bench(run: BenchRun, grader: Grader, timeout: float | None) -> Bench:
    """What the policies need: engines, routers, raters. UsageError, RouterError."""
    session, setup = run.session, run.session.setup
    policies = {attempt.route.policy.name: attempt.route.policy for attempt in run.left}
    golds = {attempt.item.problem.id: attempt.item.gold for attempt in run.left}
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


def _follow(bench: Bench, run: BenchRun, display: Display) -> None:
    routes = list(dict.fromkeys(attempt.route for attempt in run.attempts))
    standings = Standings(routes, len(run.attempts) // len(routes), run.session.concurrency)
    by_key = {attempt.key: attempt for attempt in run.attempts}
    for row in latest(run.folder.rows):
        if key_of(row) in by_key:
            standings.add(by_key[key_of(row)], row)
    waiting = Counter(attempt.route for attempt in run.left)

    def progress() -> RunProgress:
        finished, left = len(run.attempts) - waiting.total(), standings.seconds_left(waiting)
        return RunProgress(f"bench {run.title}", finished, len(run.attempts), standings.now(), left)

    display.begin(progress())
    with contextlib.closing(bench.run(run.left)) as happenings:
        for happening in happenings:
            if isinstance(happening, Began):
                run.folder.begin(happening.attempt.item.problem.id)
                display.handle(AttemptStarted(happening.attempt.item.problem.id, happening.attempt.route.label))
            elif isinstance(happening, Ended):
                run.session.check_files()
                with noted_signals():  # it is safe, and counted as safe
                    run.folder.append(happening.row)
                standings.add(happening.attempt, happening.row)
                waiting[happening.attempt.route] -= 1
                display.handle(_ended(happening, progress()))
            else:
                display.handle(happening)


def _ended(ended: Ended, progress: RunProgress) -> AttemptEnded:
    row, attempt = ended.row, ended.attempt
    failed = row["status"] == "error"
    verdict, detail = ("error", row["error"]) if failed else (row["grade"]["value"], row["grade"]["answer"] or "")
    seconds = None if "throughput" in row else row["wall_seconds"]
    return AttemptEnded(row["id"], attempt.route.label, verdict, detail, seconds, progress)

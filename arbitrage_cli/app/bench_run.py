"""Plans and runs a benchmark, storing a row for each attempt."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

from arbitrage_cli.app.benchmark import Bench, plan
from arbitrage_cli.app.loop import Attempt, StoredRun, missing
from arbitrage_cli.app.manifest import problem_facts, resume, settings_of, with_grader, with_grown
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.protocol import Display, RunProgress, offering_to_resume
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session, open_session
from arbitrage_cli.app.spec import Run, Spec, limits_of, make_spec
from arbitrage_cli.costs.memory import AUTO, MOST
from arbitrage_cli.errors import InterruptedRunError
from arbitrage_cli.problems.task import Grader, Task, is_correct
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RUN, RunFolder, read_run_folder
from arbitrage_cli.runs.records import BENCH
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import Finished


class BenchRun(StoredRun):
    """A benchmark, in which an attempt may take `timeout` seconds. `results` contains a result for each row in the folder."""

    name = BENCH
    more_facts: Mapping[str, Any] = MappingProxyType({})  # for run.json

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        display: Display,
        *,
        samples: int = 1,
        timeout: float | None = None,
    ) -> None:
        self.results: list[Result] = []
        self._timeout = timeout
        spec, items, concurrency = session.spec, selected.items, session.concurrency
        attempts = plan(items, spec.routes, samples, concurrency)
        router, warnings = spec.deciding_router, []
        if router and (known := sum(router.card.known(item.problem.question for item in items))):
            which = f"{known} of these {len(items)} problems"
            warnings = [f"router {router.card.name} was trained on {which}, so its results are too optimistic"]
        details = {"samples": samples, "warnings": warnings, "concurrency": concurrency, **self.more_facts}
        super().__init__(session, selected, folder, display, attempts, **details)

    def count(self, row: AttemptRow) -> None:
        self.results.append(Result.of(row))

    @property
    def progress(self) -> RunProgress:
        return self._progress.now(self.seconds_left())

    @property
    def selected(self) -> tuple[Run, list[Result]]:
        """The contents of run.json and the results, of this command's problems only."""
        run, ids = self.folder.run or {}, {attempt.id for attempt in self.attempts}
        levels = {name: level for name, level in run.get("levels", {}).items() if name in ids}
        return {**run, "levels": levels}, [result for result in self.results if result.key[0] in ids]

    def is_needed(self, attempt: Attempt) -> bool:
        return True

    def seconds_for(self) -> float | None:
        """Return the time limit of the next attempt, or None."""
        return self._timeout

    def seconds_left(self) -> float:
        """Return the time that is left for all attempts."""
        return math.inf

    def measure(self) -> None:
        """Make the missing attempts that are needed."""
        session = self.session
        with session.spec.task.open_grader() as grader:
            session.load({attempt.route.policy for attempt in self.todo})
            bench = self._bench(grader)
            for attempt in self.todo:
                session.writers(attempt.route, attempt.sample)
            self.begin(bench, grader).run(self.todo)

    def is_kept(self, finished: Finished, row: AttemptRow) -> bool:
        return not isinstance(finished.error, InterruptedRunError)

    def _bench(self, grader: Grader) -> Bench:
        session, spec = self.session, self.session.spec
        policies = {attempt.route.policy.name: attempt.route.policy for attempt in self.todo}
        golds = {attempt.id: attempt.item.gold for attempt in self.todo}
        rollouts = Rollouts(lambda problem, text: is_correct(grader, text, golds[problem]))
        return Bench(
            session.writers,
            grader.grade,
            spec.limits,
            spec.sampler.seed,
            self.is_needed,
            self.seconds_for,
            {name: session.scorer(policy) for name, policy in policies.items()},
            {name: session.rater(policy, rollouts) for name, policy in policies.items()},
            concurrency=session.concurrency,
            find_answer=spec.task.find_answer,
            timer=session.writing.clock,
        )


def run_bench(request: Request, selected: Selection, path: Path, options: BenchOptions, display: Display) -> BenchRun:
    with (
        RunFolder(path, fresh=options.fresh) as folder,
        open_session(request, display, folder.earlier, most=_most_at_once(request, selected)) as session,
    ):
        run = BenchRun(session, selected, folder, display, samples=options.samples, timeout=options.timeout)
        with offering_to_resume(display, lambda error: run.how_to_resume):
            if run.todo:
                run.measure()
    return run


def _most_at_once(request: Request, selected: Selection) -> int:
    return len(selected.items) if request.concurrency == AUTO else MOST


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
        before = earlier["settings"]  # thinking is as its models decided
        settings = settings_of(spec, limits=limits_of(request.options, before["think_tokens"]))
        known = problem_facts(selected.dataset, [item.problem.id for item in selected.items])
        known |= {"settings": settings | {"check_thinking": before["check_thinking"]}}
        resume(with_grown(earlier, selected.dataset), {**earlier, **known}, path)
    attempts = plan(selected.items, spec.routes, options.samples)
    todo = missing(attempts, {one.attempt: "done" if one.is_done else "error" for one in results})
    routes = {attempt.route for attempt in todo}
    seconds = {route.label: _expected(route, spec, results) for route in spec.routes if route in routes}
    return Preview(spec, len(attempts), todo, contents is not None, seconds)


def _expected(route: Route, spec: Spec, results: Iterable[Result]) -> float | None:
    known = [one.seconds for one in results if one.seconds is not None and one.route == (route.policy.name, route.tau)]
    return mean(known) if known else spec.available_router.expected_seconds(route)


def regrade(folder: RunFolder, task: Task) -> list[tuple[AttemptRow, AttemptRow]]:
    """Grade all finished answers again, without loading models. Return each changed row as (before, after).

    All rows are replaced at once.
    """
    with task.open_grader() as grader:
        pairs = [(row, _graded(row, grader)) for row in folder.rows]
    folder.rewrite(row for _, row in pairs)
    folder.save_run(with_grader(folder.run or {}, task.grader_version()))
    return [(before, now) for before, now in pairs if before.grade != now.grade]


def _graded(row: AttemptRow, grader: Grader) -> AttemptRow:
    return row.model_copy(update={"grade": grader.grade(row.text, row.gold)}) if row.status == "done" else row

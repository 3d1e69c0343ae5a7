"""Plans and runs a benchmark: measures the time of each attempt, and stores a row for it.

All policies solve a block of problems before the next block begins. The order of the policies is random in each block, so a
slowdown of the machine affects all policies, and no policy always follows the same other policy. A block is a single problem
or, if several problems are solved at once, a few problems for each slot.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arbitrage_cli.app.decide import decide
from arbitrage_cli.app.gather import gather
from arbitrage_cli.app.loop import Attempt, Loop, RunCounts, Timing, missing, offering_to_resume, run_of, with_loaded
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.protocol import Display, RunProgress
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.resume import check_data_set, continued, routes_of
from arbitrage_cli.app.session import Session, open_session
from arbitrage_cli.errors import InterruptedRunError, ProblemError
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.problems.tasks import Grader, Task, is_correct
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder, begun_run, read_run_folder
from arbitrage_cli.runs.records import BENCH, attempt_error
from arbitrage_cli.runs.results import Result, SampleKey
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.runs.run import Run, Setup
from arbitrage_cli.types import Finished, Grade

ROUNDS = 4  # the number of problems in a block per slot


def plan(items: Sequence[Item], routes: Sequence[Route], samples: int, concurrency: int = 1) -> list[Attempt]:
    """Return all attempts in order. The order of the policies in a block is random, but the same in all runs."""
    return [
        Attempt(item, sample, route, index)
        for index, block in enumerate(_blocks(items, concurrency))
        for sample in range(samples)
        for route in random.Random(f"{index}/{sample}").sample(routes, len(routes))
        for item in block
    ]


def _blocks(items: Sequence[Item], concurrency: int) -> list[Sequence[Item]]:
    """Split items into blocks of one problem, or of ROUNDS problems per slot. The last block contains the remainder."""
    size = 1 if concurrency == 1 else ROUNDS * concurrency
    starts = range(0, max(len(items) - size, 0) + 1, size)
    return [items[start : len(items) if start == starts[-1] else start + size] for start in starts if items]


class BenchRun:
    """A benchmark: its attempts, those that are missing, and a result for each row in the folder. `name` is the command's."""

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        *,
        samples: int = 1,
        name: str = BENCH,
        shown: Callable[[RunProgress], RunProgress] = lambda progress: progress,
    ) -> None:
        self.session, self.folder, self.results = session, folder, list[Result]()
        self._ungraded: dict[SampleKey, str] = {}
        concurrency, items = session.decided.concurrency, selected.items
        self.attempts = plan(items, session.routes, samples, concurrency)
        if session.task.name == "free" or not all(item.gold for item in items):  # answers are compared with the target's
            self.attempts.sort(key=lambda one: (one.block, one.sample, one.route.policy.name != "target"))
        self.todo = missing(self.attempts, folder.statuses)
        warnings, card = [], session.router.router.card if session.decided.router and session.router.router else None
        if card and (known := sum(card.known(item.problem.question for item in items))):
            which = f"{known} of these {len(items)} problems"
            warnings = [f"router {card.name} was trained on {which}, so its results are too optimistic"]
        skips = name != BENCH
        self.run = run_of(session, folder, BENCH, selected, samples=samples, warnings=warnings, skips_attempts=skips)
        planned, left = len(items) * samples, len(self.todo)
        title = f"{name} {selected.title}"
        self._counts = RunCounts(title, session.routes, planned, left, concurrency=concurrency, shown=shown)
        by_key = {attempt.key: attempt for attempt in self.attempts}
        for row in folder.rows:
            self._count(row)
            if row.status == "done" and row.key in by_key:
                self._counts.add(by_key[row.key].route, row, is_new=False)

    @property
    def num_errors(self) -> int:
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)

    @property
    def selected(self) -> tuple[Run, list[Result]]:
        """The run and its results, of this command's problems only."""
        ids = {attempt.id for attempt in self.attempts}
        levels = {name: level for name, level in self.run.levels.items() if name in ids}
        return self.run.changed(levels=levels), [result for result in self.results if result.key[0] in ids]

    def measure(self, attempts: Iterable[Attempt], is_kept: Callable[[AttemptRow], bool] = lambda row: True) -> None:
        """Make attempts of `todo`. The rows that are not kept count as not made."""
        session, task = self.session, self.session.task
        policies = {attempt.route.policy.name: attempt.route.policy for attempt in self.todo}
        golds = {attempt.id: attempt.item.gold for attempt in self.todo}
        with task.open_grader() as grader:

            def is_right(problem: str, text: str) -> bool:
                return is_correct(grader, text, golds[problem])

            def row(attempt: Attempt, finished: Finished, timing: Timing) -> AttemptRow | None:
                if isinstance(finished.error, InterruptedRunError):
                    return None
                if session.concurrency > 1:  # the time of the program is that of several problems
                    timing.program_seconds = None
                gold = self._ungraded.get((attempt.id, attempt.sample))
                made = row_of(
                    attempt,
                    finished,
                    timing,
                    grader.grade,
                    task.find_answer,
                    lambda text: None if gold is None else task.same_answer(grader, text, gold),
                    session.conditions_of(is_alone=attempt.is_alone),
                )
                return made if is_kept(made) else None

            session.load(policies.values())
            for attempt in self.todo:
                session.models.writers(attempt.route)
            raters = {name: session.models.rater(policy, is_right) for name, policy in policies.items()}
            self.run = with_loaded(self.run, session)
            self.folder.save_run(self.run)
            loop = Loop(
                lambda one: session.models.scheduler(one.route, raters[one.route.policy.name]),
                lambda one, trace: session.flow(one.route, one.sample)(trace),
                session.limits,
                row,
                session.display,
                self.folder,
                session.decided.settings.sampler,
                lambda attempt, row: self._count(row),
                self._counts,
                timer=session.models.writing.clock,
            )
            for _ in loop.run(attempts):
                pass

    def _count(self, row: AttemptRow) -> None:
        self.results.append(Result.of(row))
        self._ungraded |= ungraded_answers([row])


def row_of(
    attempt: Attempt,
    finished: Finished,
    timing: Timing,
    grade_of: Callable[[str, Mapping[str, Any]], Grade],
    find_answer: Callable[[str], str | None],
    same_answer: Callable[[str], bool | None] = lambda text: None,
    conditions: Mapping[str, Any] = MappingProxyType({}),
) -> AttemptRow:
    """Return the row of an attempt, with its grade. An answer that cannot be graded is an error."""
    item, grade, same = attempt.item, None, None
    if not attempt_error(finished):
        try:
            grade = grade_of(finished.trace.text, item.gold)
            same = same_answer(finished.trace.text)
        except ProblemError as error:
            finished = replace(finished, error=error)
    return AttemptRow.of(
        finished,
        attempt.route,
        {"router": timing.router_seconds, "program": timing.program_seconds},
        **({"conditions": dict(conditions)} if conditions else {}),
        sample=attempt.sample,
        level=item.level,
        gold=dict(item.gold),
        grade=grade,
        same_as_target=same,
        answer=find_answer(finished.trace.text),
        wall_seconds=timing.seconds,
    )


def run_bench(request: Request, selected: Selection, path: Path, options: BenchOptions, display: Display) -> BenchRun:
    with (
        RunFolder(path, fresh=options.fresh) as folder,
        open_session(request, display, folder.earlier) as session,
    ):
        run = BenchRun(session, selected, folder, samples=options.samples)
        with offering_to_resume(session, folder):
            if run.todo:
                run.measure(replace(attempt, seconds=options.timeout) for attempt in run.todo)
    return run


@dataclass(frozen=True, slots=True)
class Preview:
    """What a benchmark would decide, and how many attempts are left."""

    decided: Setup
    num_attempts: int
    num_todo: int
    is_resumed: bool


def preview(request: Request, selected: Selection, path: Path, options: BenchOptions) -> Preview:
    """Plan a benchmark without running it. No server is asked.

    Raises UsageError or DamagedRunError if the folder's run cannot be continued.
    """
    began, statuses = None if options.fresh else begun_run(path, BENCH), {}
    if began is None:
        decided = decide(request, gather(request))
    else:
        decided = continued(request, began, gather)
        check_data_set(began.dataset, selected.dataset)
        statuses = {row.key: row.status for row in read_run_folder(path).rows}
    attempts = plan(selected.items, routes_of(request, decided), options.samples)
    return Preview(decided, len(attempts), len(missing(attempts, statuses)), began is not None)


def regrade(folder: RunFolder, task: Task) -> list[tuple[AttemptRow, AttemptRow]]:
    """Grade all finished answers again, without loading models. Return each changed row as (before, after).

    All rows are replaced at once.
    """
    with task.open_grader() as grader:
        graded = [(row, _graded(row, grader)) for row in folder.rows]
        answers = ungraded_answers(row for _, row in graded)
        pairs = [(before, _compared(row, task, grader, answers.get((row.id, row.sample)))) for before, row in graded]
    folder.rewrite(row for _, row in pairs)
    if folder.run:
        folder.save_run(folder.run.changed(grader=task.grader_version()))
    return [(before, now) for before, now in pairs if before.grade != now.grade]


def ungraded_answers(rows: Iterable[AttemptRow]) -> dict[SampleKey, str]:
    """Return the target's solutions that have no grade."""
    targets = [row for row in rows if row.policy == "target" and row.grade and row.grade.value == "unscored"]
    return {(row.id, row.sample): row.text for row in targets}


def _compared(row: AttemptRow, task: Task, grader: Grader, answer: str | None) -> AttemptRow:
    same = task.same_answer(grader, row.text, answer) if answer is not None and row.status == "done" else None
    return row.model_copy(update={"same_as_target": same})


def _graded(row: AttemptRow, grader: Grader) -> AttemptRow:
    return row.model_copy(update={"grade": grader.grade(row.text, row.gold)}) if row.status == "done" else row

"""Plans and runs a benchmark: measures the time of each attempt, and stores a row for it.

All policies solve a block of problems before the next block begins. The order of the policies is random in each block, so a
slowdown of the machine affects all policies, and no policy always follows the same other policy. A block is a single problem
or, if several problems are solved at once, a few problems for each slot.
"""

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from arbitrage_cli.app.attempts.attempts import Attempt
from arbitrage_cli.app.attempts.loop import Stopwatch
from arbitrage_cli.app.attempts.run_record import RunDetails
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.attempts.stored_run import StoredRun, offering_to_resume
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import InterruptedRunError, ProblemError
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.problems.tasks import Grader, Task, is_correct
from arbitrage_cli.rewards import Continuations, with_rollouts
from arbitrage_cli.routing.policies import TARGET_ALONE
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import RouterCard
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import ADVISE, BENCH, Command, attempt_error
from arbitrage_cli.runs.results import Result, SampleKey
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import Fields, Finished, Grade, Trace

ROUNDS = 4  # the number of problems in a block per slot


def plan_attempts(items: Sequence[Item], routes: Sequence[Route], samples: int, concurrency: int = 1) -> list[Attempt]:
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


def _card_of(session: Session) -> RouterCard | None:
    """Return the card of the run's router, if the run has one."""
    router = session.router.router if session.decided.router else None
    return router.card if router else None


def _warnings_of_router(card: RouterCard | None, items: Sequence[Item]) -> list[str]:
    """Return a warning if the router of the run was trained on some of the problems."""
    num_known = sum(card.known(item.problem.question for item in items)) if card else 0
    if card is None or not num_known:
        return []
    which = f"{num_known} of these {len(items)} problems"
    return [f"router {card.name} was trained on {which}, so its results are too optimistic"]


class BenchRun(StoredRun):
    """A benchmark: its attempts, those that are missing, and a result for each row in the folder.

    `name` is the command's, and `card` that of the router, if the run has one.
    """

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        *,
        samples: int = 1,
        name: Command = BENCH,
        ends: float = math.inf,
    ) -> None:
        self.results, self.card = list[Result](), _card_of(session)
        self._ungraded: dict[SampleKey, str] = {}
        self._before_target = set[SampleKey]()  # attempts with an answer that was stored before the target's
        attempts = plan_attempts(selected.items, session.routes, samples, session.concurrency)
        compares_with_target = session.task.name == "free" or not all(item.gold for item in selected.items)
        if compares_with_target:  # so the target answers first
            attempts.sort(key=lambda one: (one.block, one.sample, one.route.policy is not TARGET_ALONE))
        details = RunDetails(
            samples=samples,
            skips_attempts=name == ADVISE,
            warnings=_warnings_of_router(self.card, selected.items),
        )
        super().__init__(session, selected, folder, attempts, name, ends, details)

    def measure(self, attempts: Iterable[Attempt], is_kept: Callable[[AttemptRow], bool] = lambda row: True) -> None:
        """Make attempts of `todo`. Attempts whose rows are not kept count as missing."""
        session = self.session

        def row(attempt: Attempt, finished: Finished, timing: Stopwatch) -> AttemptRow | None:
            if isinstance(finished.error, InterruptedRunError):
                return None
            made = self._row(grader, attempt, finished, timing)
            return made if is_kept(made) else None

        with session.task.open_grader() as grader:
            session.load()
            for attempt in self.todo:  # the writers and the rater are not made while time is measured
                session.models.scheduler(attempt.route)
            session.models.read_shared(session.limits)
            loop = self.loop(lambda one: session.models.scheduler(one.route), partial(self._flow, grader), row)
            for _ in loop.run(attempts):
                pass

    def _flow(self, grader: Grader, attempt: Attempt, trace: Trace) -> Flow:
        made = self.session.flow(attempt.route, attempt.sample)(trace)
        if attempt.route.policy.reward != "any" or self.session.decided.settings.reward != "rollout":
            return made
        return with_rollouts(made, Continuations(lambda text: is_correct(grader, text, attempt.item.gold)))

    def _row(self, grader: Grader, attempt: Attempt, finished: Finished, timing: Stopwatch) -> AttemptRow:
        task = self.session.task
        if self.session.concurrency > 1:  # the time of the program is that of several problems
            timing.program_seconds = None
        answer = self._ungraded.get((attempt.id, attempt.sample))
        return row_of(
            attempt,
            finished,
            timing,
            grader.grade,
            task.find_answer,
            lambda text: None if answer is None else task.same_answer(grader, text, answer),
        )

    def compare_earlier(self) -> None:
        """Compare answers with the target's answers that were stored after them. All rows are replaced at once."""
        if not self._before_target & self._ungraded.keys():
            return
        task, folder = self.session.task, self.folder
        with task.open_grader() as grader:
            rows = [_compared(row, task, grader, self._ungraded.get((row.id, row.sample))) for row in folder.rows]
        folder.rewrite(rows)
        self.results = [Result.of(row) for row in rows]
        self._before_target.clear()

    def label(self, route: Route) -> str:
        """Return a route's name for the progress display: a phrase in runs of `advise`."""
        if self.run.skips_attempts and route.policy is TARGET_ALONE:
            return "the target alone"
        return route.policy.phrase if self.run.skips_attempts and route.policy.phrase else route.label

    def count(self, row: AttemptRow) -> None:
        self.results.append(Result.of(row))
        self._ungraded |= ungraded_answers([row])
        key = row.id, row.sample
        if row.status == "done" and row.same_as_target is None and key not in self._ungraded:
            self._before_target.add(key)


def row_of(
    attempt: Attempt,
    finished: Finished,
    timing: Stopwatch,
    grade_of: Callable[[str, Fields], Grade],
    find_answer: Callable[[str], str | None],
    same_answer: Callable[[str], bool | None] = lambda text: None,
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
        sample=attempt.sample,
        level=item.level,
        gold=dict(item.gold),
        grade=grade,
        same_as_target=same,
        answer=find_answer(finished.trace.text),
        wall_seconds=timing.seconds,
    )


def run_bench(
    open_session: OpenSession, selected: Selection, path: Path, options: BenchOptions, samples: int, display: Display
) -> BenchRun:
    with RunFolder(path, fresh=options.fresh) as folder, open_session(display) as session:
        run = BenchRun(session, selected, folder, samples=samples)
        with offering_to_resume(session, folder):
            if run.todo:
                run.measure(replace(attempt, seconds=options.timeout) for attempt in run.todo)
            run.compare_earlier()
    return run


def regrade(folder: RunFolder, task: Task) -> list[tuple[AttemptRow, AttemptRow]]:
    """Grade all finished answers again, without loading models. Return each changed row as (before, after).

    All rows are replaced at once.
    """
    with task.open_grader() as grader:
        graded = [
            (row, row.model_copy(update={"grade": grader.grade(row.text, row.gold)}) if row.status == "done" else row)
            for row in folder.rows
        ]
        answers = ungraded_answers(row for _, row in graded)
        pairs = [(before, _compared(row, task, grader, answers.get((row.id, row.sample)))) for before, row in graded]
    folder.rewrite(row for _, row in pairs)
    if run := folder.run:
        protections = [one for one in run.protections if one in task.protections]  # those of all grading
        folder.save_run(run.changed(grader=task.grader_version(), protections=protections))
    return [(before, now) for before, now in pairs if before.grade != now.grade]


def ungraded_answers(rows: Iterable[AttemptRow]) -> dict[SampleKey, str]:
    """Return the target's solutions that have no grade."""
    targets = [row for row in rows if row.policy == TARGET_ALONE.name and row.grade and row.grade.value == "unscored"]
    return {(row.id, row.sample): row.text for row in targets}


def _compared(row: AttemptRow, task: Task, grader: Grader, answer: str | None) -> AttemptRow:
    """Return the row with its answer compared with the target's, if the target's `answer` has no grade."""
    same = None
    if answer is not None and row.status == "done" and row.policy != "target":
        with contextlib.suppress(ProblemError):  # a comparison that fails is no error of the attempt
            same = task.same_answer(grader, row.text, answer)
    return row.model_copy(update={"same_as_target": same})

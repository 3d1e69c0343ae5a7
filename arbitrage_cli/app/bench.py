"""Plans and runs a benchmark: measures the time of each attempt, and stores a row for it.

All policies solve a block of problems before the next block begins. The order of the policies is random in each block, so a
slowdown of the machine affects all policies, and no policy always follows the same other policy. A block is a single problem
or, if several problems are solved at once, a few problems for each slot.
"""

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from arbitrage_cli.app.loop import Attempt, StoredRun, missing, offering_to_resume
from arbitrage_cli.app.manifest import problem_facts, resume, settings_of, with_grader, with_grown
from arbitrage_cli.app.options import BenchOptions
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.protocol import Display, RunProgress
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.session import Session, open_session
from arbitrage_cli.app.spec import Run, Spec, make_spec
from arbitrage_cli.arbitrage import Flow, Scorer, WriteStep
from arbitrage_cli.arbitrage import Request as FlowRequest
from arbitrage_cli.errors import InterruptedRunError, ProblemError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.engine import as_speculator
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Rater, Refusals, Scheduler, Writer
from arbitrage_cli.problems.answers import boxed_answer
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.problems.tasks import Grader, Task, is_correct
from arbitrage_cli.routing.policies import Checker
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RUN, RunFolder, read_run_folder
from arbitrage_cli.runs.records import BENCH, attempt_error, tally_of
from arbitrage_cli.runs.results import Result, SampleKey
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import Event, Finished, Grade, Limits, ModelRole, Started, Step, Trace

ROUNDS = 4  # the number of problems in a block per slot

GradeSolution = Callable[[str, Mapping[str, Any]], Grade]
"""Grades a solution's text against `Item.gold`. Raises ProblemError if the grader fails."""
WritersFor = Callable[[Route], Mapping[ModelRole, Writer]]


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


@dataclass(slots=True)
class Bench:
    """Makes attempts, up to `concurrency` at a time.

    Sample k uses the sampler's seed + k. `seconds_for` returns the time limit of the next attempt, or None. `scorers` and
    `raters` are those of the policies, by name. `timer` measures the time spent on scores and in the program itself.
    """

    writers_for: WritersFor
    grade: GradeSolution
    limits: Limits
    sampler: Sampler
    same_as_target: Callable[[Attempt, str], bool | None] = lambda attempt, text: None
    is_needed: Callable[[Attempt], bool] = lambda attempt: True
    seconds_for: Callable[[], float | None] = lambda: None
    scorers: Mapping[str, Scorer | Checker | None] = field(default_factory=dict)
    raters: Mapping[str, Rater | None] = field(default_factory=dict)
    concurrency: int = 1
    find_answer: Callable[[str], str | None] = boxed_answer
    clock: Callable[[], float] = time.perf_counter
    timer: Callable[[], float] = time.perf_counter
    refusals: Refusals = field(default_factory=Refusals)
    _timings: "dict[str, _Timing]" = field(default_factory=dict)  # by problem

    def solve(self, attempts: Iterator[Attempt]) -> Generator[Event, None, None]:
        """Make the needed attempts, which have the same sample and route."""
        needed = filter(self.is_needed, attempts)
        if (first := next(needed, None)) is None:
            return
        writers, policy = self.writers_for(first.route), first.route.policy.name
        scheduler = Scheduler(
            writers,
            concurrency=self.concurrency,
            rater=self.raters.get(policy),
            speculator=as_speculator(writers.get("draft")),
        )
        jobs = (self._job(attempt, self.scorers.get(policy)) for attempt in itertools.chain([first], needed))
        with contextlib.closing(scheduler.run(jobs, refusals=self.refusals)) as events:
            yield from self._timed(events)

    def row(self, attempt: Attempt, finished: Finished) -> AttemptRow:
        item, grade, same = attempt.item, None, None
        timing = self._timings.pop(attempt.id, None) or _Timing(self.timer)
        if not attempt_error(finished):
            try:
                grade = self.grade(finished.trace.text, item.gold)
                same = self.same_as_target(attempt, finished.trace.text)
            except ProblemError as error:
                finished = replace(finished, error=error)
        return AttemptRow.of(
            finished,
            attempt.route,
            {"router": timing.router_seconds, "program": timing.program_seconds if self.concurrency == 1 else None},
            sample=attempt.sample,
            level=item.level,
            gold=dict(item.gold),
            grade=grade,
            same_as_target=same,
            answer=self.find_answer(finished.trace.text),
            wall_seconds=timing.seconds,
        )

    def _job(self, attempt: Attempt, scorer: Scorer | Checker | None) -> Job:
        timing = self._timings[attempt.id] = _Timing(self.timer)
        sampler = replace(self.sampler, seed=self.sampler.seed + attempt.sample)

        def make_flow(trace: Trace) -> Flow:
            return timing.follow(attempt.route.flow(trace, sampler.seed, scorer))

        seconds = self.seconds_for()
        deadline = None if seconds is None else Deadline(self.clock() + seconds, seconds, self.clock)
        return Job(attempt.item.problem, make_flow, self.limits, deadline, sampler)

    def _timed(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events, and measure by `clock` and by `timer` without the caller's time."""
        now = timed = 0.0
        while True:
            began, timer_began = self.clock(), self.timer()
            event = next(events, None)
            timed += self.timer() - timer_began
            now += self.clock() - began
            if event is None:
                return
            if isinstance(event, Started):
                self._timings[event.trace.problem.id].begin(now, timed)
            elif isinstance(event, Finished):
                self._timings[event.trace.problem.id].end(event, now, timed)
            yield event


@dataclass(slots=True)
class _Timing:
    """The time of an attempt, in seconds. `router_seconds` is the time in which the policy scored steps and decided."""

    timer: Callable[[], float]
    seconds: float = 0.0
    router_seconds: float = 0.0
    program_seconds: float | None = None  # outside the models and the policy
    _began: tuple[float, float] = (0.0, 0.0)

    def begin(self, now: float, timed: float) -> None:
        self._began = now, timed

    def end(self, finished: Finished, now: float, timed: float) -> None:
        model_seconds = tally_of(finished).seconds
        self.seconds = now - self._began[0]
        self.program_seconds = max(0.0, timed - self._began[1] - model_seconds - self.router_seconds)

    def follow(self, flow: Flow) -> Flow:
        """Yield a flow's requests, and measure the time from each response to the next request."""
        with contextlib.closing(flow):
            answer: Step | tuple[float, ...] | None = None
            while True:
                began = self.timer()
                try:
                    request = flow.send(answer)
                except StopIteration:
                    return
                finally:
                    self.router_seconds += self.timer() - began
                answer = yield self._with_timed_scores(request)

    def _with_timed_scores(self, request: FlowRequest) -> FlowRequest:
        if not isinstance(request, WriteStep) or request.early_stop is None:
            return request
        score_of = request.early_stop.score_of

        def timed(trace: Trace, prefix: Step) -> float:
            began = self.timer()
            score = score_of(trace, prefix)
            self.router_seconds += self.timer() - began
            return score

        return replace(request, early_stop=replace(request.early_stop, score_of=timed))


class BenchRun(StoredRun):
    """A benchmark, in which an attempt may take `timeout` seconds. `results` contains a result for each row in the folder."""

    name = BENCH

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        *,
        samples: int = 1,
        timeout: float | None = None,
        **facts: Any,
    ) -> None:
        self.results: list[Result] = []
        self._timeout, self._ungraded = timeout, dict[SampleKey, str]()
        spec, items, concurrency = session.spec, selected.items, session.concurrency
        attempts = plan(items, spec.routes, samples, concurrency)
        if spec.task.name == "free" or not all(item.gold for item in items):  # answers are compared with the target's
            attempts.sort(key=lambda one: (one.block, one.sample, one.route.policy.name != "target"))
        router, warnings = spec.deciding_router, []
        if router and (known := sum(router.card.known(item.problem.question for item in items))):
            which = f"{known} of these {len(items)} problems"
            warnings = [f"router {router.card.name} was trained on {which}, so its results are too optimistic"]
        details = {"samples": samples, "warnings": warnings, "concurrency": concurrency, **facts}
        super().__init__(session, selected, folder, attempts, **details)

    def count(self, row: AttemptRow) -> None:
        self.results.append(Result.of(row))
        self._ungraded |= ungraded_answers([row])

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
                session.writers(attempt.route)
            self.begin(bench).run(self.todo)

    def is_kept(self, finished: Finished, row: AttemptRow) -> bool:
        return not isinstance(finished.error, InterruptedRunError)

    def _bench(self, grader: Grader) -> Bench:
        session, spec = self.session, self.session.spec
        policies = {attempt.route.policy.name: attempt.route.policy for attempt in self.todo}
        golds = {attempt.id: attempt.item.gold for attempt in self.todo}

        def is_right(problem: str, text: str) -> bool:
            return is_correct(grader, text, golds[problem])

        def same_as_target(attempt: Attempt, text: str) -> bool | None:
            answer = self._ungraded.get((attempt.id, attempt.sample))
            return None if answer is None else spec.task.same_answer(grader, text, answer)

        return Bench(
            session.writers,
            grader.grade,
            spec.limits,
            spec.sampler,
            same_as_target,
            self.is_needed,
            self.seconds_for,
            {name: session.scorer(policy) for name, policy in policies.items()},
            {name: session.rater(policy, is_right) for name, policy in policies.items()},
            concurrency=session.concurrency,
            find_answer=spec.task.find_answer,
            timer=session.writing.clock,
        )


def run_bench(request: Request, selected: Selection, path: Path, options: BenchOptions, display: Display) -> BenchRun:
    with (
        RunFolder(path, fresh=options.fresh) as folder,
        open_session(request, display, folder.earlier) as session,
    ):
        run = BenchRun(session, selected, folder, samples=options.samples, timeout=options.timeout)
        with offering_to_resume(session, folder):
            if run.todo:
                run.measure()
    return run


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
    spec = make_spec(request, earlier, concurrency=request.concurrency, asks_servers=False)
    if earlier:
        known = problem_facts(selected.dataset, [item.problem.id for item in selected.items])
        known |= {"settings": settings_of(spec)}
        resume(with_grown(earlier, selected.dataset), {**earlier, **known}, path)
    attempts = plan(selected.items, spec.routes, options.samples)
    todo = missing(attempts, {one.attempt: "done" if one.is_done else "error" for one in results})
    routes = {attempt.route for attempt in todo}
    seconds = {route.label: _expected(route, spec, results) for route in spec.routes if route in routes}
    return Preview(spec, len(attempts), todo, contents is not None, seconds)


def _expected(route: Route, spec: Spec, results: Iterable[Result]) -> float | None:
    known = [one.seconds for one in results if one.seconds is not None and one.route == replace(route, stops_early=False)]
    return mean(known) if known else spec.available_router.expected_seconds(route)


def regrade(folder: RunFolder, task: Task) -> list[tuple[AttemptRow, AttemptRow]]:
    """Grade all finished answers again, without loading models. Return each changed row as (before, after).

    All rows are replaced at once.
    """
    with task.open_grader() as grader:
        graded = [(row, _graded(row, grader)) for row in folder.rows]
        answers = ungraded_answers(row for _, row in graded)
        pairs = [(before, _compared(row, task, grader, answers.get((row.id, row.sample)))) for before, row in graded]
    folder.rewrite(row for _, row in pairs)
    folder.save_run(with_grader(folder.run or {}, task.grader_version()))
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

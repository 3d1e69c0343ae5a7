"""Collects training states: writes every step with both models, and stores the states of each problem."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from arbitrage_cli.app.benchmark import Attempt, Began, Ended, RunEvent, Standing
from arbitrage_cli.app.executor import Executor, Remaining, how_to_resume, prepare
from arbitrage_cli.app.manifest import add_loaded
from arbitrage_cli.app.options import CollectOptions
from arbitrage_cli.app.protocol import Display, RunProgress
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session
from arbitrage_cli.arbitrage import Flow, single
from arbitrage_cli.errors import InterruptedRunError, OutputError
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Rater, Scheduler, Writer
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.task import Grader, is_correct
from arbitrage_cli.rewards.rollouts import RecallingWriter, RolloutRater
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import COLLECT, SCHEMA, attempt_error, tau_in_json
from arbitrage_cli.runs.rows import CollectedRow
from arbitrage_cli.runs.summary import tally_of
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.training.states import State, collect, state_to_json
from arbitrage_cli.types import Event, Finished, ModelRole, Problem, Started, Trace

ROLLOUT_TEMPERATURE = 0.7  # with more than one rollout
PACE_PROBLEMS = 3
"""The number of finished problems from which the remaining time is estimated."""


class Collection:
    """A collection run. Raises UsageError if the folder contains a run with different settings."""

    def __init__(
        self, session: Session, selected: Selection, folder: RunFolder, options: CollectOptions, display: Display
    ) -> None:
        self._session, self._spec, self._folder = session, session.spec, folder
        self._title, self._options, self._display = f"collect {selected.title}", options, display
        self._attempts = [Attempt(item, 0, self._spec.route) for item in selected.items]
        self._golds: dict[str, Any] = {item.problem.id: item.gold for item in selected.items}
        self._unanswered = {name for name, gold in self._golds.items() if not gold and session.spec.reward == "rollout"}
        self._states: dict[str, list[State]] = {}
        self._in_flight: dict[str, tuple[Attempt, Trace]] = {}
        reward = self._reward_facts()
        self._todo, self._manifest = prepare(session, selected, folder, self._attempts, kind=COLLECT, reward=reward)
        self._held = {row.id: len(row.states) for row in folder.rows}  # of several rows, the last one counts
        self.has_grown = bool(self._todo.all)

    @property
    def num_states(self) -> int:
        return sum(self._held.values())

    @property
    def num_problems(self) -> int:
        return len(self._held)

    @property
    def has_errors(self) -> bool:
        return any(self._folder.statuses.get(attempt.key) == "error" for attempt in self._attempts)

    @property
    def how_to_resume(self) -> str:
        num_done = sum(self._folder.statuses.get(attempt.key) == "done" for attempt in self._attempts)
        return how_to_resume(num_done, len(self._attempts), "problems", self._folder.path, self._spec)

    def run(self) -> None:
        if not self._todo.all:
            return
        session, spec, options = self._session, self._spec, self._options
        session.load(rollouts=options.rollouts)
        samplers = [
            Sampler(_temperature(options), 1.0, session.spec.sampler.seed + number) for number in range(options.rollouts)
        ]
        with spec.task.open_grader() as grader:
            rollouts = Rollouts(lambda problem, text: is_correct(grader, text, self._golds[problem]), samplers)
            rater = session.rater(spec.route.policy, rollouts)
            writers: dict[ModelRole, Writer] = {
                role: session.models[role].own_writer(role, session.writing) for role in spec.route.policy.models
            }
            if count := len(self._unanswered & {attempt.item.problem.id for attempt in self._todo.all}):
                which = f"{formatting.count(count, 'problem')} without a known answer"
                self._display.note(f"{which}: the target's own answer is assumed to be correct")
            loaded = add_loaded(self._manifest, session.models)
            self._folder.save_run({**loaded, "protections": list(grader.protections)})
            if isinstance(rater, RolloutRater) and samplers[0] == session.spec.sampler:
                writers["target"] = RecallingWriter(writers["target"], rater)
            self._execute(writers, rater, grader)

    def _execute(self, writers: Mapping[ModelRole, Writer], rater: Rater | None, grader: Grader) -> None:
        """Store each problem as soon as it is solved. If the run is interrupted, store the states of unfinished problems."""
        limits = self._session.spec.limits
        scheduler = Scheduler(writers, concurrency=self._session.concurrency, rater=rater)
        progress = _Progress(self._todo, len(self._attempts), self._held, self._title, self._session.concurrency)
        executor = Executor(self._folder, self._display, progress, self._is_better)
        try:
            executor.run(self._todo, partial(self._solve, scheduler, grader), self._row, limits)
        finally:
            with (
                noted_signals(),
                contextlib.suppress(OutputError),
            ):  # an OutputError that interrupted the run is already shown
                for name, (attempt, trace) in list(self._in_flight.items()):
                    if len(self._states.get(name, ())) > self._held.get(name, 0):
                        error = None if trace.finished else InterruptedRunError("interrupted")
                        executor.keep(attempt, self._row(attempt, Finished(trace, error)))

    def _solve(self, scheduler: Scheduler, grader: Grader, attempts: Sequence[Attempt]) -> Generator[RunEvent, None, None]:
        """Collect the training states of these problems. If a problem has no known answer, the target solves it first."""
        by_id = {attempt.item.problem.id: attempt for attempt in attempts}
        jobs = deque(self._job(attempt.item.problem) for attempt in attempts)
        upcoming = iter(lambda: jobs.popleft() if jobs else None, None)
        with contextlib.closing(scheduler.run(upcoming, lambda: bool(jobs))) as events:
            for event in events:
                attempt = by_id[event.trace.problem.id]
                name = attempt.item.problem.id
                if isinstance(event, Finished) and name in self._unanswered and not event.error:
                    self._unanswered.remove(name)
                    answer = grader.grade(event.trace.text, {}).answer
                    self._golds[name] = {"answer": answer} if answer else {}
                    jobs.appendleft(self._job(attempt.item.problem))
                else:
                    yield from self._reported(attempt, event)

    def _reported(self, attempt: Attempt, event: Event) -> Iterator[RunEvent]:
        name = attempt.item.problem.id
        if isinstance(event, Started):
            has_begun = name in self._in_flight
            self._in_flight[name] = attempt, event.trace
            if has_begun:  # when the target solved it alone
                return
            yield Began(attempt)
        yield event
        if isinstance(event, Finished):
            yield Ended(attempt, self._row(attempt, event))
            del self._in_flight[name]  # now it has its row
            self._states.pop(name, None)

    def _job(self, problem: Problem) -> Job:
        flow = partial(single, model="target") if problem.id in self._unanswered else self._collecting
        return Job(problem, flow, self._session.spec.limits)

    def _collecting(self, trace: Trace) -> Flow:
        return collect(trace, self._states.setdefault(trace.problem.id, []).append)

    def _row(self, attempt: Attempt, event: Finished) -> CollectedRow:
        error = attempt_error(event)
        figures = tally_of(event)
        return CollectedRow(
            schema=SCHEMA,
            id=event.trace.problem.id,
            sample=0,
            policy=attempt.route.policy.name,
            tau=tau_in_json(attempt.route.tau),
            status="error" if error else "done",
            error=error,
            level=attempt.item.level,
            question=event.trace.problem.question,
            text=event.trace.text,
            states=[state_to_json(state) for state in self._states.get(event.trace.problem.id, ())],
            seconds=figures.seconds,
        )  # the states are valid even if the problem failed

    def _is_better(self, row: CollectedRow) -> bool:
        """Return whether a row should be stored. A failed problem's row must have at least as many states as the stored row."""
        is_better = row.status == "done" or len(row.states) >= self._held.get(row.id, 0)
        if is_better:
            self._held[row.id] = len(row.states)
        return is_better

    def _reward_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"kind": self._spec.reward}
        if self._spec.reward == "rollout":
            facts |= {"rollouts": self._options.rollouts, "temperature": _temperature(self._options)}
            facts |= {"answers": "target"} if self._unanswered else {}
        return facts


def _temperature(options: CollectOptions) -> float:
    return ROLLOUT_TEMPERATURE if options.rollouts > 1 else 0.0


class _Progress:
    """The progress of a collection, with an estimate of the time left. `held` counts the states of each problem."""

    def __init__(self, todo: Remaining, planned: int, held: Mapping[str, int], title: str, concurrency: int) -> None:
        self._left, self._planned, self._held, self._title = len(todo.all), planned, held, title
        self._others = concurrency - 1
        self._began = perf_counter()
        self._finished = self._errors = 0

    def add(self, attempt: Attempt, row: CollectedRow) -> None:
        self._finished += 1
        self._errors += row.status == "error"

    def now(self) -> RunProgress:
        tried = self._planned - self._left + self._finished
        standing = Standing(f"{sum(self._held.values())} states", self._planned, tried, tried - self._errors)
        return RunProgress(self._title, tried, self._planned, [standing], self._seconds_left)

    @property
    def _seconds_left(self) -> float | None:
        """The estimated time left, based on the mean time per problem so far. Problems in progress count as half done."""
        left = self._left - self._finished
        begun = min(self._others, left) / 2
        each = (perf_counter() - self._began) / (self._finished + begun) if self._finished >= PACE_PROBLEMS else None
        return each and each * (left - begun)

"""Collects states: loads the models, measures what their tokens cost, writes the states of each problem."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from arbitrage_cli.app.manifest import ChosenProblems, Run, add_loaded, resume, with_grown, with_problems
from arbitrage_cli.app.protocol import AttemptEnded, Display, RunProgress
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Rollouts, Session
from arbitrage_cli.app.setup import Setup
from arbitrage_cli.arbitrage import Flow, single
from arbitrage_cli.cli.collect import CollectOptions
from arbitrage_cli.cli.output import offering_to_resume
from arbitrage_cli.data.rows import Item
from arbitrage_cli.errors import InterruptedRunError, OutputError
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler, Writer
from arbitrage_cli.rewards.rollouts import Recalling, Rollout
from arbitrage_cli.routing.states import State as RecordedState
from arbitrage_cli.routing.states import state_to_json
from arbitrage_cli.runs.folder import COLLECT, SCHEMA, RunFolder, latest
from arbitrage_cli.runs.records import attempt_error, died
from arbitrage_cli.runs.started import GIVEN_UP
from arbitrage_cli.runs.summary import Standing, tally
from arbitrage_cli.system.held_signals import noted_signals
from arbitrage_cli.tasks.task import Grader, reaches
from arbitrage_cli.training.collect import better, collect
from arbitrage_cli.types import Cost, Decided, Decision, Event, Finished, ModelRole, Problem, Started, Trace

MEASURED_PROBLEMS = 5
"""Problems that each model first solves alone, at most: what a token costs with one problem at a time."""
MEASURED_SECONDS = 10.0
"""After this time a model's speed is known well enough."""


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What to collect, and where it goes."""

    selected: Selection
    path: Path
    options: CollectOptions
    fresh: bool = False

    @property
    def items(self) -> Sequence[Item]:
        """The problems."""
        return self.selected.items


@dataclass(frozen=True, slots=True)
class Collected:
    """What a run has come to."""

    num_states: int
    num_problems: int
    has_grown: bool
    has_errors: bool


def run_collection(setup: Setup, plan: CollectPlan, display: Display) -> Collected:
    """Collect what the plan's folder does not have yet. UsageError if it holds a run that was made with something else."""
    ids = {item.problem.id for item in plan.items}
    with RunFolder(plan.path, kind=COLLECT, fresh=plan.fresh) as folder, Session(setup, display) as session:
        for note in folder.notes:
            display.note(note)
        manifest = _manifest(session, plan)
        if folder.rows and folder.run:
            manifest = resume(with_grown(folder.run, plan.selected.dataset), manifest, plan.path)
            session.resume(manifest)
        done = {row["id"] for row in latest(folder.rows) if row["status"] == "done"}
        left = [item for item in plan.items if item.problem.id not in done]
        if left:
            run = _CollectRun(session, plan, left, folder, display)
            with offering_to_resume(display, lambda error: run.how_to_resume):
                run.collect(manifest)
        rows = list(latest(folder.rows))
    failed = any(row["status"] == "error" and row["id"] in ids for row in rows)
    return Collected(sum(len(row["states"]) for row in rows), len(rows), bool(left), failed)


def _manifest(session: Session, plan: CollectPlan) -> Run:
    options = plan.options
    sampled: dict[str, Any] = {"rollouts": options.rollouts, "temperature": _temperature(options)}
    if not all(item.gold for item in plan.items):
        sampled["answers"] = "target"
    details = {
        "kind": COLLECT,
        "reward": {"kind": session.setup.reward, **(sampled if session.setup.reward == "rollout" else {})},
    }
    chosen = ChosenProblems(
        plan.selected.dataset, [item.problem.id for item in plan.items], session.setup.task.grader_version(), details
    )
    return with_problems(session.manifest(), chosen)


def _temperature(options: CollectOptions) -> float:
    return options.rollout_temperature if options.rollouts > 1 else 0.0


@dataclass(frozen=True, slots=True)
class _CollectRun:
    """The problems that are left, and where their states go."""

    session: Session
    plan: CollectPlan
    left: Sequence[Item]
    folder: RunFolder
    display: Display

    @property
    def how_to_resume(self) -> str:
        """What is safe, and the command that resumes the run; "" if nothing is safe yet."""
        asked = {item.problem.id for item in self.plan.items}
        done = sum(row["status"] == "done" and row["id"] in asked for row in latest(self.folder.rows))
        safe = f"{done} of {len(self.plan.items)} problems are done and safe in {self.folder.path}"
        return f"{safe}; to resume: {self.session.setup.invocation.resuming}" if done else ""

    def collect(self, manifest: Run) -> None:
        """Load the models, and solve what is left."""
        session, setup, options = self.session, self.session.setup, self.plan.options
        session.choose_concurrency(most=len(self.left), rollouts=options.rollouts)
        session.load(rollouts=options.rollouts)
        samplers = [Sampler(_temperature(options), 1.0, setup.sampler.seed + number) for number in range(options.rollouts)]
        golds = {item.problem.id: item.gold for item in self.plan.items}
        with setup.task.open_grader() as grader:
            rollouts = Rollouts(lambda problem, text: reaches(grader, text, golds[problem]), samplers)
            rater = session.rater(setup.route.policy, rollouts)
            engines = {role: session.models[role].own_writer(role, session.writing) for role in setup.route.policy.models}
            golds |= self._target_answers(engines["target"], grader)
            costs = _known_costs(self.folder, manifest) or self._measure_costs(engines)
            loaded = add_loaded(manifest, session.models)
            self.folder.save_run({**loaded, "costs": costs, "protections": list(grader.protections)})
            target: Writer = engines["target"]
            if isinstance(rater, Rollout) and samplers[0] == setup.sampler:
                target = Recalling(engines["target"], rater)
            writers: dict[ModelRole, Writer] = {"draft": engines["draft"], "target": target}
            states: dict[str, list[RecordedState]] = {}

            def make_flow(trace: Trace) -> Flow:
                return collect(trace, better, states.setdefault(trace.problem.id, []).append)

            scheduler = Scheduler(writers, make_flow, setup.limits, concurrency=session.concurrency, rater=rater)
            self._follow(scheduler, states)

    def _target_answers(self, target: Writer, grader: Grader) -> dict[str, Any]:
        """The answers to reach of problems without a known one: those that the target itself gives."""
        unanswered = [item.problem for item in self.solvable if not item.gold]
        if self.session.setup.reward != "rollout" or not unanswered:
            return {}
        self.display.note(
            f"{len(unanswered)} problems have no known answer: the target solves them first, and its own answers are the ones to reach"
        )
        flow = partial(single, model="target")
        scheduler = Scheduler({"target": target}, flow, self.session.setup.limits, concurrency=self.session.concurrency)
        with contextlib.closing(self._solve(scheduler, unanswered)) as events:
            ended = [event.trace for event in events if isinstance(event, Finished)]
        answers = {trace.problem.id: grader.grade(trace.text, {}).answer for trace in ended}
        return {name: {"answer": answer} for name, answer in answers.items() if answer}

    def _measure_costs(self, engines: Mapping[ModelRole, Writer]) -> dict[str, float]:
        """Seconds per token of each model alone, one problem at a time, over some problems and at least one step of each."""
        problems = [item.problem for item in self.solvable[:MEASURED_PROBLEMS]]
        costs: dict[str, float] = {}
        for role, engine in engines.items():
            if isinstance(engine, Engine):
                engine.measure()
            scheduler = Scheduler({role: engine}, partial(single, model=role), self.session.setup.limits)
            with contextlib.closing(self._solve(scheduler, problems)) as events:
                figures = tally(decided_within(MEASURED_SECONDS, events))
            costs |= _per_token(role, figures.draft_cost if role == "draft" else figures.target_cost)
        return costs

    @property
    def solvable(self) -> list[Item]:
        """What is left without the problems that are given up; last those at which a process died."""
        deaths = self.folder.deaths
        found = [item for item in self.left if deaths.get(item.problem.id, 0) < GIVEN_UP]
        return sorted(found, key=lambda item: item.problem.id in deaths)

    def _give_up(self) -> Iterator[Event]:
        """Do not try what has ended other processes."""
        deaths = dict(self.folder.deaths)
        for problem in [item.problem for item in self.left if deaths.get(item.problem.id, 0) >= GIVEN_UP]:
            trace = Trace(problem, self.session.setup.limits)
            yield Started(trace)
            yield Finished(trace, died(deaths[problem.id]))
            self.folder.end(problem.id)

    def _solve(self, scheduler: Scheduler, problems: Sequence[Problem]) -> Generator[Event, None, None]:
        """Solve problems, each with a mark meanwhile; those at which a process died one at a time."""
        harmless = {problem.id for problem in problems} - self.folder.deaths.keys()
        with contextlib.closing(scheduler.run(problems, lambda: bool(harmless))) as events:
            for event in events:
                if isinstance(event, Started):
                    harmless.discard(event.trace.problem.id)
                    self.folder.begin(event.trace.problem.id)
                yield event
                if isinstance(event, Finished):
                    self.folder.end(event.trace.problem.id)

    def _follow(self, scheduler: Scheduler, states: dict[str, list[RecordedState]]) -> None:
        """Write each problem as soon as it is solved; if the run is broken off, those in flight with the states they have."""
        levels = {item.problem.id: item.level for item in self.plan.items}
        writer = _RowWriter(self.folder, self.session.check_files, states, levels)
        progress = _Progress(f"collect {self.plan.selected.title}", len(self.plan.items), len(self.left))
        self.display.begin(progress.now(writer.num_states))
        solving = self._solve(scheduler, [item.problem for item in self.solvable])
        with contextlib.closing(solving):
            events = itertools.chain(self._give_up(), solving)
            try:
                for event in events:
                    if isinstance(event, Started):
                        writer.in_flight[event.trace.problem.id] = event.trace
                    elif isinstance(event, Finished):
                        row = writer.write(event)
                        progress.count(row)
                        detail = row["error"] or f"{len(row['states'])} states"
                        now = progress.now(writer.num_states)
                        self.display.handle(AttemptEnded(row["id"], "collect", row["status"], detail, row["seconds"], now))
            finally:
                writer.write_unfinished()


class _RowWriter:
    """Writes the row of each problem."""

    def __init__(
        self,
        folder: RunFolder,
        check_files: Callable[[], None],
        states: dict[str, list[RecordedState]],
        levels: Mapping[str, str | int | None],
    ) -> None:
        self._folder, self._check_files, self._states, self._levels = folder, check_files, states, levels
        self._held = {row["id"]: len(row["states"]) for row in latest(folder.rows)}
        self.in_flight: dict[str, Trace] = {}

    @property
    def num_states(self) -> int:
        return sum(self._held.values())

    def write(self, event: Finished) -> dict[str, Any]:
        """Write the row of a problem; of one that failed only if no earlier attempt has more states, which go on to count."""
        name = event.trace.problem.id
        self._check_files()
        with noted_signals():  # a problem is in flight, or has its row
            row = _row(event, self._states.pop(name, []), self._levels[name])
            del self.in_flight[name]
            if row["status"] == "done" or len(row["states"]) >= self._held.get(name, 0):
                self._folder.append(row)
                self._held[name] = len(row["states"])
        return row

    def write_unfinished(self) -> None:
        """Write what is known of problems in flight, unless an earlier attempt has more."""
        with noted_signals(), contextlib.suppress(OutputError):  # if that is what broke it off, it is shown already
            for name, trace in list(self.in_flight.items()):
                if len(self._states[name]) > self._held.get(name, 0):
                    self.write(Finished(trace, InterruptedRunError("broken off")))


class _Progress:
    """How far a run is, and how long it will still take."""

    def __init__(self, title: str, planned: int, left: int) -> None:
        self._title, self._planned, self._left = title, planned, left
        self._began = perf_counter()
        self._finished = self._errors = 0

    def count(self, row: Mapping[str, Any]) -> None:
        """Count a problem that has its row."""
        self._finished += 1
        self._errors += row["status"] == "error"

    def now(self, num_states: int) -> RunProgress:
        """What the display shows."""
        each = (perf_counter() - self._began) / self._finished if self._finished else None
        tried = self._planned - self._left + self._finished
        standing = Standing(f"{num_states} states", self._planned, tried, tried - self._errors)
        return RunProgress(self._title, tried, self._planned, [standing], each and each * (self._left - self._finished))


def _known_costs(folder: RunFolder, manifest: Run) -> Any:
    """The costs in the folder; None if it has none, or those of another run that never came to a row."""
    earlier = folder.run or {}
    return earlier.get("costs") if folder.rows or earlier.get("fingerprint") == manifest["fingerprint"] else None


def decided_within(
    seconds: float, events: Iterable[object], clock: Callable[[], float] = perf_counter
) -> Iterator[Decision]:
    """The decisions of a run, up to the first after this time."""
    began = clock()
    for event in events:
        if isinstance(event, Decided):
            yield event.decision
            if clock() - began > seconds:
                return


def _per_token(role: ModelRole, cost: Cost) -> dict[str, float]:
    return {
        f"{role}_seconds_per_token": cost.decode_seconds / max(1, cost.decode_tokens),
        f"{role}_prefill_seconds_per_token": cost.prefill_seconds / max(1, cost.prefill_tokens),
    }


def _row(event: Finished, states: Sequence[RecordedState], level: str | int | None) -> dict[str, Any]:
    error = attempt_error(event)
    figures = tally(event.trace.decisions).rated(event.reward_cost)
    return {
        "schema": SCHEMA,
        "id": event.trace.problem.id,
        "sample": 0,
        "policy": "collect",
        "tau": None,
        "status": "error" if error else "done",
        "error": error,
        "level": level,
        "question": event.trace.problem.question,
        "text": event.trace.text,
        "states": [state_to_json(state) for state in states],  # each is true, whatever became of the problem
        "seconds": figures.seconds,
    }

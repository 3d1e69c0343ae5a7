"""Makes what `arbitrage collect` was asked for: loads the models, measures their costs, writes each problem's states."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from arbitrage_cli.arbitrage import Flow, single
from arbitrage_cli.cli.routing import make_rater, sequences
from arbitrage_cli.cli.run_facts import Setup, add_loaded
from arbitrage_cli.cli.session import open_backends
from arbitrage_cli.data.rows import Item
from arbitrage_cli.display.protocol import AttemptEnded, Display, RunProgress
from arbitrage_cli.errors import InterruptedRunError, OutputError
from arbitrage_cli.grading.grader import Grader
from arbitrage_cli.inference.backend import Backend
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler, Writer
from arbitrage_cli.rewards.rollouts import Recalling, Rollout
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.states import State as RecordedState
from arbitrage_cli.routing.states import state_to_json
from arbitrage_cli.runs.folder import SCHEMA, RunFolder, latest
from arbitrage_cli.runs.records import attempt_error
from arbitrage_cli.runs.summary import Standing, tally
from arbitrage_cli.system.signals import noted_signals, running_seconds
from arbitrage_cli.training.collect import Keep, collect
from arbitrage_cli.types import Cost, Decided, Decision, Finished, ModelRole, Problem, Started, Trace

MEASURED_PROBLEMS = 5
"""Solved by each model alone beforehand, at most: what a token costs when one problem is solved at a time."""
MEASURED_SECONDS = 10.0
"""After so long a model's speed is known well enough: all of those problems would take a large one minutes."""


@dataclass(frozen=True, slots=True)
class Gathering:
    """All problems that were asked for, those `left`, and where their states go."""

    setup: Setup
    items: Sequence[Item]
    left: Sequence[Item]
    folder: RunFolder
    display: Display
    keep: Keep
    concurrency: int
    target_samples: int
    rollouts: Sequence[Sampler]

    @property
    def how_to_go_on(self) -> str:
        """What is safe, and the command that goes on; "" if there is nothing yet."""
        asked = {item.problem.id for item in self.items}
        done = sum(row["status"] == "done" and row["id"] in asked for row in latest(self.folder.rows))
        safe = f"{done} of {len(self.items)} problems are done and safe in {self.folder.path}"
        return f"{safe}; to go on: {self.setup.to_go_on}" if done else ""


def gather(work: Gathering, run: Mapping[str, Any]) -> None:
    """Collect the states that are left. `run` is the content of run.json so far."""
    setup = work.setup
    policy = POLICIES["oracle"]
    with contextlib.ExitStack() as stack:
        grader = stack.enter_context(Grader())
        num_sequences = sequences([policy], setup.reward, len(work.rollouts), work.concurrency)
        backends = open_backends(setup.sources, setup.found, setup.load, setup.threads, work.display, stack, num_sequences)
        golds = {item.problem.id: item.gold for item in work.items}

        def is_right(identifier: str, text: str) -> bool:
            return grader.reaches(text, golds[identifier])

        rater = make_rater(
            policy,
            backends,
            reward=setup.reward,
            prm_style=setup.prm_style,
            instructions=setup.system,
            is_right=is_right,
            concurrency=work.concurrency,
            rollouts=work.rollouts,
        )
        engines = {role: _engine(role, backends[role], setup) for role in policy.models}
        costs = _known_costs(work.folder, run) or _costs(engines, [item.problem for item in work.left], setup)
        work.folder.save_run({**add_loaded(run, backends), "costs": costs})
        states: dict[str, list[RecordedState]] = {}

        def make_flow(trace: Trace) -> Flow:
            return collect(trace, work.keep, states.setdefault(trace.problem.id, []).append, work.target_samples)

        target: Writer = engines["target"]
        if isinstance(rater, Rollout) and work.rollouts[0] == setup.sampler:
            target = Recalling(engines["target"], rater)
        writers: dict[ModelRole, Writer] = {"draft": engines["draft"], "target": target}
        scheduler = Scheduler(writers, make_flow, setup.limits, concurrency=work.concurrency, rater=rater)
        _follow(scheduler, work, states)


def _engine(role: ModelRole, backend: Backend, setup: Setup) -> Engine:
    return Engine(role, backend, setup.sampler, instructions=setup.system, keep_token_stats=role == "draft")


def _known_costs(folder: RunFolder, run: Mapping[str, Any]) -> Any:
    """What the folder says of them; None if it says nothing, or was begun by another run that never came to a row."""
    earlier = folder.run or {}
    return earlier.get("costs") if folder.rows or earlier.get("fingerprint") == run["fingerprint"] else None


def _costs(engines: Mapping[ModelRole, Engine], problems: Sequence[Problem], setup: Setup) -> dict[str, float]:
    """Seconds per token of each model alone, one problem at a time, on some of the problems; at least one step of each."""
    costs: dict[str, float] = {}
    for role, engine in engines.items():
        engine.measure()
        scheduler = Scheduler({role: engine}, partial(single, model=role), setup.limits)
        with contextlib.closing(scheduler.run(problems[:MEASURED_PROBLEMS])) as events:
            figures = tally(decided_within(MEASURED_SECONDS, events))
        cost = figures.draft_cost if role == "draft" else figures.target_cost
        costs |= _per_token(role, cost)
    return costs


def decided_within(
    seconds: float, events: Iterable[object], clock: Callable[[], float] = running_seconds
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


def _follow(scheduler: Scheduler, work: Gathering, states: dict[str, list[RecordedState]]) -> None:
    """Write each problem as soon as it is solved; if the run is broken off, those in flight with the states that they have."""
    began = running_seconds()
    finished = errors = 0
    already = len(work.items) - len(work.left)
    held = {row["id"]: len(row["states"]) for row in latest(work.folder.rows)}

    def progress() -> RunProgress:
        seconds = running_seconds() - began
        left = (len(work.left) - finished) * seconds / finished if finished else None
        tried = already + finished
        standing = Standing(f"{sum(held.values())} states", len(work.items), tried, tried - errors)
        return RunProgress(f"collect {work.setup.dataset.name}", tried, len(work.items), [standing], left)

    work.display.begin(progress())
    levels = {item.problem.id: item.level for item in work.items}
    in_flight: dict[str, Trace] = {}

    def write(event: Finished) -> dict[str, Any]:
        """The row of a problem. One that failed has none where an earlier attempt came further, whose states go on to count."""
        name = event.trace.problem.id
        with noted_signals():  # a problem is in flight, or has its row
            row = _row(event, states.pop(name), levels[name])
            del in_flight[name]
            if row["status"] == "done" or len(row["states"]) >= held.get(name, 0):
                work.folder.append(row)
                held[name] = len(row["states"])
        return row

    with contextlib.closing(scheduler.run(item.problem for item in work.left)) as events:
        try:
            for event in events:
                if isinstance(event, Started):
                    in_flight[event.trace.problem.id] = event.trace
                elif isinstance(event, Finished):
                    row = write(event)
                    finished += 1
                    errors += row["status"] == "error"
                    told = row["error"] or f"{len(row['states'])} states"
                    ended = AttemptEnded(row["id"], "collect", row["status"], told, row["seconds"], progress())
                    work.display.handle(ended)
        finally:
            with noted_signals(), contextlib.suppress(OutputError):  # if that is what broke it off, it is told already
                for name, trace in list(in_flight.items()):
                    if len(states[name]) > held.get(name, 0):  # an earlier attempt may have come further
                        write(Finished(trace, InterruptedRunError("broken off")))


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

"""A run in its folder: the attempts that are missing, and its record, run.json.

run.json is created when a run begins, and extended when the run is resumed.
"""

import contextlib
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arbitrage_cli import __version__
from arbitrage_cli.app.loop import Attempt, Loop, RunCounts, Stopwatch, missing
from arbitrage_cli.app.resume import check_data_set
from arbitrage_cli.app.selection import Selection
from arbitrage_cli.app.session import Session
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import BENCH, RUN_SCHEMA
from arbitrage_cli.runs.run import MACHINE, Asked, DataSet, Run
from arbitrage_cli.types import Finished, Json, Trace


class StoredRun(ABC):
    """A run folder: its attempts, the missing attempts, and run.json. `name` is the command's.

    `count` is called for each row of the folder, and for each new row. The run stops at `ends`, by the monotonic clock.
    """

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        attempts: Sequence[Attempt],
        name: str,
        ends: float = math.inf,
        **details: Any,
    ) -> None:
        self.session, self.folder, self.attempts = session, folder, attempts
        self.todo = missing(attempts, folder.statuses)
        self.run = run_of(session, folder, selected, **details)
        routes = session.routes
        self._counts = RunCounts(f"{name} {selected.title}", routes, len(attempts) // len(routes), ends, self.label)
        route_of = {attempt.key: attempt.route for attempt in attempts}
        for row in folder.rows:
            self.count(row)
            if row.status == "done" and row.key in route_of:
                self._counts.add(route_of[row.key], row)

    @property
    def num_errors(self) -> int:
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)

    def label(self, route: Route) -> str:
        """Return the name of a route in the progress of the run."""
        return route.label

    @abstractmethod
    def count(self, row: Any) -> None:
        """Add a row of the folder, or a new one, to the results of the command."""

    def loop(
        self,
        scheduler: Callable[[Attempt], Scheduler],
        flow: Callable[[Attempt, Trace], Flow],
        row: Callable[[Attempt, Finished, Stopwatch], Any],
    ) -> Loop:
        """Return the loop that makes attempts, once the models are loaded."""
        session, settings = self.session, self.session.decided.settings
        self.run = with_loaded(self.run, session)
        self.folder.save_run(self.run)
        return Loop(
            scheduler=scheduler,
            flow=flow,
            limits=session.limits,
            row=row,
            display=session.display,
            store=self.folder,
            conditions=session.conditions,
            sampler=settings.sampler,
            kept=self.count,
            counts=self._counts,
            timer=session.models.writing.clock,
        )


def run_of(session: Session, folder: RunFolder, selected: Selection | None = None, **details: Any) -> Run:
    """Return the contents of run.json: those of the run to continue, with what is added now, or those of a new run.

    Raises UsageError if the data set or the grader differs, or if another process changed the run in the meantime.
    """
    plan = session.plan
    _check_same_run(folder, plan.began)
    if plan.began:
        return _continued(session, folder, plan.began, selected, **details)
    run = Run(
        schema=RUN_SCHEMA,
        kind=folder.kind,
        tool=__version__,
        created=formatting.timestamp(),
        asked=plan.asked,
        decided=plan.setup,
        places=dict(plan.places),
        **details,
    )
    return run if selected is None else run.changed(**_problems(selected), grader=session.task.grader_version())


def _check_same_run(folder: RunFolder, began: Run | None) -> None:
    """Raise UsageError if another process has begun or extended the run since it was read, before it was locked."""
    now = folder.earlier
    if now and now != began:
        raise UsageError(f"{folder.shown}: another process has changed this run", "repeat the command")


def with_loaded(run: Run, session: Session) -> Run:
    """Return the run with the facts that the loaded models reported."""
    models = session.models.descriptions
    has_files = any(session.decided.models[role].sha256 for role in models)
    flags = str(load_llama().system_info()) if has_files else run.flags
    protections = session.task.protections
    if began := session.plan.began:
        protections = [one for one in protections if one in began.protections]
    return run.changed(loaded={**run.loaded, **models}, flags=flags, protections=list(protections))


@contextlib.contextmanager
def offering_to_resume(session: Session, folder: RunFolder | None) -> Iterator[None]:
    """Show how to resume a run if it is interrupted for any reason."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ArbitrageError):  # a closed output stream is reported by its own error
            session.display.close()  # first, because a second Ctrl-C would leave the cursor hidden
            if folder and folder.statuses:
                saved = formatting.count(len(folder.statuses), "result")
                command = shlex.join(part for part in session.plan.command if part != "--fresh")
                session.display.note(f"{saved} saved in {folder.shown}; to resume: {command}")
        raise


def _continued(session: Session, folder: RunFolder, began: Run, selected: Selection | None, **details: Any) -> Run:
    decided, changed = session.decided, Json(details)
    asked = session.plan.asked
    warnings = [*began.warnings, *changed.pop("warnings", ())]
    if selected:
        check_data_set(began.dataset, selected.dataset)
        _check_grader(folder, began, session.task.grader_version())
        found = _problems(selected)
        changed |= found | {"levels": {**began.levels, **found["levels"]}}
        changed["samples"] = max(began.samples, details.get("samples", 1))
        asked = _not_shrunk(asked, began, changed)
    if began.reward:  # what is true of earlier rewards stays true
        changed["reward"] = began.reward | changed["reward"]
    if added := decided.routes[len(began.decided.routes) :]:
        count = "1 policy" if len(added) == 1 else f"{len(added)} policies"
        session.display.tell(f"adds {count} to a run with {len(began.decided.routes)}")
        names = ", ".join(one.route.label for one in added)
        warnings.append(f"measured later than the other policies, so the machine's speed may have changed: {names}")
    for name, now in session.conditions.items():
        if name in MACHINE:
            warnings.append(f"the {MACHINE[name]} changed during the run: {decided.machine[name]}, then {now}")
    if began.tool != __version__:
        warnings.append(f"the results come from two versions of arbitrage: {began.tool} and {__version__}")
    changed |= {"asked": asked, "decided": decided, "places": {**began.places, **session.plan.places}}
    return began.changed(**changed, warnings=list(dict.fromkeys(warnings)))


def _not_shrunk(asked: Asked, began: Run, changed: Json) -> Asked:
    """Return what was asked. A selection of the run's own problems, or fewer samples, is only for this command."""
    kept: list[str] = []
    if changed["levels"].keys() == began.levels.keys():
        kept += ["limit", "ids"]
    if changed["samples"] == began.samples:
        kept.append("samples")
    before = {name: began.asked.options[name] for name in kept if name in began.asked.options}
    now = {name: value for name, value in asked.options.items() if name not in kept}
    return asked.model_copy(update={"options": now | before})


def _check_grader(folder: RunFolder, began: Run, version: str) -> None:
    if began.grader == version:
        return
    regrade = f"grade the answers again: {shlex.join(['arbitrage', 'report', str(folder.shown), '--regrade'])}"
    hint = regrade if began.kind == BENCH else "use another --output"
    raise UsageError(f"{folder.shown}: grader changed from {began.grader} to {version}", hint)


def _problems(selected: Selection) -> Json:
    dataset: Dataset = selected.dataset
    known = DataSet(name=dataset.name, revision=dataset.revision, sha256=dataset.sha256, count=len(dataset.items))
    return {"dataset": known, "levels": {item.problem.id: item.level for item in selected.items}}

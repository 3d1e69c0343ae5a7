"""Makes run.json when a run begins, and extends it when the run is resumed."""

import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence

from arbitrage_cli import __version__
from arbitrage_cli.app.asking.resume import check_data_set
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.opening.session import Session
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import BENCH, RUN_SCHEMA, Level
from arbitrage_cli.runs.run import MACHINE, Asked, DataSet, Run
from arbitrage_cli.types import Json, frozen


@frozen
class RunDetails:
    """What a command adds to run.json, as `runs.run.Run` describes it. `samples` are those of this command."""

    samples: int = 1
    reward: Json | None = None
    skips_attempts: bool = False
    warnings: Sequence[str] = ()


def run_of(session: Session, folder: RunFolder, selected: Selection | None = None, details: RunDetails | None = None) -> Run:
    """Return the contents of run.json: those of the run to resume, with what is added now, or those of a new run.

    Runs of `solve` have no selection of problems. Raises UsageError if the data set or the grader differs, or if another
    process changed the run in the meantime.
    """
    resumed = session.plan.resumed
    details = details or RunDetails()
    _check_same_run(folder, resumed)
    if resumed:
        return _extended(session, folder, resumed, selected, details)
    return Run(
        schema=RUN_SCHEMA,
        id=secrets.token_hex(8),
        kind=folder.kind,
        tool=__version__,
        created=formatting.timestamp(),
        asked=session.plan.asked,
        decided=session.plan.setup,
        places=dict(session.plan.places),
        dataset=_data_set(selected.dataset) if selected else None,
        levels=_levels(selected) if selected else {},
        samples=details.samples,
        grader=session.task.grader_version() if selected else None,
        reward=details.reward,
        skips_attempts=details.skips_attempts,
        warnings=list(details.warnings),
    )


def with_loaded(run: Run, session: Session) -> Run:
    """Return the run with the facts that the loaded models reported."""
    models = session.models.descriptions
    has_files = any(session.decided.models[role].sha256 for role in models)
    flags = str(load_llama().system_info()) if has_files else run.flags
    protections = session.task.protections
    if resumed := session.plan.resumed:
        protections = [one for one in protections if one in resumed.protections]
    return run.changed(loaded={**run.loaded, **models}, flags=flags, protections=list(protections))


def _check_same_run(folder: RunFolder, resumed: Run | None) -> None:
    """Raise UsageError if another process has begun or extended the run since it was read, before it was locked."""
    now = folder.resumed
    if now and now != resumed:
        raise UsageError(f"{folder.shown}: another process has changed this run", "repeat the command")


def _extended(session: Session, folder: RunFolder, resumed: Run, selected: Selection | None, details: RunDetails) -> Run:
    """Return the run with the problems, samples and policies that are added now, and with warnings about the changes."""
    plan = session.plan
    asked, dataset, levels, samples = plan.asked, resumed.dataset, resumed.levels, resumed.samples
    if selected:
        check_data_set(resumed.dataset, selected.dataset)
        _check_grader(folder, resumed, session.task.grader_version())
        dataset = _data_set(selected.dataset)
        levels = {**resumed.levels, **_levels(selected)}
        samples = max(resumed.samples, details.samples)
        asked = _not_shrunk(asked, resumed, levels, samples)
    if num_added := len(session.decided.routes) - len(resumed.routes):
        count = "1 policy" if num_added == 1 else f"{num_added} policies"
        session.display.tell(f"adds {count} to a run with {len(resumed.routes)}")
    reward = details.reward
    if resumed.reward and reward:
        reward = resumed.reward | reward  # what is true of earlier rewards stays true
    warnings = [*resumed.warnings, *details.warnings, *_warnings_of_changes(session, resumed)]
    return resumed.changed(
        asked=asked,
        decided=session.decided,
        places={**resumed.places, **plan.places},
        dataset=dataset,
        levels=levels,
        samples=samples,
        reward=reward,
        skips_attempts=details.skips_attempts,
        warnings=list(dict.fromkeys(warnings)),
    )


def _warnings_of_changes(session: Session, resumed: Run) -> Iterator[str]:
    """Yield warnings about what has changed since the run began, so that its times may differ."""
    decided = session.decided
    if added := decided.routes[len(resumed.routes) :]:
        names = ", ".join(one.route.label for one in added)
        yield f"measured later than the other policies, so the machine's speed may have changed: {names}"
    for name, now in session.conditions.items():
        if name in MACHINE:
            yield f"the {MACHINE[name]} changed during the run: {decided.machine[name]}, then {now}"
    if resumed.tool != __version__:
        yield f"the results come from two versions of arbitrage: {resumed.tool} and {__version__}"


def _not_shrunk(asked: Asked, resumed: Run, levels: Mapping[str, Level], samples: int) -> Asked:
    """Return what was asked. A selection of the run's own problems, or fewer samples, is only for this command."""
    kept: list[str] = []
    if levels.keys() == resumed.levels.keys():
        kept += ["limit", "ids"]
    if samples == resumed.samples:
        kept.append("samples")
    before = {name: resumed.asked.options[name] for name in kept if name in resumed.asked.options}
    now = {name: value for name, value in asked.options.items() if name not in kept}
    return asked.model_copy(update={"options": now | before})


def _check_grader(folder: RunFolder, resumed: Run, version: str) -> None:
    if resumed.grader == version:
        return
    regrade = f"grade the answers again: {shlex.join(['arbitrage', 'report', str(folder.shown), '--regrade'])}"
    hint = regrade if resumed.kind == BENCH else "use another --output"
    raise UsageError(f"{folder.shown}: grader changed from {resumed.grader} to {version}", hint)


def _data_set(dataset: Dataset) -> DataSet:
    return DataSet(name=dataset.name, revision=dataset.revision, sha256=dataset.sha256, count=len(dataset.items))


def _levels(selected: Selection) -> dict[str, Level]:
    return {item.problem.id: item.level for item in selected.items}

"""The record of a command's run: made when it begins, and added to when it continues."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from arbitrage_cli import __version__
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.resume import asked_options, check_data_set, differs
from arbitrage_cli.app.session import Session
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.model_files.pairs import is_gguf
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.rows import Dataset
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import BENCH, RUN_SCHEMA, Kind
from arbitrage_cli.runs.run import Asked, DataSet, Run

CHANGES: Mapping[str, str] = {"cpu": "processor", "gpu": "GPU", "llama_cpp_python": "llama-cpp-python"}


def run_of(session: Session, folder: RunFolder, kind: Kind, selected: Selection | None = None, **details: Any) -> Run:
    """Return the contents of run.json: those of the run to continue, with what is added now, or those of a new run.

    Raises UsageError if the data set, the grader or, in `bench`, the concurrency is another one.
    """
    if folder.earlier:
        return _continued(session, folder, folder.earlier, selected, **details)
    options = session.request.options
    run = Run(
        schema=RUN_SCHEMA,
        kind=kind,
        tool=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        asked=Asked(command=list(options.command), options=asked_options(options)),
        decided=session.decided,
        **details,
    )
    return run if selected is None else run.changed(**_problems(selected), grader=session.task.grader_version())


def with_loaded(run: Run, session: Session) -> Run:
    """Return the run with what the loaded models said."""
    models = session.models.descriptions
    has_files = any(is_gguf(session.decided.sources[role]) for role in models)
    flags = str(load_llama().system_info()) if has_files else run.flags
    return run.changed(loaded={**run.loaded, **models}, flags=flags, protections=list(session.task.protections))


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
                command = shlex.join(part for part in session.request.options.command if part != "--fresh")
                session.display.note(f"{saved} saved in {folder.shown}; to resume: {command}")
        raise


def _continued(session: Session, folder: RunFolder, began: Run, selected: Selection | None, **details: Any) -> Run:
    decided, changed = session.decided, dict[str, Any](details)
    warnings = [*began.warnings, *changed.pop("warnings", ())]
    if began.kind == BENCH and (concurrency := session.conditions.get("concurrency")):
        raise differs("concurrency", decided.concurrency, concurrency)
    if selected:
        check_data_set(began.dataset, selected.dataset)
        _check_grader(folder, began, session.task.grader_version())
        found = _problems(selected)
        changed |= found | {"levels": {**began.levels, **found["levels"]}}
        changed["samples"] = max(began.samples, details.get("samples", 1))
    if added := decided.routes[len(began.decided.routes) :]:
        names = ", ".join(one.route.label for one in added)
        warnings.append(f"policies measured after the others, so the machine's speed may have changed: {names}")
    for name, now in session.conditions.items():
        if name in CHANGES:
            warnings.append(f"the {CHANGES[name]} changed during the run: {decided.machine[name]}, then {now}")
    if began.tool != __version__:
        warnings.append(f"the results come from two versions of arbitrage: {began.tool} and {__version__}")
    return began.changed(**changed, decided=decided, warnings=list(dict.fromkeys(warnings)))


def _check_grader(folder: RunFolder, began: Run, version: str) -> None:
    if began.grader == version:
        return
    regrade = f"grade the answers again: {shlex.join(['arbitrage', 'report', str(folder.shown), '--regrade'])}"
    hint = regrade if began.kind == BENCH else "use another path (--output)"
    raise UsageError(f"{folder.shown}: grader changed from {began.grader} to {version}", hint)


def _problems(selected: Selection) -> dict[str, Any]:
    dataset: Dataset = selected.dataset
    known = DataSet(name=dataset.name, revision=dataset.revision, sha256=dataset.sha256, count=len(dataset.items))
    return {"dataset": known, "levels": {item.problem.id: item.level for item in selected.items}}

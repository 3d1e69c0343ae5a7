"""Measures and removes the unit costs of models for commands."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

from arbitrage_cli.app.model_choice import NamedModels
from arbitrage_cli.app.protocol import Watcher
from arbitrage_cli.app.request import Request
from arbitrage_cli.app.spec import Run
from arbitrage_cli.costs.measure import PROBE_SECONDS, Measurement, measure_and_keep
from arbitrage_cli.costs.placement import find_measurements, tuned_file
from arbitrage_cli.costs.store import Tuned, forget_advice, forget_tuned, keep_tuned
from arbitrage_cli.errors import ModelFileError, OutputError, UsageError
from arbitrage_cli.evaluation.work import decoding_factors
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import find_files, is_gguf, local_files
from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.results import Result, concurrency_of, results_by_policy, unit_costs_of
from arbitrage_cli.types import ModelRole

CONTRADICTED = 2.0  # the factor from which a run contradicts the stored costs
MIN_SECONDS = 1e-3  # the program takes most of the time of faster tokens


def measure_costs(named: NamedModels, display: Watcher, *, offline: bool) -> Measurement:
    """Measure and store the unit costs of both models.

    Raises UsageError if llama.cpp cannot run a model on this machine; OutputError if the costs cannot be stored.
    """
    paths = fetch(_local_models(named), display, offline=offline)
    keep_tuned(tuned_file(), [])  # fail before measuring if the file cannot be read or written
    return measure_and_keep(paths, named.load, display.loading, display.note)


def measure_missing(
    request: Request,
    found: Mapping[ModelRole, str],
    display: Watcher,
    earlier: Run | None,
    max_age: timedelta = timedelta.max,
    limit: float = PROBE_SECONDS,
) -> None:
    """Measure and store the unit costs of the request's models, which `fetch` has found.

    Costs are not measured if a resumed run contains them, if they were measured within `max_age`, or if the draft runs without
    a target. `limit` is the maximum time for the probes, in seconds.
    """
    load = request.named.load
    paths: dict[ModelRole, str] = {role: path for role, path in found.items() if role != "prm" and is_gguf(path)}
    if "target" not in paths or paths.keys() <= unit_costs_of(earlier or {}).keys():
        return
    known = find_measurements({role: local_files(path) for role, path in paths.items()}, load)
    ages = (datetime.now(UTC) - datetime.fromisoformat(one.created) for one in known.values())
    if known.keys() == paths.keys() and all(age < max_age for age in ages):
        return
    try:
        keep_tuned(tuned_file(), [])
        display.note("measuring the token costs of these models on this machine")
        measure_and_keep(paths, load, display.loading, display.note, limit)
    except OutputError as error:
        display.note(f"the measured token costs are not used, because they cannot be saved: {error.message}")


def forget_contradicted_costs(run: Run, results: Iterable[Result], note: Callable[[str], None]) -> None:
    """Remove a model's stored costs if its decoding time in a run differs greatly from these costs."""
    if not run.get("unit_costs") or concurrency_of(run) > 1:
        return
    units = unit_costs_of(run)
    for role, factor in decoding_factors(run, results_by_policy(run, results)).items():
        if units[role].decode <= MIN_SECONDS or 1 / CONTRADICTED < factor < CONTRADICTED:
            continue
        is_contradicted = partial(_has_costs, run["models"][role]["sha256"], units[role])
        took = f"the {role} took {formatting.number(factor)} times its measured token cost"
        try:
            if forget_tuned(tuned_file(), is_contradicted):
                note(f"{took}; the next command measures it again")
        except (OutputError, UsageError) as error:  # the run is complete
            note(f"{took}, but the measurement cannot be removed: {error.message}")


def _has_costs(sha256: str, costs: UnitCosts, tuned: Tuned) -> bool:
    return (tuned.sha256, tuned.costs) == (sha256, costs)


def forget_costs(named: NamedModels) -> int:
    """Remove the stored costs of both models and the advice on them. Return how many measurements were removed."""
    sha256s = {sha256_seen(files) for one in _local_models(named).values() if (files := local_files(one))}
    forget_advice(tuned_file(), sha256s)
    return forget_tuned(tuned_file(), lambda tuned: tuned.sha256 in sha256s)


def _local_models(named: NamedModels) -> dict[ModelRole, str]:
    """Return the named draft and target. Raises UsageError if llama.cpp cannot run a model on this machine."""
    found = named.writing
    for source in found.values():
        if not is_gguf(source):
            raise UsageError(f"{source}: llama.cpp cannot run this model", "use a GGUF file or a model on the Hub")
    return found


def fetch(sources: Mapping[ModelRole, str], display: Watcher, *, offline: bool) -> dict[ModelRole, str]:
    """Download missing files. Return each model's first file, or its name if it has no file.

    Raises ModelFileError if a file does not exist or is not a GGUF model; HubError if a download fails.
    """
    found: dict[ModelRole, str] = {}
    for role, source in sources.items():
        files = find_files(source, offline=offline, on_progress=display.fetching)
        if files and not local_files(source):
            raise ModelFileError(f"{files[0]}: no such file", f"check the path of the {role} model")
        if files:
            read_header(files[0])
        found[role] = str(files[0]) if files else source
    return found

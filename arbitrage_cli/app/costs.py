"""Downloads the models of a command, and measures and checks their unit costs."""

import logging
from collections.abc import Mapping

from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.request import NamedModels, Request
from arbitrage_cli.costs.measure import PROBE_SECONDS, Measurement, measure_and_keep
from arbitrage_cli.costs.store import Tuned, find_measurements, keep_tuned, tuned_file
from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import find_files, is_gguf, local_files, no_such_file
from arbitrage_cli.system.machine import free_cores
from arbitrage_cli.types import ModelRole

MUCH_FASTER = 0.5  # share of the stored costs of a token below which a run contradicts them
MIN_SECONDS = 1e-3  # the program takes most of the time of faster tokens

log = logging.getLogger("arbitrage.costs")


def measure_costs(named: NamedModels, display: Display, *, offline: bool) -> Measurement:
    """Measure and store the unit costs of both models.

    Raises UsageError if llama.cpp cannot run a model on this machine; OutputError if the costs cannot be stored.
    """
    for source in named.writing.values():
        if not is_gguf(source):
            raise UsageError(f"{source}: llama.cpp cannot run this model", "use a GGUF file or a model on the Hub")
    paths = fetch(named.writing, display, offline=offline)
    keep_tuned(tuned_file(), [])  # fail before measuring if the file cannot be written
    return measure_and_keep(paths, named.load, display.loading, display.note)


def measure_missing(
    request: Request,
    found: Mapping[ModelRole, str],
    display: Display,
    limit: float = PROBE_SECONDS,
) -> Mapping[ModelRole, Tuned]:
    """Return the costs of the request's models, which `fetch` has found. Missing costs are measured and stored.

    Costs are measured only if a policy of the request works with both models or is compared with others. `limit` is the
    maximum time for the probes, in seconds. A disturbed measurement does not take the place of known costs.
    """
    load = request.named.load
    others = {"prm"} if request.compares else {"prm", "check"}
    paths: dict[ModelRole, str] = {role: path for role, path in found.items() if role not in others and is_gguf(path)}
    known = find_measurements(paths, load, display.note)
    is_needed = request.compares or any(policy.kind == "routed" or policy.speculates for policy in request.asked)
    if not is_needed or not {"draft", "target"} <= paths.keys():
        return known
    if known.keys() == paths.keys():
        return known
    display.tell("measuring the token costs of these models on this machine")
    measured = measure_and_keep(paths, load, display.loading, display.note, limit).models
    return {role: known.get(role, one) if one.is_disturbed else one for role, one in measured.items()}


def warn_of_load(threads_of: Mapping[ModelRole, int], display: Display) -> None:
    """Note that other programs use the cores of models with several threads."""
    threads = max(threads_of.values(), default=1)
    if threads > 1 and (free := free_cores()) < threads:
        display.note(
            f"other programs are using the processor, so {threads} threads may be slower than {free}; "
            f"to use fewer, add --threads {free}"
        )


def fetch(sources: Mapping[ModelRole, str], display: Display, *, offline: bool) -> dict[ModelRole, str]:
    """Download missing files. Return each model's first file, or its name if it has no file.

    Raises ModelFileError if a file does not exist or is not a GGUF model; HubError if a download fails.
    """
    found: dict[ModelRole, str] = {}
    for role, source in sources.items():
        files = find_files(source, offline=offline, on_progress=display.fetching)
        if files and not local_files(source):
            raise no_such_file(source)
        if files:
            read_header(files[0])
        found[role] = str(files[0]) if files else source
    return found

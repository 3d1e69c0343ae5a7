"""Chooses each model's number of threads and looks up the measured token costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.costs.store import Loading, Machine, Tuned, log, read_cache, tuned_file
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama.prebuilt import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import is_served, local_files
from arbitrage_cli.system.machine import CACHED_BYTES, default_threads, processor_name
from arbitrage_cli.types import ModelRole


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of threads for each model, and the unit costs of the models that were measured."""

    threads: Mapping[ModelRole, int]
    unit_costs: Mapping[ModelRole, UnitCosts]


def machine_here() -> Machine:
    """Return a description of this machine. Raises ModelUnsupportedError if llama.cpp cannot be imported."""
    return Machine(processor_name(), default_threads(), binding_version(), load_llama().gpu_names())


def loading_of(load: LoadOptions) -> Loading:
    return Loading(load.gpu_layers, load.flash_attention, load.kv_type, load.threads)


def place(
    models: Mapping[ModelRole, str | None], load: LoadOptions, measured: Mapping[ModelRole, Tuned] | None = None
) -> Placement:
    """Return the number of threads and the costs for the models on this machine.

    The number of threads comes from `load.threads`, the measurement or the default. By default, stored measurements are used.
    """
    sources = {role: source for role, source in models.items() if source and not is_served(source)}
    if measured is None:
        measured = find_measurements(
            {role: files for role, source in sources.items() if (files := local_files(source))}, load
        )
    threads = {role: threads_without_costs(source, load) for role, source in sources.items()}
    threads |= {role: found.threads for role, found in measured.items()}
    return Placement(threads, {role: found.costs for role, found in measured.items()})


def threads_without_costs(source: str, load: LoadOptions) -> int:
    """Return the number of threads for a model without measured costs.

    A model that fits in a processor's cache gets one thread, because several threads would mostly wait for each other.
    """
    size = sum(file.stat().st_size for file in local_files(source))
    return load.threads or (1 if 0 < size <= CACHED_BYTES else default_threads())


def find_measurements(
    models: Mapping[ModelRole, Sequence[Path]], load: LoadOptions, note: Callable[[str], object] = log.debug
) -> dict[ModelRole, Tuned]:
    """Return the stored measurements of the models with these files."""
    known = {tuned.key: tuned for tuned in read_cache(tuned_file(), note).tuned} if models else {}
    if not known:  # avoids the slow import of llama.cpp, and reading the models' files
        return {}
    machine, loading = machine_here(), loading_of(load)
    found = {role: known.get((machine, sha256_seen(files), loading)) for role, files in models.items()}
    return {role: tuned for role, tuned in found.items() if tuned}

"""Chooses each model's number of threads and looks up the measured token costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.costs.store import FILE_NAME, Loading, Machine, Tuned, read_tuned
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama.prebuilt import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import is_served, local_files
from arbitrage_cli.system.files import user_folder
from arbitrage_cli.system.machine import CACHED_BYTES, default_threads, processor_name
from arbitrage_cli.types import ModelRole


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of threads for each model, and the unit costs of the models that were measured."""

    threads: Mapping[ModelRole, int]
    unit_costs: Mapping[ModelRole, UnitCosts]


def tuned_file() -> Path:
    return user_folder() / FILE_NAME


def machine_here() -> Machine:
    """Return a description of this machine. Raises ModelUnsupportedError if llama.cpp cannot be imported."""
    return Machine(processor_name(), default_threads(), binding_version(), load_llama().gpu_names())


def loading_of(load: LoadOptions) -> Loading:
    return Loading(load.gpu_layers, load.flash_attention, load.kv_type, load.threads)


def place(models: Mapping[ModelRole, str | None], load: LoadOptions) -> Placement:
    """Return the number of threads and the costs for the models on this machine.

    The number of threads comes from `load.threads`, the measurement or the default. Raises UsageError if the file of
    measurements is damaged.
    """
    sources = {role: source for role, source in models.items() if source and not is_served(source)}
    tuned = find_measurements({role: files for role, source in sources.items() if (files := local_files(source))}, load)
    threads = {role: threads_without_costs(source, load) for role, source in sources.items()}
    threads |= {role: found.threads for role, found in tuned.items()}
    return Placement(threads, {role: found.costs for role, found in tuned.items()})


def threads_without_costs(source: str, load: LoadOptions) -> int:
    """Return the number of threads for a model without measured costs.

    A model that fits in a processor's cache gets one thread, because several threads would mostly wait for each other.
    """
    size = sum(file.stat().st_size for file in local_files(source))
    return load.threads or (1 if 0 < size <= CACHED_BYTES else default_threads())


def find_measurements(models: Mapping[ModelRole, Sequence[Path]], load: LoadOptions) -> dict[ModelRole, Tuned]:
    """Return the measurements of the models with these files. Raises UsageError if the file of measurements is damaged."""
    known = {tuned.key: tuned for tuned in read_tuned(tuned_file())} if models else {}
    if not known:  # avoids the slow import of llama.cpp, and reading the models' files
        return {}
    machine, loading = machine_here(), loading_of(load)
    found = {role: known.get((machine, sha256_seen(files), loading)) for role, files in models.items()}
    return {role: tuned for role, tuned in found.items() if tuned}

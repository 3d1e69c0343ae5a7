"""How models run on this machine: the threads of each, and what their tokens cost, as `arbitrage tune` measured it.

Reads what was kept, notes where a model's file is now, and measures nothing. Threads that were asked for win over those that
were measured, and these over the default.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from arbitrage_cli.errors import OutputError, UsageError
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.model_files.pairs import is_toy, local_files
from arbitrage_cli.routing.thresholds import Costs
from arbitrage_cli.system.files import sha256_of
from arbitrage_cli.system.machine import default_threads
from arbitrage_cli.system.paths import user_folder
from arbitrage_cli.tuning.store import FILE_NAME, Loading, Machine, Tuned, find_tuned, keep_tuned, read_tuned, this_machine
from arbitrage_cli.types import CACHED_BYTES, ModelRole

TOY_THREADS = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """The threads of each model, and what tokens cost with them; None if that was not measured for both of the pair."""

    threads: Mapping[ModelRole, int]
    costs: Costs | None


def tuned_file() -> Path:
    """Where measurements are kept: beside the user's own settings."""
    return user_folder() / FILE_NAME


def machine_here() -> Machine:
    """This machine with the GPU that llama.cpp uses, for which it is imported. ModelUnsupportedError if that is broken."""
    return this_machine(load_llama().gpu_names())


def loading_of(load: Options) -> Loading:
    """Which of these options a measurement depends on."""
    return Loading(load.gpu_layers, load.flash_attention, load.kv_type)


def place(models: Mapping[ModelRole, str | None], load: Options) -> Placement:
    """How the models that are named run. One that is not here yet is not known. UsageError for a damaged file."""
    sources = {role: source for role, source in models.items() if source}
    tuned = _find(sources, loading_of(load))
    threads = {
        role: tuned[role].threads if role in tuned and not load.threads else _threads(source, load)
        for role, source in sources.items()
    }
    return Placement(threads, costs_of({role: one for role, one in tuned.items() if one.threads == threads[role]}))


def _threads(source: str, load: Options) -> int:
    """As they were asked for, else the default: one for a model that fits in a processor's cache.

    Its threads would wait for each other longer than they compute, and where another program has a core, ten times as long.
    """
    if is_toy(source):
        return TOY_THREADS
    size = sum(file.stat().st_size for file in local_files(source))
    return load.threads or (1 if 0 < size <= CACHED_BYTES else default_threads())


def find_measurement(sha256: str | None, load: Options) -> Tuned | None:
    """The measurement of the model file with that sha256 on this machine; None if there is none."""
    machine, loading = machine_here(), loading_of(load)
    return next((one for one in read_tuned(tuned_file()) if one.key == (machine, sha256, loading)), None)


def costs_of(tuned: Mapping[ModelRole, Tuned]) -> Costs | None:
    """What tokens of the pair cost; None unless both models were measured."""
    if not tuned.keys() >= {"draft", "target"}:
        return None
    draft, target = tuned["draft"].speeds, tuned["target"].speeds
    return Costs(
        draft_seconds_per_token=draft.decode,
        target_seconds_per_token=target.decode,
        target_prefill_seconds_per_token=target.read,
        draft_prefill_seconds_per_token=draft.read,
        target_verify_seconds_per_token=target.verify,
    )


def _find(sources: Mapping[ModelRole, str], loading: Loading) -> dict[ModelRole, Tuned]:
    known = read_tuned(tuned_file())
    here = {role: files for role, source in sources.items() if (files := local_files(source))}
    if not known or not here:  # then llama.cpp, which is slow to import, is not asked for its GPU
        return {}
    machine = machine_here()
    found: dict[ModelRole, Tuned] = {}
    for role, files in here.items():
        one = find_tuned(known, machine, files, loading, partial(sha256_of, files))
        if one:
            found[role] = one
    _note_files([one for one in found.values() if one not in known])
    return found


def _note_files(moved: Sequence[Tuned]) -> None:
    """Keep where these files are now, and since when: they need not be read whole another time."""
    if moved:
        # It cannot be written, or was damaged meanwhile: that costs time at the next start, and nothing else.
        with contextlib.suppress(OutputError, UsageError):
            keep_tuned(tuned_file(), moved)

"""Measures the unit costs of models on this machine, each with the number of threads at which it is fastest, and stores them."""

import math
from collections.abc import Container, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

from arbitrage_cli.costs.memory import check_memory, memory_needed
from arbitrage_cli.costs.probing import PROBE_SECONDS, LoadMeter, Probes, Threaded, probe, thread_counts, try_threads
from arbitrage_cli.costs.store import Tuned, keep_tuned, loading_of, machine_here, threads_without_costs, tuned_file
from arbitrage_cli.errors import OutputError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.open import display_name, open_model
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import first_with_same_file, local_files
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ByRole, ModelRole, Note


class ShowActivity(Protocol):
    """Shows an activity, the name of its model, and the completed part (0 to 1) if it is known."""

    def __call__(self, activity: str, name: str, fraction: float | None = None) -> None: ...


def measure_and_keep(
    found: ByRole[str],
    load: LoadOptions,
    show: ShowActivity,
    note: Note,
    limit: float | None = None,
) -> dict[ModelRole, Tuned]:
    """Measure models together, store their costs and return them.

    Each activity is shown while it lasts. A note is shown if the costs cannot be stored. The probes end after `limit` seconds,
    but each runs at least once. Models with the same files are measured once.

    Raises any error from loading or running a model.
    """
    first = first_with_same_file(found)
    paths = {role: path for role, path in found.items() if first[role] == role}
    check_memory(memory_needed(paths, load))
    most = {role: threads_without_costs(path, load) for role, path in paths.items()}
    counts = {role: [count] if load.threads else thread_counts(count) for role, count in most.items()}
    with ExitStack() as stack:
        backends = _open(paths, load, most, show, stack)
        names = {role: display_name(path) for role, path in paths.items()}
        probes, disturbed = measure(backends, names, counts, show, LoadMeter(), limit or PROBE_SECONDS)
        cards = {role: backend.card for role, backend in backends.items()}
    created = formatting.timestamp()
    models = {
        role: Tuned(
            machine=machine_here(),
            sha256=sha256_seen(local_files(path)),
            loading=loading_of(load),
            name=names[role],
            threads=cards[role].threads,
            costs=probes[role].costs,
            created=created,
            is_disturbed=role in disturbed,
        )
        for role, path in paths.items()
    }
    try:
        keep_tuned(tuned_file(), [*models.values()])
    except OutputError as error:
        note(f"the token costs are used only by this command, because they cannot be stored: {error.message}")
    return {role: models[first[role]] for role in found}


def _open(
    paths: ByRole[str], load: LoadOptions, threads: ByRole[int], show: ShowActivity, stack: ExitStack
) -> dict[ModelRole, Threaded]:
    """Load the models, which the stack closes."""
    backends: dict[ModelRole, Threaded] = {}
    for role, path in paths.items():
        options = replace(load, threads=threads[role])
        backend = open_model(path, options, partial(show, f"loading {role}", display_name(path)))
        backends[role] = cast("Threaded", stack.enter_context(closing(backend)))
    return backends


def measure(
    backends: ByRole[Threaded],
    names: ByRole[str],
    counts: ByRole[Sequence[int]],
    show: ShowActivity,
    meter: LoadMeter,
    limit: float = PROBE_SECONDS,
) -> tuple[dict[ModelRole, Probes], set[ModelRole]]:
    """Set each model to the best of its numbers of threads, then measure all models in turns.

    Return the probes, and the models whose measurement was disturbed.
    """
    on_gpu = {role: backend for role, backend in backends.items() if backend.card.gpu_layers}
    probe(on_gpu, meter, limit=0.0)  # GPU drivers compile when a number of tokens is first computed
    share = limit / 2 / len(backends)
    uncertain: set[ModelRole] = set()
    for role, backend in backends.items():
        show(f"measuring {role}, up to {math.ceil(share)} s", names[role])
        tried = counts[role] if backend.card.cores > 1 else [backend.card.threads]  # on a GPU, the number hardly matters
        if not try_threads(backend, tried, meter, limit=share) and len(tried) > 1:
            uncertain.add(role)
    show(f"measuring {' and '.join(backends)}, up to {math.ceil(limit / 2)} s", " and ".join(names.values()))
    probes = probe(backends, meter, limit=limit * 3 / 8)
    if _disturbed(probes, on_gpu):  # once more, because a disturbance may be short
        probes = probe(backends, meter, limit=limit / 8)
    return probes, uncertain | _disturbed(probes, on_gpu)


def _disturbed(probes: ByRole[Probes], on_gpu: Container[ModelRole]) -> set[ModelRole]:
    return {role for role, found in probes.items() if found.is_disturbed(is_on_gpu=role in on_gpu)}

"""Prepares the models of a command: downloads missing files, and measures missing token costs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.asking.naming import NamedModels, writing
from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.app.deciding.decide import approximate_costs
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.costs.measure import measure_and_keep
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.probing import PROBE_SECONDS
from arbitrage_cli.costs.store import Tuned, find_measurements, keep_tuned, tuned_file
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.open import display_name
from arbitrage_cli.model_files.checksums import FileProgress, known_sha256
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.model_files.pairs import find_files, is_gguf, local_files, no_such_file
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.files import file_lock, make_folder, user_folder
from arbitrage_cli.system.machine import free_cores, other_cores
from arbitrage_cli.types import WRITING, ByRole, ModelRole

IDLE_SECONDS, IDLE_CORES = 0.5, 0.2
"""How long, and below what load by other programs, a processor counts as idle."""

MAX_WAIT_SECONDS = 300.0
"""The maximum wait for another process that is measuring. A suspended process would never finish."""


def fetch(sources: ByRole[str], display: Display, *, offline: bool) -> dict[ModelRole, str]:
    """Download missing files. Return each model's first file, or its name if it has no file.

    Raises ModelFileError if a file does not exist, is damaged or is not a GGUF model; HubError if a download fails.
    """
    files_of: dict[ModelRole, tuple[Path, ...]] = {}
    for role, source in sources.items():
        files_of[role] = find_files(source, offline=offline, on_progress=display.fetching)
        if files_of[role] and not local_files(source):
            raise no_such_file(source)
        for part in local_files(source):
            read_header(part)

    def show_hashing(progress: FileProgress) -> None:
        display.fetching(replace(progress, activity="hashing"))

    for files in filter(None, files_of.values()):  # large files are read last
        known_sha256(files, show_hashing)
    return {role: str(files[0]) if files else sources[role] for role, files in files_of.items()}


def measure_costs(named: NamedModels, display: Display, *, offline: bool) -> dict[ModelRole, Tuned]:
    """Measure and store the unit costs of both models.

    Raises UsageError if llama.cpp cannot run a model on this machine; OutputError if the costs cannot be stored.
    """
    for source in writing(named.sources).values():
        if not is_gguf(source):
            raise UsageError(f"{source}: llama.cpp cannot run this model", "use a GGUF file or a model on the Hub")
    paths = fetch(writing(named.sources), display, offline=offline)
    keep_tuned(tuned_file(), [])  # fail before measuring if the file cannot be written
    with _measuring_alone(display):
        measured = measure_and_keep(paths, named.load, display.loading, display.note)
    if disturbed := [role for role, one in measured.items() if one.is_disturbed]:
        display.note(f"{approximate_costs(disturbed)}; to measure them again, wait until the processor is idle")
    return measured


def measure_missing(
    request: Request,
    found: ByRole[str],
    display: Display,
    cost_seconds: float | None,
) -> ByRole[Tuned]:
    """Return the costs of the request's models, which `fetch` has found. Missing costs are measured and stored.

    Costs that other programs disturbed are measured again if the processor is idle now. Good costs are kept. If another process
    is measuring, its costs are used as soon as they are stored.

    Costs are measured only if a policy of the request depends on them or is compared with others. The costs of a checker are
    measured only for a policy that uses it. `cost_seconds` is the maximum time for the probes.
    """
    load = request.named.load
    roles = {*WRITING}
    if request.compares or any(policy.compares_answers for policy in request.asked):
        roles.add("check")
    paths: dict[ModelRole, str] = {role: path for role, path in found.items() if role in roles and is_gguf(path)}
    known = find_measurements(paths, load, display.note)
    has_both = paths.keys() >= {*WRITING}
    is_needed = request.compares or any(policy.depends_on_costs for policy in request.asked)
    if not (is_needed and has_both and _to_measure(paths, known)):
        return known
    with _measuring_alone(display):
        known = find_measurements(paths, load)
        if not (missing := _to_measure(paths, known)):
            return known
        seconds = math.ceil(cost_seconds or PROBE_SECONDS)
        these = "these models" if len(missing) > 1 else display_name(*missing.values())
        display.tell(f"measuring the token costs of {these} on this machine, which takes up to {seconds} s")
        now = {**known, **measure_and_keep(missing, load, display.loading, display.note, cost_seconds)}
    if changes := _changes_of(known, now):
        display.tell(f"other programs had disturbed the last measurement; {changes}")
    return now


def _to_measure(paths: ByRole[str], known: ByRole[Tuned]) -> dict[ModelRole, str]:
    """Return the models without known costs and, if the processor is idle, those with costs that were disturbed."""
    is_idle = any(one.is_disturbed for one in known.values()) and other_cores(IDLE_SECONDS) < IDLE_CORES
    return {role: path for role, path in paths.items() if role not in known or (is_idle and known[role].is_disturbed)}


def _changes_of(before: ByRole[Tuned], now: ByRole[Tuned]) -> str:
    """Return how good costs differ from the disturbed ones that they replace, or "" if they do not differ."""
    replaced = [role for role, one in before.items() if one.is_disturbed and not now[role].is_disturbed]
    ratios = [pair.token_ratio for costs in (before, now) if (pair := _pair_of(costs))]
    found = [
        f"{formatting.count(now[role].threads, 'thread')} for the {role} instead of {before[role].threads}"
        for role in replaced
        if before[role].threads != now[role].threads
    ]
    if replaced and len(ratios) == len((before, now)):
        old, new = map(formatting.number, ratios)
        found.insert(0, f"a target token costs {new} draft tokens, not {old}")
    return ", ".join(found)


def _pair_of(costs: ByRole[Tuned]) -> PairCosts | None:
    return PairCosts.of({role: one.costs for role, one in costs.items()})


@contextmanager
def _measuring_alone(display: Display) -> Iterator[None]:
    """Wait until no other process of this user measures costs, because each would slow down the others.

    Without a lock, because the settings folder cannot be written or another process was suspended, costs are measured all the
    same: load is recognized anyway, and such a measurement is approximate.
    """
    lock = file_lock(user_folder() / "measuring.lock")
    with suppress(OSError):  # a TimeoutError is an OSError
        make_folder(user_folder())
        try:
            lock.acquire()
        except TimeoutError:
            display.tell("another process is measuring token costs on this machine; waiting until it ends")
            lock.acquire(MAX_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


def warn_of_load(threads: int, display: Display) -> None:
    """Note that other programs use cores on which models compute with this many threads."""
    if threads > 1 and (free := free_cores()) < threads:
        display.note(
            f"other programs are using the processor, so {threads} threads may be slower than {free}; "
            f"to use fewer, add --threads {free}"
        )

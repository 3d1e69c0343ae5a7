"""Keeps the measured unit costs of models in a file. Chooses the number of threads.

The file is a cache: an entry that cannot be read is left out, and measured again. A measurement is valid for one machine, one
model and one set of loading options. The file may contain measurements from several machines, because home folders may be
shared. A disturbed measurement is approximate. It is used for ABOUT_AGE, and never replaces a good one.
"""

import errno
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import OutputError, os_errors
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import local_files
from arbitrage_cli.system.files import file_lock, make_folder, read_regular, user_folder, validated, write_atomically
from arbitrage_cli.system.machine import CACHED_BYTES, MAX_THREADS, default_threads, logical_processors, processor_name
from arbitrage_cli.types import ByRole, ModelRole, Note, frozen

TUNED_SCHEMA = 1
ABOUT_AGE = timedelta(hours=1)
LOCK_SECONDS = 5.0
"""The maximum wait for another process that is writing the file. A suspended process would never finish."""
LEAST_SECONDS, MOST_SECONDS = 1e-7, 3600.0  # of a token, and of a batch

log = logging.getLogger("arbitrage.costs")


def tuned_file() -> Path:
    return user_folder() / "tuned.json"


@frozen
class Machine:
    """The properties of a machine that affect speeds.

    `cores` is the number of cores that this process can use. `gpu` contains llama.cpp's names for the GPUs.
    """

    cpu: str
    cores: int
    llama_cpp_python: str
    gpu: str = ""


@frozen
class Loading:
    """The options for loading a model. None selects llama.cpp's default.

    `threads` is the requested number of threads, or None if the best number was chosen.
    """

    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_type: str = "auto"
    threads: int | None = None


@frozen
class Tuned:
    """A model's number of threads and its unit costs. `sha256` is the hash of the model's concatenated files.

    The costs are approximate if other programs disturbed the measurement.
    """

    machine: Machine
    sha256: str
    loading: Loading
    name: str
    threads: int
    costs: UnitCosts
    created: str
    is_disturbed: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise ValueError(f"{self.threads} threads")
        batches = self.costs.batches
        prefill = (self.costs.prefill_token, self.costs.prefill_call)
        if min(batches) < LEAST_SECONDS or max(*batches, *prefill) > MOST_SECONDS or list(batches) != sorted(batches):
            raise ValueError("token costs out of range")
        if self.age < timedelta(days=-1):
            raise ValueError("created in the future")

    @property
    def key(self) -> tuple[Machine, str, Loading]:
        return self.machine, self.sha256, self.loading

    @property
    def age(self) -> timedelta:
        created = datetime.fromisoformat(self.created)
        return datetime.now(UTC) - (created if created.tzinfo else created.replace(tzinfo=UTC))


@frozen
class TunedFile:
    """The content of the file. A file with another schema was written by another version."""

    schema: int = TUNED_SCHEMA
    tuned: tuple[Tuned, ...] = ()


def read_cache(path: Path, note: Note = log.debug) -> TunedFile:
    """Return the content of the file. Entries that cannot be read are left out, with a note."""
    try:
        content = json.loads(read_regular(path))
        if not isinstance(content, dict) or type(content.get("schema")) is not int:
            raise ValueError("expected an object with a schema")
    except (FileNotFoundError, NotADirectoryError):
        return TunedFile()
    except (OSError, ValueError, RecursionError) as error:
        note(f"{path} is ignored: {error}")
        return TunedFile()
    if content["schema"] != TUNED_SCHEMA:
        note(f"{path} is ignored: it was written by another version")
        return TunedFile(content["schema"])

    def ignore(reason: str) -> None:
        note(f"an entry of {path} is ignored: {reason}")

    return TunedFile(TUNED_SCHEMA, tuple(_valid(content.get("tuned"), ignore)))


def _valid(entries: Any, note: Note) -> Iterator[Tuned]:
    for entry in entries if isinstance(entries, list) else ():
        try:
            yield validated(Tuned, entry)
        except ValueError as error:
            note(str(error))


def update_cache(path: Path, change: Callable[[TunedFile], TunedFile]) -> None:
    """Replace the content of the file. Raises OutputError if the file cannot be written."""
    with os_errors(OutputError, f"{path}: cannot be written", "make the folder writable, or end the process that locks it"):
        make_folder(path.parent)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        with file_lock(path.with_name("lock"), LOCK_SECONDS):
            cache = read_cache(path)
            if cache.schema != TUNED_SCHEMA:
                raise OutputError(f"{path}: written by another version", "use that version, or delete the file")
            content = asdict(change(cache))
            write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def keep_tuned(path: Path, new: Sequence[Tuned]) -> None:
    """Add or replace measurements. Raises OutputError if the file cannot be written."""

    def with_new(cache: TunedFile) -> TunedFile:
        known = {one.key: one for one in cache.tuned}
        good = {key for key, one in known.items() if not one.is_disturbed}
        known |= {one.key: one for one in new if not (one.is_disturbed and one.key in good)}
        return replace(cache, tuned=tuple(known.values()))

    update_cache(path, with_new)


# --- the models of a command on this machine


def machine_here() -> Machine:
    """Return a description of this machine. Raises ModelUnsupportedError if llama.cpp cannot be imported."""
    return Machine(processor_name(), default_threads(), binding_version(), load_llama().gpu_names())


def loading_of(load: LoadOptions) -> Loading:
    return Loading(load.gpu_layers, load.flash_attention, load.kv_type, load.threads)


def threads_without_costs(source: str, load: LoadOptions) -> int:
    """Return the number of threads for a model without measured costs, at most one per processor.

    A model that fits in a processor's cache gets one thread, because several threads would mostly wait for each other.
    """
    if load.threads:
        return min(load.threads, logical_processors())
    size = sum(file.stat().st_size for file in local_files(source))
    fits_in_cache = 0 < size <= CACHED_BYTES
    return 1 if fits_in_cache else default_threads()


def find_measurements(sources: ByRole[str], load: LoadOptions, note: Note = log.debug) -> dict[ModelRole, Tuned]:
    """Return the stored measurements of the models that have files on this machine."""
    files = {role: parts for role, source in sources.items() if (parts := local_files(source))}
    cache = read_cache(tuned_file(), note) if files else TunedFile()
    known = {tuned.key: tuned for tuned in cache.tuned if not tuned.is_disturbed or tuned.age < ABOUT_AGE}
    if not known:  # avoids the slow import of llama.cpp, and reading the models' files
        return {}
    machine = machine_here()
    loading = loading_of(load)
    found = {role: known.get((machine, sha256_seen(parts), loading)) for role, parts in files.items()}
    return {role: tuned for role, tuned in found.items() if tuned}

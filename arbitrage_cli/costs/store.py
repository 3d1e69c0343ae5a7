"""Stores the measured unit costs of models and the last advice on each pair in a file.

A measurement is valid for one machine, one model and one set of loading options. The file may contain measurements from
several machines, because home folders may be shared.
"""

import contextlib
import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from arbitrage_cli.errors import OutputError, UsageError, os_errors
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.system.files import checked, make_folder, read_regular, write_atomically
from arbitrage_cli.types import ModelRole

T = TypeVar("T")

SCHEMA = 1
FILE_NAME = "tuned.json"


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of a machine that affect speeds.

    `cores` is the number of cores that this process can use. `gpu` contains llama.cpp's names for the GPUs.
    """

    cpu: str
    cores: int
    llama_cpp_python: str
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class Loading:
    """The options for loading a model. None selects llama.cpp's default.

    `threads` is the requested number of threads, or None if the best number was chosen.
    """

    gpu_layers: int | None = None
    flash_attention: bool | None = None
    kv_type: str = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model's number of threads and its unit costs. `sha256` is the hash of the model's concatenated files."""

    machine: Machine
    sha256: str
    loading: Loading
    name: str
    threads: int
    costs: UnitCosts
    created: str

    @property
    def key(self) -> tuple[Machine, str, Loading]:
        return self.machine, self.sha256, self.loading


@dataclass(frozen=True, slots=True)
class AdvisedPair:
    """The conditions under which an advice is valid.

    `models` maps each role to the sha256 of its files, or to the name of a model without local files. `router` is a sha256.
    """

    machine: Machine
    loading: Loading
    models: Mapping[ModelRole, str]
    router: str | None
    task: str


@dataclass(frozen=True, slots=True)
class StoredAdvice:
    """The last advice on a pair. `route` has the syntax of `--policy`, such as `arbitrage@careful`."""

    pair: AdvisedPair
    route: str
    created: str


def read_tuned(path: Path) -> list[Tuned]:
    """Return the measurements in the file, if it exists. Raises UsageError if the file is damaged."""
    return _read(path, "tuned", _tuned)


def read_advice(path: Path) -> list[StoredAdvice]:
    """Return the advice in the file, if it exists. Raises UsageError if the file or the advice is damaged."""
    return _read(path, "advice", partial(checked, StoredAdvice))


def keep_tuned(path: Path, new: Sequence[Tuned]) -> None:
    """Add or replace measurements. Raises OutputError if the file cannot be written; UsageError if the file is damaged."""
    with _changing(path) as (tuned, _):
        tuned[:] = {one.key: one for one in (*tuned, *new)}.values()


def keep_advice(path: Path, new: StoredAdvice) -> None:
    """Add or replace the advice on a pair. Raises the same errors as `keep_tuned`."""
    with _changing(path) as (_, advice):
        advice[:] = [*(one for one in advice if one.pair != new.pair), new]


def forget_tuned(path: Path, is_forgotten: Callable[[Tuned], bool]) -> int:
    """Remove measurements and return how many were removed. Raises the same errors as `keep_tuned`."""
    if not any(map(is_forgotten, read_tuned(path))):
        return 0
    with _changing(path) as (tuned, _):
        kept = [one for one in tuned if not is_forgotten(one)]
        num_forgotten = len(tuned) - len(kept)
        tuned[:] = kept
    return num_forgotten


def forget_advice(path: Path, models: set[str]) -> None:
    """Remove the advice on models with these sha256s. Raises the same errors as `keep_tuned`."""
    with _changing(path) as (_, advice):
        advice[:] = [one for one in advice if models.isdisjoint(one.pair.models.values())]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[tuple[list[Tuned], list[StoredAdvice]]]:
    """Lock the file, yield its measurements and its advice, and write the changed lists.

    Damaged advice is dropped, because it can be measured again.
    """
    with os_errors(OutputError, f"{path}: cannot be written", "make the folder writable"):
        make_folder(path.parent)
        with path.with_name("lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tuned, advice = read_tuned(path), list[StoredAdvice]()
            with contextlib.suppress(UsageError):
                advice = read_advice(path)
            yield tuned, advice
            content = {"schema": SCHEMA, "tuned": tuned, "advice": advice}
            write_atomically(path, json.dumps(content, indent=1, allow_nan=False, default=asdict).encode() + b"\n")


def _read(path: Path, key: str, check: Callable[[object], T]) -> list[T]:
    try:
        content = json.loads(read_regular(path))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}; expected {SCHEMA}")
        return [check(entry) for entry in content[key]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        hint = "remove the file, then run arbitrage advise --costs"
        raise UsageError(f"{path}: cannot be read ({error})", hint) from error


def _tuned(entry: object) -> Tuned:
    made = checked(Tuned, entry)
    if made.threads < 1:
        raise ValueError("threads: less than 1")
    seconds = (*made.costs.batches, made.costs.prefill_token, made.costs.prefill_call, made.costs.error)
    if len(made.costs.batches) != len(ROWS) or not all(math.isfinite(one) and one >= 0 for one in seconds):
        raise ValueError("costs: missing, negative or infinite")
    return made

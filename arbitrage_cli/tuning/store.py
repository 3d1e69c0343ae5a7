"""Stores the measured unit costs of models in a file.

A measurement is valid for one machine, one model and one set of loading options. The file may contain measurements from
several machines, because home folders may be shared.
"""

import fcntl
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from arbitrage_cli.errors import OutputError, UsageError, os_errors
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.system.files import checked, make_folder, read_regular, write_atomically

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


def read_tuned(path: Path) -> list[Tuned]:
    """Return the measurements in the file, if it exists. Raises UsageError if the file is damaged."""
    try:
        content = json.loads(read_regular(path))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}; expected {SCHEMA}")
        return [_from_json(entry) for entry in content["tuned"]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        hint = "remove the file, then run arbitrage advise --costs"
        raise UsageError(f"{path}: cannot be read ({error})", hint) from error


def keep_tuned(path: Path, new: Sequence[Tuned]) -> None:
    """Add or replace measurements. Raises OutputError if the file cannot be written; UsageError if the file is damaged."""
    _change(path, lambda earlier: [*{tuned.key: tuned for tuned in (*earlier, *new)}.values()])


def forget_tuned(path: Path, is_forgotten: Callable[[Tuned], bool]) -> int:
    """Remove measurements and return how many were removed. Raises the same errors as `keep_tuned`."""
    if not any(map(is_forgotten, read_tuned(path))):
        return 0
    return _change(path, lambda earlier: [tuned for tuned in earlier if not is_forgotten(tuned)])


def _change(path: Path, change: Callable[[list[Tuned]], list[Tuned]]) -> int:
    """Replace the measurements and return how many fewer there are."""
    with os_errors(OutputError, f"{path}: cannot be written", "make the folder writable"):
        make_folder(path.parent)
        with path.with_name("lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            earlier = read_tuned(path)
            kept = change(earlier)
            content = {"schema": SCHEMA, "tuned": [asdict(tuned) for tuned in kept]}
            write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    return len(earlier) - len(kept)


def _from_json(entry: object) -> Tuned:
    made = checked(Tuned, entry)
    if made.threads < 1:
        raise ValueError("threads: less than 1")
    seconds = (*made.costs.batches, made.costs.prefill_token, made.costs.prefill_call, made.costs.error)
    if len(made.costs.batches) != len(ROWS) or not all(math.isfinite(one) and one >= 0 for one in seconds):
        raise ValueError("costs: missing, negative or infinite")
    return made

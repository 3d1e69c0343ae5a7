"""Tries a model file in a process of its own before this one loads it: llama.cpp ends the process on some damaged files.

A file that went through is known by its sha256, and not tried again with this version of llama.cpp. A failure is not kept: it
may be the machine's. Loads nothing itself, and knows neither policy nor problem.
"""

import importlib.metadata
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arbitrage_cli import errors
from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files import checksums
from arbitrage_cli.model_files.gguf import read_header
from arbitrage_cli.system.child import Child, ChildError

MAX_SECONDS = 20  # of processor time
BYTES_PER_SECOND = 50 << 20  # of the slowest machine: a large file may take longer
MAX_BYTES = 1 << 30  # beyond twice the file's: weights are copied into another layout
MAKE = "arbitrage_cli.inference.llama.try_file:load"

log = logging.getLogger("arbitrage.models")


def try_files(files: Sequence[Path], gpu_layers: int | None) -> None:
    """Return at once if this model was tried before, else load it in a child. ModelFileError if that dies, hangs or swells.

    Other errors are those of loading: ModelError.
    """
    for path in files:
        read_header(path)
    version = importlib.metadata.version("llama-cpp-python")
    names = [checksums.sha256_seen(path) for path in files]
    if checksums.read_note("tried", names) == version:
        return
    log.warning("%s is new on this machine: a separate process tries it first", files[0].name)
    _try(files[0], sum(path.stat().st_size for path in files), gpu_layers)
    checksums.write_note("tried", names, version)


def _try(path: Path, size: int, gpu_layers: int | None) -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    seconds, memory = MAX_SECONDS + size // BYTES_PER_SECOND, 2 * size + MAX_BYTES
    with tempfile.TemporaryFile() as noise:
        child = Child(MAKE, seconds=seconds, memory=None, is_kept=False, stderr=noise, environment=environment)
        try:
            kind, message, hint = child(str(path.absolute()), memory, gpu_layers)
        except ChildError as error:
            raise _bad(path, f"its trial failed: {error}", noise) from error
    if kind:
        raise getattr(errors, kind)(message, hint)


def _bad(path: Path, what: str, noise: IO[bytes]) -> ModelFileError:
    """The error, with the last line that the child wrote."""
    noise.seek(max(0, noise.seek(0, os.SEEK_END) - 4096))
    lines = noise.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    return ModelFileError(
        f"{path}: cannot be used: {what} ({last[-200:]})",
        "use another file; if this one is good, the machine lacks time or memory for it",
    )

"""Tries a model file in a process of its own before this one loads it: llama.cpp ends the process on some damaged files.

A file that went through is known by its sha256, and not tried again with this version of llama.cpp. A failure is not kept: it
may be the machine's. Loads nothing itself, and knows neither policy nor problem.
"""

import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from arbitrage_cli import errors
from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files import checksums
from arbitrage_cli.model_files.gguf import read_header

MAX_SECONDS = 20  # of processor time
BYTES_PER_SECOND = 50 << 20  # of the slowest machine: a large file may take longer
WALL_FACTOR = 5  # seconds by the wall clock per second of processor time; a busy machine is slow
MAX_BYTES = 1 << 30  # beyond twice the file's: weights are copied into another layout
MODULE = "arbitrage_cli.inference.llama.try_file"

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
    root = Path(__file__).parents[2]
    search = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search, "OPENBLAS_NUM_THREADS": "1"}
    seconds = MAX_SECONDS + size // BYTES_PER_SECOND
    limits = [str(seconds), str(2 * size + MAX_BYTES), "" if gpu_layers is None else str(gpu_layers)]
    with tempfile.TemporaryFile() as noise:
        with subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", MODULE, str(path.absolute()), *limits],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for this process
        ) as child:
            try:
                answer, _ = child.communicate(timeout=WALL_FACTOR * seconds)
            except subprocess.TimeoutExpired as error:
                raise _bad(path, f"its trial did not end within {WALL_FACTOR * seconds} s", noise) from error
            finally:
                child.kill()
        if child.returncode:
            raise _bad(path, f"its trial {_ending(child.returncode)}", noise)
    kind, message, hint = json.loads(answer)
    if kind:
        raise getattr(errors, kind)(message, hint)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _bad(path: Path, what: str, noise: IO[bytes]) -> ModelFileError:
    """The error, with the last line that the child wrote."""
    noise.seek(max(0, noise.seek(0, os.SEEK_END) - 4096))
    lines = noise.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
    return ModelFileError(
        f"{path}: cannot be used: {what} ({last[-200:]})",
        "use another file; if this one is good, the machine lacks time or memory for it",
    )

"""Opens GGUF models, and models of registered backends, by name.

llama.cpp aborts on some damaged files, so each new file is first tried in a separate process. Files that pass are
recorded with their sha256 and the llama-cpp-python version. Failures are not recorded, because they may be caused by the
machine.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

import arbitrage_cli.errors
from arbitrage_cli.errors import ModelFileError, ModelUnsupportedError
from arbitrage_cli.inference.chat_template import renderer
from arbitrage_cli.inference.llama import BINDING, other_library
from arbitrage_cli.model_files import checksums
from arbitrage_cli.model_files.gguf import read_facts, read_header
from arbitrage_cli.model_files.pairs import backend_of, find_files, hub_name, is_built_in, is_gguf, local_files
from arbitrage_cli.model_files.stores import program_of
from arbitrage_cli.system.child import describe_exit
from arbitrage_cli.system.files import models_folder
from arbitrage_cli.types import Fields

if TYPE_CHECKING:  # NumPy is slow to import
    from arbitrage_cli.inference.backend import Backend, LoadOptions

MAX_SECONDS = 100  # plus the file's size / BYTES_PER_SECOND
BYTES_PER_SECOND = 10 << 20  # on a slow, busy machine
TRIAL_BYTES = 1 << 30  # of memory, plus twice the file's size, because weights are copied into another layout
TRIAL = "import sys; sys.path.append(sys.argv.pop()); from arbitrage_cli.inference.llama import try_file; try_file.main()"

log = logging.getLogger("arbitrage.models")


def open_model(
    source: str,
    options: "LoadOptions",
    progress: Callable[[float], None] | None = None,
    same: "Backend | None" = None,
) -> "Backend":
    """Load a model, downloading the model if necessary. `progress` is called with fractions from 0 to 1.

    `same` is an open backend with the same file. If llama.cpp runs it, the two share its weights, and nothing is loaded.

    Raises ModelError if the model cannot be downloaded or loaded; UsageError if the name is unknown.
    """
    if registered := backend_of(source):
        make: Callable[[str, LoadOptions], Backend] = registered.load()
        return make(source, options)
    path = find_files(source)[0]
    renderer().start()  # it starts while llama.cpp is imported
    llama = load_llama()
    try_model(source, options)
    shared = same.weights if isinstance(same, llama.LlamaBackend) else None
    backend: Backend = llama.LlamaBackend(path, options, progress=progress, shared=shared)
    return backend


def display_name(source: str) -> str:
    """Return the name under which users know a model.

    For a path, this is the name of the file, with the quantization if the name lacks it. A built-in model has the name in its
    file, and any other model the name by which the user selected it.
    """
    if not is_gguf(source) or hub_name(source) or program_of(source) or not (files := local_files(source)):
        return source
    if is_built_in(source):
        return str(read_header(files[0]).metadata.get("general.name") or source)
    file_type = read_facts(files).file_type
    quantization = "" if file_type is None else str(load_llama().quantization_name(file_type))
    name = files[0].name
    return name if quantization.lower() in name.lower().replace("-", "_") else f"{name} {quantization}"


def try_model(source: str, options: "LoadOptions") -> None:
    """Try a model in a separate process if the model is new on this machine. Raises ModelError if the trial fails."""
    files = local_files(source)
    if not files or files[0].resolve().is_relative_to(models_folder().resolve()):
        return
    for path in files:
        read_header(path)
    sha256 = checksums.sha256_seen(files)
    if not _passed_trial(sha256):
        log.warning("%s is new on this machine; trying it in a separate process first", files[0].name)
        can_drop = _try_files(files, options.gpu_layers)
        checksums.write_note("tried", [sha256], {"version": BINDING, "rolls_back": can_drop})


def rolls_back(files: Sequence[Path]) -> bool | None:
    """Return whether the model can drop rejected draft tokens from its recurrent state, or None if this is untested."""
    known = checksums.unchanged_sha256(files)
    found = _passed_trial(known).get("rolls_back") if known else None
    return found if isinstance(found, bool) else None


def _passed_trial(sha256: str) -> Fields:
    note = checksums.read_note("tried", [sha256])
    return note if isinstance(note, dict) and note.get("version") == BINDING else {}


def load_llama() -> ModuleType:
    """Import the llama.cpp backend, which is slow. Raises ModelUnsupportedError if the import fails."""
    try:
        from arbitrage_cli.inference.llama import backend as llama
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ModelUnsupportedError(
            f"llama-cpp-python cannot be loaded ({error})", other_library(f"llama-cpp-python=={BINDING}")
        ) from error
    return llama


def _try_files(files: Sequence[Path], gpu_layers: int | None) -> bool:
    """Return whether the model can drop rejected draft tokens from its recurrent state.

    Raises ModelError if the trial fails.
    """
    size = sum(path.stat().st_size for path in files)
    request = json.dumps([str(files[0].absolute()), 2 * size + TRIAL_BYTES, gpu_layers])
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(  # noqa: S603 - this program
                [sys.executable, "-P", "-c", TRIAL, request, str(Path(__file__).parents[2])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                timeout=MAX_SECONDS + size / BYTES_PER_SECOND,
                check=False,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C must not reach it
            )
            failure = f"the process ended itself ({describe_exit(done.returncode)})" if done.returncode else ""
        except subprocess.TimeoutExpired as error:
            failure = f"not finished after {error.timeout:g} s"
        if failure:
            raise ModelFileError(
                f"{files[0]} failed to load in a separate process: {failure} ({_last_line(output)})",
                "use another file; an intact file may also fail if the machine is slow or short of memory",
            )
    kind, message, hint, can_drop = json.loads(done.stdout.splitlines()[-1])
    if kind:
        raise getattr(arbitrage_cli.errors, kind)(message, hint)
    return bool(can_drop)


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").split("\n")
    return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "no output")

"""From a model's name to a loaded model: llama.cpp for files, the scripted backend for the scripted models. Knows no policy."""

import functools
import importlib.metadata
import logging
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.chat_template import renderer
from arbitrage_cli.inference.trial import try_files
from arbitrage_cli.model_files.pairs import find_files, is_scripted, local_files, models_folder
from arbitrage_cli.types import TESTED_BINDINGS

log = logging.getLogger("arbitrage.models")

if TYPE_CHECKING:  # NumPy is slow to import
    from arbitrage_cli.inference.backend import Backend, Options


def open_model(source: str, options: "Options", progress: Callable[[float], None] | None = None) -> "Backend":
    """Load a model. `progress` gets fractions from 0 to 1. A missing file is fetched, without a display.

    Errors: ModelError (HubError among them), UsageError.
    """
    if is_scripted(source):
        from arbitrage_cli.inference.scripted import open_scripted

        return open_scripted(source, options)
    path = find_files(source)[0]
    try_binding()
    try_model(source, options)
    renderer().start()  # it gets ready while llama.cpp is imported
    backend: Backend = load_llama().LlamaBackend(path, options, progress=progress)
    return backend


@functools.cache
def try_binding() -> None:
    """Have another process compute a known text with a version of llama-cpp-python that was not tested. Once. ModelError."""
    version = importlib.metadata.version("llama-cpp-python")
    if version not in TESTED_BINDINGS:
        tested = ", ".join(TESTED_BINDINGS)
        log.warning("llama-cpp-python %s was not tested with this program; tested: %s", version, tested)
        for name in ("draft.gguf", "target.gguf"):
            try_files([models_folder() / name], 0)


def try_model(source: str, options: "Options") -> None:
    """Have a model that is new on this machine, and not built in, loaded by another process first. ModelError."""
    files = local_files(source)
    if files and not files[0].resolve().is_relative_to(models_folder().resolve()):
        try_files(files, options.gpu_layers)


def load_llama() -> ModuleType:
    """The module of the llama.cpp backend, which is slow to import. ModelUnsupportedError if that fails."""
    try:
        from arbitrage_cli.inference.llama import backend as llama
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ModelUnsupportedError(
            f"llama-cpp-python cannot be loaded ({error})",
            f'pip install --force-reinstall "llama-cpp-python=={TESTED_BINDINGS[-1]}"',
        ) from error
    return llama

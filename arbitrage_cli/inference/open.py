"""From a model's name to a loaded model: llama.cpp for files, the scripted backend for the scripted models. Knows no policy."""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.chat_template import renderer
from arbitrage_cli.inference.trial import try_files
from arbitrage_cli.model_files.pairs import find_files, is_scripted, local_files, models_folder

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
    try_model(source, options)
    renderer().start()  # it gets ready while llama.cpp is imported
    backend: Backend = load_llama().LlamaBackend(path, options, progress=progress)
    return backend


def try_model(source: str, options: "Options") -> None:
    """Have a model that is new on this machine, and not built in, loaded by another process first. ModelError."""
    files = local_files(source)
    if files and not files[0].resolve().is_relative_to(models_folder().resolve()):
        try_files(files, options.gpu_layers)


def load_llama() -> ModuleType:
    """The module of the llama.cpp backend, which is slow to import. ModelUnsupportedError if that fails."""
    try:
        from arbitrage_cli.inference.llama import backend as llama
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelUnsupportedError(
            f"llama-cpp-python cannot be loaded ({error})",
            'pip install --force-reinstall "llama-cpp-python>=0.3.36,<0.3.37"',
        ) from error
    return llama

"""From a model's name to a loaded model: llama.cpp for files, the scripted backend for the demo. Knows no policy."""

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.model_files.pairs import find_files, is_toy

if TYPE_CHECKING:  # NumPy is slow to import
    from arbitrage_cli.inference.backend import Backend, Options


def open_model(source: str, options: "Options", progress: Callable[[float], None] | None = None) -> "Backend":
    """Load a model. `progress` gets fractions from 0 to 1. What `find_files` did not fetch before is fetched in silence.

    Errors: ModelError (HubError among them), UsageError.
    """
    if is_toy(source):
        from arbitrage_cli.inference.scripted import open_scripted

        return open_scripted(source, options)
    path = find_files(source)[0]
    backend: Backend = load_llama().LlamaBackend(path, options, progress=progress)
    return backend


def load_llama() -> ModuleType:
    """The llama.cpp backend's module: slow to import, so only when it is wanted. ModelUnsupportedError if it is broken."""
    try:
        from arbitrage_cli.inference.llama import backend as llama
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelUnsupportedError(
            f"llama-cpp-python cannot be loaded ({error})",
            'pip install --force-reinstall "llama-cpp-python>=0.3.36,<0.3.37"',
        ) from error
    return llama

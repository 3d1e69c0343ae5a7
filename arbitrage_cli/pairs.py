"""From a model's name to a loaded model: a GGUF file by its path, or a scripted demo model.

Knows no policy and no terminal.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from arbitrage_cli.backends import Backend, Options
from arbitrage_cli.backends.scripted import open_scripted
from arbitrage_cli.errors import ModelUnsupportedError

SCRIPTED = "scripted:"


def open_model(source: str, options: Options, progress: Callable[[float], None] | None = None) -> Backend:
    """Load a model. `progress` gets fractions from 0 to 1. ModelError, UsageError."""
    if source.startswith(SCRIPTED):
        return open_scripted(source, options)
    backend: Backend = load_llama().LlamaBackend(Path(source).expanduser(), options, progress=progress)
    return backend


def load_llama() -> ModuleType:
    """The llama.cpp backend's module: slow to import, so only when it is wanted. ModelUnsupportedError if it is broken."""
    try:
        from arbitrage_cli.backends import llama
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelUnsupportedError(
            f"llama-cpp-python cannot be loaded ({error})",
            'pip install --force-reinstall "llama-cpp-python>=0.3.36,<0.3.37"',
        ) from error
    return llama


def is_toy(source: str) -> bool:
    """Whether the name is that of a scripted demo model."""
    return source.startswith(SCRIPTED)

"""From a model's name to a loaded model: a GGUF file by its path, or a scripted demo model.

Knows no policy and no terminal.
"""

from collections.abc import Callable
from pathlib import Path

from arbitrage_cli.backends import Backend, Options
from arbitrage_cli.backends.scripted import open_scripted

SCRIPTED = "scripted:"


def open_model(source: str, options: Options, progress: Callable[[float], None] | None = None) -> Backend:
    """Load a model. `progress` gets fractions from 0 to 1. ModelError, UsageError."""
    if source.startswith(SCRIPTED):
        return open_scripted(source, options)
    from arbitrage_cli.backends.llama import LlamaBackend  # slow to import: only when a GGUF model is wanted

    return LlamaBackend(Path(source).expanduser(), options, progress=progress)


def is_toy(source: str) -> bool:
    """Whether the name is that of a scripted demo model."""
    return source.startswith(SCRIPTED)

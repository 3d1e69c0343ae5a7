"""Faster reasoning on your own machine: a fast draft model writes, a router decides, a strong target model steps in.

The public API consists of `open_pair` and the types of its arguments, results and errors. The public names are listed in
`api.py`, which is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arbitrage_cli.api import *  # noqa: F403 - the names that `__getattr__` finds

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("arbitrage_cli.api"), name)


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]

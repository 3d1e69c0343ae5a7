"""Faster reasoning on one's own machine: a fast draft model writes, a router decides, a strong target model steps in.

The public API: `open_pair`, and what it gives. Nothing is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arbitrage_cli.app.pair import Pair, Solution, open_pair

__version__ = "0.1.0"
__all__ = ("Pair", "Solution", "open_pair")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("arbitrage_cli.app.pair"), name)

"""Completes the names of pairs, models, policies, data sets and routers in the shell."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.model_files.pairs import found_names, shipped_routers, user_pairs
from arbitrage_cli.routing.policies import POLICIES


def complete_pairs(typed: str) -> list[str]:
    """Return the matching pair names, or an empty list if the user's pairs cannot be read."""
    with suppress(UsageError, OSError):
        return _beginning(typed, user_pairs())
    return []


def complete_models(typed: str) -> list[str]:
    """Return the matching names of pairs, and of models that other programs have downloaded."""
    with suppress(ArbitrageError, OSError):
        return [*complete_pairs(typed), *_beginning(typed, found_names())]
    return complete_pairs(typed)


def _policies(typed: str) -> list[str]:
    before, comma, last = typed.rpartition(",")
    return [f"{before}{comma}{name}" for name in _beginning(last, POLICIES)]


def _data_sets(typed: str) -> list[str]:
    from arbitrage_cli.problems.datasets import DATASETS  # slow to import

    return _beginning(typed, DATASETS)


def _routers(typed: str) -> list[str]:
    return _beginning(typed, shipped_routers())


def _beginning(typed: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(typed)]


COMPLETIONS: Mapping[str, Callable[[str], list[str]]] = {
    "pair": complete_pairs,
    "draft": complete_models,
    "target": complete_models,
    "policy": _policies,
    "dataset": _data_sets,
    "router": _routers,
    "from": _routers,
}
"""The completion of each option's value."""

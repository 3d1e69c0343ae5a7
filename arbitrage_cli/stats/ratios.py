"""Ratios of figures: None over 0, and with both parts beside them.

Knows no figure.
"""

from collections.abc import MutableMapping
from typing import Any

Ratios = MutableMapping[str, Any]
"""Numerator and denominator of each ratio, by its name."""


def ratio(ratios: Ratios, name: str, numerator: float, denominator: float) -> float | None:
    """The ratio, which is entered with both its parts; None over 0."""
    ratios[name] = {"numerator": numerator, "denominator": denominator}
    return over(numerator, denominator)


def over(numerator: float, denominator: float) -> float | None:
    """The one / the other; None over 0."""
    return numerator / denominator if denominator > 0 else None

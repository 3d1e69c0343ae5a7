"""Figures as text: how many digits, which unit, and what stands for an unknown figure.

Knows no figure by name. ASCII only: it is for terminals as well.
"""

import math
from collections.abc import Sequence

UNKNOWN = "-"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as `83.0%`."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f}%"


def percent_range(interval: Sequence[float] | None) -> str:
    """An interval of shares as `[79.5-86.1]`; empty if there is none."""
    return "" if interval is None else f"[{100 * interval[0]:.1f}-{100 * interval[1]:.1f}]"


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, always with its sign: `-1.2`."""
    return UNKNOWN if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"  # no negative zero


def points_range(interval: Sequence[float] | None) -> str:
    """An interval of differences as `[-3.4 to +1.0]`; empty if there is none."""
    return "" if interval is None else f"[{points(interval[0])} to {points(interval[1])}]"


def times(ratio: float | None) -> str:
    """A ratio as `1.64x`."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"


def times_range(interval: Sequence[float] | None) -> str:
    """An interval of ratios as `[1.52-1.77]`; empty if there is none."""
    return "" if interval is None else f"[{interval[0]:.2f}-{interval[1]:.2f}]"


def number(value: float | None) -> str:
    """A quantity with three significant digits, and no exponent: `0.0123`, `21.4`, `1,433`. A count is left as it is."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def count(value: int, noun: str) -> str:
    """`1 problem`, `2 problems`."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def seconds(value: float) -> str:
    """A measured time: 0.42 s, 12.3 s, 1230 s."""
    return f"{value:.{2 if value < 10 else 1 if value < 1000 else 0}f} s"


def duration(value: float) -> str:
    """About how many seconds: 40 s, 12 min, 3 h 20 min."""
    if value < 60:
        return f"{value:.0f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"

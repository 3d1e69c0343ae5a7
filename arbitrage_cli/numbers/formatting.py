"""Formats figures as ASCII text. Unknown figures are shown as a dash."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

NO_FIGURE = "-"
MAX_DECIMALS = 16
HUGE = 1e16  # larger numbers are shown with an exponent
Bounds = Sequence[float] | None


def number(value: float | None) -> str:
    """Format a quantity with three significant digits: `0.0123`, `21.4`. Integers keep all digits: `1,433`."""
    if value is None:
        return NO_FIGURE
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return f"{value:g}"
    exponent = Decimal(f"{value:.2e}").adjusted() if value else 0  # of the rounded value, since 0.9996 becomes 1.00
    return f"{value + 0.0:,.{max(0, 2 - exponent)}f}"  # no negative zero


def percent(share: float | None) -> str:
    """Return a share such as `97.5%`. Only the whole is `100%`."""
    if share is None:
        return NO_FIGURE
    shown = f"{100 * share:.1f}%"
    if shown != "100.0%":
        return shown
    return "100%" if share >= 1 else "99.9%"


def whole_percent(share: float | None) -> str:
    return NO_FIGURE if share is None else f"{share:.0%}"


def percent_range(interval: Bounds) -> str:
    """Format an interval of shares: `[79-86]`, or `[-20 to 31]` if it begins below 0."""
    if interval is None:
        return ""
    low, high = (round(100 * end) for end in interval)
    return f"[{low} to {high}]" if low < 0 else f"[{low}-{high}]"


def points(difference: float | None) -> str:
    """Format a difference of shares in percentage points: `-1.2`."""
    return NO_FIGURE if difference is None else f"{round(100 * difference, 1) + 0.0:+.1f}"


def number_range(interval: Bounds) -> str:
    return "" if interval is None else f"[{number(interval[0])}-{number(interval[1])}]"


def exact(value: float) -> str:
    """Format a number exactly: `0.5`, `0.000012`, `1`, `inf`. Only huge numbers have an exponent."""
    return _unless_huge(value, repr(value))


def tau(value: float) -> str:
    return _unless_huge(value, f"{value:.3g}")


def _unless_huge(value: float, text: str) -> str:
    return text if abs(value) >= HUGE else f"{Decimal(text).normalize() + 0:f}"


def compared(value: float, tau: float) -> tuple[str, str]:
    """Format a score and a tau to as many decimal places as tau, or more if needed to show which is larger."""
    if abs(tau) >= HUGE:
        return f"{value:.2f}", f"{tau:g}"
    if not tau:
        return number(float(value)), "0"
    exponent = Decimal(f"{tau:.3g}").as_tuple().exponent
    for decimals in range(max(2, -exponent if isinstance(exponent, int) else 2), MAX_DECIMALS):
        texts = f"{value:.{decimals}f}", f"{tau:.{decimals}f}"
        if (float(texts[0]) > float(texts[1])) == (value > tau):
            return texts
    return exact(value), exact(tau)


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def duration(value: float) -> str:
    """Format an approximate time: `40 s`, `12 min`, `3 h 20 min`."""
    if value < 60:
        return f"{value:.0f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def timestamp() -> str:
    """Return the present time in UTC: `2026-11-30T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def size_words(size: float | None) -> str:
    """Format a number of bytes: `4.9 GB`, `380 MB`, `12 kB`, or `unknown`."""
    if size is None:
        return "unknown"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if unit == "GB" else f"{size / factor:.0f} {unit}"
    return f"{size:.0f} B"

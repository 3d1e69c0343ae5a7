"""Numbers as text, in every table and sentence with the same digits."""

import math
from decimal import Decimal


def three_digits(value: float) -> str:
    """Three digits, and no exponent: `0.0123`, `21.4`, `1,433`."""
    if not math.isfinite(value):
        return f"{value:g}"
    exponent = Decimal(f"{value:.2e}").adjusted() if value else 0  # of the rounded value: 0.9996 is 1.00
    return f"{value + 0.0:,.{max(0, 2 - exponent)}f}"  # no negative zero

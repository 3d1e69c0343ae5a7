"""A policy at one tau: what it is called, and how its tau stands in JSON.

Knows no policy.
"""

import math


def label(policy: str, tau: float | str | None) -> str:
    """What it is called in tables and messages: `entropy 0.5`. The tau is a number, or as a row has it."""
    return policy if tau is None else f"{policy} {float(tau):g}"


def tau_in_json(tau: float | None) -> float | str | None:
    """A tau as JSON has it: a number, "inf" or "-inf", or null."""
    return tau if tau is None or math.isfinite(tau) else str(tau)


def tau_number(tau: float | str | None) -> float | None:
    """A tau as it stands in a row: a number, "inf", "-inf" or null."""
    return None if tau is None else float(tau)

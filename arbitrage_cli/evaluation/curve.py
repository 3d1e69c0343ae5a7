"""Accuracy against time over the taus of one policy: accuracy at matched time, and the area under the curve.

Time is seconds / seconds of the target alone over the same attempts. The curve runs from the draft alone to the target
alone, straight from point to point in the order of their times; a tau whose time is not between theirs is left out. The
straight line between the two ends is free: each problem goes to one of the models at random. A router is worth what its
curve lies above that line. Knows no row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arbitrage_cli.runs.records import tau_in_json
from arbitrage_cli.runs.results import PolicyResults, SampleKey, sums_by_problem
from arbitrage_cli.stats.intervals import Floats, bootstrap_many

POSITIONS = (0.25, 0.5, 0.75)
"""Where accuracy is read off the curve, between the time of the draft alone (0) and of the target alone (1)."""

SECONDS, CORRECT = 0, 1  # columns of one policy in the table that is resampled


def curve(
    policy: str, taus: Sequence[PolicyResults], draft: PolicyResults | None, target: PolicyResults | None
) -> Mapping[str, Any]:
    """The curve of one policy as JSON; `reason` says why it has no area."""
    empty: dict[str, Any] = dict.fromkeys(("area", "area_interval", "area_gain", "area_gain_interval", "reason"))
    empty |= {"policy": policy, "n": 0, "points": [], "accuracy_at": []}
    if target is None or draft is None:
        return empty | {"reason": f"the run has no policy {'target' if target is None else 'draft'}"}
    policies = [draft, *taus, target]
    table = _table(policies)
    if not len(table):
        return empty | {"reason": "no attempt was finished by all of its policies"}
    sums = table.sum(axis=0)[None]
    reason = _reason_for_no_area(_times(sums)[0])
    readings = {"reason": reason} if reason else _readings(table, sums)
    return empty | {"points": _points(policies, sums), "n": int(sums[0, -1])} | readings


def _points(policies: Sequence[PolicyResults], sums: Floats) -> list[dict[str, Any]]:
    return [
        {"policy": one.policy, "tau": tau_in_json(one.tau), "time": float(time), "accuracy": float(accuracy)}
        for one, time, accuracy in zip(policies, _times(sums)[0], _accuracies(sums)[0], strict=True)
    ]


def _reason_for_no_area(times: Floats) -> str | None:
    if not np.isfinite(times).all() or times[0] >= times[-1]:
        return "the draft alone is not faster than the target alone"
    if not ((times[1:-1] > times[0]) & (times[1:-1] < 1)).any():
        return "no tau has a time between those of draft and target alone"
    return None


def _readings(table: Floats, sums: Floats) -> dict[str, Any]:
    """Area, gain and accuracies at matched times, each with its interval over problems."""
    (area, gain, *accuracies), start = _read(sums)[0].tolist(), float(_times(sums)[0, 0])
    area_interval, gain_interval, *intervals = bootstrap_many(table, _read, 2 + len(POSITIONS))
    at = [
        {"position": position, "time": start + position * (1 - start), "accuracy": accuracy, "accuracy_interval": interval}
        for position, accuracy, interval in zip(POSITIONS, accuracies, intervals, strict=True)
    ]
    gained = {"area_gain": gain, "area_gain_interval": gain_interval}
    return {"area": area, "area_interval": area_interval, **gained, "accuracy_at": at}


def _table(policies: Sequence[PolicyResults]) -> Floats:
    """One row a problem: seconds and correct answers of each policy, then the attempts, of what all policies finished."""
    finished = [{result.key for result in policy.done} for policy in policies]

    def numbers(key: SampleKey) -> list[float]:
        results = [policy.results[key] for policy in policies]
        return [number for result in results for number in (result.seconds or 0.0, result.is_correct)] + [1.0]

    keys = sorted(set.intersection(*finished))
    return sums_by_problem(((key[0], numbers(key)) for key in keys), 2 * len(policies) + 1)


def _times(sums: Floats) -> Floats:
    """Seconds of each policy / seconds of the last one, the target alone: (resamples, policies)."""
    seconds = sums[:, SECONDS:-1:2]
    times: Floats = seconds / seconds[:, -1:]
    return times


def _accuracies(sums: Floats) -> Floats:
    accuracies: Floats = sums[:, CORRECT:-1:2] / sums[:, -1:]
    return accuracies


def _read(sums: Floats) -> Floats:
    """Area, gain and accuracy at each position, for each row of sums."""
    return np.array([_read_one(*pair) for pair in zip(_times(sums), _accuracies(sums), strict=True)])


def _read_one(times: Floats, accuracies: Floats) -> list[float]:
    """The area is a mean over time: the integral between the two ends, divided by their distance."""
    first, last = times[0], times[-1]
    if not first < last:
        return [np.nan] * (2 + len(POSITIONS))
    inside = np.flatnonzero((first < times) & (times < last))
    order = [0, *inside[np.argsort(times[inside], kind="stable")], len(times) - 1]
    x, y = times[order], accuracies[order]
    area = float(np.trapezoid(y, x)) / (last - first)
    return [area, area - (y[0] + y[-1]) / 2, *np.interp([first + one * (last - first) for one in POSITIONS], x, y)]

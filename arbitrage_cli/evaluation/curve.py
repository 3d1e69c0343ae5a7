"""Accuracy against time over the taus of one policy: accuracy at matched time, and the area under the curve.

Time is seconds / seconds of the target alone over the same attempts. The curve runs from the draft alone to the target
alone, straight from point to point in the order of their times; a tau whose time is not between theirs is no part of it.
The straight line between the two ends is what one gets for nothing, by giving each problem to one of the models at
random: a router is worth what its curve lies above that line. Knows no row.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arbitrage_cli.runs.labels import tau_in_json
from arbitrage_cli.runs.rows import Group, Key, sums_by_problem
from arbitrage_cli.stats.intervals import Floats, bootstrap_many

POSITIONS = (0.25, 0.5, 0.75)
"""Where accuracy is read off the curve: on the way from the time of the draft alone (0) to that of the target alone (1)."""

READINGS = ("area", "area_interval", "area_gain", "area_gain_interval")
SECONDS, CORRECT = 0, 1  # columns of one policy in the table that is resampled


def curve(policy: str, taus: Sequence[Group], draft: Group | None, target: Group | None) -> Mapping[str, Any]:
    """The curve of one policy as JSON; `reason` says why there is none."""
    empty: dict[str, Any] = dict.fromkeys(READINGS)
    empty |= {"policy": policy, "n": 0, "points": [], "accuracy_at": [], "reason": None}
    if target is None or draft is None:
        return empty | {"reason": f"the run has no policy {'target' if target is None else 'draft'}"}
    if len(taus) < 2:
        return empty | {"reason": "it needs at least two taus"}
    ends_and_taus = [draft, *taus, target]
    table = _table(ends_and_taus)
    if not len(table):
        return empty | {"reason": "no attempt was finished by all of its policies"}
    sums = table.sum(axis=0)[None]
    times, accuracies = _times(sums)[0], _accuracies(sums)[0]
    points = [
        {"policy": group.policy, "tau": tau_in_json(group.tau), "time": float(time), "accuracy": float(accuracy)}
        for group, time, accuracy in zip(ends_and_taus, times, accuracies, strict=True)
    ]
    filled = empty | {"points": points, "n": int(sums[0, -1])}
    if not np.isfinite(times).all() or times[0] >= times[-1]:
        return filled | {"reason": "the draft alone is not faster than the target alone"}
    if not ((times[1:-1] > times[0]) & (times[1:-1] < 1)).any():
        return filled | {"reason": "no tau has a time between those of draft and target alone"}
    return filled | _readings(table, sums)


def _readings(table: Floats, sums: Floats) -> dict[str, Any]:
    """Area, gain and accuracies at matched times, each with its interval over problems."""
    area, gain, *accuracies = map(float, _read(sums)[0])
    area_interval, gain_interval, *intervals = bootstrap_many(table, _read, 2 + len(POSITIONS))
    start = float(_times(sums)[0, 0])
    at = [
        {"position": position, "time": start + position * (1 - start), "accuracy": accuracy, "accuracy_interval": interval}
        for position, accuracy, interval in zip(POSITIONS, accuracies, intervals, strict=True)
    ]
    readings = dict(zip(READINGS, (area, area_interval, gain, gain_interval), strict=True))
    return {**readings, "accuracy_at": at}


def _table(groups: Sequence[Group]) -> Floats:
    """One row a problem: seconds and correct answers of each group, then the attempts, of what all groups finished."""
    keys = sorted(set.intersection(*(_finished(group) for group in groups)))

    def numbers(key: Key) -> list[float]:
        results = [group.results[key] for group in groups]
        return [number for result in results for number in (result.seconds or 0.0, result.is_correct)] + [1.0]

    return sums_by_problem(((key[0], numbers(key)) for key in keys), 2 * len(groups) + 1)


def _finished(group: Group) -> set[Key]:
    return {key for key, result in group.results.items() if result.is_done}


def _times(sums: Floats) -> Floats:
    """Seconds of each group / seconds of the last one, the target alone: (resamples, groups)."""
    seconds = sums[:, SECONDS:-1:2]
    times: Floats = seconds / seconds[:, -1:]
    return times


def _accuracies(sums: Floats) -> Floats:
    accuracies: Floats = sums[:, CORRECT:-1:2] / sums[:, -1:]
    return accuracies


def _read(sums: Floats) -> Floats:
    """Area, gain and accuracy at each position, for each row of sums."""
    times, accuracies = _times(sums), _accuracies(sums)
    return np.array([_read_one(*pair) for pair in zip(times, accuracies, strict=True)])


def _read_one(times: Floats, accuracies: Floats) -> list[float]:
    """The area is a mean over time: the integral between the two ends, divided by their distance."""
    first, last = times[0], times[-1]
    if not first < last:
        return [np.nan] * (2 + len(POSITIONS))
    inside = sorted(
        ((time, accuracy) for time, accuracy in zip(times[1:-1], accuracies[1:-1], strict=True) if first < time < last),
        key=operator.itemgetter(0),
    )
    x = np.array([first, *(time for time, _ in inside), last])
    y = np.array([accuracies[0], *(accuracy for _, accuracy in inside), accuracies[-1]])
    area = float(np.trapezoid(y, x)) / (last - first)
    at = np.interp([first + position * (last - first) for position in POSITIONS], x, y)
    return [area, area - (accuracies[0] + accuracies[-1]) / 2, *map(float, at)]

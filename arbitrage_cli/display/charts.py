"""The accuracy/time chart of a report: scales, marks and lines. Places are in percent of the plot, from its upper left corner.

Turns figures into coordinates; the template draws them. Knows no colour and no file.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from arbitrage_cli.display import rounding

SHAPES: Mapping[str, str] = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "square": "M-4.4 -4.4h8.8v8.8h-8.8z",
    "triangle": "M0 -6l6 10.8h-12z",
    "diamond": "M0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2z",
}
"""The outline of each mark around 0, 0, as an SVG path."""

HUES = 6  # of policies; draft and target have their own
NUM_TICKS = 6  # about so many intervals between ticks
ALONE = ("draft", "target")

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn alike in all charts: all taus of one policy. `style` names its colour, `path` draws its mark."""

    policy: str
    style: str
    path: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A policy at one tau: its place, the ends of its intervals, and its figures in words."""

    series: Series
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """From one place to another. `style` names what it is: a policy's curve, its end, or the chord."""

    style: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plot:
    """Accuracy against time. Ticks are pairs of place and text."""

    x_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers to percent of an axis. Its ticks are `step` apart, round numbers, and enclose all that it shows."""

    low: float
    step: float
    num_steps: int

    @classmethod
    def around(cls, values: Iterable[float]) -> Self:
        """The scale of these numbers, of which there must be one."""
        shown = list(values)
        low, high = min(shown), max(shown)
        raw = max(high - low, abs(high) / 10, 1e-9) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, step, max(1, last - first))

    def __call__(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.num_steps * self.step), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of each tick, all with as many digits as the step has."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + index * self.step for index in range(self.num_steps + 1))
        return [(self(value), f"{value + 0.0:.{digits}f}") for value in values]


@dataclass(frozen=True, slots=True)
class _Point:
    """What a mark shows, in numbers: time, accuracy in percent, and their intervals."""

    policy: Json
    x: float
    x_interval: Sequence[float]
    y: float
    y_interval: Sequence[float]


def all_series(policies: Iterable[Json]) -> dict[str, Series]:
    """A series for each policy, by its name, in the order in which they come."""
    names = dict.fromkeys(policy["policy"] for policy in policies)
    circle, *others = SHAPES.values()
    looks = zip(
        itertools.cycle(f"hue-{number + 1}" for number in range(HUES)), itertools.cycle([*others, circle]), strict=True
    )
    return {name: Series(name, name, circle) if name in ALONE else Series(name, *next(looks)) for name in names}


def plot(figures: Json) -> Plot | None:
    """The accuracy/time chart; None if there is nothing to place."""
    policies = figures["policies"]
    is_relative = any(policy["speedup"] is not None for policy in policies)
    points = [point for policy in policies if (point := _point(policy, is_relative=is_relative))]
    if not points:
        return None
    x_scale = Scale.around(value for point in points for value in (point.x, *point.x_interval))
    y_scale = Scale.around(value for point in points for value in (point.y, *point.y_interval))
    series = all_series(policies)
    marks = [_mark(point, series[point.policy["policy"]], x_scale, y_scale, is_relative=is_relative) for point in points]
    return Plot(
        _x_title(policies) if is_relative else "mean seconds per problem",
        x_scale.ticks,
        [(100 - place, f"{text}%") for place, text in y_scale.ticks],
        marks,
        _lines(marks),
    )


def _point(policy: Json, *, is_relative: bool) -> _Point | None:
    """Time is that of the policy / that of the target alone, or mean seconds if there is no target."""
    x = 1 / policy["speedup"] if is_relative and policy["speedup"] else None if is_relative else policy["seconds_mean"]
    if x is None or policy["accuracy"] is None:
        return None
    ends = policy["speedup_interval"] if policy["policy"] != "target" else None
    x_interval = (1 / ends[1], 1 / ends[0]) if ends and min(ends) > 0 else ()
    return _Point(policy, x, x_interval, 100 * policy["accuracy"], [100 * end for end in policy["accuracy_interval"]])


def _mark(point: _Point, series: Series, x_scale: Scale, y_scale: Scale, *, is_relative: bool) -> Mark:
    policy = point.policy
    time = f"{point.x:.2f} of the target's time" if is_relative else rounding.seconds(point.x)
    accuracy = f"{rounding.percent(policy['accuracy'])} {rounding.percent_range(policy['accuracy_interval'])}"
    x_ends = (x_scale(point.x_interval[0]), x_scale(point.x_interval[1])) if point.x_interval else None
    y_ends = (100 - y_scale(point.y_interval[0]), 100 - y_scale(point.y_interval[1])) if point.y_interval else None
    return Mark(series, x_scale(point.x), 100 - y_scale(point.y), x_ends, y_ends, f"{policy['label']}: {accuracy} in {time}")


def _x_title(policies: Iterable[Json]) -> str:
    seconds = next((policy["seconds_mean"] for policy in policies if policy["policy"] == "target"), None)
    return "time / time of the target alone" + (f" ({rounding.number(seconds)} s)" if seconds else "")


def _lines(marks: Sequence[Mark]) -> list[Line]:
    """The chord from the draft alone to the target alone, and each policy's taus in the order of their times."""
    alone = {mark.series.policy: mark for mark in marks if mark.series.policy in ALONE}
    ends = (alone["draft"], alone["target"]) if len(alone) == len(ALONE) else None
    lines = [_line("chord", *ends)] if ends else []
    for series in dict.fromkeys(mark.series for mark in marks):
        own = sorted((mark for mark in marks if mark.series == series), key=lambda mark: mark.x)
        if len(own) > 1:
            lines += [_line(f"curve {series.style}", *pair) for pair in itertools.pairwise(own)]
            lines += _ends(own, *ends) if ends else []
    return lines


def _ends(own: Sequence[Mark], draft: Mark, target: Mark) -> list[Line]:
    """From the draft alone to the first tau between the two models, and from the last one to the target alone."""
    inside = [mark for mark in own if draft.x < mark.x < target.x]
    style = f"curve end {own[0].series.style}"
    return [_line(style, draft, inside[0]), _line(style, inside[-1], target)] if inside else []


def _line(style: str, start: Mark, end: Mark) -> Line:
    return Line(style, (start.x, start.y), (end.x, end.y))

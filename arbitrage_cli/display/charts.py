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
Place = tuple[float, float]
Line = tuple[str, Place, Place]
"""A style (a policy's curve, its end, or the chord), and from where to where."""


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn alike in all charts: all taus of one policy. `style` names its colour, `path` draws its mark."""

    policy: str
    style: str
    path: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A policy at one tau: its place across and down, each with the ends of its interval if known, and its figures in words."""

    series: Series
    x: Sequence[float]
    y: Sequence[float]
    title: str


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
    """Maps numbers to percent of an axis, from its lower or left end; a vertical one begins at the top.

    Its ticks are `step` apart, round numbers, and enclose all that it shows.
    """

    low: float
    step: float
    num_steps: int
    is_vertical: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, is_vertical: bool = False) -> Self:
        """The scale of these numbers, of which there must be one."""
        shown = list(values)
        low, high = min(shown), max(shown)
        raw = max(high - low, abs(high) / 10, 1e-9) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, step, max(1, last - first), is_vertical)

    def __call__(self, value: float) -> float:
        place = 100 * (value - self.low) / (self.num_steps * self.step)
        return round(100 - place if self.is_vertical else place, 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of each tick, all with as many digits as the step has."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + index * self.step for index in range(self.num_steps + 1))
        return [(self(value), f"{value + 0.0:.{digits}f}") for value in values]


def all_series(policies: Iterable[Json]) -> dict[str, Series]:
    """A series for each policy, by its name, in the order in which they come."""
    circle, *others = SHAPES.values()
    hues = itertools.cycle(f"hue-{number + 1}" for number in range(HUES))
    shapes = itertools.cycle([*others, circle])
    names = dict.fromkeys(policy["policy"] for policy in policies)
    return {name: Series(name, name, circle) if name in ALONE else Series(name, next(hues), next(shapes)) for name in names}


def plot(figures: Json) -> Plot | None:
    """The accuracy/time chart; None if there is nothing to place.

    Time is that of a policy / that of the target alone, or mean seconds if there is no target.
    """
    policies = figures["policies"]
    is_relative = any(policy["speedup"] is not None for policy in policies)
    shown = [one for one in policies if one["accuracy"] is not None and one["speedup" if is_relative else "seconds_mean"]]
    if not shown:
        return None
    times = [_times(policy, is_relative=is_relative) for policy in shown]
    accuracies = [[100 * share for share in (policy["accuracy"], *policy["accuracy_interval"])] for policy in shown]
    x_scale = Scale.around(itertools.chain(*times))
    y_scale = Scale.around(itertools.chain(*accuracies), is_vertical=True)
    series = all_series(policies)
    marks = [
        Mark(series[one["policy"]], [*map(x_scale, x)], [*map(y_scale, y)], _title(one, x[0], is_relative=is_relative))
        for one, x, y in zip(shown, times, accuracies, strict=True)
    ]
    y_ticks = [(place, f"{text}%") for place, text in y_scale.ticks]
    x_title = "time / time of the target alone" if is_relative else "mean seconds per problem"
    return Plot(x_title, x_scale.ticks, y_ticks, marks, _lines(marks))


def _times(policy: Json, *, is_relative: bool) -> list[float]:
    """The time of a policy, and the ends of its interval if there is one."""
    if not is_relative:
        return [policy["seconds_mean"]]
    ends = policy["speedup_interval"] if policy["policy"] != "target" else None
    return [1 / speedup for speedup in (policy["speedup"], *(reversed(ends) if ends and min(ends) > 0 else ()))]


def _title(policy: Json, time: float, *, is_relative: bool) -> str:
    accuracy = f"{rounding.percent(policy['accuracy'])} {rounding.percent_range(policy['accuracy_interval'])}"
    return f"{policy['label']}: {accuracy} in " + (
        f"{time:.2f} of the target's time" if is_relative else rounding.seconds(time)
    )


def _lines(marks: Sequence[Mark]) -> list[Line]:
    """The chord from the draft alone to the target alone, and each policy's taus in the order of their times."""
    alone = {mark.series.policy: mark for mark in marks if mark.series.policy in ALONE}
    ends = (alone["draft"], alone["target"]) if len(alone) == len(ALONE) else None
    lines = [_line("chord", *ends)] if ends else []
    for series in dict.fromkeys(mark.series for mark in marks):
        own = sorted((mark for mark in marks if mark.series == series), key=lambda mark: mark.x[0])
        if len(own) > 1:
            lines += [_line(f"curve {series.style}", *pair) for pair in itertools.pairwise(own)]
            lines += _ends(own, *ends) if ends else []
    return lines


def _ends(own: Sequence[Mark], draft: Mark, target: Mark) -> list[Line]:
    """From the draft alone to the first tau between the two models, and from the last one to the target alone."""
    inside = [mark for mark in own if draft.x[0] < mark.x[0] < target.x[0]]
    style = f"curve end {own[0].series.style}"
    return [_line(style, draft, inside[0]), _line(style, inside[-1], target)] if inside else []


def _line(style: str, start: Mark, end: Mark) -> Line:
    return style, (start.x[0], start.y[0]), (end.x[0], end.y[0])

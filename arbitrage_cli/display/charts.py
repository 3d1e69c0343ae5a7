"""Builds the report's charts: accuracy against time, and accuracy by level. Positions are percentages of a chart's size."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from arbitrage_cli.display.text import shortened
from arbitrage_cli.numbers import formatting

CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z"
SHAPES: Mapping[str, str] = {  # SVG paths around the origin, by policy; others have a circle
    **dict.fromkeys(("arbitrage", "random"), "M0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2z"),
    **dict.fromkeys(("equations", "logprob", "entropy"), "M-4.4 -4.4h8.8v8.8h-8.8z"),
    **dict.fromkeys(("oracle", "rsd", "logprob-min"), "M0 -6l6 10.8h-12z"),
}

MODELS = ("draft", "target")
NUM_TICKS = 6  # approximate number of intervals
LEVEL_LETTERS = 60  # total letters below the axis of levels

Json = Mapping[str, Any]
Tick = tuple[float, str]  # position and text
Point = tuple[float, float]
Line = tuple[str, Point, Point]  # style, start and end


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark in a chart. `x` and `y` contain the mark's position, followed by the ends of its interval if known."""

    policy: str
    x: Sequence[float]
    y: Sequence[float]
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with marks and lines between two axes."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[Mark]
    lines: Sequence[Line] = ()


def path_of(policy: str) -> str:
    return SHAPES.get(policy, CIRCLE)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers to percentages of an axis with round ticks. As in SVG, a vertical axis starts at the top."""

    low: float
    step: float
    num_steps: int
    is_vertical: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, is_vertical: bool = False) -> Self:
        shown = list(values)
        low, high = min(shown), max(shown)
        raw = max(high - low, abs(high) / 10, 1e-9) / NUM_TICKS
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, step, max(1, last - first), is_vertical)

    def __call__(self, value: float) -> float:
        position = 100 * (value - self.low) / (self.num_steps * self.step)
        return round(100 - position if self.is_vertical else position, 2)

    def ticks(self, unit: str = "") -> list[Tick]:
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        values = (self.low + index * self.step for index in range(self.num_steps + 1))
        return [(self(value), f"{value + 0.0:.{digits}f}{unit}") for value in values]


def accuracy_chart(policies: Sequence[Json]) -> Chart | None:
    """Return a chart of accuracy against time relative to the target or, without a target, in mean seconds."""
    is_relative = any(policy["speedup"] is not None for policy in policies)
    time = "speedup" if is_relative else "seconds_mean"
    shown = [policy for policy in policies if policy["accuracy"] is not None and policy[time]]
    if not shown:
        return None
    times = [_times(policy, is_relative=is_relative) for policy in shown]
    accuracies = [_accuracy(policy) for policy in shown]
    x_scale = Scale.around(itertools.chain(*times))
    y_scale = Scale.around(itertools.chain(*accuracies), is_vertical=True)
    marks = [
        Mark(policy["policy"], [*map(x_scale, x)], [*map(y_scale, y)], _title(policy, x[0], is_relative=is_relative))
        for policy, x, y in zip(shown, times, accuracies, strict=True)
    ]
    x_title = "time relative to the target alone" if is_relative else "mean seconds per problem"
    lines = [*_chord(marks), *_curves(marks)]
    return Chart("Accuracy against time", x_title, "accuracy", x_scale.ticks(), y_scale.ticks("%"), marks, lines)


def _accuracy(figures: Json) -> list[float]:
    return [100 * share for share in (figures["accuracy"], *(figures["accuracy_interval"] or ()))]


def _times(policy: Json, *, is_relative: bool) -> list[float]:
    if not is_relative:
        return [policy["seconds_mean"]]
    ends = policy["speedup_interval"] if policy["policy"] != "target" else None
    return [1 / speedup for speedup in (policy["speedup"], *(reversed(ends) if ends and min(ends) > 0 else ()))]


def _title(policy: Json, time: float, *, is_relative: bool) -> str:
    took = f"{time:.2f} of the target's time" if is_relative else formatting.seconds(time)
    return f"{policy['label']}: {_accuracy_text(policy)} in {took}"


def _accuracy_text(figures: Json) -> str:
    return f"{formatting.percent(figures['accuracy'])} {formatting.percent_range(figures['accuracy_interval'])}"


def _chord(marks: Sequence[Mark]) -> list[Line]:
    """Return the line from the draft alone to the target alone. It shows the results of a random choice."""
    alone = {mark.policy: mark for mark in marks}
    return _joined("chord", [alone[role] for role in MODELS]) if alone.keys() >= set(MODELS) else []


def _curves(marks: Sequence[Mark]) -> list[Line]:
    ordered = sorted(marks, key=lambda mark: (mark.policy, mark.x[0]))
    grouped = itertools.groupby(ordered, key=lambda mark: mark.policy)
    return [line for policy, own in grouped for line in _joined(f"curve {policy}", [*own])]


def _joined(style: str, marks: Sequence[Mark]) -> list[Line]:
    return [(style, (one.x[0], one.y[0]), (other.x[0], other.y[0])) for one, other in itertools.pairwise(marks)]


def level_chart(policies: Sequence[Json]) -> Chart | None:
    shown = [policy for policy in policies if policy["by_level"] and policy["accuracy"] is not None]
    levels = list(dict.fromkeys(level for policy in shown for level in policy["by_level"]))
    if not levels:
        return None
    slot = 100 / len(levels)
    scale = Scale(0.0, 20.0, 5, is_vertical=True)
    marks = []
    for (place, level), (index, policy) in itertools.product(enumerate(levels), enumerate(shown)):
        own = policy["by_level"].get(level)
        if own and own["accuracy"] is not None:
            x = slot * (place + 0.15 + 0.7 * (index + 0.5) / len(shown))
            title = f"{policy['label']}, level {level}: {_accuracy_text(own)}, {own['correct']}/{own['n']}"
            marks.append(Mark(policy["policy"], [round(x, 2)], [*map(scale, _accuracy(own))], title))
    letters = max(2, LEVEL_LETTERS // len(levels))
    ticks = [(round(slot * (place + 0.5), 2), shortened(level, letters)) for place, level in enumerate(levels)]
    return Chart("Accuracy by level", "level", "accuracy", ticks, scale.ticks("%"), marks)

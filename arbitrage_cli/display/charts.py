"""Where things lie in the charts of a report: scales, marks, labels that do not overlap. Units are those of the drawing.

Turns figures into coordinates; how they are drawn is told by the template. Knows no colour and no file.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.display import rounding

SHAPES = ("circle", "square", "triangle", "diamond")
MARK = 5.0  # half the width of a mark
LETTER = 6.7  # mean width of a letter of a label
LINE = 14.0  # its height
BEAD = 5.0  # of what a line is taken for where labels are placed
SAME = 1e-6  # what is nearer is drawn in one place
HUES = 6  # of policies; draft and target have their own


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn alike: all taus of one policy. `style` names its colour."""

    policy: str
    style: str
    shape: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text, and where it begins or ends (`anchor`: start, middle, end)."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A policy at one tau: its place, the ends of its intervals, and what is said of it, in short and in full."""

    series: Series
    x: float
    y: float
    path: str
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    text: str
    title: str
    label: Label | None = None  # None: there is no room

    @property
    def is_end(self) -> bool:
        """Whether it is one of the models alone."""
        return self.series.policy in ("draft", "target")


@dataclass(frozen=True, slots=True)
class Plot:
    """Accuracy against time. Ticks are pairs of place and text; lines are lists of points as SVG has them."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]
    lines: Sequence[tuple[Series, str]]
    ends: Sequence[tuple[Series, str]]  # from the draft alone to the first tau, from the last one to the target alone
    chord: str | None  # from the draft alone to the target alone
    summary: str


def all_series(policies: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """A series for each policy, by its name, in the order in which they come."""
    names = dict.fromkeys(policy["policy"] for policy in policies)
    others = [name for name in names if name not in ("draft", "target")]
    own = {name: Series(name, name, "circle") for name in names if name in ("draft", "target")}
    made = {
        name: Series(name, f"hue-{number % HUES + 1}", SHAPES[(number + 1) % len(SHAPES)])
        for number, name in enumerate(others)
    }
    return {name: (own | made)[name] for name in names}


def mark_path(shape: str, x: float, y: float, size: float = MARK) -> str:
    """The outline of a mark as an SVG path. Its area is about the same in all shapes."""
    if shape == "circle":
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    if shape == "square":
        half = 0.88 * size
        return f"M{x - half:.1f} {y - half:.1f}h{2 * half:.1f}v{2 * half:.1f}h{-2 * half:.1f}z"
    if shape == "triangle":
        half = 1.2 * size
        return f"M{x:.1f} {y - half:.1f}l{half:.1f} {1.8 * half:.1f}h{-2 * half:.1f}z"
    half = 1.25 * size
    return f"M{x:.1f} {y - half:.1f}l{half:.1f} {half:.1f}l{-half:.1f} {half:.1f}l{-half:.1f} {-half:.1f}z"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that enclose low and high."""
    if high - low < SAME:
        low, high = low - max(abs(low) / 10, SAME), high + max(abs(high) / 10, SAME)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps numbers to places, evenly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True, slots=True)
class _Point:
    """What a mark shows, in numbers."""

    policy: Mapping[str, Any]
    x: float
    x_interval: tuple[float, float] | None
    y: float
    y_interval: Sequence[float] | None


def plot(figures: Mapping[str, Any], width: float, height: float) -> Plot | None:
    """The accuracy/time chart in a drawing of this size; None if there is nothing to place."""
    is_relative = any(policy["speedup"] is not None for policy in figures["policies"])
    found = [point for policy in figures["policies"] if (point := _point(policy, is_relative=is_relative))]
    if not found:
        return None
    left, right, top, bottom = 46.0, width - 14.0, 30.0, height - 46.0
    x_ticks = ticks(*_extent((point.x, point.x_interval) for point in found), 5 if width < 500 else 8)
    y_ticks = ticks(*_extent((point.y, point.y_interval) for point in found), 5)
    x_scale = _Scale(x_ticks[0], x_ticks[-1], left, right)
    y_scale = _Scale(y_ticks[0], y_ticks[-1], bottom, top)
    series = all_series(figures["policies"])
    marks = [_mark(point, series[point.policy["policy"]], x_scale, y_scale, is_relative=is_relative) for point in found]
    alone = {mark.series.policy: mark for mark in marks if mark.is_end}
    lines, ends = _lines(figures["policies"], marks, alone)
    return Plot(
        width,
        height,
        left,
        right,
        top,
        bottom,
        _x_title(figures, is_relative=is_relative, is_narrow=width < 500),
        [(x_scale(tick), f"{tick:g}") for tick in x_ticks],
        [(y_scale(tick), rounding.percent(tick, 0)) for tick in y_ticks],
        _labelled(marks, [points for _, points in (*lines, *ends)], (left, right, top, bottom)),
        lines,
        ends,
        _points([alone["draft"], alone["target"]]) if len(alone) == 2 else None,
        "; ".join(mark.title for mark in marks),
    )


def _point(policy: Mapping[str, Any], *, is_relative: bool) -> _Point | None:
    """Time is that of the policy / that of the target alone, or seconds where there is no target."""
    accuracy, interval = policy["accuracy"], policy["accuracy_interval"]
    if accuracy is None:
        return None
    if not is_relative:
        seconds = policy["seconds_mean"]
        return None if seconds is None else _Point(policy, seconds, None, accuracy, interval)
    if not policy["speedup"]:
        return None
    ends = policy["speedup_interval"] if policy["policy"] != "target" else None
    x_interval = (1 / ends[1], 1 / ends[0]) if ends and min(ends) > 0 else None
    return _Point(policy, 1 / policy["speedup"], x_interval, accuracy, interval)


def _extent(values: Iterable[tuple[float, Sequence[float] | None]]) -> tuple[float, float]:
    everything = [number for value, interval in values for number in (value, *(interval or ()))]
    return min(everything), max(everything)


def _x_title(figures: Mapping[str, Any], *, is_relative: bool, is_narrow: bool) -> str:
    if not is_relative:
        return "mean seconds per problem"
    target = next((policy for policy in figures["policies"] if policy["policy"] == "target"), None)
    seconds = (
        f" ({rounding.number(target['seconds_mean'])} s)" if target and target["seconds_mean"] and not is_narrow else ""
    )
    return f"time / time of the target alone{seconds}"


def _mark(point: _Point, series: Series, x_scale: _Scale, y_scale: _Scale, *, is_relative: bool) -> Mark:
    x, y = x_scale(point.x), y_scale(point.y)
    time = f"{point.x:.2f} of the target's time" if is_relative else f"{rounding.number(point.x)} s"
    return Mark(
        series,
        x,
        y,
        mark_path(series.shape, x, y),
        _ends(point.x_interval, x_scale),
        _ends(point.y_interval, y_scale),
        f"{series.policy} alone" if series.policy in ("draft", "target") else point.policy["label"],
        f"{point.policy['label']}: {rounding.percent(point.y)} {rounding.percent_range(point.y_interval)} in {time}",
    )


def _ends(interval: Sequence[float] | None, scale: _Scale) -> tuple[float, float] | None:
    return (scale(interval[0]), scale(interval[1])) if interval else None


def _lines(
    policies: Sequence[Mapping[str, Any]], marks: Sequence[Mark], alone: Mapping[str, Mark]
) -> tuple[list[tuple[Series, str]], list[tuple[Series, str]]]:
    """The taus of each policy in the order of their times, and how they join the two models alone."""
    lines, ends = [], []
    for name in dict.fromkeys(policy["policy"] for policy in policies):
        own = sorted((mark for mark in marks if mark.series.policy == name), key=lambda mark: mark.x)
        if len(own) < 2:
            continue
        lines.append((own[0].series, _points(own)))
        if len(alone) == 2:
            inside = [mark for mark in own if alone["draft"].x < mark.x < alone["target"].x]
            if inside:
                ends.append((own[0].series, _points([alone["draft"], inside[0]])))
                ends.append((own[0].series, _points([inside[-1], alone["target"]])))
    return lines, ends


def _points(marks: Iterable[Mark]) -> str:
    return " ".join(f"{mark.x},{mark.y}" for mark in marks)


# --- labels

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(slots=True)
class _Placer:
    """Finds a place for each label on no mark and no other label, nearer to its own mark than to others, best on no line."""

    frame: Box
    marks: list[Box]
    lines: list[Box]
    taken: list[Box] = field(default_factory=list)

    def place(self, mark: Mark) -> Label | None:
        """The best place beside a mark; None if all are taken."""
        best: tuple[float, Label, Box] | None = None
        for rank, (x, y, anchor) in enumerate(_candidates(mark)):
            box = _box(mark.text, x, y, anchor)
            if not _contains(self.frame, box) or any(_overlap(box, other) for other in (*self.marks, *self.taken)):
                continue
            own = _distance(box, _square(mark.x, mark.y, MARK))
            if any(_distance(box, other) < own for other in self.marks):
                continue
            cost = 0.01 * rank + sum(_overlap(box, line) for line in self.lines)
            if best is None or cost < best[0]:
                best = (cost, Label(mark.text, x, y, anchor), box)
        if best is None:
            return None
        self.taken.append(best[2])
        return best[1]


def _labelled(marks: Sequence[Mark], lines: Sequence[str], frame: Box) -> list[Mark]:
    """The marks with their labels: of several taus of a policy only the tau, else the whole name. The ends come first."""
    left, right, top, bottom = frame
    placer = _Placer(
        (left, top - 6, right + 10, bottom - 2),
        [_square(mark.x, mark.y, MARK) for mark in marks],
        [box for mark in marks for box in _interval_boxes(mark)] + [box for line in lines for box in _line_boxes(line)],
    )
    named = [_only_tau(mark, marks) for mark in marks]
    order = sorted(range(len(named)), key=lambda index: (not named[index].is_end, named[index].x))
    labels = {index: placer.place(named[index]) for index in order}
    return [replace(mark, label=labels[index]) for index, mark in enumerate(named)]


def _only_tau(mark: Mark, marks: Sequence[Mark]) -> Mark:
    if mark.is_end or sum(other.series.policy == mark.series.policy for other in marks) == 1:
        return mark
    return replace(mark, text=mark.text.removeprefix(mark.series.policy).strip())


def _candidates(mark: Mark) -> Iterable[tuple[float, float, str]]:
    """Places around a mark, the ones that are read most easily first."""
    near, far = MARK + 5, MARK + 16
    yield mark.x + near, mark.y - near + 2, "start"
    yield mark.x - near, mark.y - near + 2, "end"
    yield mark.x + near, mark.y + near + 8, "start"
    yield mark.x - near, mark.y + near + 8, "end"
    yield mark.x + near, mark.y + 4, "start"
    yield mark.x - near, mark.y + 4, "end"
    yield mark.x, mark.y - near - 1, "middle"
    yield mark.x, mark.y + near + 10, "middle"
    yield mark.x + near, mark.y - far, "start"
    yield mark.x - near, mark.y - far, "end"
    yield mark.x + near, mark.y + far + 8, "start"
    yield mark.x - near, mark.y + far + 8, "end"


def _box(text: str, x: float, y: float, anchor: str) -> Box:
    width = len(text) * LETTER
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - LINE + 3, left + width, y + 3


def _square(x: float, y: float, half: float) -> Box:
    return x - half, y - half, x + half, y + half


def _interval_boxes(mark: Mark) -> Iterable[Box]:
    if mark.x_ends:
        yield mark.x_ends[0], mark.y - 1, mark.x_ends[1], mark.y + 1
    if mark.y_ends:
        yield mark.x - 1, min(mark.y_ends), mark.x + 1, max(mark.y_ends)


def _line_boxes(points: str) -> Iterable[Box]:
    """Small boxes along a line."""
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    for (x_1, y_1), (x_2, y_2) in itertools.pairwise(places):
        count = max(1, round(math.hypot(x_2 - x_1, y_2 - y_1) / BEAD))
        for bead in range(count + 1):
            share = bead / count
            yield _square(x_1 + share * (x_2 - x_1), y_1 + share * (y_2 - y_1), BEAD / 2)


def _overlap(first: Box, second: Box) -> float:
    """The area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def _distance(first: Box, second: Box) -> float:
    """How far apart two boxes are."""
    beside = max(0.0, first[0] - second[2], second[0] - first[2])
    above = max(0.0, first[1] - second[3], second[1] - first[3])
    return math.hypot(beside, above)


def _contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]

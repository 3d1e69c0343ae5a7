"""The charts of a report with two axes: accuracy against time, and calibration. Marks, lines, and where labels have room."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from arbitrage_cli.display import rounding
from arbitrage_cli.display.charts import Entry, Json, Scale, Series, Tick

ALONE = ("draft", "target")

Place = tuple[float, float]
Line = tuple[str, Place, Place]
"""A style (a policy's curve, the front, the chord), and from where to where."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place across and down, each with the ends of its interval if known, its figures in words, and its label's place."""

    series: Series
    run: int
    x: Sequence[float]
    y: Sequence[float]
    title: str
    label: "Label | None" = None


@dataclass(frozen=True, slots=True)
class Label:
    """A text beside its mark: pixels across and down from it to the text's anchor."""

    text: str
    dx: int
    dy: int
    anchor: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Marks and lines between two axes."""

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[Mark]
    lines: Sequence[Line]


def accuracy_plot(entries: Sequence[Entry]) -> Plot | None:
    """Accuracy against time; None if there is nothing to place.

    Time is that of a policy / that of the target alone, or mean seconds if there is no target.
    """
    is_relative = any(entry.figures["speedup"] is not None for entry in entries)
    time = "speedup" if is_relative else "seconds_mean"
    shown = [entry for entry in entries if entry.figures["accuracy"] is not None and entry.figures[time]]
    if not shown:
        return None
    times = [_times(entry.figures, is_relative=is_relative) for entry in shown]
    accuracies = [[100 * share for share in _with_ends(entry.figures, "accuracy")] for entry in shown]
    x_scale = Scale.around(itertools.chain(*times))
    y_scale = Scale.around(itertools.chain(*accuracies), is_vertical=True)
    marks = [
        Mark(entry.series, entry.run, [*map(x_scale, x)], [*map(y_scale, y)], _title(entry, x[0], is_relative=is_relative))
        for entry, x, y in zip(shown, times, accuracies, strict=True)
    ]
    labels = place_labels([(mark.x[0], mark.y[0]) for mark in marks], _label_texts(shown))
    labelled = [replace(mark, label=label) for mark, label in zip(marks, labels, strict=True)]
    x_title = "time / time of the target alone" if is_relative else "mean seconds per problem"
    y_ticks = [(place, f"{text}%") for place, text in y_scale.ticks]
    lines = [*_chords(marks), *_curves(marks), *_front(marks)]
    return Plot("Accuracy against time", x_title, "accuracy", x_scale.ticks, y_ticks, labelled, lines)


def calibration_plot(entry: Entry) -> Plot:
    """How often the target's step was better, against the probability of that, of a policy that has a calibration."""
    ticks = [(20.0 * index, f"{20 * index}%") for index in range(6)]
    marks = [
        Mark(
            entry.series,
            entry.run,
            [100 * one["probability"]],
            [100 - 100 * share for share in (one["share"], *one["interval"])],
            f"probability {rounding.percent(one['probability'])}: the target's step was better in "
            f"{one['better']} of {one['n']} steps, {rounding.percent(one['share'])} {rounding.percent_range(one['interval'])}",
        )
        for one in entry.figures["calibration"]
    ]
    lines = [("chord", (0.0, 100.0), (100.0, 0.0)), *_joined(f"curve {entry.series.style}", marks)]
    y_ticks = [(100 - place, text) for place, text in ticks]
    return Plot(f"Calibration of {entry.label}", "probability", "target's step was better", ticks, y_ticks, marks, lines)


def _with_ends(figures: Json, name: str) -> list[float]:
    """A figure, and the ends of its interval if there is one."""
    return [figures[name], *(figures[f"{name}_interval"] or ())]


def _times(policy: Json, *, is_relative: bool) -> list[float]:
    """The time of a policy, and the ends of its interval if there is one."""
    if not is_relative:
        return [policy["seconds_mean"]]
    ends = policy["speedup_interval"] if policy["policy"] != "target" else None
    return [1 / speedup for speedup in (policy["speedup"], *(reversed(ends) if ends and min(ends) > 0 else ()))]


def _title(entry: Entry, time: float, *, is_relative: bool) -> str:
    figures = entry.figures
    accuracy = f"{rounding.percent(figures['accuracy'])} {rounding.percent_range(figures['accuracy_interval'])}"
    took = f"{time:.2f} of the target's time" if is_relative else rounding.seconds(time)
    return f"{entry.label}: {accuracy} in {took}"


def _label_texts(entries: Sequence[Entry]) -> list[str]:
    """Policy and tau, without its number if it has a name. Empty for all runs but the first: marks tell them apart."""
    first = {entry.key: entry for entry in reversed(entries)}
    return [entry.row.rpartition(" (")[0] or entry.row if entry is first[entry.key] else "" for entry in entries]


# --- lines


def _chords(marks: Sequence[Mark]) -> list[Line]:
    """In each run the line from the draft alone to the target alone: one of the two at random."""
    alone = {(mark.run, mark.series.policy): mark for mark in marks}
    runs = sorted({mark.run for mark in marks})
    ends = [[alone[run, role] for role in ALONE] for run in runs if all((run, role) in alone for role in ALONE)]
    return [line for pair in ends for line in _joined("chord", pair)]


def _curves(marks: Sequence[Mark]) -> list[Line]:
    """In each run the taus of each policy, in the order of their times."""
    grouped: dict[tuple[int, Series], list[Mark]] = {}
    for mark in sorted(marks, key=lambda mark: mark.x[0]):
        grouped.setdefault((mark.run, mark.series), []).append(mark)
    return [
        line for (run, series), own in grouped.items() for line in _joined(f"curve {series.style} run-{min(run, 1)}", own)
    ]


def _joined(style: str, marks: Sequence[Mark]) -> list[Line]:
    return [(style, (one.x[0], one.y[0]), (other.x[0], other.y[0])) for one, other in itertools.pairwise(marks)]


def _front(marks: Sequence[Mark]) -> list[Line]:
    """The Pareto front: a staircase over what nothing else beats in both accuracy and time."""
    best: list[Place] = []
    for x, y in sorted((mark.x[0], mark.y[0]) for mark in marks):
        if not best or y < best[-1][1]:
            best.append((x, y))
    steps = [
        (("front", one, (other[0], one[1])), ("front", (other[0], one[1]), other)) for one, other in itertools.pairwise(best)
    ]
    return list(itertools.chain(*steps))


# --- labels

WIDTHS, HEIGHT = (600, 960), 360  # pixels of the plot: labels have room at both widths, and so at those between
LETTER, LINE, MARK = 7.0, 16, 7  # pixels: width of a letter, height of a line, half a mark
OFFSETS = (
    *((8, -11, "start"), (-8, -11, "end"), (8, 20, "start"), (-8, 20, "end")),  # askew first: beside a mark there are lines
    *((11, 4, "start"), (-11, 4, "end"), (0, -12, "middle"), (0, 21, "middle")),
    *((16, -27, "start"), (-16, -27, "end"), (16, 36, "start"), (-16, 36, "end")),
)
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


def place_labels(places: Sequence[Place], texts: Sequence[str]) -> list[Label | None]:
    """For each mark a label that covers no mark, no other label and no border; None if it has no room."""
    taken = [[_around(place, width) for place in places] for width in WIDTHS]
    labels: list[Label | None] = []
    for place, text in zip(places, texts, strict=True):
        tried = (Label(text, *offset) for offset in OFFSETS)
        label = next((one for one in tried if text and _has_room(one, place, taken)), None)
        labels.append(label)
        for width, boxes in zip(WIDTHS, taken, strict=True):
            boxes += [label_box(label, place, width)] if label else []
    return labels


def label_box(label: Label, place: Place, width: int) -> Box:
    """What a label covers in a plot of this width."""
    across, down = place[0] * width / 100 + label.dx, place[1] * HEIGHT / 100 + label.dy
    length = LETTER * len(label.text)
    left = across - {"start": 0.0, "middle": length / 2, "end": length}[label.anchor]
    return left, down - LINE + 4, left + length, down + 4


def _around(place: Place, width: int) -> Box:
    across, down = place[0] * width / 100, place[1] * HEIGHT / 100
    return across - MARK, down - MARK, across + MARK, down + MARK


def _has_room(label: Label, place: Place, taken: Sequence[Sequence[Box]]) -> bool:
    for width, boxes in zip(WIDTHS, taken, strict=True):
        box = label_box(label, place, width)
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > HEIGHT or any(overlap(box, other) for other in boxes):
            return False
    return True


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes have a point in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

"""The charts of a report that are rows of bars: one row a policy at one tau, with the bars of all runs side by side."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from arbitrage_cli.display import rounding
from arbitrage_cli.display.charts import Entry, Json, Series, Tick
from arbitrage_cli.evaluation.drafted import MAX_POSITION, NUM_BINS

SHORT = 4  # characters of a tick that always has room
MIN_SLOTS = 5  # so that few bars are not wide
LEAST = 0.03  # height of a bar


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from the ground up, the ends of its interval if known, and its figures: a short one above it, and in words."""

    run: int
    x: float
    width: float
    height: float
    ends: Sequence[float]
    text: str
    title: str


@dataclass(frozen=True, slots=True)
class BarRow:
    """The bars of one policy at one tau, those of all runs side by side. `said` are figures beside it, one a run."""

    series: Series
    label: str
    bars: Sequence[Bar]
    said: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class BarChart:
    """Rows of bars over one axis. `legend` says what short ticks stand for."""

    rows: Sequence[BarRow]
    ticks: Sequence[Tick]
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """What a bar shows: height and interval as shares of the highest, the text above it, and its figures in words."""

    height: float
    interval: Sequence[float] | None
    text: str
    title: str


Values = Callable[[Json], Sequence[Value | None]]
"""From figures to a value for each slot; None for no bar."""
Said = Callable[[Json], tuple[str, str]]


def bar_chart(entries: Sequence[Entry], names: Sequence[str], values: Values, said: Said, *, gap: float) -> BarChart | None:
    """A chart with a slot for each name, `gap` of it empty; None without an entry."""
    if not entries:
        return None
    runs = sorted({entry.run for entry in entries})
    rows, slot = [], 100 / max(len(names), MIN_SLOTS)
    for _, group in itertools.groupby(entries, key=lambda entry: entry.key):
        own = list(group)
        bars = [bar for entry in own for bar in _bars(entry, values(entry.figures), slot, runs, gap)]
        rows.append(BarRow(own[0].series, own[0].row, bars, [said(entry.figures) for entry in own]))
    is_short = max(map(len, names)) <= SHORT
    shown = names if is_short else [str(number) for number in range(1, len(names) + 1)]
    ticks = [(round(slot * (index + 0.5), 2), text) for index, text in enumerate(shown)]
    return BarChart(rows, ticks, [] if is_short else list(zip(shown, names, strict=True)))


def _bars(entry: Entry, values: Sequence[Value | None], slot: float, runs: Sequence[int], gap: float) -> Iterator[Bar]:
    """The bars of one run: its part of each slot."""
    width = slot * (1 - gap) / len(runs)
    for index, value in enumerate(values):
        if value is not None:
            x = slot * (index + gap / 2) + width * runs.index(entry.run)
            ends = [round(100 * end, 1) for end in value.interval or ()]
            text = value.text if len(runs) == 1 else ""
            yield Bar(entry.run, round(x, 3), round(width, 3), round(100 * value.height, 1), ends, text, value.title)


def speedup_chart(entries: Sequence[Entry], bins: Sequence[float]) -> BarChart | None:
    """How the speed-ups of single problems are distributed. The axis is one of edges, not of slots."""
    shown = [entry for entry in entries if entry.figures["problem_speedups"]]
    edges = [rounding.times(edge) for edge in bins]
    names = [f"up to {edges[1]}", *map(" to ".join, itertools.pairwise(edges[1:-1])), f"{edges[-2]} and more"]

    def values(figures: Json) -> list[Value | None]:
        return _counts(figures["problem_speedups"]["counts"], names, "problem")

    def said(figures: Json) -> tuple[str, str]:
        spread = figures["problem_speedups"]
        return rounding.times(spread["p50"]), f"{spread['slower']} of {spread['n']} slower"

    chart = bar_chart(shown, names, values, said, gap=0.0)
    marked = {0: "≤⅛", 4: "¼", 8: "½", 12: "1", 16: "2", 20: "4", 24: "≥8"}
    return chart and replace(
        chart,
        legend=(),
        ticks=[(round(100 * at / (len(bins) - 1), 2), f"{text}\N{MULTIPLICATION SIGN}") for at, text in marked.items()],
    )


def level_chart(entries: Sequence[Entry]) -> BarChart | None:
    """Accuracy at each level."""
    shown = [entry for entry in entries if entry.figures["by_level"]]
    names = list(dict.fromkeys(level for entry in shown for level in entry.figures["by_level"]))

    def values(figures: Json) -> list[Value | None]:
        return [_rate(f"level {name}", figures["by_level"].get(name), "accuracy", "correct", "n") for name in names]

    return bar_chart(shown, names, values, lambda of: (rounding.percent(of["accuracy"]), "overall"), gap=0.3)


def position_chart(entries: Sequence[Entry]) -> BarChart | None:
    """Accepted steps by their position in the solution."""
    shown = [entry for entry in entries if entry.figures["acceptance_by_position"]]
    count = max((len(entry.figures["acceptance_by_position"]) for entry in shown), default=0)
    names = [str(position) for position in range(1, count + 1)]
    names[MAX_POSITION - 1 :] = [f"{MAX_POSITION}+"] if count == MAX_POSITION else []

    def values(figures: Json) -> list[Value | None]:
        places = zip(names, figures["acceptance_by_position"], strict=False)
        return [_rate(f"step {name}", place, "rate", "accepted", "drafted") for name, place in places]

    return bar_chart(shown, names, values, lambda of: (rounding.percent(of["acceptance_rate"]), "overall"), gap=0.3)


def probability_chart(entries: Sequence[Entry]) -> BarChart | None:
    """How the probabilities of drafted steps are distributed."""
    shown = [entry for entry in entries if any(entry.figures["probability_counts"] or ())]
    names = [f"{10 * tenth}% to {10 * tenth + 10}%" for tenth in range(NUM_BINS)]

    def values(figures: Json) -> list[Value | None]:
        counts = _counts(figures["probability_counts"], names, "step")
        return [
            value and replace(value, text=f"{count:,}")
            for value, count in zip(counts, figures["probability_counts"], strict=True)
        ]

    chart = bar_chart(shown, names, values, lambda of: (f"{sum(of['probability_counts']):,}", "steps"), gap=0.1)
    return chart and replace(chart, legend=(), ticks=[(20.0 * index, f"{20 * index}%") for index in range(6)])


def _counts(counts: Sequence[int], names: Sequence[str], noun: str) -> list[Value | None]:
    """The highest one fills the row; the lowest can still be seen."""
    top = max(counts)
    return [
        Value(max(count / top, LEAST), None, "", f"{name}: {rounding.count(count, noun)}") if count else None
        for count, name in zip(counts, names, strict=True)
    ]


def _rate(name: str, figures: Json | None, rate: str, count: str, total: str) -> Value | None:
    """A share with its interval and its counts."""
    if figures is None or figures[rate] is None:
        return None
    interval = figures["interval" if rate == "rate" else f"{rate}_interval"]
    title = (
        f"{name}: {rounding.percent(figures[rate])} {rounding.percent_range(interval)}, {figures[count]}/{figures[total]}"
    )
    return Value(figures[rate], interval, rounding.percent(figures[rate], 0), title)

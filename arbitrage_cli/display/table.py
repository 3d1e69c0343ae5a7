"""The main figures of a run as a table for a terminal: at most 80 columns, what each column is told below it.

Plain text; in a terminal that can be drawn on, headings are bold and explanations dim. Everything comes from the JSON of
`figures`, of which `--json` shows all.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from arbitrage_cli.display import one_line, rounding, write
from arbitrage_cli.evaluation.definitions import COMPARED, DEFINITIONS

WIDTH = 79
MAX_LABEL = 17

Figures = Mapping[str, Any]
Line = tuple[str, str]
"""A line and its style: empty, "bold" or "dim"."""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands above a column, how the legend calls it, and what stands in it."""

    heading: str
    told: str
    cell: Callable[[Figures], str]


COLUMNS: Mapping[str, Column] = {
    "accuracy": Column("accuracy % [95%]", "accuracy", lambda of: _with_range(of, "accuracy", 100, 1)),
    "accuracy_difference": Column(
        "diff", "diff, in percentage points", lambda of: rounding.points(of["accuracy_difference"])
    ),
    "seconds_mean": Column("mean s", "mean s", lambda of: rounding.number(of["seconds_mean"])),
    "speedup": Column("speed-up [95%]", "speed-up", lambda of: _with_range(of, "speedup", 1, 2)),
    "problems_per_second": Column("problems/s", "problems/s", lambda of: rounding.number(of["problems_per_second"])),
    "throughput_ratio": Column("ratio [95%]", "ratio", lambda of: _with_range(of, "throughput_ratio", 1, 2)),
    "acceptance_rate": Column("accepted", "accepted", lambda of: rounding.percent(of["acceptance_rate"], 0)),
}
"""By the names of the figures."""

OF_LATENCY, OF_THROUGHPUT = ("seconds_mean", "speedup"), ("problems_per_second", "throughput_ratio")
"""Columns that only runs of the one or the other kind have."""


def write_table(figures: Figures, stream: TextIO, *, styled: bool = False) -> None:
    """Write the table, what stands in its way, and the definition of each column.

    `styled` is for a terminal that obeys escape codes. ReaderGoneError, OutputError as `write`.
    """
    _write(_lines(figures), stream, styled=styled)


def write_comparison(comparison: Figures, stream: TextIO, *, styled: bool = False) -> None:
    """The same for the comparison of two runs."""
    _write(_comparison_lines(comparison), stream, styled=styled)


def _write(lines: Iterable[Line], stream: TextIO, *, styled: bool) -> None:
    if not styled:
        write(stream, "".join(f"{line}\n" for line, _ in lines))
        return
    from rich.console import Console  # slow to import: only where it is drawn with
    from rich.text import Text

    console = Console(file=stream, force_terminal=True, color_system="standard", highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for line, style in lines:
            console.print(Text(line, style), soft_wrap=True)
    write(stream, capture.get())


# --- one run


def _lines(figures: Figures) -> Iterator[Line]:
    policies = figures["policies"]
    samples = f" x {figures['samples']} samples" if figures["samples"] > 1 else ""
    at_once = f", {figures['concurrency']} at once" if figures["concurrency"] > 1 else ""
    name = one_line(figures["dataset"] or "unnamed data set")
    yield f"{name}: {rounding.count(figures['n'], 'problem')}{samples}{at_once}", "bold"
    yield "", ""
    left_out = OF_LATENCY if at_once else OF_THROUGHPUT
    columns = {name: column for name, column in COLUMNS.items() if name not in left_out}
    cells = [[_label(policy["label"]), *(column.cell(policy) for column in columns.values())] for policy in policies]
    yield from _aligned(["policy", *(column.heading for column in columns.values())], cells)
    yield "", ""
    yield from _not_scored(policies)
    yield from _curves(figures["curves"])
    yield from _projection(figures)
    for note in figures["notes"]:
        yield from _wrapped(one_line(note), "")
    yield from _legend({column.told: DEFINITIONS[name] for name, column in columns.items()})


def _with_range(figures: Figures, name: str, factor: int, digits: int) -> str:
    """A figure and its interval without a unit: `84.5 [78.8-88.9]`."""
    value, interval = figures[name], figures[f"{name}_interval"]
    if value is None:
        return rounding.UNKNOWN
    low, high = (_rounded(factor * end, digits) for end in interval or (0, 0))
    shown = _rounded(factor * value, digits)
    return f"{shown} [{low}-{high}]" if interval else shown


def _rounded(value: float, digits: int) -> str:
    """A number with so many digits; 100 is shorter than it is wide."""
    text = f"{value:.{digits}f}"
    return "100" if text == "100.0" else text


def _label(label: str) -> str:
    label = one_line(label)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "~"


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Line]:
    """Names to the left, figures to the right, but those with an interval, which begin at the same place."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    to_the_left = [index == 0 or heading.endswith("]") for index, heading in enumerate(headings)]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, to_the_left, strict=True)
        return "  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in padded).rstrip()

    yield line(headings), "bold"
    for row in rows:
        yield line(row), ""


def _not_scored(policies: Sequence[Figures]) -> Iterator[Line]:
    """What accuracy counts as not correct without an answer having been wrong."""
    for policy in policies:
        counts = [f"{name} {policy[name]}" for name in ("unscored", "errors") if policy[name]]
        if counts:
            yield from _wrapped(f"{one_line(policy['label'])}: of {policy['n']} attempts {', '.join(counts)}", "")


def _curves(curves: Sequence[Figures]) -> Iterator[Line]:
    for curve in curves:
        name = one_line(curve["policy"])
        if curve["area"] is None:
            yield from _wrapped(f"{name} over its taus: no area ({one_line(curve['reason'])})", "")
            continue
        gain = f"{rounding.points(curve['area_gain'])} points {rounding.points_range(curve['area_gain_interval'])}".rstrip()
        area = _with_range(curve, "area", 100, 1)
        yield from _wrapped(f"{name} over its taus: mean accuracy % {area}, {gain} over a mix of draft and target", "")


def _projection(figures: Figures) -> Iterator[Line]:
    if figures["projection"] is None:
        return
    asked, measured = (
        rounding.number(value) for value in (figures["projection"]["cost_ratio"], figures["measured_cost_ratio"])
    )
    yield f"PROJECTION, not measured: a target token costs {asked} draft tokens (here {measured})", "bold"
    shown = [policy for policy in figures["policies"] if policy["projected_speedup"] is not None]
    cells = [[_label(policy["label"]), _with_range(policy, "projected_speedup", 1, 2)] for policy in shown]
    if cells:
        yield from _aligned(["policy", "projected speed-up [95%]"], cells)
    yield from _wrapped(DEFINITIONS["projected_speedup"], "dim")
    yield "", ""


def _legend(meanings: Mapping[str, str]) -> Iterator[Line]:
    for heading, meaning in meanings.items():
        yield from _wrapped(f"{heading}: {meaning}", "dim")


def _wrapped(text: str, style: str) -> Iterator[Line]:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  "):
        yield line, style


# --- two runs


def _comparison_lines(comparison: Figures) -> Iterator[Line]:
    names = dict.fromkeys(one_line(name or "unnamed data set") for name in comparison["dataset"])
    first, second = map(one_line, comparison["runs"])
    yield from _wrapped(f"{' against '.join(names)}: first {first}, second {second}", "bold")
    yield "", ""
    headings = ["policy", "n", "correct", "difference [95%]", "p", "time ratio [95%]"]
    yield from _aligned(headings, [_compared(entry) for entry in comparison["policies"]])
    yield "", ""
    for entry in comparison["policies"]:
        if entry["only_first"] or entry["only_second"]:
            left = f"{entry['only_first']} only in the first run, {entry['only_second']} only in the second"
            yield from _wrapped(f"{one_line(entry['first'])}: {left}, not compared", "")
    for note in comparison["notes"]:
        yield from _wrapped(one_line(note), "")
    shown = {"difference": "compared_accuracy", "p": "mcnemar_p", "time ratio": "seconds_ratio"}
    yield from _legend({heading: COMPARED[name] for heading, name in shown.items()})


def _compared(entry: Figures) -> list[str]:
    labels = dict.fromkeys((entry["first"], entry["second"]))
    difference = (
        f"{rounding.points(entry['accuracy_difference'])} {rounding.points_range(entry['accuracy_difference_interval'])}"
    )
    return [
        " / ".join(map(_label, labels)),
        str(entry["n"]),
        "{} -> {}".format(*entry["correct"]),
        difference.rstrip(),
        rounding.UNKNOWN if entry["mcnemar_p"] is None else f"{entry['mcnemar_p']:.3f}",
        _with_range(entry, "seconds_ratio", 1, 2),
    ]

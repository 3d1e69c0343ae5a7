"""The main figures of a run, or the comparison of two, for a terminal: at most 80 columns, if asked for with a definition of each column.

Plain text; in a terminal that obeys escape codes headings are bold and explanations dim. Everything comes from the JSON of
`figures`, of which `--json` shows all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from arbitrage_cli.display import rounding
from arbitrage_cli.display.text import WIDTH, aligned, one_line, shortened, width_of, wrapped, write
from arbitrage_cli.evaluation.definitions import COMPARED, DEFINITIONS
from arbitrage_cli.evaluation.metrics import LATENCY, PRICES, THROUGHPUT

MIN_LABEL = 8

Figures = Mapping[str, Any]
Line = tuple[str, str]
"""A line and its style: empty, "bold" or "dim"."""

COLUMNS: Mapping[str, tuple[str, Callable[[Figures], str]]] = {
    "accuracy": ("accuracy %", lambda of: _with_range(of, "accuracy", 100, 1, 0)),
    "cut": ("cut", lambda of: str(of["cut"])),
    "accuracy_difference": ("diff", lambda of: rounding.points(of["accuracy_difference"])),
    "seconds_mean": ("mean s", lambda of: rounding.number(of["seconds_mean"])),
    "speedup": ("speed-up", lambda of: _with_range(of, "speedup", 1, 2, 2)),
    "problems_per_second": ("problems/s", lambda of: rounding.number(of["problems_per_second"])),
    "throughput_ratio": ("ratio", lambda of: _with_range(of, "throughput_ratio", 1, 2, 2)),
    "price": ("price/1000", lambda of: rounding.number(None if of["price"] is None else 1000 * of["price"])),
    "saving": ("saved %", lambda of: _with_range(of, "saving", 100, 1, 0)),
    "acceptance_rate": ("accepted", lambda of: rounding.percent(of["acceptance_rate"], 0)),
}
"""Heading and cell of each figure that the table shows."""


def write_table(
    figures: Figures, facts: Iterable[tuple[str, str]], stream: TextIO, *, explain: bool = False, styled: bool = False
) -> None:
    """Write what the run was made with, the table, the notes, and if asked for the definition of each column.

    `styled` is for a terminal that obeys escape codes. ReaderGoneError, OutputError as `write`.
    """
    _write(_lines(figures, facts, width_of(stream), explain=explain), stream, styled=styled)


def write_comparison(comparison: Figures, stream: TextIO, *, explain: bool = False, styled: bool = False) -> None:
    """The same for the comparison of two runs."""
    _write(_comparison_lines(comparison, width_of(stream), explain=explain), stream, styled=styled)


def _write(lines: Iterable[Line], stream: TextIO, *, styled: bool) -> None:
    if not styled:
        write(stream, "".join(f"{line}\n" for line, _ in lines))
        return
    from rich.console import Console  # slow to import: only when it is drawn with
    from rich.text import Text

    console = Console(file=stream, force_terminal=True, color_system="standard", highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for line, style in lines:
            console.print(Text(line, style), soft_wrap=True)
    write(stream, capture.get())


# --- one run


def main_table(figures: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main figures."""
    columns = _columns(figures).values()
    cells = [[policy["label"], *(cell(policy) for _, cell in columns)] for policy in figures["policies"]]
    return ["policy", *(heading for heading, _ in columns)], cells


def _columns(figures: Figures) -> dict[str, tuple[str, Callable[[Figures], str]]]:
    left_out = {*(LATENCY if figures["concurrency"] > 1 else THROUGHPUT)}
    left_out |= set() if any(policy["cut"] for policy in figures["policies"]) else {"cut"}  # labels need the room
    priced = any(policy["price"] is not None for policy in figures["policies"])
    left_out |= {"seconds_mean"} if priced else {*PRICES}
    return {name: column for name, column in COLUMNS.items() if name not in left_out}


def _lines(figures: Figures, facts: Iterable[tuple[str, str]], width: int, *, explain: bool) -> Iterator[Line]:
    yield f"{one_line(figures['dataset'])}: {size_of(figures)}", "bold"
    for name, text in facts:
        yield from ((line, "dim") for line in wrapped(f"{name:<8} {one_line(text)}", width))
    yield "", ""
    yield from _table(*main_table(figures), width)
    meanings = ((heading, DEFINITIONS[name]) for name, (heading, _) in _columns(figures).items() if explain)
    notes = [
        *_plain(_not_scored(figures["policies"]), width),
        *_plain(map(_curve, figures["curves"]), width),
        *_projection(figures, width, explain=explain),
        *_plain(figures["notes"], width),
        *_legend(meanings, width),
    ]
    yield from [("", ""), *notes] if notes else ()


def size_of(figures: Figures) -> str:
    """How many problems, samples of each, and how many at once: `40 of 500 problems x 3 samples, 2 at once`."""
    whole = figures["dataset_size"]
    problems = rounding.count(whole, "problem") if figures["n"] == whole else f"{figures['n']} of {whole} problems"
    samples = f" x {figures['samples']} samples" if figures["samples"] > 1 else ""
    at_once = f", {figures['concurrency']} at once" if figures["concurrency"] > 1 else ""
    return problems + samples + at_once


def _with_range(figures: Figures, name: str, factor: int, digits: int, range_digits: int) -> str:
    """A figure and its interval without a unit: `84.5 [79-89]`."""
    value, interval = figures[name], figures[f"{name}_interval"]
    if value is None:
        return rounding.UNKNOWN
    shown = f"{factor * value:.{digits}f}"
    return f"{shown} [{'-'.join(f'{factor * end:.{range_digits}f}' for end in interval)}]" if interval else shown


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[Line]:
    """Labels get the room that the figures leave. Figures with an interval begin at the same place.

    In a terminal that is too narrow, the figures of a row stand below each other.
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    needed = sum(widths[1:]) + 2 * len(widths[1:])
    if width < WIDTH and width < needed + MIN_LABEL:
        yield from _stacked(headings, rows)
        return
    room = max(MIN_LABEL, width - needed)
    left = [0, *(index for index in range(1, len(headings)) if any("[" in row[index] for row in rows))]
    first, *others = aligned(headings, [[_short(label, room), *cells] for label, *cells in rows], left=left)
    yield first, "bold"
    for line in others:
        yield line, ""


def _stacked(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Line]:
    indent = max(map(len, headings))
    for label, *cells in rows:
        yield one_line(label), "bold"
        yield from ((f"  {heading:<{indent}}  {cell}", "") for heading, cell in zip(headings[1:], cells, strict=True))


def _short(label: str, room: int) -> str:
    """The label, or as much as there is room for: first a tau with a name loses its number."""
    label = one_line(label)
    if len(label) > room:
        label = label.rpartition(" (")[0] or label
    return shortened(label, room)


def _not_scored(policies: Sequence[Figures]) -> Iterator[str]:
    """What accuracy counts as not correct without an answer having been wrong."""
    for policy in policies:
        counts = [f"{name} {policy[name]}" for name in ("unscored", "errors") if policy[name]]
        if counts:
            yield f"{policy['label']}: of {policy['n']} attempts {', '.join(counts)}"


def _curve(curve: Figures) -> str:
    if curve["area"] is None:
        return f"{curve['policy']} over its taus: no area ({curve['reason']})"
    gain = f"{rounding.points(curve['area_gain'])} points {rounding.points_range(curve['area_gain_interval'])}".rstrip()
    area = _with_range(curve, "area", 100, 1, 1)
    return f"{curve['policy']} over its taus: mean accuracy % {area}, {gain} over a mix of draft and target"


def _projection(figures: Figures, width: int, *, explain: bool) -> Iterator[Line]:
    shown = [policy for policy in figures["policies"] if policy["elsewhere_seconds"] is not None]
    if not shown:
        return
    yield "PROJECTION, not measured: with the speeds given by --project", "bold"
    cells = [
        [
            policy["label"],
            f"{rounding.number(policy['elsewhere_seconds'])} [{'-'.join(map(rounding.number, policy['elsewhere_seconds_interval']))}]",
            _with_range(policy, "elsewhere_speedup", 1, 2, 2),
        ]
        for policy in shown
    ]
    yield from _table(["policy", "seconds", "speed-up"], cells, width)
    yield from _legend([("", DEFINITIONS["elsewhere_seconds"])] if explain else [], width)


def _plain(texts: Iterable[str], width: int) -> Iterator[Line]:
    for text in texts:
        yield from ((line, "") for line in wrapped(one_line(text), width))


def _legend(meanings: Iterable[tuple[str, str]], width: int) -> Iterator[Line]:
    for heading, meaning in meanings:
        yield from ((line, "dim") for line in wrapped(f"{heading}: {meaning}" if heading else meaning, width))


# --- two runs


def comparison_table(comparison: Figures) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the comparison of two runs."""
    headings = ["policy", "n", "correct", "difference", "p", "time ratio"]
    return headings, [_compared(entry) for entry in comparison["policies"]]


def _comparison_lines(comparison: Figures, width: int, *, explain: bool) -> Iterator[Line]:
    names = dict.fromkeys(comparison["dataset"])
    first, second = comparison["runs"]
    title = one_line(f"{' against '.join(names)}: first {first}, second {second}")
    yield from ((line, "bold") for line in wrapped(title, width))
    yield "", ""
    headings, rows = comparison_table(comparison)
    yield from _table(headings, rows, width)
    yield "", ""
    for entry in comparison["policies"]:
        if entry["only_first"] or entry["only_second"]:
            left = f"{entry['only_first']} only in the first run, {entry['only_second']} only in the second"
            yield from _plain([f"{entry['first']}: {left}, not compared"], width)
    yield from _plain(comparison["notes"], width)
    yield from _legend(zip(headings[3:], COMPARED.values(), strict=True) if explain else [], width)


def _compared(entry: Figures) -> list[str]:
    labels = dict.fromkeys((entry["first"], entry["second"]))
    interval = rounding.points_range(entry["accuracy_difference_interval"])
    return [
        " / ".join(labels),
        str(entry["n"]),
        "{} -> {}".format(*entry["correct"]),
        f"{rounding.points(entry['accuracy_difference'])} {interval}".rstrip(),
        rounding.UNKNOWN if entry["mcnemar_p"] is None else f"{entry['mcnemar_p']:.3f}",
        _with_range(entry, "seconds_ratio", 1, 2, 2),
    ]

"""Writes the main figures of a run, or a comparison of two runs, as a table of at most 80 characters per line."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from arbitrage_cli.app.sentences import sentence
from arbitrage_cli.display import columns
from arbitrage_cli.display.columns import DEFINITIONS, Column
from arbitrage_cli.display.text import aligned, is_drawable, one_line, short_labels, width_of, wrapped, write
from arbitrage_cli.numbers import formatting

MIN_LABEL = 8
MAX_LABEL = 15  # maximum width reserved for labels before intervals move to a second table
MAX_NAMES = 12  # problem IDs in a line

Figures = Mapping[str, Any]
Line = tuple[str, str]  # a line and its style: empty, "bold" or "dim"


def write_table(figures: Figures, facts: Iterable[tuple[str, str]], stream: TextIO, *, explain: bool = False) -> None:
    """Write the facts, the table and the notes; with `explain`, also the definitions. Raises the same errors as `write`."""
    _write(_lines(figures, facts, width_of(stream), explain=explain), stream)


def write_comparison(comparison: Figures, stream: TextIO, *, explain: bool = False) -> None:
    _write(_comparison_lines(comparison, width_of(stream), explain=explain), stream)


def _write(lines: Iterable[Line], stream: TextIO) -> None:
    if not is_drawable(stream):
        write(stream, "".join(f"{line}\n" for line, _ in lines))
        return
    from rich.console import Console  # slow to import
    from rich.text import Text

    console = Console(file=stream, force_terminal=True, color_system="standard", highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for line, style in lines:
            console.print(Text(line, style), soft_wrap=True)
    write(stream, capture.get())


def _lines(figures: Figures, facts: Iterable[tuple[str, str]], width: int, *, explain: bool) -> Iterator[Line]:
    yield f"{one_line(figures['dataset'])}: {size_of(figures)}", "bold"
    yield from _paragraphs((f"{name:<8} {one_line(text)}" for name, text in facts), width, "dim")
    yield "", ""
    shown = columns.known(columns.TERMINAL, figures["policies"])
    if columns.PRICE[0] in shown and columns.SECONDS in shown:  # both do not fit
        shown.remove(columns.SECONDS)
    yield from _table(shown, figures["policies"], [policy["label"] for policy in figures["policies"]], width)
    meanings = (f"{column.heading}: {DEFINITIONS[column.definition]}" for column in shown if explain)
    if figures["verdict"]:
        yield "", ""
        yield from _paragraphs([one_line(sentence(figures["verdict"]))], width, "bold")
    notes = [
        *_paragraphs(map(one_line, _not_scored(figures["policies"])), width),
        *_paragraphs(map(one_line, figures["notes"]), width),
        *_paragraphs(meanings, width, "dim"),
    ]
    yield from [("", ""), *notes] if notes else ()


def size_of(figures: Figures) -> str:
    """Return a run's size, such as `40 of 500 problems x 3 samples, 2 at once`."""
    whole = formatting.count(figures["dataset_size"], "problem")
    problems = whole if figures["n"] == figures["dataset_size"] else f"{figures['n']:,} of {whole}"
    samples = f" x {figures['samples']} samples" if figures["samples"] > 1 else ""
    at_once = f", {figures['concurrency']} at once" if figures["concurrency"] > 1 else ""
    return problems + samples + at_once


def _table(
    shown: Sequence[Column], records: Sequence[Figures], labels: Sequence[str], width: int, corner: str = "policy"
) -> Iterator[Line]:
    """Yield a table. Intervals that do not fit are moved to a second table; columns that still do not fit are omitted."""
    headings, below = [column.heading for column in shown], set[int]()
    cells = [[" ".join(filter(None, column.cell(record))) for record in records] for column in shown]
    room_for_labels = min(MAX_LABEL, max(map(len, labels), default=0))
    while _room(headings, cells, width) < room_for_labels and (ranged := _ranged(cells)):
        widest = max(ranged, key=lambda index: max(map(len, cells[index])))
        cells[widest] = [shown[widest].show(record) for record in records]
        below.add(widest)
    while _room(headings, cells, width) < MIN_LABEL and len(cells) > 1:
        cells.pop()
    names = short_labels(labels, max(MIN_LABEL, _room(headings, cells, width)))
    left = [0, *(index + 1 for index in _ranged(cells))]
    first, *others = aligned([corner, *headings[: len(cells)]], zip(names, *cells, strict=True), left=left)
    yield first, "bold"
    yield from ((line, "") for line in others)
    if below:
        yield "", ""
        intervals = [Column(shown[index].heading, shown[index].definition, shown[index].beside) for index in sorted(below)]
        yield from _table(intervals, records, labels, width, "interval")


def _ranged(cells: Sequence[Sequence[str]]) -> list[int]:
    return [index for index, column in enumerate(cells) if any(" [" in cell for cell in column)]


def _room(headings: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> int:
    taken = [max(map(len, [heading, *own])) + 2 for heading, own in zip(headings, cells, strict=False)]
    return width - sum(taken)


def _not_scored(policies: Sequence[Figures]) -> Iterator[str]:
    for policy in policies:
        unscored = f"{policy['unscored']} unscored" if policy["unscored"] else ""
        errors = formatting.count(policy["errors"], "error") if policy["errors"] else ""
        if unscored or errors:
            counts = ", ".join(filter(None, (unscored, errors)))
            yield f"{policy['label']}: {counts} in {formatting.count(policy['n'], 'attempt')}"


def _paragraphs(texts: Iterable[str], width: int, style: str = "") -> Iterator[Line]:
    for text in texts:
        yield from ((line, style) for line in wrapped(text, width))


def _pair_label(entry: Figures) -> str:
    return " / ".join(dict.fromkeys((entry["first"], entry["second"])))


def _changes(entry: Figures) -> Iterator[str]:
    for name in ("fixed", "broken", "both_wrong"):
        ids = entry[name]
        if ids:
            named = ", ".join([*ids[:MAX_NAMES], *(["..."] if len(ids) > MAX_NAMES else [])])
            yield f"{_pair_label(entry)}, {name.replace('_', ' ')} ({len(ids)}): {named}"
    if entry["only_first"] or entry["only_second"]:
        counts = f"{entry['only_first']} only in the first run, {entry['only_second']} only in the second"
        yield f"{entry['first']}: {counts}, not compared"


def _comparison_lines(comparison: Figures, width: int, *, explain: bool) -> Iterator[Line]:
    names = dict.fromkeys(comparison["dataset"])
    first, second = comparison["runs"]
    title = one_line(f"{' against '.join(names)}: first {first}, second {second}")
    yield from _paragraphs([title], width, "bold")
    yield "", ""
    yield from _table(columns.COMPARISON, comparison["policies"], [*map(_pair_label, comparison["policies"])], width)
    yield "", ""
    notes = [*itertools.chain(*map(_changes, comparison["policies"])), *comparison["notes"]]
    yield from _paragraphs(map(one_line, notes), width)
    meanings = {column.definition: column.heading for column in columns.COMPARISON} if explain else {}
    yield from _paragraphs((f"{heading}: {DEFINITIONS[name]}" for name, heading in meanings.items()), width, "dim")

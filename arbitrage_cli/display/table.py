"""Writes the main figures of a run, or a comparison of two runs, as a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.table import Table

from arbitrage_cli.display import columns
from arbitrage_cli.display.columns import DEFINITIONS, Column
from arbitrage_cli.display.printed import bullets, pairs, paragraph, print_to, table_of
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.numbers import formatting

MAX_NAMES = 12  # problem IDs in a line
MAX_COLUMNS = 5
UNUSUAL = ("unscored", "errors", "missing")  # outcomes that are noted; other notes name the limits that cut solutions
MIN_PROBLEMS = 5  # for which intervals are shown

Figures = Mapping[str, Any]


def write_table(figures: Figures, facts: Iterable[tuple[str, str]], stream: TextIO, *, explain: bool = False) -> None:
    """Write the facts, the table and the notes; with `explain`, also the definitions. Raises the same errors as `write`."""
    policies, verdict = figures["policies"], figures["verdict"]
    shown = columns.known(columns.TERMINAL, policies)
    for spare in (columns.SECONDS, columns.ACCEPTED):
        if len(shown) > MAX_COLUMNS and spare in shown:
            shown.remove(spare)
    notes = [f"{one['label']}: {found} of {one['n']:,}" for one in policies if (found := columns.outcomes(one, UNUSUAL))]
    notes += figures["notes"]
    print_to(
        stream,
        paragraph(f"{figures['dataset']}: {size_of(figures)}", "bold"),
        *(pairs(facts, "dim"), ""),
        _table(shown, policies, [policy["label"] for policy in policies], figures["n"]),
        *(("", paragraph(sentence(verdict), "bold")) if verdict else ()),
        *(("", bullets(notes)) if notes else ()),
        *(("", _definitions(shown)) if explain else ()),
    )


def write_comparison(comparison: Figures, stream: TextIO, *, explain: bool = False) -> None:
    """Write the comparison of two runs. Raises the same errors as `write`."""
    entries, (first, second) = comparison["policies"], comparison["runs"]
    names, count = " against ".join(dict.fromkeys(comparison["dataset"])), max(entry["n"] for entry in entries)
    print_to(
        stream,
        *(paragraph(f"{names}: first {first}, second {second}", "bold"), ""),
        *(_table(columns.COMPARISON, entries, [*map(_pair_label, entries)], count), ""),
        bullets([*(change for entry in entries for change in _changes(entry)), *comparison["notes"]]),
        *(("", _definitions(columns.COMPARISON)) if explain else ()),
    )


def size_of(figures: Figures) -> str:
    """Return a run's size, such as `40 of 500 problems x 3 samples, 2 at once`."""
    whole = formatting.count(figures["dataset_size"], "problem")
    problems = whole if figures["n"] == figures["dataset_size"] else f"{figures['n']:,} of {whole}"
    samples = f" x {figures['samples']} samples" if figures["samples"] > 1 else ""
    at_once = f", {figures['concurrency']} at once" if figures["concurrency"] > 1 else ""
    return problems + samples + at_once


def _table(shown: Sequence[Column], records: Sequence[Figures], labels: Sequence[str], num_problems: int) -> Table:
    """Make a table with intervals below their figures, if there are enough problems for intervals."""
    cells = [[column.cell(record) for column in shown] for record in records]
    if num_problems < MIN_PROBLEMS:
        cells = [[(figure, "") for figure, _ in row] for row in cells]
    ranged = [any(interval for _, interval in column) for column in zip(*cells, strict=True)]
    rows = [[label, *("\n".join(filter(None, cell)) for cell in row)] for label, row in zip(labels, cells, strict=True)]
    return table_of(["policy", *(column.heading for column in shown)], rows, [True, *ranged])


def _definitions(shown: Sequence[Column]) -> Table:
    meanings: dict[str, str] = {}
    for column in shown:
        meanings.setdefault(column.definition, column.heading)
    return pairs(((heading, DEFINITIONS[name]) for name, heading in meanings.items()), "dim")


def _pair_label(entry: Figures) -> str:
    return " / ".join(dict.fromkeys((entry["first"], entry["second"])))


def _changes(entry: Figures) -> Iterator[str]:
    for name in ("fixed", "broken", "both_wrong"):
        if ids := entry[name]:
            named = ", ".join([*ids[:MAX_NAMES], *(["..."] if len(ids) > MAX_NAMES else [])])
            yield f"{_pair_label(entry)}, {name.replace('_', ' ')} ({len(ids)}): {named}"
    if entry["only_first"] or entry["only_second"]:
        counts = f"{entry['only_first']} only in the first run, {entry['only_second']} only in the second"
        yield f"{entry['first']}: {counts}, not compared"

"""Prints the figures of a run, a comparison of two runs, an advice, or token costs. Defines the columns, also for the page.

Rich wraps paragraphs and cells at the width of the terminal.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Generic, Literal, TextIO, TypeVar

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from arbitrage_cli.app.advise import Advice
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.store import Tuned, tuned_file
from arbitrage_cli.display.text import is_drawable, one_line, safe, width_of, write, write_lines
from arbitrage_cli.display.verdict import alone, more_time, sentence, token_ratio_words
from arbitrage_cli.evaluation import figures
from arbitrage_cli.evaluation.comparison import Comparison, PolicyComparison
from arbitrage_cli.evaluation.figures import Estimate, Figure, PolicyFigures, Unit
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.types import ByRole, frozen

MAX_NAMES = 12  # problem IDs in a line
MIN_PROBLEMS = 5  # for which intervals are shown

T = TypeVar("T")


# --- columns

Cell = tuple[str, str]
"""A figure, and its interval or ""."""


@frozen
class Column(Generic[T]):
    """A column of a table, with the cell of each record. `name` is that of the figure."""

    name: str
    heading: str
    cell: Callable[[T], Cell]


def _points_range(interval: formatting.Bounds) -> str:
    low, high = (round(100 * end) + 0.0 for end in interval or (0, 0))  # never -0
    return f"[{low:+.0f} to {high:+.0f}]" if interval else ""


def _per_thousand(price: float | None) -> str:
    return formatting.number(None if price is None else 1000 * price)


def _no_range(interval: formatting.Bounds) -> str:
    return ""


UNITS: Mapping[Unit, tuple[Callable[[float | None], str], Callable[[formatting.Bounds], str]]] = {
    "share": (formatting.percent, formatting.percent_range),
    "whole share": (formatting.whole_percent, _no_range),
    "points": (formatting.points, _points_range),
    "times": (formatting.number, formatting.number_range),
    "number": (formatting.number, _no_range),
    "price": (_per_thousand, _no_range),
}


def cell(unit: Unit, figure: Figure) -> Cell:
    """Return a figure and its interval as text."""
    show, show_interval = UNITS[unit]
    value = figure.value if isinstance(figure, Estimate | Ratio) else figure
    return show(value), show_interval(figure.interval) if isinstance(figure, Estimate) else ""


def _column(name: str) -> Column[PolicyFigures]:
    shown = figures.shown_figures()[name]
    return Column(name, shown.heading, lambda policy: cell(shown.unit, getattr(policy, name)))


def _of_how_many(policy: PolicyFigures) -> Cell:
    """Return the accuracy of a policy that solved other problems than the others."""
    value, interval = _column("accuracy").cell(policy)
    ratio = policy.accuracy.ratio
    return (f"{value} of {ratio.denominator:,}", interval) if ratio and ratio.denominator else (value, interval)


def columns_of(names: Iterable[str], policies: Sequence[PolicyFigures]) -> list[Column[PolicyFigures]]:
    """Return the columns of the figures with these names that at least one policy has.

    If the policies solved different numbers of problems, each accuracy says of how many.
    """
    counts = {policy.accuracy.ratio.denominator for policy in policies if policy.accuracy.ratio}
    columns = [_column(name) for name in names]
    if len(counts - {0}) > 1:
        columns = [replace(one, cell=_of_how_many) if one.name == "accuracy" else one for one in columns]
    return known(columns, policies)


def known(columns: Sequence[Column[T]], records: Sequence[T]) -> list[Column[T]]:
    """Return the columns that contain a figure for at least one record."""
    empty = ("", formatting.NO_FIGURE)
    return [column for column in columns if any(column.cell(record)[0] not in empty for record in records)]


def outcomes(policy: PolicyFigures, *, with_cut: bool = True) -> str:
    """Return counts such as `1 failed, 2 cut`."""
    counts = {"unscored": policy.unscored, "failed": policy.errors, "not attempted": policy.missing}
    counts |= {"cut": policy.cut} if with_cut else {}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


TERMINAL = (
    "accuracy",
    "accuracy_difference",
    "seconds_mean",
    "speedup",
    "price",
    "saving",
    "acceptance_rate",
    "called_rate",
    "thinking_tokens_mean",
)
"""The figures that a terminal shows."""
SPARE = (
    *("seconds_mean", "acceptance_rate", "thinking_tokens_mean", "called_rate", "price", "accuracy_difference", "saving"),
    *("accuracy", ""),
)
"""The figures that a narrow terminal lacks, in the order in which they are left out."""

COMPARISON: Sequence[Column[PolicyComparison]] = (
    Column("n", "n", lambda entry: (str(entry.n), "")),
    Column("correct", "correct", lambda entry: ("{} -> {}".format(*entry.correct), "")),
    Column("accuracy_difference", "difference", lambda entry: cell("points", entry.accuracy_difference)),
    Column("seconds_ratio", "speed-up", lambda entry: cell("times", entry.seconds_ratio)),
    Column("work_ratio", "ratio of work", lambda entry: cell("times", entry.work_ratio)),
)


# --- tables


def write_table(
    found: RunFigures,
    facts: Iterable[tuple[str, str]],
    stream: TextIO,
    *,
    has_verdict: bool = True,
    explains: bool = False,
) -> None:
    """Write the facts, the table, the verdict and the notes, and the definitions of its columns if `explains` is true.

    Raises the same errors as `write`.
    """
    policies = found.policies
    shown = columns_of(TERMINAL, policies)
    labels = [policy.route.label for policy in policies]
    width = width_of(stream)
    for spare in SPARE:
        table = _table(shown, policies, labels, found.n)
        if Console(width=sys.maxsize).measure(table).minimum <= width:
            break
        shown = [column for column in shown if column.name != spare]
    unusual = {one.route.label: (outcomes(one, with_cut=False), one.n) for one in policies}
    notes = [f"{label}: {counts} of {planned:,}" for label, (counts, planned) in unusual.items() if counts]
    notes += found.notes
    definitions = [(column.heading, figures.shown_figures()[column.name].definition) for column in shown]
    print_to(
        stream,
        paragraph(f"{found.dataset}: {size_of(found)}", "bold"),
        *(pairs(facts, "dim"), ""),
        table,
        *(("", paragraph(sentence(found), "bold")) if has_verdict and found.verdict else ()),
        *(("", bullets(notes)) if notes else ()),
        *(("", pairs(definitions)) if explains else ()),
    )


def write_comparison(comparison: Comparison, first: str, second: str, stream: TextIO) -> None:
    """Write the comparison of the runs in two folders. Raises the same errors as `write`."""
    entries = comparison.policies
    count = max(entry.n for entry in entries)
    names = " against ".join(map(str, dict.fromkeys(comparison.dataset)))
    changes = [change for entry in entries for change in _changes(entry)]
    print_to(
        stream,
        *(paragraph(f"{names}: first {first}, second {second}", "bold"), ""),
        *(_table(known(COMPARISON, entries), entries, [*map(_pair_label, entries)], count), ""),
        bullets([*changes, *comparison.notes]),
    )


def size_of(found: RunFigures) -> str:
    """Return a run's size, such as `40 of 500 problems x 3 samples, 2 at once`."""
    whole = formatting.count(found.dataset_size, "problem")
    problems = whole if found.n == found.dataset_size else f"{found.n:,} of {whole}"
    samples = f" x {found.samples} samples" if found.samples > 1 else ""
    at_once = f", {found.concurrency} at once" if found.concurrency > 1 else ""
    return problems + samples + at_once


def _table(shown: Sequence[Column[T]], records: Sequence[T], labels: Sequence[str], num_problems: int) -> Table:
    """Make a table with intervals below their figures, if there are enough problems for intervals."""
    cells = [[column.cell(record) for column in shown] for record in records]
    if num_problems < MIN_PROBLEMS:
        cells = [[(figure, "") for figure, _ in row] for row in cells]
    ranged = [any(interval for _, interval in column) for column in zip(*cells, strict=True)]
    rows = [[label, *("\n".join(filter(None, cell)) for cell in row)] for label, row in zip(labels, cells, strict=True)]
    return table_of(["policy", *(column.heading for column in shown)], rows, [True, *ranged])


def _pair_label(entry: PolicyComparison) -> str:
    return " / ".join(dict.fromkeys((entry.first, entry.second)))


def _changes(entry: PolicyComparison) -> Iterator[str]:
    for name, ids in (("fixed", entry.fixed), ("broken", entry.broken)):
        if ids:
            named = ", ".join([*ids[:MAX_NAMES], *(["..."] if len(ids) > MAX_NAMES else [])])
            yield f"{_pair_label(entry)}, {name} ({len(ids)}): {named}"
    if entry.only_first or entry.only_second:
        counts = f"{entry.only_first} only in the first run, {entry.only_second} only in the second"
        yield f"{entry.first}: {counts}, not compared"


# --- printing


def print_to(stream: TextIO, *parts: RenderableType) -> None:
    """Print paragraphs and tables, with styles if the stream is a terminal. Raises the same errors as `write`."""
    is_styled = is_drawable(stream)
    colors: Literal["standard"] | None = "standard" if is_styled else None
    console = Console(width=width_of(stream), force_terminal=is_styled, color_system=colors)
    with console.capture() as capture:
        console.print(Group(*parts), crop=False)
    write(stream, "".join(f"{line.rstrip()}\n" for line in capture.get().removesuffix("\n").split("\n")))


def paragraph(text: str, style: str = "") -> Text:
    return Text(one_line(text), style)


def pairs(rows: Iterable[tuple[str, str]], style: str = "", gap: int = 2) -> Table:
    """Make a table of names and texts, without headings."""
    table = Table.grid(padding=(0, gap, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(paragraph(name, style), paragraph(text, style))
    return table


def bullets(texts: Iterable[str]) -> Table:
    return pairs((("-", text) for text in texts), gap=1)


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], is_left: Iterable[bool] = ()) -> Table:
    """Make a table. By default, only the first column is left-aligned. Only this column may be wrapped, between words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    sides = ("left" if one else "right" for one in is_left or [index == 0 for index, _ in enumerate(headings)])
    for index, (heading, side, *cells) in enumerate(zip(headings, sides, *rows, strict=True)):
        width = max(len(line) for cell in (heading, *cells) for line in cell.split("\n"))
        least = width if index else max(len(word) for cell in (heading, *cells) for word in cell.split())
        table.add_column(paragraph(heading), "", min_width=least, no_wrap=index > 0, overflow="fold", justify=side)
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    return table


PROPOSALS = "Compatible models on this machine, best pair first. To find out whether a pair is worth using:"
BUILT_IN_PAIR = "For the built-in pair, use arbitrage advise --pair builtin."


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    found = advice.figures
    if found.n:
        ratio = found.token_ratio
        facts = [("costs", token_ratio_words(ratio.value, ratio.interval))] if ratio.value else []
        write_table(found, facts, stream, has_verdict=False)
    texts = [alone(found), sentence(found), more_time(advice)]
    print_to(stream, "", paragraph(" ".join(filter(None, texts))), "")
    write(stream, f"  {advice.command}\n")


def write_proposals(commands: Sequence[str], stream: TextIO) -> None:
    """Write commands that test pairs of the models on this machine. Raises the same errors as `write`."""
    write_lines(stream, [PROPOSALS, "", *(f"  {one_line(command)}" for command in commands), "", BUILT_IN_PAIR])


def write_costs(found: ByRole[Tuned], stream: TextIO) -> None:
    """Write the unit costs of each model as speeds, and the token ratio. Raises the same errors as `write`."""
    rows = []
    for role, model in found.items():
        sizes = zip((1, *ROWS), (model.costs.prefill, *model.costs.batches), strict=True)
        rows.append([role, str(model.threads), *(formatting.number(size / seconds) for size, seconds in sizes)])
    headings = ["tokens/s", "threads", "prefill", "decode", *(f"batch of {size}" for size in ROWS[1:])]
    pair = PairCosts.of({role: model.costs for role, model in found.items()})
    words = [token_ratio_words(pair.token_ratio, pair.token_ratio_interval)] if pair else []
    print_to(stream, table_of(headings, rows), "", *map(paragraph, words))
    write(stream, f"the measurements are stored in {tuned_file()}\n")

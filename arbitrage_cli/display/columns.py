"""The figures of policies as text: the columns of tables in the terminal and on the page, and the size of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from arbitrage_cli.evaluation.figures import Estimate, Figure, PolicyFigures, Unit, shown_figures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.types import frozen

T = TypeVar("T")

Cell = tuple[str, str]
"""A figure, and its interval or ""."""


@frozen
class Column(Generic[T]):
    """A column of a table, with the cell of each record. `name` is that of the figure."""

    name: str
    heading: str
    cell: Callable[[T], Cell]


def _points_range(interval: formatting.Bounds) -> str:
    if interval is None:
        return ""
    low, high = (round(100 * end) + 0.0 for end in interval)  # never -0
    return f"[{low:+.0f} to {high:+.0f}]"


def _per_thousand(price: float | None) -> str:
    return formatting.number(None if price is None else 1000 * price)


def _no_range(interval: formatting.Bounds) -> str:
    return ""


ShowValue = Callable[[float | None], str]
ShowInterval = Callable[[formatting.Bounds], str]
UNITS: Mapping[Unit, tuple[ShowValue, ShowInterval]] = {
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
    shown = shown_figures()[name]
    return Column(name, shown.heading, lambda policy: cell(shown.unit, getattr(policy, name)))


def _of_how_many(policy: PolicyFigures) -> Cell:
    """Return the accuracy of a policy, with its number of attempts."""
    value, interval = _column("accuracy").cell(policy)
    ratio = policy.accuracy.ratio
    if ratio and ratio.denominator:
        value = f"{value} of {ratio.denominator:,}"
    return value, interval


def columns_of(names: Iterable[str], policies: Sequence[PolicyFigures]) -> list[Column[PolicyFigures]]:
    """Return the columns of the figures with these names that at least one policy has.

    If the policies attempted different numbers of problems, each accuracy contains its number.
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
    if with_cut:
        counts["cut"] = policy.cut
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def size_of(found: RunFigures) -> str:
    """Return a run's size, such as `40 of 500 problems x 3 samples, 2 at once`."""
    whole = formatting.count(found.dataset_size, "problem")
    problems = whole if found.n == found.dataset_size else f"{found.n:,} of {whole}"
    samples = f" x {found.samples} samples" if found.samples > 1 else ""
    at_once = f", {found.concurrency} at once" if found.concurrency > 1 else ""
    return problems + samples + at_once

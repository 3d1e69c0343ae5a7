"""The tables of a report: which figures stand in which columns, what is beside them, and where each is defined.

Takes the JSON of `figures`, gives text. Knows no markup.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from arbitrage_cli.display import rounding
from arbitrage_cli.display.charts import Entry, Series, all_entries, series_of
from arbitrage_cli.evaluation.curve import POSITIONS
from arbitrage_cli.evaluation.definitions import COMPARED, DEFINITIONS

PROJECTED_RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0)
OTHER_OUTCOMES: Mapping[str, str] = {"unscored": "unscored", "errors": "failed", "missing": "missing"}

Json = Mapping[str, Any]
Cell = tuple[str, str]
"""A figure, and its interval or its counts beside it."""

PERCENT = rounding.percent, rounding.percent_range
POINTS = rounding.points, rounding.points_range
TIMES = rounding.times, rounding.times_range


@dataclass(frozen=True, slots=True)
class FigureColumn:
    """A column of a table: its heading, the name of its definition, and its cells."""

    heading: str
    definition: str
    cell: Callable[[Json], Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Policies down, figures across. Headings are pairs of text and name of a definition."""

    caption: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[tuple[Series, str, Sequence[Cell]]]

    @property
    def has_beside(self) -> list[bool]:
        """Whether a column has anything beside its figures, which then gets a place of its own."""
        return [any(beside for _, beside in column) for column in zip(*(cells for _, _, cells in self.rows), strict=True)]


def definitions() -> list[tuple[str, str, str]]:
    """Name, heading and text of each definition."""
    headings = {
        column.definition: column.heading for column in (*COST, *PRICE, *ELSEWHERE, *ROUTING, *THROUGHPUT, *MAIN, *CURVES)
    }
    headings["accuracy"] = "accuracy"
    texts = {**DEFINITIONS, **COMPARED}
    return [(name, headings.get(name, name.replace("_", " ")), text) for name, text in texts.items()]


# --- columns


def _value(heading: str, name: str) -> FigureColumn:
    return FigureColumn(heading, name, lambda figures: (rounding.number(figures[name]), ""))


def _ranged(
    heading: str, definition: str, show: tuple[Callable[[Any], str], Callable[[Any], str]], of: str = ""
) -> FigureColumn:
    """A figure with its interval; it is named as its definition, or `of`."""
    value, interval = show
    name = of or definition
    return FigureColumn(heading, definition, lambda figures: (value(figures[name]), interval(figures[f"{name}_interval"])))


def _with_parts(heading: str, name: str, show: Callable[[Any], str] = rounding.percent) -> FigureColumn:
    """A ratio, and the two counts that it is made of."""

    def cell(figures: Json) -> Cell:
        if figures[name] is None:
            return rounding.UNKNOWN, ""
        parts = figures["ratios"][name]
        return show(figures[name]), f"{rounding.number(parts['numerator'])}/{rounding.number(parts['denominator'])}"

    return FigureColumn(heading, name, cell)


def _outcomes(figures: Json) -> Cell:
    """Correct of all, and all outcomes but wrong answers."""
    others = [f"{figures[name]} {word}" for name, word in OTHER_OUTCOMES.items() if figures[name]]
    return f"{figures['correct']}/{figures['n']}", ", ".join(others)


ACCURACY: Sequence[FigureColumn] = (
    _ranged("accuracy", "accuracy", PERCENT),
    FigureColumn("correct", "accuracy", _outcomes),
    _value("cut", "cut"),
    _ranged("vs target, points", "accuracy_difference", POINTS),
)
MAIN: Sequence[FigureColumn] = (
    *ACCURACY,
    _ranged("speed-up", "speedup", TIMES),
    _value("mean s", "seconds_mean"),
    _value("median s", "seconds_median"),
    _value("p90 s", "seconds_p90"),
)
THROUGHPUT: Sequence[FigureColumn] = (
    *ACCURACY,
    _with_parts("problems/s", "problems_per_second", rounding.number),
    _ranged("ratio to target", "throughput_ratio", TIMES),
)
ROUTING: Sequence[FigureColumn] = (
    _with_parts("accepted steps", "acceptance_rate"),
    _with_parts("stopped early", "stopped_early_rate"),
    _with_parts("accepted tokens", "token_acceptance_rate"),
    _with_parts("target calls per step", "target_call_rate", lambda rate: f"{rate:.2f}"),
    _value("wasted draft tokens", "wasted_draft_tokens"),
    _with_parts("target's share of tokens", "target_token_share"),
)
SPEEDS: Sequence[FigureColumn] = (
    _value("draft tokens/s", "draft_tokens_per_second"),
    _value("target tokens/s", "target_tokens_per_second"),
)
COST: Sequence[FigureColumn] = (
    *SPEEDS,
    _value("cost, target-token equivalents", "target_token_equivalents"),
    _ranged("saving in equivalents", "equivalent_speedup", TIMES),
)
PRICE: Sequence[FigureColumn] = (
    FigureColumn(
        "price of 1000", "price", lambda of: (rounding.number(None if of["price"] is None else 1000 * of["price"]), "")
    ),
    _ranged("saved", "saving", PERCENT),
)
ELSEWHERE: Sequence[FigureColumn] = (
    FigureColumn("seconds", "elsewhere_seconds", lambda of: (rounding.number(of["elsewhere_seconds"]), _range_there(of))),
    _ranged("speed-up", "elsewhere_speedup", TIMES),
)
CURVES: Sequence[FigureColumn] = (
    _ranged("mean accuracy over time", "area", PERCENT),
    _ranged("above a random mix, points", "area_gain", POINTS),
)


COMPARISON: Sequence[FigureColumn] = (
    FigureColumn("attempts", "compared_accuracy", lambda of: (str(of["n"]), "")),
    FigureColumn("correct", "compared_accuracy", lambda of: ("{} \N{RIGHTWARDS ARROW} {}".format(*of["correct"]), "")),
    _ranged("difference, points", "compared_accuracy", POINTS, of="accuracy_difference"),
    FigureColumn(
        "p", "mcnemar_p", lambda of: (rounding.UNKNOWN if of["mcnemar_p"] is None else f"{of['mcnemar_p']:.3f}", "")
    ),
    _ranged("times as fast", "seconds_ratio", TIMES),
)


def _range_there(figures: Json) -> str:
    """The low and the high estimate of the seconds on another machine."""
    return "\N{EN DASH}".join(map(rounding.number, figures["elsewhere_seconds_interval"] or ()))


# --- tables


def main_tables(runs: Sequence[Json], names: Sequence[str], entries: Sequence[Entry]) -> list[Table]:
    """All tables but levels and projection, without those that would have no row. `runs` are the figures of each."""
    is_throughput = any(figures["concurrency"] > 1 for figures in runs)
    main, cost = (THROUGHPUT, SPEEDS) if is_throughput else (MAIN, COST)
    there = [entry for entry in entries if entry.figures["elsewhere_seconds"] is not None]
    price = PRICE if any(entry.figures["price"] is not None for entry in entries) else ()
    curves = all_entries([(name, _curves(figures)) for name, figures in zip(names, runs, strict=True)])
    at = [
        FigureColumn(f"at {share:.0%} of the way", "accuracy_at", partial(_accuracy_at, index))
        for index, share in enumerate(POSITIONS)
    ]
    made = [
        _table("Accuracy and time", main, entries),
        _table("Who wrote what", ROUTING, entries),
        _table("What it cost", [*cost, *price], entries),
        _table("Projected, not measured: with the speeds of --project", ELSEWHERE, there),
        _table("Over the taus of one policy", [*CURVES, *at], curves),
    ]
    return [table for table in made if table.rows]


def _curves(figures: Json) -> list[Json]:
    return [curve for curve in figures["curves"] if curve["area"] is not None]


def level_table(entries: Sequence[Entry]) -> Table:
    """Accuracy of each policy at each level, with its counts."""
    shown = [entry for entry in entries if entry.figures["by_level"]]
    levels = dict.fromkeys(level for entry in shown for level in entry.figures["by_level"])
    columns = [FigureColumn(f"level {level}", "by_level", partial(_at_level, level)) for level in levels]
    return _table("Accuracy by level", columns, shown)


def projection_table(entries: Sequence[Entry]) -> Table:
    """Speed-ups under other cost ratios of the two models."""
    shown = [entry for entry in entries if entry.figures["projection_terms"] and entry.series.policy != "target"]
    columns = [FigureColumn(f"{ratio:g}", "projected_speedup", partial(_projected, ratio)) for ratio in PROJECTED_RATIOS]
    return _table("Projected speed-up, by what a target token costs in draft tokens", columns, shown)


def comparison_table(comparison: Json, names: Sequence[str]) -> Table:
    """The second run against the first."""
    rows = [
        (series_of(entry["first"].partition(" ")[0]), " / ".join(dict.fromkeys((entry["first"], entry["second"]))), entry)
        for entry in comparison["policies"]
    ]
    return Table(
        f"{names[1]} against {names[0]}",
        [(column.heading, column.definition) for column in COMPARISON],
        [(series, label, [column.cell(entry) for column in COMPARISON]) for series, label, entry in rows],
    )


def _table(caption: str, columns: Sequence[FigureColumn], entries: Iterable[Entry]) -> Table:
    rows = [(entry.series, entry.label, [column.cell(entry.figures) for column in columns]) for entry in entries]
    return Table(caption, [(column.heading, column.definition) for column in columns], rows)


def _accuracy_at(index: int, curve: Json) -> Cell:
    read = curve["accuracy_at"][index]
    return rounding.percent(read["accuracy"]), rounding.percent_range(read["accuracy_interval"])


def _at_level(level: str, policy: Json) -> Cell:
    figures = policy["by_level"].get(level)
    return (rounding.percent(figures["accuracy"], 0), f"{figures['correct']}/{figures['n']}") if figures else ("", "")


def _projected(cost_ratio: float, policy: Json) -> Cell:
    terms = policy["projection_terms"]
    cost = terms["target"] + terms["fixed"] + terms["draft"] / cost_ratio
    return rounding.times(terms["alone"] / cost if cost > 0 else None), ""

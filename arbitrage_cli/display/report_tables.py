"""The tables of a report: which figures stand in which columns, what is beside them, and where each is defined.

Takes the JSON of `figures`, gives text. Knows no markup.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.display import rounding
from arbitrage_cli.display.charts import Series
from arbitrage_cli.evaluation.definitions import DEFINITIONS

PROJECTED_RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0)

OTHER_HEADINGS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "accuracy_at": "accuracy at matched time",
    "curve_time": "time on a curve",
    "problem_speedups": "speed-ups of single problems",
    "projected_speedup": "projected speed-up",
    "time": "where the time goes",
}
"""Of definitions that no column has."""

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
    """Name, heading and text of each definition that a report uses."""
    columns = (*COST, *ROUTING, *MAIN, *THROUGHPUT, *CURVES)
    headings = {**{column.definition: column.heading for column in columns}, **OTHER_HEADINGS}
    return [(name, headings.get(name, name.replace("_", " ")), text) for name, text in DEFINITIONS.items()]


# --- columns


def _value(heading: str, name: str, show: Callable[[Any], str] = rounding.number) -> FigureColumn:
    return FigureColumn(heading, name, lambda figures: (show(figures[name]), ""))


def _ranged(heading: str, name: str, show: tuple[Callable[[Any], str], Callable[[Any], str]]) -> FigureColumn:
    """A figure with its interval."""
    value, interval = show
    return FigureColumn(heading, name, lambda figures: (value(figures[name]), interval(figures[f"{name}_interval"])))


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
    names = {"unscored": "unscored", "errors": "failed", "missing": "missing"}
    others = [f"{figures[name]} {word}" for name, word in names.items() if figures[name]]
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
CURVES: Sequence[FigureColumn] = (
    _ranged("mean accuracy over time", "area", PERCENT),
    _ranged("above a random mix, points", "area_gain", POINTS),
)


# --- tables


def tables(figures: Json, series: Mapping[str, Series]) -> list[Table]:
    """The tables of all figures, without levels and projection."""
    if not figures["policies"]:
        return []
    main, cost = (THROUGHPUT, SPEEDS) if figures["concurrency"] > 1 else (MAIN, COST)
    made = [
        _figures_table("Accuracy and time", main, figures["policies"], series),
        _figures_table("Who wrote what", ROUTING, figures["policies"], series),
        _figures_table("What it cost", cost, figures["policies"], series),
    ]
    curves = _curve_table(figures, series)
    return [*made, curves] if curves else made


def level_table(figures: Json, series: Mapping[str, Series]) -> Table | None:
    """Accuracy of each policy at each level, with its counts."""
    policies = figures["policies"]
    if not policies or not policies[0]["by_level"]:
        return None

    def cells(policy: Json) -> list[Cell]:
        levels = policy["by_level"].values()
        return [(rounding.percent(level["accuracy"], 0), f"{level['correct']}/{level['n']}") for level in levels]

    headings = [(f"level {level}", "by_level") for level in policies[0]["by_level"]]
    return Table("Accuracy by level", headings, _rows(policies, series, cells))


def projection_table(figures: Json, series: Mapping[str, Series]) -> Table | None:
    """Speed-ups under other cost ratios: the one that was asked for, and some round ones."""
    policies = [policy for policy in figures["policies"] if policy["projection_terms"] and policy["policy"] != "target"]
    if not policies:
        return None
    asked = figures["projection"]["cost_ratio"] if figures["projection"] else None
    ratios = sorted({*PROJECTED_RATIOS, *([asked] if asked else [])})
    headings = [(f"{ratio:g}", "projected_speedup") for ratio in ratios]

    def cells(policy: Json) -> list[Cell]:
        return [_projected(policy, ratio, was_asked=ratio == asked) for ratio in ratios]

    caption = "Projected speed-up, by what a target token costs in draft tokens"
    return Table(caption, headings, _rows(policies, series, cells))


def _rows(
    policies: Iterable[Json], series: Mapping[str, Series], cells: Callable[[Json], list[Cell]]
) -> list[tuple[Series, str, list[Cell]]]:
    return [(series[policy["policy"]], policy.get("label", policy["policy"]), cells(policy)) for policy in policies]


def _figures_table(
    caption: str, columns: Sequence[FigureColumn], policies: Iterable[Json], series: Mapping[str, Series]
) -> Table:
    headings = [(column.heading, column.definition) for column in columns]
    return Table(caption, headings, _rows(policies, series, lambda policy: [column.cell(policy) for column in columns]))


def _curve_table(figures: Json, series: Mapping[str, Series]) -> Table | None:
    """Area and accuracy at matched times of each policy that was run at several taus."""
    curves = [curve for curve in figures["curves"] if curve["area"] is not None]
    if not curves:
        return None

    def cells(curve: Json) -> list[Cell]:
        at = curve["accuracy_at"]
        read = [(rounding.percent(one["accuracy"]), rounding.percent_range(one["accuracy_interval"])) for one in at]
        return [*(column.cell(curve) for column in CURVES), *read]

    headings = [(column.heading, column.definition) for column in CURVES]
    headings += [(f"at {one['time']:.2f} of the target's time", "accuracy_at") for one in curves[0]["accuracy_at"]]
    return Table("Over the taus of one policy", headings, _rows(curves, series, cells))


def _projected(policy: Json, cost_ratio: float, *, was_asked: bool) -> Cell:
    terms = policy["projection_terms"]
    cost = terms["target"] + terms["fixed"] + terms["draft"] / cost_ratio
    shown = rounding.times(terms["alone"] / cost if cost > 0 else None)
    return shown, rounding.times_range(policy["projected_speedup_interval"]) if was_asked else ""

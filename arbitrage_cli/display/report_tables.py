"""The tables of a report: which figures stand in which columns, beside what, and where each is defined.

Takes the JSON of `figures`, gives text. Knows no markup.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.display import charts, rounding
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
"""Of definitions that are not told below a column of their own."""

Json = Mapping[str, Any]
Cell = tuple[str, str]
"""A figure, and its interval or what else is said beside it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: what stands above it, and the name of the definition that tells what it is."""

    heading: str
    definition: str
    cell: Callable[[Json], Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Policies down, figures across. Headings are pairs of text and name of a definition."""

    caption: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[tuple[charts.Series, str, Sequence[Cell]]]

    @property
    def has_beside(self) -> list[bool]:
        """Whether anything in a column has something beside it, which then gets a place of its own."""
        return [any(beside for _, beside in column) for column in zip(*(cells for _, _, cells in self.rows), strict=True)]


def definitions() -> list[tuple[str, str, str]]:
    """Name, heading and text of each definition that a report uses."""
    headings = {
        column.definition: column.heading for columns in (COST, ROUTING, MAIN, THROUGHPUT, CURVES) for column in columns
    }
    headings |= OTHER_HEADINGS
    return [(name, headings.get(name, name.replace("_", " ")), text) for name, text in DEFINITIONS.items()]


# --- cells


def _value(show: Callable[[float | None], str], name: str) -> Callable[[Json], Cell]:
    return lambda figures: (show(figures[name]), "")


def _with_range(
    show: Callable[[float | None], str], show_range: Callable[[Sequence[float] | None], str], name: str
) -> Callable[[Json], Cell]:
    return lambda figures: (show(figures[name]), show_range(figures[f"{name}_interval"]))


def _with_parts(show: Callable[[float | None], str], name: str) -> Callable[[Json], Cell]:
    """A ratio, and the two counts that it is made of."""

    def cell(figures: Json) -> Cell:
        if figures[name] is None:
            return rounding.UNKNOWN, ""
        parts = figures["ratios"][name]
        return show(figures[name]), f"{rounding.number(parts['numerator'])}/{rounding.number(parts['denominator'])}"

    return cell


def _outcomes(figures: Json) -> Cell:
    """Correct of all, and what else there is beside wrong answers."""
    others = [f"{figures[name]} {word}" for name, word in OTHER_OUTCOMES.items() if figures[name]]
    return f"{figures['correct']}/{figures['n']}", ", ".join(others)


OTHER_OUTCOMES: Mapping[str, str] = {"unscored": "unscored", "errors": "failed", "missing": "missing"}

MAIN: Sequence[Column] = (
    Column("accuracy", "accuracy", _with_range(rounding.percent, rounding.percent_range, "accuracy")),
    Column("correct", "accuracy", _outcomes),
    Column(
        "vs target, points",
        "accuracy_difference",
        _with_range(rounding.points, rounding.points_range, "accuracy_difference"),
    ),
    Column("speed-up", "speedup", _with_range(rounding.times, rounding.times_range, "speedup")),
    Column("mean s", "seconds_mean", _value(rounding.number, "seconds_mean")),
    Column("median s", "seconds_median", _value(rounding.number, "seconds_median")),
    Column("p90 s", "seconds_p90", _value(rounding.number, "seconds_p90")),
)
THROUGHPUT: Sequence[Column] = (
    *MAIN[:3],
    Column("problems/s", "problems_per_second", _with_parts(rounding.number, "problems_per_second")),
    Column("ratio to target", "throughput_ratio", _with_range(rounding.times, rounding.times_range, "throughput_ratio")),
)
ROUTING: Sequence[Column] = (
    Column("accepted steps", "acceptance_rate", _with_parts(rounding.percent, "acceptance_rate")),
    Column("stopped early", "stopped_early_rate", _with_parts(rounding.percent, "stopped_early_rate")),
    Column("accepted tokens", "token_acceptance_rate", _with_parts(rounding.percent, "token_acceptance_rate")),
    Column("target calls per step", "target_call_rate", _with_parts(lambda rate: f"{rate or 0:.2f}", "target_call_rate")),
    Column("wasted draft tokens", "wasted_draft_tokens", _value(rounding.number, "wasted_draft_tokens")),
    Column("target's share of tokens", "target_token_share", _with_parts(rounding.percent, "target_token_share")),
)
COST: Sequence[Column] = (
    Column("draft tokens/s", "draft_tokens_per_second", _value(rounding.number, "draft_tokens_per_second")),
    Column("target tokens/s", "target_tokens_per_second", _value(rounding.number, "target_tokens_per_second")),
    Column(
        "cost, target-token equivalents", "target_token_equivalents", _value(rounding.number, "target_token_equivalents")
    ),
    Column(
        "saving in equivalents",
        "equivalent_speedup",
        _with_range(rounding.times, rounding.times_range, "equivalent_speedup"),
    ),
)
COST_AT_ONCE: Sequence[Column] = COST[:2]
"""What a throughput run has of them."""
CURVES: Sequence[Column] = (
    Column("mean accuracy over time", "area", _with_range(rounding.percent, rounding.percent_range, "area")),
    Column("above a random mix, points", "area_gain", _with_range(rounding.points, rounding.points_range, "area_gain")),
)


def policy_table(caption: str, columns: Sequence[Column], figures: Json, series: Mapping[str, charts.Series]) -> Table:
    """Some figures of every policy."""
    rows = [
        (series[policy["policy"]], policy["label"], [column.cell(policy) for column in columns])
        for policy in figures["policies"]
    ]
    return Table(caption, [(column.heading, column.definition) for column in columns], rows)


def curve_table(figures: Json, series: Mapping[str, charts.Series]) -> Table | None:
    """Area and accuracy at matched times of each policy that was run at several taus."""
    made = [curve for curve in figures["curves"] if curve["area"] is not None]
    if not made:
        return None
    at = [(f"at {entry['time']:.2f} of the target's time", "accuracy_at") for entry in made[0]["accuracy_at"]]
    rows = []
    for curve in made:
        cells = [column.cell(curve) for column in CURVES]
        cells += [
            (rounding.percent(entry["accuracy"]), rounding.percent_range(entry["accuracy_interval"]))
            for entry in curve["accuracy_at"]
        ]
        rows.append((series[curve["policy"]], curve["policy"], cells))
    headings = [(column.heading, column.definition) for column in CURVES]
    return Table("Over the taus of one policy", [*headings, *at], rows)


def level_table(figures: Json, series: Mapping[str, charts.Series]) -> Table | None:
    """Accuracy of each policy at each level, with its counts."""
    first = figures["policies"][0]["by_level"] if figures["policies"] else None
    if not first:
        return None
    rows = [
        (series[policy["policy"]], policy["label"], [_level_cell(level) for level in policy["by_level"].values()])
        for policy in figures["policies"]
    ]
    return Table("Accuracy by level", [(f"level {level}", "by_level") for level in first], rows)


def _level_cell(level: Json) -> Cell:
    return rounding.percent(level["accuracy"], 0), f"{level['correct']}/{level['n']}"


def projection_table(figures: Json, series: Mapping[str, charts.Series]) -> Table | None:
    """Speed-ups under other cost ratios: the one that was asked for, and some round ones."""
    policies = [policy for policy in figures["policies"] if policy["projection_terms"] and policy["policy"] != "target"]
    if not policies:
        return None
    asked = [figures["projection"]["cost_ratio"]] if figures["projection"] else []
    ratios = sorted({*PROJECTED_RATIOS, *asked})
    rows = [
        (series[policy["policy"]], policy["label"], [_projected(policy, ratio, ratio in asked) for ratio in ratios])
        for policy in policies
    ]
    headings = [(f"{ratio:g}", "projected_speedup") for ratio in ratios]
    return Table("Projected speed-up, by what a target token costs in draft tokens", headings, rows)


def _projected(policy: Json, cost_ratio: float, was_asked: bool) -> Cell:
    terms = policy["projection_terms"]
    cost = terms["target"] + terms["fixed"] + terms["draft"] / cost_ratio
    shown = rounding.times(terms["alone"] / cost if cost > 0 else None)
    return shown, rounding.times_range(policy["projected_speedup_interval"]) if was_asked else ""

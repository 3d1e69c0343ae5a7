"""Defines the columns of the tables in the terminal and in the HTML report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.numbers import formatting

Json = Mapping[str, Any]
Show = Callable[[Any], str]
OUTCOMES: Mapping[str, str] = {"unscored": "unscored", "errors": "failed", "missing": "not attempted", "cut": "cut"}
TIME_PARTS = (
    *(f"{model}_{activity}" for model in ("draft", "target") for activity in ("decode", "prefill", "verify")),
    *("check_decode", "check_prefill", "router", "reward", "rest"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `definition` is a key of DEFINITIONS. `show` formats a figure; `beside` formats its interval or counts."""

    heading: str
    definition: str
    show: Callable[[Json], str]
    beside: Callable[[Json], str] = lambda figures: ""

    def cell(self, figures: Json) -> tuple[str, str]:
        return self.show(figures), self.beside(figures)


def known(columns: Sequence[Column], records: Sequence[Json]) -> list[Column]:
    """Return the columns that contain a figure for at least one record."""
    return [column for column in columns if any(column.show(record) not in ("", formatting.UNKNOWN) for record in records)]


def _value(heading: str, name: str, show: Show = formatting.number) -> Column:
    return Column(heading, name, lambda figures: show(figures[name]))


def _ranged(heading: str, definition: str, show: tuple[Show, Show], of: str = "") -> Column:
    name = of or definition
    return Column(
        heading, definition, lambda figures: show[0](figures[name]), lambda figures: show[1](figures[f"{name}_interval"])
    )


def _with_parts(heading: str, name: str, show: Show = formatting.percent) -> Column:
    def parts(figures: Json) -> str:
        if figures[name] is None:
            return ""
        ratio = figures["ratios"][name]
        return f"{formatting.number(ratio['numerator'])}/{formatting.number(ratio['denominator'])}"

    return Column(heading, name, lambda figures: show(figures[name]), parts)


def _points_range(interval: formatting.Bounds) -> str:
    low, high = (round(100 * end) + 0.0 for end in interval or (0, 0))  # never -0
    return f"[{low:+.0f} to {high:+.0f}]" if interval else ""


def outcomes(figures: Json, names: Iterable[str] = OUTCOMES) -> str:
    """Return counts such as `1 failed, 2 cut`."""
    return ", ".join(f"{figures[name]:,} {OUTCOMES[name]}" for name in names if figures[name])


def _part(part: str) -> Callable[[Json], str]:
    def mean(figures: Json) -> str:
        seconds = figures["time"][part]
        if figures["seconds_mean"] is None or not seconds:
            return formatting.UNKNOWN
        return formatting.number(seconds / figures["ratios"]["seconds_mean"]["denominator"])

    return mean


PERCENT = formatting.percent, formatting.percent_range
POINTS = formatting.points, _points_range
TIMES = formatting.number, formatting.number_range

ACCURACY = _ranged("accuracy", "accuracy", PERCENT)
DIFFERENCE = _ranged("diff", "accuracy_difference", POINTS)
CORRECT = Column("correct", "accuracy", lambda figures: f"{figures['correct']}/{figures['n']}")
REMARKS = Column("remarks", "outcomes", outcomes)
SECONDS = _value("mean s", "seconds_mean")
SPEEDUP = _ranged("speed-up", "speedup", TIMES)
ACCEPTED = _value("accepted", "acceptance_rate", formatting.whole_percent)
PRICE: Sequence[Column] = (
    _value("price/1000", "price", lambda price: formatting.number(None if price is None else 1000 * price)),
    _ranged("saved", "saving", PERCENT),
)
TERMINAL: Sequence[Column] = (
    ACCURACY,
    DIFFERENCE,
    SECONDS,
    SPEEDUP,
    *PRICE,
    ACCEPTED,
    _value("called", "called_rate", formatting.whole_percent),
    _value("thinking", "thinking_tokens_mean"),
)

PAGE: Mapping[str, Sequence[Column]] = {
    "Accuracy and time": (
        ACCURACY,
        CORRECT,
        REMARKS,
        _ranged("vs target, points", "accuracy_difference", POINTS),
        SPEEDUP,
        SECONDS,
        _value("clock s", "measured_seconds_mean"),
        _ranged("clock speed-up", "measured_speedup", TIMES),
    ),
    "Steps and tokens": (
        _with_parts("accepted steps", "acceptance_rate"),
        _with_parts("stopped early", "stopped_early_rate"),
        _with_parts("target calls per step", "target_call_rate", formatting.number),
        _with_parts("target called", "called_rate"),
        _value("wasted draft tokens", "wasted_draft_tokens"),
        _with_parts("thinking tokens", "thinking_tokens_mean", formatting.number),
    ),
    "Time: mean seconds per attempt": [Column(part.replace("_", " "), "time", _part(part)) for part in TIME_PARTS],
    "Speed and price": (
        _value("draft tokens/s", "draft_tokens_per_second"),
        _value("target tokens/s", "target_tokens_per_second"),
        *PRICE,
    ),
}

COMPARISON: Sequence[Column] = (
    Column("n", "compared_accuracy", lambda entry: str(entry["n"])),
    Column("correct", "compared_accuracy", lambda entry: "{} -> {}".format(*entry["correct"])),
    _ranged("difference", "compared_accuracy", POINTS, of="accuracy_difference"),
    _value("p", "mcnemar_p", lambda p: formatting.UNKNOWN if p is None else f"{p:.3f}"),
    _ranged("speed-up", "seconds_ratio", TIMES),
)

_EFFECTIVE = "for the effective number of attempts (Kish) if there are several samples per problem"
_OVER_PROBLEMS = "Interval: 95%, paired jackknife over problems, if there are at least 15 problems."
_WITH_COST_ERROR = f"{_OVER_PROBLEMS} It includes the error of the unit costs."

DEFINITIONS: Mapping[str, str] = {
    "accuracy": "Correct answers / attempts. Unscored answers and errors count as incorrect, but if no answer was graded, "
    f"the accuracy is unknown. Interval: 95%, Wilson, {_EFFECTIVE}.",
    "accuracy_difference": "(Correct answers of this policy - correct answers of the target alone) / attempts made by both. "
    f"Interval: 95%, paired (Newcombe), {_EFFECTIVE}.",
    "outcomes": "Attempts that were unscored, that failed, that were not attempted, or that were cut: they reached a limit (max-tokens, "
    "max-steps, ctx) before the solution was complete. Cut solutions are graded, too.",
    "seconds_mean": "Computed seconds / finished attempts. The computed time of an attempt is its counted work (tokens and scores) "
    "times the unit costs measured in the run. A step that took less than half or more than twice the usual time of such steps "
    "counts as a usual step. "
    "The time of models without measured unit costs, such as models on servers, is measured.",
    "speedup": "Computed seconds of the target alone / computed seconds of this policy, over the attempts that both finished; "
    f"above 1 is faster. {_WITH_COST_ERROR}",
    "measured_seconds_mean": "Wall-clock seconds / finished attempts. Excludes loading, grading and display.",
    "measured_speedup": "Wall-clock seconds of the target alone / wall-clock seconds of this policy, over the attempts that both "
    f"finished; above 1 is faster. {_WITH_COST_ERROR}",
    "acceptance_rate": "Accepted steps / drafted steps.",
    "stopped_early_rate": "Drafted steps that were stopped early and escalated / drafted steps.",
    "target_call_rate": "Target steps, including discarded steps / kept steps.",
    "called_rate": "Finished attempts in which the target solved the problem, because the answers of draft and checker differ / "
    "finished attempts.",
    "wasted_draft_tokens": "Tokens in discarded drafted steps of finished attempts. Excludes tokens drafted for speculation.",
    "thinking_tokens_mean": "Thinking tokens in kept steps / finished attempts.",
    "draft_tokens_per_second": "Tokens decoded by the draft / seconds of decoding. Excludes prefill.",
    "target_tokens_per_second": "Tokens decoded by the target / seconds of decoding. Excludes prefill and verification.",
    "price": "Price of all prompt and completion tokens / finished attempts. Tables show the price per 1,000 attempts.",
    "saving": "1 - price of this policy / price of the target alone, over the attempts that both finished. "
    f"{_OVER_PROBLEMS}",
    "time": "Wall-clock seconds of the finished attempts, by activity. `rest` is the time of all other activities.",
    "by_level": "Accuracy on the planned problems of one level, with the number of correct answers and attempts.",
    "compared_accuracy": "(Correct answers in the second run - correct answers in the first run) / attempts made in both, in "
    f"percentage points. Interval: 95%, paired (Newcombe), {_EFFECTIVE}.",
    "mcnemar_p": "Exact two-sided McNemar test: among the attempts that only one run solved, the probability of a split at least "
    "as uneven as this one if both runs are equally good.",
    "seconds_ratio": "Computed seconds of the first run / computed seconds of the second run, over the attempts that both "
    f"finished; above 1, the second run is faster. {_OVER_PROBLEMS} It includes the errors of both runs' unit costs.",
}

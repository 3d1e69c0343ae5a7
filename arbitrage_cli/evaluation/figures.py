"""The figures of a policy: their names, their units and their definitions. Computes nothing.

To add a figure, add a field to `PolicyFigures`, and compute it in `metrics` or `speed`. The name of the field is the figure's
name in JSON. A figure that has a `Shown` is also shown on the page, with its definition.
"""

from dataclasses import asdict, fields
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

from arbitrage_cli.numbers.intervals import Interval, Ratio
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import tau_in_json
from arbitrage_cli.types import Json, frozen

Unit = Literal["share", "whole share", "points", "times", "number", "price"]
"""The format of a figure: a percentage, a rounded percentage, percentage points, a number with its interval, a number, or the
price of 1,000 attempts."""


@frozen
class Estimate:
    """A quotient with its 95% interval. Unknown values are None."""

    ratio: Ratio | None = None
    interval: Interval | None = None

    @property
    def value(self) -> float | None:
        return self.ratio.value if self.ratio else None


@frozen
class Factor(Estimate):
    """The target's time or price divided by the policy's, and the standard error of the logarithm of this quotient."""

    log_error: float | None = None


Figure = Estimate | Ratio | int | None


@frozen
class Shown:
    """The presentation of a figure: its column's heading, its unit, the page's table that contains it, and its definition."""

    heading: str
    unit: Unit
    table: str
    definition: str


UNKNOWN, UNKNOWN_FACTOR = Estimate(), Factor()

ACCURACY, STEPS, PRICES = "Accuracy and time", "Steps and tokens", "Speed and price"
"""The tables of the page."""

_EFFECTIVE = "for Kish's effective number of attempts if there are several samples per problem"
_OVER_PROBLEMS = "95% interval: paired jackknife over problems, if there are at least 15."
_WITH_COST_ERROR = f"{_OVER_PROBLEMS} It accounts for the error of the unit costs."


@frozen
class PolicyFigures:
    """The figures of a policy. Figures that compare it with the target alone are unknown without the target's results.

    The first fields count attempts: `n` planned ones, which are `correct`, `incorrect`, `unscored`, `errors` or `missing`.
    Those that are `cut` reached a limit. If the target's answer has a grade, an answer may be gained or lost. Otherwise, it is
    only compared with the target's. `both_finished` counts the attempts that the policy and the target finished,
    the target within all limits.
    """

    route: Route
    n: int = 0
    correct: int = 0
    incorrect: int = 0
    unscored: int = 0
    errors: int = 0
    missing: int = 0
    cut: int = 0
    accuracy: Annotated[
        Estimate,
        Shown(
            "accuracy",
            "share",
            ACCURACY,
            "Correct answers divided by attempts. Failed attempts and answers that could not be scored count as incorrect. If no "
            f"answer could be scored, the accuracy is unknown. 95% interval: Wilson, {_EFFECTIVE}.",
        ),
    ] = UNKNOWN
    accuracy_difference: Annotated[
        Estimate,
        Shown(
            "diff",
            "points",
            ACCURACY,
            "Accuracy of this policy minus the accuracy of the target alone, over the attempts made by both. "
            f"95% interval: Newcombe's for paired shares, {_EFFECTIVE}.",
        ),
    ] = UNKNOWN
    answers_gained: Ratio | None = None
    answers_lost: Ratio | None = None
    answers_same: Ratio | None = None
    target_right: Ratio | None = None
    both_finished: int | None = None
    speedup: Annotated[
        Factor,
        Shown(
            "speed-up",
            "times",
            ACCURACY,
            "Computed seconds of the target alone divided by those of this policy, over the attempts that both policies "
            f"finished; above 1 is faster. {_WITH_COST_ERROR}",
        ),
    ] = UNKNOWN_FACTOR
    seconds_mean: Annotated[
        Ratio | None,
        Shown(
            "computed s",
            "number",
            ACCURACY,
            "Computed seconds per finished attempt. The computed time of an attempt is its counted work (tokens and scores) "
            "times the unit costs measured in the run. A step that took less than half or more than twice the usual time of "
            "such steps is counted at the usual time. The time of models without measured unit costs, such as models on "
            "servers, is measured.",
        ),
    ] = None
    measured_seconds_mean: Annotated[
        Ratio | None,
        Shown(
            "clock s",
            "number",
            ACCURACY,
            "Wall-clock seconds per finished attempt, without loading, grading and display.",
        ),
    ] = None
    measured_speedup: Annotated[
        Factor,
        Shown(
            "clock speed-up",
            "times",
            ACCURACY,
            "Wall-clock seconds of the target alone divided by those of this policy, over the attempts that both policies "
            f"finished; above 1 is faster. {_WITH_COST_ERROR}",
        ),
    ] = UNKNOWN_FACTOR
    acceptance_rate: Annotated[
        Ratio | None, Shown("accepted", "whole share", STEPS, "Accepted steps divided by drafted steps.")
    ] = None
    stopped_early_rate: Annotated[
        Ratio | None,
        Shown(
            "stopped early",
            "whole share",
            STEPS,
            "Drafted steps that were stopped early and escalated, divided by drafted steps.",
        ),
    ] = None
    called_rate: Annotated[
        Ratio | None,
        Shown(
            "called",
            "whole share",
            STEPS,
            "Share of finished attempts in which the target solved the problem, because the answers of draft and checker "
            "differed.",
        ),
    ] = None
    wasted_draft_tokens: Annotated[
        int,
        Shown(
            "wasted draft tokens",
            "number",
            STEPS,
            "Tokens in drafted steps that were discarded, excluding tokens drafted for speculation.",
        ),
    ] = 0
    thinking_tokens_mean: Annotated[
        Ratio | None, Shown("thinking", "number", STEPS, "Thinking tokens in kept steps per finished attempt.")
    ] = None
    draft_tokens_per_second: Annotated[
        Ratio | None,
        Shown(
            "draft tokens/s",
            "number",
            PRICES,
            "Tokens that the draft decodes per second of decoding, without prefill.",
        ),
    ] = None
    target_tokens_per_second: Annotated[
        Ratio | None,
        Shown(
            "target tokens/s",
            "number",
            PRICES,
            "Tokens that the target decodes per second of decoding, without prefill and verification.",
        ),
    ] = None
    price: Annotated[
        Ratio | None,
        Shown(
            "price/1000",
            "price",
            PRICES,
            "Price of all prompt and completion tokens per finished attempt. Tables show the price per 1,000 attempts.",
        ),
    ] = None
    price_ratio: Factor = UNKNOWN_FACTOR
    saving: Annotated[
        Estimate,
        Shown(
            "saved",
            "share",
            PRICES,
            "1 - price of this policy / price of the target alone: the share of the price that is saved, over the attempts that "
            f"both policies finished. {_OVER_PROBLEMS}",
        ),
    ] = UNKNOWN

    @property
    def num_made(self) -> int:
        return self.n - self.missing

    def to_json(self) -> Json:
        """Return the values by name. The key `ratios` contains the numerator and the denominator of each quotient."""
        route = self.route
        ratios = {name: figure.ratio if isinstance(figure, Estimate) else figure for name, figure in figures_in(self)}
        return {
            "policy": route.policy.name,
            "route": route.name,
            "tau": tau_in_json(route.tau),
            "tau_name": route.tau_name,
            "label": route.label,
            "score_is": route.policy.score_is or None,
            **flat(self),
            "ratios": {name: asdict(ratio) for name, ratio in ratios.items() if isinstance(ratio, Ratio)},
        }


@lru_cache(maxsize=1)
def shown_figures() -> dict[str, Shown]:
    """Return how the figures of the page are shown, by name, in the order of the fields."""
    found: dict[str, Shown] = {}
    for name, hint in get_type_hints(PolicyFigures, include_extras=True).items():
        for part in get_args(hint):
            if isinstance(part, Shown):
                found[name] = part
    return found


def figures_in(record: Any) -> list[tuple[str, Any]]:
    """Return the fields of a record and their values, without the route."""
    return [(one.name, getattr(record, one.name)) for one in fields(record) if one.name != "route"]


def flat(record: Any) -> Json:
    """Return the values of a record's figures by name. The parts of an estimate have names such as `accuracy_interval`."""
    found: Json = {}
    for name, figure in figures_in(record):
        found[name] = figure.value if isinstance(figure, Estimate | Ratio) else figure
        if isinstance(figure, Estimate):
            found[f"{name}_interval"] = figure.interval
        if isinstance(figure, Factor):
            found[f"{name}_log_error"] = figure.log_error
    return found

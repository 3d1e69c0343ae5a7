"""Predicts the effect of a policy on a machine before the first problem is solved.

The effect of speculation is predicted from unit costs and typical acceptance rates. The effect of routing is predicted from
unit costs and the router's table of taus.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.numbers.intervals import Interval, Z
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import route_name
from arbitrage_cli.runs.results import unit_costs_of

MATCH_RATES, MOST_MATCHES = (0.5, 0.75, 0.9), 0.97
"""The 10%, 50% and 90% quantiles of acceptance rates of draft tokens over all pairs, and the best case."""
QUANTILE = 1.2816  # the 90% quantile of the normal distribution
PROMPT_TOKENS, WRITTEN_TOKENS = 100.0, 200.0  # of a problem, if there is no router whose table has them
CARD_SPREAD, OTHER_SPREAD = 0.25, 0.5
"""The standard deviation of log speed-ups around a card's prediction, for its own pairs and for other pairs."""
CARD_ANSWERS, OTHER_ANSWERS = 10, 4
"""The weight of a card's expected net change, in measured answers, for its own pairs (at most) and for other pairs."""
CHANGED = 0.5  # the answers that any expectation counts as gained, and as lost: Jeffreys' prior
DRAFT_CHANGE = -0.15  # the expected net change of the draft alone, as a share of the answers


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected effect of a policy: a log-normal speed-up of at most `most`, and the outcomes of answers.

    `speedup` is the median, and `spread` is the standard deviation of its logarithm. The expectation that shares of the
    answers are gained, lost and kept has the weight of that many measured answers. `right` is the share of answers that the
    target has right.
    """

    speedup: float = 1.0
    spread: float = 0.7
    most: float = math.inf
    gained: float = 0.5
    lost: float = 0.7
    kept: float = 2.8
    right: float = 1.0

    @property
    def change(self) -> float:
        """The net change of accuracy, as a share of the answers."""
        return (self.gained - self.lost) / (self.gained + self.lost + self.kept)

    @property
    def interval(self) -> Interval:
        low, high = (self.speedup * math.exp(sign * Z * self.spread) for sign in (-1, 1))
        return low, max(low, min(high, self.most))


UNKNOWN = Expected()


def expected_effects(run: Mapping[str, Any]) -> dict[str, Expected]:
    """Return the expected effect of each policy in run.json, by route."""
    costs, card = PairCosts.of(unit_costs_of(run)), (run["router"] or {}).get("card")
    table = TauTable.from_json(card["taus"]) if card else None
    if table and costs:
        table = table.at_costs(costs)
    is_own = card is not None and any(_is_pair(run["models"], pair) for pair in card["pairs"])
    return {
        route_of(entry): _expected(entry, costs, table, is_own=is_own)
        for entry in run["policies"]
        if entry["policy"] != "target"
    }


def _expected(entry: Mapping[str, Any], costs: PairCosts | None, table: TauTable | None, *, is_own: bool) -> Expected:
    policy = POLICIES[entry["policy"]]
    if policy.speculates:
        return _speculation(costs, table)
    most = _of_draft(costs, table)
    if policy.name == "draft":
        return Expected(most or 1.0, OTHER_SPREAD, math.inf, *_outcomes(DRAFT_CHANGE, CARD_ANSWERS))
    if not policy.needs_router or table is None:
        return Expected(most=most * math.exp(OTHER_SPREAD)) if most else UNKNOWN
    row = table.faster_row(float(entry["tau"]))
    time, spread = table.time(row), CARD_SPREAD if is_own else OTHER_SPREAD
    answers = max(OTHER_ANSWERS, min(table.num_solutions, CARD_ANSWERS)) if is_own else OTHER_ANSWERS
    outcomes = _outcomes(row.change / 100, answers)
    if not time or not most:
        return Expected(1.0, OTHER_SPREAD, math.inf, *outcomes)
    return Expected(1 / time, spread, most * math.exp(spread), *outcomes)


def _outcomes(change: float, answers: float) -> tuple[float, float, float]:
    """Return the numbers of gained, lost and kept answers of an expected net change with the weight of `answers`."""
    gained, lost = (CHANGED + answers * max(0.0, one) for one in (change, -change))
    return gained, lost, max(CHANGED, answers - gained - lost)


def _speculation(costs: PairCosts | None, table: TauTable | None) -> Expected:
    if costs is None:
        return UNKNOWN
    tokens = (table.prompt_tokens, table.alone_tokens) if table else (PROMPT_TOKENS, WRITTEN_TOKENS)
    speedups = (costs.alone(*tokens) / costs.speculative(*tokens, rate) for rate in (*MATCH_RATES, MOST_MATCHES))
    low, middle, high, most = speedups
    spread = math.log(high / low) / (2 * QUANTILE)
    return Expected(middle, max(spread, CARD_SPREAD / 2), most)


def _of_draft(costs: PairCosts | None, table: TauTable | None) -> float | None:
    """Return the speed-up if the draft writes every step."""
    if table and (time := table.time(table.rows[-1])):
        return 1 / time
    return costs.token_ratio if costs else None


def _is_pair(models: Mapping[str, Any], pair: Mapping[str, Any]) -> bool:
    sha256s = [[known.get(role, {}).get("sha256") for known in (models, pair)] for role in ("draft", "target")]
    return all(own is not None and own == known for own, known in sha256s)


def route_of(entry: Mapping[str, Any]) -> str:
    """Return the route of a row, or of a policy in run.json or in the figures, in the syntax of `--policy`."""
    return route_name(entry["policy"], entry["tau"], entry["tau_name"])

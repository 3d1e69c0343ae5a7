"""Chooses the presets `careful`, `balanced` and `fast` from the table of taus in a router's card.

1. `training/taus.py` measures the effect of each tau: escalated steps, change in reward, and tokens (`TauRow`).
2. Token costs (`PairCosts`) convert a row's tokens to time (`TauTable.time`).
3. A preset is the fastest tau whose expected loss stays within a limit, and whose 95% interval stays within twice this limit
   (`choose_presets`).

Presets are chosen when a router is trained, and chosen again only for a pair with prices. The token costs that are measured on
a machine only predict times: if they chose the tau, the text of an answer would depend on a stopwatch. Of the taus within a
preset's limits, the largest is nearly always the fastest, so little time is lost ("Tried, and left out" in
tests/benchmarks).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile

import numpy as np

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import RouterError, UsageError
from arbitrage_cli.inference.unit_costs import TOKEN_SECONDS, UnitCosts
from arbitrage_cli.numbers.intervals import Interval
from arbitrage_cli.system.files import validated
from arbitrage_cli.types import Fields, Json, frozen

ALWAYS, NEVER = 0.0, 1.0  # the taus that escalate every step and no step

CAREFUL_TOLERANCE = 0.5  # the maximum expected loss of preset `careful`, in points of reward
LOSSES: Mapping[str, float] = {"balanced": 0.1, "fast": 0.5}  # the same, as shares of the target's lead over the draft
PRESETS = ("careful", *LOSSES)  # from strictest to least strict
RISK = 2.0  # the maximum loss in the 95% interval, as a multiple of the maximum expected loss

FOUND_IN_TIME = 0.6  # share of the tokens common to draft and target steps that are verified: 67% on the Qwen pair
SAVED = 0.5  # share of verification's possible saving that is reached: batches are small, and contain wrong tokens

USUAL_COSTS = PairCosts(
    UnitCosts((0.010, 0.013, 0.018, 0.028, 0.050), 0.002), UnitCosts((0.060, 0.076, 0.108, 0.172, 0.300), 0.012)
)
"""The token costs by which presets and early stops are chosen if the router's card has none.

A target token costs 6 draft tokens, and a batch of 16 costs 5 tokens, as of a pair for which routing pays.
"""

DECISION_SECONDS, SCORE_SECONDS = 3.5e-4, 1.2e-4  # a router's time at the end of a step, and for an unfinished step


@frozen
class TauRow:
    """The expected effect of one tau. Token counts and `looks` (scores of unfinished steps) are means per solution.

    `wasted` is the share of escalated steps that have no advantage, or None if no steps are escalated. `recall` is the share
    of steps with an advantage that are escalated, or None if no steps have an advantage. `change` is the difference from the
    target's reward in points (hundredths), with a confidence interval across problems. `target_verify_tokens` counts the
    target's tokens that the draft also wrote; `target_tokens` counts all other tokens of the target.
    """

    tau: float
    escalation_rate: float
    wasted: float | None
    recall: float | None
    change: float
    change_interval: Interval
    draft_tokens: float
    draft_prefill_tokens: float
    target_tokens: float
    target_verify_tokens: float
    target_prefill_tokens: float
    looks: float = 0.0

    def keeps(self, limit: float) -> bool:
        """Whether the expected loss is at most this number of points, and the loss in the interval at most RISK times it."""
        return self.change >= -limit and self.change_interval[0] >= -RISK * limit


@frozen
class TauTable:
    """A table of taus in ascending order, from `ALWAYS` to `NEVER`.

    `steps`, `prompt_tokens` and `alone_tokens` (written by the target alone) are means per solution. `named` maps each
    preset to its tau. `early` contains the rows for the same taus with early stops, if early stops were measured. In the
    result of `with_early_stops`, it contains the rows that routes follow.
    """

    rows: tuple[TauRow, ...]
    steps: float
    prompt_tokens: float
    alone_tokens: float
    named: Mapping[str, float]
    costs: PairCosts | None
    num_solutions: int = 0
    early: tuple[TauRow, ...] = ()

    def row_at(self, tau: float, *, stops_early: bool = False) -> TauRow:
        """Return the row whose tau is nearest, with or without early stops."""
        rows = self.early if stops_early and self.early else self.rows
        return min(rows, key=lambda row: abs(row.tau - min(max(tau, ALWAYS), NEVER)))

    def time(self, row: TauRow) -> float | None:
        """Return the expected time per solution relative to the target alone, or None if the costs are unknown."""
        if not (alone := self.alone_seconds) or not self.costs:
            return None
        written = row.target_tokens + row.target_verify_tokens
        costs = self.costs.divided(row.draft_tokens, written)
        draft, target = costs.draft, costs.target
        drafting = (row.draft_prefill_tokens + self.prompt_tokens) * draft.prefill
        earlier = self.steps * (self.prompt_tokens + self.alone_tokens / 2)  # text before each step
        drafting += row.draft_tokens * (draft.decode + TOKEN_SECONDS) + earlier * costs.draft_reread
        targeting = row.target_prefill_tokens * target.prefill + row.escalation_rate * earlier * costs.target_reread
        targeting += written * (costs.write() + TOKEN_SECONDS)
        saved = FOUND_IN_TIME * row.target_verify_tokens * SAVED * max(0.0, costs.write() - costs.verify)
        deciding = self.steps * DECISION_SECONDS + row.looks * SCORE_SECONDS
        return (drafting + targeting - saved + deciding) / alone

    @property
    def alone_seconds(self) -> float:
        """The expected seconds per solution of the target alone, without speculation, or 0 if the costs are unknown."""
        return self.costs.alone(self.prompt_tokens, self.alone_tokens) if self.costs else 0.0

    def time_lossless(self) -> float:
        """Return the expected time of the best policy that loses nothing, relative to the target alone.

        This policy is the target with speculation or, if that is slower or the costs are unknown, the target alone.
        """
        if not (alone := self.alone_seconds) or not self.costs:
            return 1.0
        return min(1.0, self.costs.speculative(self.prompt_tokens, self.alone_tokens) / alone)

    def fastest(self, rows: Iterable[TauRow]) -> TauRow:
        """Return the row with the shortest time or, if the costs are unknown, with the fewest escalated steps."""

        def time(row: TauRow) -> float:
            known = self.time(self.followed_row(row.tau))
            return row.escalation_rate if known is None else known

        return min(rows, key=time)

    @property
    def likely_careful(self) -> TauRow:
        """The row that preset `careful` would select if only the expected loss had a limit."""
        return self.fastest([self.rows[0], *takewhile(lambda row: row.change >= -CAREFUL_TOLERANCE, self.rows)])

    @property
    def shortage(self) -> str | None:
        """A note that there are too few solutions for `likely_careful`, or None unless over twice as many are needed."""
        row, have = self.likely_careful, self.num_solutions
        if row is self.rows[0]:
            return None
        needed = have * ((row.change - row.change_interval[0]) / (row.change + RISK * CAREFUL_TOLERANCE)) ** 2
        if needed <= 2 * have:
            return None
        more = f"the preset careful would probably escalate fewer steps with {float(f'{needed:.2g}'):,.0f} solutions"
        return f"the router was measured on {have} solutions; {more}"

    def followed_row(self, tau: float) -> TauRow:
        """Return the row whose tau is nearest, with early stops where they save time (`with_early_stops`)."""
        return self.row_at(tau, stops_early=True)

    def stops_early(self, tau: float) -> bool:
        """Return whether early stops save time at this tau (`with_early_stops`)."""
        return self.followed_row(tau) != self.row_at(tau)

    def without_early_stops(self) -> "TauTable":
        return replace(self, early=())

    def resolve(self, text: str) -> float:
        """Convert a number, a preset, or a budget such as `30%` to a tau. Raises UsageError if the text is invalid."""
        if text in self.named:
            return self.named[text]
        hint = f"for policy arbitrage, use a number, a budget such as 30%, or one of: {', '.join(self.named)}"
        number = parse_number(text.removesuffix("%"), hint)
        return self.at_budget(number / 100) if text.endswith("%") else number

    def at_costs(self, costs: PairCosts | None) -> "TauTable":
        """Return the table with the times of these costs, and the same presets and early stops."""
        return replace(self, costs=costs)

    def with_early_stops(self, costs: PairCosts | None = None) -> "TauTable":
        """Return the table with early stops where they save time by these costs, by default the table's own."""
        timed = self.at_costs(costs or self.costs or USUAL_COSTS)
        rows = zip(self.rows, self.early, strict=bool(self.early))
        faster = (early if (timed.time(early) or 0.0) < (timed.time(row) or 0.0) else row for row, early in rows)
        return replace(self, early=tuple(faster))

    def with_presets(self, costs: PairCosts | None = None) -> "TauTable":
        """Return the table with the presets and the early stops that save most by these costs, by default the table's own."""
        costs = costs or self.costs or USUAL_COSTS
        table = self.with_early_stops(costs)
        return replace(table, named=choose_presets(table.at_costs(costs)))

    def at_budget(self, share: float) -> float:
        """Interpolate the tau at which the target writes this share of the steps.

        Raises UsageError if there is no such tau.
        """
        if not 0 <= share <= 1:
            hint = "give the target's share of the steps, such as 30%"
            raise UsageError(f"budget {share * 100:g}% is not between 0% and 100%", hint, option="tau")
        # Of taus that escalate the same steps here, the highest escalates the fewest steps of other problems.
        highest = {self.followed_row(row.tau).escalation_rate: row.tau for row in self.rows}
        return float(np.interp(share, sorted(highest), [highest[rate] for rate in sorted(highest)]))

    def to_json(self) -> Json:
        return asdict(self)

    @staticmethod
    def from_json(found: Fields) -> "TauTable":
        """Validate a table from a router's card. Raises RouterError if the table is invalid."""
        try:
            table = validated(TauTable, found)
            taus = [row.tau for row in table.rows]
            if table.early and [row.tau for row in table.early] != taus:
                raise ValueError("the taus of the rows with and without early stops differ")
            if len(taus) < 2 or sorted(taus) != taus or not all(map(math.isfinite, [*taus, *table.named.values()])):
                raise ValueError("expected at least 2 finite taus in ascending order")
        except ValueError as error:
            raise RouterError(f"invalid table of taus in the router ({error})", "train it again: arbitrage train") from error
        return table


def choose_presets(table: TauTable) -> dict[str, float]:
    """Return the tau of each preset. If the target is free, the tau with the fewest escalated steps is chosen.

    The interval of one tau is too optimistic with a probability of 2.5%, but the best of many taus would be chosen for its
    luck. The taus are therefore tested in ascending order, up to the first that fails. Then the probability that any of them
    was accepted wrongly is also 2.5% (fixed-sequence testing; Angelopoulos et al., arXiv 2110.01052).
    """
    lead = max(0.0, -table.rows[-1].change)  # of the target over the draft
    max_losses = {"careful": CAREFUL_TOLERANCE, **{name: share * lead for name, share in LOSSES.items()}}
    chosen = table.rows[0]
    found = {}
    for name, limit in max_losses.items():
        safe = takewhile(partial(TauRow.keeps, limit=limit), table.rows)
        # A less strict preset is never slower, because the tau of the stricter preset is among its candidates.
        chosen = table.fastest([chosen, *safe])
        found[name] = chosen.tau
    return found


def parse_number(text: str, hint: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"invalid tau '{text}'", hint, option="tau")
    return number

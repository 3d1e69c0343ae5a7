"""What each tau does on recorded states: how often it escalates, what that gains and loses, and what it costs. And which tau a
name or a budget stands for. Knows numbers and rewards; no head, no model and no file.

Every figure is per solution. A step loses the reward of the target's step minus that of the kept step. If a reward is the share
of the target's continuations that reach the right answer, the losses of a solution add up to the difference in accuracy (the
performance difference lemma, Kakade and Langford 2002), as far as the router visits the recorded states. It does not if the
recorded solution went on with a better step than the router keeps: what is lost there was lost before. So a solution loses at
most the target's reward for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import RouterError, UsageError
from arbitrage_cli.stats.intervals import Interval, bootstrap_many
from arbitrage_cli.stats.ranking import ADVANTAGE_DIGITS

Numbers = NDArray[np.float64]

ALWAYS, NEVER = 0.0, 1.0
"""Taus below and above every probability: the target alone (its drafts are thrown away), and the draft alone."""

EXACT_TOLERANCE = 0.5  # points of reward
LOSSES = {"balanced": 0.1, "fast": 0.5}  # of the target's lead over the draft
NAMES: Mapping[str, str] = {
    "exact": f"the least time that loses at most {EXACT_TOLERANCE} points of the target's reward",
    "balanced": "the least time that keeps nine tenths of the target's lead over the draft",
    "fast": "the least time that keeps half of the target's lead over the draft",
}
MATCH_RATE, MAX_SPECULATED = 0.8, 16  # assumed of speculation: the share of its tokens that are right, and tokens at a time
FOUND_IN_TIME = 0.6  # of the tokens that draft and target share: 34% were verified on the Qwen pair, where a card says 56%


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a token on one machine. Verifying takes as long as reading unless it was measured."""

    draft_seconds_per_token: float
    target_seconds_per_token: float
    target_prefill_seconds_per_token: float
    draft_prefill_seconds_per_token: float = 0.0
    target_verify_seconds_per_token: float | None = None

    @property
    def verify(self) -> float:
        """Seconds of a token that the target verifies."""
        known = self.target_verify_seconds_per_token
        return self.target_prefill_seconds_per_token if known is None else known

    @property
    def write(self) -> float:
        """Mean seconds of a token of the target that is not in its draft: decoded, or speculated on, whichever is faster."""
        return min(
            (self.target_seconds_per_token + count * (self.draft_seconds_per_token + self.verify))
            / sum(MATCH_RATE**right for right in range(count + 1))
            for count in range(MAX_SPECULATED + 1)
        )

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Costs":
        """From a mapping; other entries are ignored. ValueError if one is missing or is not a time."""
        names = [one.name for one in fields(Costs) if found.get(one.name) is not None]
        try:
            costs = Costs(**{name: float(found[name]) for name in names})
        except TypeError as error:
            raise ValueError("costs need the seconds per token of draft and target, and of the target's prefill") from error
        if not all(math.isfinite(value) and value >= 0 for value in asdict(costs).values() if value is not None):
            raise ValueError("costs are seconds, from 0 up")
        return costs


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """n states as columns (n,), those of a solution together, in the order of its steps. Solutions and problems are numbered."""

    solution: NDArray[np.int64]
    problem: NDArray[np.int64]
    draft_reward: Numbers
    target_reward: Numbers
    draft_tokens: Numbers
    target_tokens: Numbers
    target_prefill_tokens: Numbers
    shared_tokens: Numbers

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def advantage(self) -> Numbers:
        return np.round(self.target_reward - self.draft_reward, ADVANTAGE_DIGITS)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each solution begins: (solutions,)."""
        return np.flatnonzero(np.diff(self.solution, prepend=-1))

    def take(self, chosen: NDArray[np.bool_]) -> "Outcomes":
        return Outcomes(*(getattr(self, one.name)[chosen] for one in fields(Outcomes)))


@dataclass(frozen=True, slots=True)
class TauRow:
    """One tau. Rates are of steps, the rest is per solution; tokens are those of a run with this tau.

    `wasted` is the share of escalated steps without an advantage, `recall` that of steps with one that are escalated; None of none.
    `change` is the reward minus the target's, in points (hundredths), `regret` that of the oracle minus this one. The interval is over
    problems; its low end is as if one more problem had lost everything: with no loss among n it is -3/n (the rule of three).
    """

    tau: float
    escalation_rate: float
    wasted: float | None
    recall: float | None
    change: float
    change_interval: Interval | None
    regret: float
    draft_tokens: float
    draft_prefill_tokens: float
    target_tokens: float
    target_verify_tokens: float
    target_prefill_tokens: float


@dataclass(frozen=True, slots=True)
class NamedTaus:
    """What each name of a tau stands for, and whose costs decided that: the head's card or this machine."""

    taus: Mapping[str, float]
    costs_of: str


@dataclass(frozen=True, slots=True)
class TauTable:
    """The rows by rising tau, from always to never; what the target alone reads and writes; the named taus, and their costs.

    `named_on` is the table that the names were chosen on, None if it is this one; `is_certain`: `exact` is certain to 97.5%.
    """

    rows: tuple[TauRow, ...]
    steps: float
    prompt_tokens: float
    alone_tokens: float
    named: Mapping[str, float]
    costs: Costs | None
    num_solutions: int = 0
    is_certain: bool = False
    named_on: "TauTable | None" = None

    def time(self, row: TauRow, costs: Costs | None = None) -> float | None:
        """Expected time of a solution, as a share of the target's alone; None without costs."""
        known = costs or self.costs
        if known is None:
            return None
        reading = known.target_prefill_seconds_per_token
        routed = (
            (row.draft_tokens * known.draft_seconds_per_token)
            + ((row.draft_prefill_tokens + self.prompt_tokens) * known.draft_prefill_seconds_per_token)
            + (row.target_tokens * known.write)
            + (row.target_verify_tokens * known.verify)
            + (row.target_prefill_tokens * reading)
        )
        alone = self.alone_tokens * known.target_seconds_per_token + self.prompt_tokens * reading
        return routed / alone if alone > 0 else None

    def early_stop_pays(self, costs: Costs | None = None) -> bool:
        """Whether one more drafted token of an escalated step costs more than it saves the target; False without costs.

        The target verifies the tokens that it shares with the draft, as far as they are found in time, instead of writing them.
        """
        known = costs or self.costs
        if known is None:
            return False
        always = self.rows[0]
        share = always.target_verify_tokens / max(1e-9, always.target_verify_tokens + always.target_tokens)
        return known.draft_seconds_per_token > FOUND_IN_TIME * share * (known.write - known.verify)

    def resolve(self, text: str) -> float:
        """The tau that a number, a name, or a budget (`30%`: the target's share of the steps) stands for. UsageError."""
        if text in self.named:
            return self.named[text]
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = math.nan
        if math.isnan(number):
            hint = f"a number, a budget such as 30%, or one of: {', '.join(self.named)}"
            raise UsageError(f"invalid tau '{text}'", hint, option="tau")
        return self.at_budget(number / 100) if text.endswith("%") else number

    def at_costs(self, costs: Costs) -> "TauTable":
        """The same rows at the costs of another machine, and what the names stand for there."""
        chosen = _with_names(replace(self.named_on or self, costs=costs))
        named_on = chosen if self.named_on else None
        return replace(self, costs=costs, named=chosen.named, is_certain=chosen.is_certain, named_on=named_on)

    def at_budget(self, share: float) -> float:
        """The tau that gives the target this share of the steps, interpolated between two rows. UsageError if it is not a share."""
        if not 0 <= share <= 1:
            raise UsageError(f"invalid budget {share:g}", "the target's share of the steps, from 0 to 1")
        # The highest of the taus that do the same on these states: on others it escalates no more than they do.
        highest = {row.escalation_rate: row.tau for row in self.rows}
        return float(np.interp(share, sorted(highest), [highest[rate] for rate in sorted(highest)]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "TauTable":
        """What `to_json` wrote. RouterError if it is anything else."""
        try:
            rows = tuple(TauRow(**{**row, "change_interval": _pair(row["change_interval"])}) for row in found["rows"])
            costs = None if found["costs"] is None else Costs.from_json(found["costs"])
            named_on = TauTable.from_json(found["named_on"]) if found.get("named_on") else None
            table = TauTable(**{**found, "rows": rows, "costs": costs, "named_on": named_on})
            taus = [row.tau for row in rows]
            if len(rows) < 2 or sorted(taus) != taus or not all(map(math.isfinite, [*taus, *table.named.values()])):
                raise ValueError("taus do not rise")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RouterError(f"invalid table of taus in the head ({error})", "train it again: arbitrage train") from error
        return table


def expected_times(taus: Mapping[str, Any]) -> dict[float, float | None]:
    """The time of each tau of a card's table, as a share of the target's alone. RouterError."""
    table = TauTable.from_json(taus)
    return {row.tau: table.time(row) for row in table.rows}


def make_table(probability: Numbers, outcomes: Outcomes, taus: Sequence[float], costs: Costs | None) -> TauTable:
    """The table of these taus, always and never included, on these states, with names chosen on it."""
    starts, chosen = outcomes.starts, sorted({ALWAYS, NEVER, *map(float, taus)})
    count = len(starts)
    changes = np.stack([_changes(probability > tau, outcomes) for tau in chosen], axis=1)
    intervals = _intervals(changes, outcomes.problem[starts])
    if chosen[0] < probability.min():  # every step is the target's: nothing can be lost
        intervals[0] = intervals[0] and (0.0, 0.0)
    best = float(_changes(outcomes.advantage > 0, outcomes).mean())
    rows = [_row(tau, probability > tau, outcomes, best, interval) for tau, interval in zip(chosen, intervals, strict=True)]
    prompt = float(outcomes.target_prefill_tokens[starts].sum() / count)
    alone = float(outcomes.target_tokens.sum() / count)
    return _with_names(TauTable(tuple(rows), len(outcomes) / count, prompt, alone, {}, costs, count))


def tabulate(named_on: TauTable, probability: Numbers, outcomes: Outcomes) -> TauTable:
    """A table of the same taus and names on other states."""
    table = make_table(probability, outcomes, [row.tau for row in named_on.rows], named_on.costs)
    return replace(table, named=named_on.named, is_certain=named_on.is_certain, named_on=named_on)


def _with_names(table: TauTable) -> TauTable:
    named = name_taus(table)
    is_certain = any(_is_surely_exact(row) for row in table.rows if row.tau == named["exact"])
    return replace(table, named=named, is_certain=is_certain)


def name_taus(table: TauTable) -> dict[str, float]:
    """The tau of each of `NAMES`; without costs, time is the escalation rate. No name takes longer than a stricter one.

    `exact` tests the taus in order, up to the first that may lose too much: the luck of one among many must not count. With too few
    problems to be sure of any, it stops at the first that did lose too much.
    """
    lead = max(0.0, -table.rows[-1].change)

    def time(row: TauRow) -> float:
        known = table.time(row)
        return row.escalation_rate if known is None else known

    always, *others = table.rows
    sure = list(takewhile(_is_surely_exact, others))
    chosen = min([always, *(sure or takewhile(lambda row: row.change >= -EXACT_TOLERANCE, others))], key=time)
    found = {"exact": chosen.tau}
    for name, loss in LOSSES.items():
        allowed = [row for row in table.rows if row.change >= -loss * lead]
        chosen = min([chosen, *allowed], key=time)
        found[name] = chosen.tau
    return found


def spread_taus(probability: Numbers, count: int = 40) -> list[float]:
    """Taus with about 1/count of the states between two of them; of three digits, since people read and write them."""
    levels = np.quantile(probability, np.linspace(0, 1, count + 1)[1:-1])
    return sorted({float(f"{level:.3g}") for level in levels.tolist()})


def _is_surely_exact(row: TauRow) -> bool:
    return row.change_interval is not None and row.change_interval[0] >= -EXACT_TOLERANCE


def _changes(escalated: NDArray[np.bool_], outcomes: Outcomes) -> Numbers:
    """Reward of each solution minus that of the target alone (solutions,); the reward stays between 0 and 1."""
    starts = outcomes.starts
    alone = outcomes.target_reward[starts]  # its first step by the target, and the target from there
    losses = np.add.reduceat(np.where(escalated, 0.0, outcomes.advantage), starts)
    return np.clip(alone - losses, 0.0, 1.0) - alone


def _intervals(changes: Numbers, problem: NDArray[np.int64]) -> list[Interval | None]:
    """Intervals of the changes (solutions, taus), in points, over problems; see `TauRow` for their low ends."""
    _, problem = np.unique(problem, return_inverse=True)
    columns = np.zeros((int(problem.max()) + 1, changes.shape[1] + 1))
    np.add.at(columns[:, :-1], problem, changes)
    np.add.at(columns[:, -1], problem, 1.0)
    usual = columns[:, -1].mean()  # solutions of a problem
    lost = np.array([-usual] * changes.shape[1] + [usual])

    def points(sums: Numbers) -> Numbers:
        shares: Numbers = 0.0 + 100 * sums[:, :-1] / sums[:, -1:]
        return shares

    plain = bootstrap_many(columns, points, changes.shape[1])
    careful = bootstrap_many(np.vstack([columns, lost]), points, changes.shape[1])
    return [(low[0], high[1]) if low and high else None for low, high in zip(careful, plain, strict=True)]


def _row(tau: float, escalated: NDArray[np.bool_], outcomes: Outcomes, best: float, interval: Interval | None) -> TauRow:
    """One row; `best` is the mean change of the oracle, in rewards."""
    count, num_escalated, is_better = len(outcomes.starts), int(escalated.sum()), outcomes.advantage > 0
    change = float(_changes(escalated, outcomes).mean())
    written = outcomes.target_tokens[escalated]
    shared = np.minimum(outcomes.shared_tokens[escalated], written)
    return TauRow(
        tau=tau,
        escalation_rate=num_escalated / len(outcomes),
        wasted=float((~is_better[escalated]).mean()) if num_escalated else None,
        recall=float(escalated[is_better].mean()) if is_better.any() else None,
        change=0.0 + 100 * change,
        change_interval=interval,
        regret=100 * (best - change),
        draft_tokens=float(outcomes.draft_tokens.sum() / count),
        draft_prefill_tokens=float(written.sum() / count),
        target_tokens=float((written - shared).sum() / count),
        target_verify_tokens=float(shared.sum() / count),
        target_prefill_tokens=float(_tokens_to_read(escalated, outcomes).sum() / count),
    )


def _tokens_to_read(escalated: NDArray[np.bool_], outcomes: Outcomes) -> Numbers:
    """What the target reads of each solution: the prompt, and every accepted step before the last that is escalated."""
    starts = outcomes.starts
    ends = np.cumsum(outcomes.draft_tokens)
    before = np.repeat((ends - outcomes.draft_tokens)[starts], np.diff(starts, append=len(outcomes)))
    until = np.where(escalated, ends - before, 0.0)  # drafted tokens up to the end of an escalated step
    thrown_away = np.add.reduceat(np.where(escalated, outcomes.draft_tokens, 0.0), starts)
    read = np.maximum.reduceat(until, starts) - thrown_away
    called = np.logical_or.reduceat(escalated, starts)
    result: Numbers = np.where(called, outcomes.target_prefill_tokens[starts] + read, 0.0)
    return result


def _pair(interval: Sequence[float] | None) -> Interval | None:
    if interval is None:
        return None
    low, high = interval
    return low, high

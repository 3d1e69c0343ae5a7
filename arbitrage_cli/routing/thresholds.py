"""What each tau does on recorded states: how often it escalates, what that gains and loses, and what it costs. And which tau a
name or a budget stands for. Knows numbers and rewards; no head, no model and no file.

Every figure is per solution. A step loses the reward of the target's step minus that of the kept step. If a reward is the share
of the target's continuations that reach the right answer, the losses of a solution add up to the difference in accuracy (the
performance difference lemma, Kakade and Langford 2002), as far as the router visits the recorded states. It does not if the
recorded solution went on with a better step than the router keeps: what is lost there was lost before. So a solution loses at
most the target's reward for it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import RouterError, UsageError
from arbitrage_cli.routing.costs import DECISION_SECONDS, LOOK_SECONDS, Costs
from arbitrage_cli.routing.early_stop import LOOK_EVERY, Beginnings
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

    def cut(self, stops: Numbers) -> "Outcomes":
        """The same with drafted steps that are stopped after so many tokens (n,), infinite if they are not."""
        drafted, shared = (np.minimum(tokens, stops) for tokens in (self.draft_tokens, self.shared_tokens))
        return replace(self, draft_tokens=drafted, shared_tokens=shared)


@dataclass(frozen=True, slots=True)
class TauRow:
    """One tau. Rates are of steps, the rest is per solution; tokens are those of a run with this tau.

    `wasted` is the share of escalated steps without an advantage, `recall` that of steps with one that are escalated; None of none.
    `change` is the reward minus the target's, in points (hundredths), `regret` that of the oracle minus this one. The interval is over
    problems; its low end is as if one more problem had lost everything: with no loss among n it is -3/n (the rule of three).
    `target_tokens` are those that only the target wrote, `target_verify_tokens` those that it shares with the draft. `looks` are taken
    at steps before their end, if they may be stopped there.
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
    looks: float = 0.0


@dataclass(frozen=True, slots=True)
class NamedTaus:
    """What each name of a tau stands for, and whose costs decided that: the head's card or this machine."""

    taus: Mapping[str, float]
    costs_of: str


@dataclass(frozen=True, slots=True)
class TauTable:
    """The rows by rising tau, from always to never; what the target alone reads and writes; the named taus, and their costs.

    `early` are the rows of the same taus if steps are stopped early; none if that is not known. `named_on` is the table that the names were chosen on, None if it is this one; `is_certain`: `exact` is certain to 97.5%.
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
    early: tuple[TauRow, ...] = ()

    def row_at(self, tau: float, *, stops_early: bool = False) -> TauRow:
        """The row of the nearest tau."""
        rows = self.early if stops_early and self.early else self.rows
        return min(rows, key=lambda row: abs(row.tau - min(max(tau, ALWAYS), NEVER)))

    def time(self, row: TauRow, costs: Costs | None = None) -> float | None:
        """Expected time of a solution, as a share of the target's alone; None without costs."""
        known = costs or self.costs
        if known is None:
            return None
        written = row.target_tokens + row.target_verify_tokens
        routed = (
            known.drafting(row.draft_prefill_tokens + self.prompt_tokens, row.draft_tokens)
            + known.targeting(row.target_prefill_tokens, written, row.target_verify_tokens)
            + (self.steps * DECISION_SECONDS)
            + (row.looks * LOOK_SECONDS)
        )
        alone = self.prompt_tokens * known.target_prefill_seconds_per_token + self.alone_tokens * known.alone
        return routed / alone if alone > 0 else None

    def usual_row(self, tau: float, costs: Costs | None = None) -> TauRow:
        """The row of the nearest tau, with early stops if these save time."""
        return self.row_at(tau, stops_early=self.early_stop_pays([tau], costs))

    def early_stop_pays(self, taus: Iterable[float], costs: Costs | None = None) -> bool:
        """Whether stopping steps early takes less time at these taus, all together; False if that is not known."""
        times = [[self.time(self.row_at(tau, stops_early=early), costs) or 0.0 for tau in taus] for early in (True, False)]
        with_stops, without = map(sum, times)
        return with_stops < without

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
            rows, early = (_rows_from_json(found.get(name, ())) for name in ("rows", "early"))
            costs = None if found["costs"] is None else Costs.from_json(found["costs"])
            named_on = TauTable.from_json(found["named_on"]) if found.get("named_on") else None
            table = TauTable(**{**found, "rows": rows, "costs": costs, "named_on": named_on, "early": early})
            taus = [row.tau for row in rows]
            if early and [row.tau for row in early] != taus:
                raise ValueError("the rows of early stops are of other taus")
            if len(rows) < 2 or sorted(taus) != taus or not all(map(math.isfinite, [*taus, *table.named.values()])):
                raise ValueError("taus do not rise")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RouterError(f"invalid table of taus in the head ({error})", "train it again: arbitrage train") from error
        return table


def usual_rows(taus: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a card's table: those with early stops if these save time, each with its `time` as a share of the target's. RouterError."""
    table = TauTable.from_json(taus)
    rows = [table.usual_row(row.tau) for row in table.rows]
    return [{**asdict(row), "time": table.time(row)} for row in rows]


def make_table(
    probability: Numbers,
    outcomes: Outcomes,
    taus: Sequence[float],
    costs: Costs | None,
    beginnings: Beginnings | None = None,
) -> TauTable:
    """The table of these taus, always and never included, on these states, with names chosen on it.

    With the beginnings of the states' drafted steps, also what happens if steps are stopped early.
    """
    starts, chosen = outcomes.starts, sorted({ALWAYS, NEVER, *map(float, taus)})
    count = len(starts)
    rows = _rows(chosen, [(probability > tau, outcomes) for tau in chosen])
    early: list[TauRow] = []
    if beginnings is not None:
        stops = [beginnings.stops(tau, len(outcomes)) for tau in chosen]
        cut = [outcomes.cut(stop) for stop in stops]
        escalated = [(probability > tau) | np.isfinite(stop) for tau, stop in zip(chosen, stops, strict=True)]
        looks = [float(one.draft_tokens.sum() / count / LOOK_EVERY) for one in cut]
        found = _rows(chosen, list(zip(escalated, cut, strict=True)))
        early = [replace(row, looks=number) for row, number in zip(found, looks, strict=True)]
    prompt = float(outcomes.target_prefill_tokens[starts].sum() / count)
    alone = float(outcomes.target_tokens.sum() / count)
    return _with_names(TauTable(tuple(rows), len(outcomes) / count, prompt, alone, {}, costs, count, early=tuple(early)))


def tabulate(named_on: TauTable, probability: Numbers, outcomes: Outcomes, beginnings: Beginnings | None = None) -> TauTable:
    """A table of the same taus and names on other states."""
    table = make_table(probability, outcomes, [row.tau for row in named_on.rows], named_on.costs, beginnings)
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
        known = table.time(table.usual_row(row.tau))
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


def _rows(taus: Sequence[float], cases: Sequence[tuple[NDArray[np.bool_], Outcomes]]) -> list[TauRow]:
    """A row for each tau, from the states that are escalated at it, with their tokens."""
    outcomes = cases[0][1]
    changes = np.stack([_changes(escalated, outcomes) for escalated, _ in cases], axis=1)
    intervals = _intervals(changes, outcomes.problem[outcomes.starts])
    if taus[0] <= ALWAYS and cases[0][0].all():  # every step is the target's: nothing can be lost
        intervals[0] = intervals[0] and (0.0, 0.0)
    best = float(_changes(outcomes.advantage > 0, outcomes).mean())
    return [
        _row(tau, escalated, of, best, interval)
        for tau, (escalated, of), interval in zip(taus, cases, intervals, strict=True)
    ]


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


def _rows_from_json(rows: Sequence[Mapping[str, Any]]) -> tuple[TauRow, ...]:
    return tuple(TauRow(**{**row, "change_interval": _pair(row["change_interval"])}) for row in rows)


def _pair(interval: Sequence[float] | None) -> Interval | None:
    if interval is None:
        return None
    low, high = interval
    return low, high

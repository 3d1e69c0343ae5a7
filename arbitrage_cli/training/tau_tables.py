"""Makes tables of taus: what each tau does on recorded states, how often it escalates, what that gains and loses, and what it costs.
Knows numbers and rewards; no head, no model and no file.

Every figure is per solution. A step loses the reward of the target's step minus that of the kept step. If a reward is the share
of the target's continuations that reach the right answer, the losses of a solution add up to the difference in accuracy (the
performance difference lemma, Kakade and Langford 2002), as far as the router visits the recorded states. It does not if the
recorded solution went on with a better step than the router keeps: what is lost there was lost before. So a solution loses at
most the target's reward for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.routing.early_stop import LOOK_EVERY, clearly_above
from arbitrage_cli.routing.pair_costs import Costs
from arbitrage_cli.routing.thresholds import ALWAYS, NEVER, TauRow, TauTable, with_names
from arbitrage_cli.stats.intervals import Interval, bootstrap_many
from arbitrage_cli.stats.ranking import ADVANTAGE_DIGITS

Numbers = NDArray[np.float64]


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


@dataclass(frozen=True, slots=True, eq=False)
class Beginnings:
    """The beginnings of n drafted steps at which a head looks, as columns (m,): those of a step in a row, the shortest first.

    `state` is the number of the step, `tokens` the length of the beginning, `probability` the head's.
    """

    state: NDArray[np.int64]
    tokens: NDArray[np.float64]
    probability: NDArray[np.float64]

    def stops(self, tau: float, num_states: int) -> NDArray[np.float64]:
        """The tokens after which each step is stopped (n,): infinite if it is not."""
        stops = np.full(num_states, np.inf)
        above = self.probability > clearly_above(tau)
        np.minimum.at(stops, self.state[above], self.tokens[above])
        return stops


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
    return with_names(TauTable(tuple(rows), len(outcomes) / count, prompt, alone, {}, costs, count, early=tuple(early)))


def tabulate(named_on: TauTable, probability: Numbers, outcomes: Outcomes, beginnings: Beginnings | None = None) -> TauTable:
    """A table of the same taus and names on other states."""
    table = make_table(probability, outcomes, [row.tau for row in named_on.rows], named_on.costs, beginnings)
    return replace(table, named=named_on.named, is_certain=named_on.is_certain, named_on=named_on)


def spread_taus(probability: Numbers, count: int = 40) -> list[float]:
    """Taus with about 1/count of the states between two of them; of three digits, since people read and write them."""
    levels = np.quantile(probability, np.linspace(0, 1, count + 1)[1:-1])
    return sorted({float(f"{level:.3g}") for level in levels.tolist()})


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

"""Creates tables of taus from recorded states.

If a reward is the share of the target's continuations that reach the right answer, the losses of a solution add up to the
difference in accuracy (the performance difference lemma, Kakade and Langford 2002). This assumes that the router visits the
recorded states.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.presets import ALWAYS, NEVER, TauRow, TauTable
from arbitrage_cli.routing.router import LOOK_EVERY, clearly_above
from arbitrage_cli.training.expected_loss import ExpectedLoss, Outcomes

PARTS = 20  # into which the taus divide the states


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """The prefixes of drafted steps that a router scores. `state` contains the index of each prefix's state."""

    state: NDArray[np.int64]
    tokens: NDArray[np.float64]
    probability: NDArray[np.float64]

    def stops(self, tau: float, num_states: int) -> NDArray[np.float64]:
        """Return the number of tokens after which each step is stopped, or infinity if it is not stopped."""
        stops = np.full(num_states, np.inf)
        above = self.probability > clearly_above(tau)
        np.minimum.at(stops, self.state[above], self.tokens[above])
        return stops


def make_table(
    probability: Numbers,
    outcomes: Outcomes,
    taus: Sequence[float],
    costs: PairCosts | None,
    prefixes: Prefixes | None = None,
) -> TauTable:
    """Return a table of these taus plus `ALWAYS` and `NEVER`. `prefixes` are required for rows with early stops."""
    taus = sorted({ALWAYS, NEVER, *map(float, taus)})
    loss = ExpectedLoss(probability, outcomes)
    rows = [_row(tau, probability > tau, outcomes, loss) for tau in taus]
    early: list[TauRow] = []
    if prefixes is not None:
        for tau in taus:
            stops = prefixes.stops(tau, len(outcomes))
            cut = outcomes.cut(stops)
            looks = float(cut.draft_tokens.sum() / len(outcomes.starts) / LOOK_EVERY)
            early.append(replace(_row(tau, (probability > tau) | np.isfinite(stops), cut, loss), looks=looks))
    starts, count = outcomes.starts, len(outcomes.starts)
    prompt = float(outcomes.target_prefill_tokens[starts].sum() / count)
    alone = float(outcomes.target_tokens.sum() / count)
    table = TauTable(tuple(rows), len(outcomes) / count, prompt, alone, {}, costs, count, early=tuple(early))
    return table.at_costs(costs)


def spread_taus(probability: Numbers) -> list[float]:
    """Return taus that divide the states, or the sum of their probabilities, into equal parts."""
    rising = np.sort(probability)
    shares = np.linspace(0, 1, PARTS + 1)[1:-1]
    by_loss = np.interp(shares * rising.sum(), rising.cumsum(), rising)
    levels = [*np.quantile(rising, shares).tolist(), *by_loss.tolist()]
    return sorted({float(f"{level:.3g}") for level in levels})


def _row(tau: float, escalated: NDArray[np.bool_], outcomes: Outcomes, loss: ExpectedLoss) -> TauRow:
    count, num_escalated, is_better = len(outcomes.starts), int(escalated.sum()), outcomes.advantage > 0
    change, low, high = loss.changes(~escalated)
    written = outcomes.target_tokens[escalated]
    shared = np.minimum(outcomes.shared_tokens[escalated], written)
    return TauRow(
        tau=tau,
        escalation_rate=num_escalated / len(outcomes),
        wasted=float((~is_better[escalated]).mean()) if num_escalated else None,
        recall=float(escalated[is_better].mean()) if is_better.any() else None,
        change=100 * change,
        change_interval=(100 * low, 100 * high),
        draft_tokens=float(outcomes.draft_tokens.sum() / count),
        draft_prefill_tokens=float(written.sum() / count),
        target_tokens=float((written - shared).sum() / count),
        target_verify_tokens=float(shared.sum() / count),
        target_prefill_tokens=float(_tokens_to_read(escalated, outcomes).sum() / count),
    )


def _tokens_to_read(escalated: NDArray[np.bool_], outcomes: Outcomes) -> Numbers:
    """Return the target's prefill tokens per solution: the prompt, and all accepted steps before the last escalated step."""
    starts = outcomes.starts
    ends = np.cumsum(outcomes.draft_tokens)
    before = np.repeat((ends - outcomes.draft_tokens)[starts], np.diff(starts, append=len(outcomes)))
    until = np.where(escalated, ends - before, 0.0)  # drafted tokens up to the end of each escalated step
    discarded = np.add.reduceat(np.where(escalated, outcomes.draft_tokens, 0.0), starts)
    read = np.maximum.reduceat(until, starts) - discarded
    called = np.logical_or.reduceat(escalated, starts)
    result: Numbers = np.where(called, outcomes.target_prefill_tokens[starts] + read, 0.0)
    return result

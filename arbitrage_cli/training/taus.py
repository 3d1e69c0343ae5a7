"""Measures the effect of each tau on the reward and the tokens, on recorded states.

If a reward is the share of the target's continuations that reach the right answer, the losses of a solution add up to the
difference in accuracy (the performance difference lemma, Kakade and Langford 2002). This assumes that the router visits the
recorded states.

At each step, a solution is either right or wrong so far. If the target's step was better, accepting the drafted step can
*drop* a correct solution. If the drafted step was better, accepting it can *lift* an incorrect one. Two logistic curves map
the router's log-odds to the probabilities of a drop and of a lift. Each step depends on the previous steps, so a solution can
be dropped only once. A reward between 0 and 1 is treated as the share of solutions that are right.

The curves are fitted to the states. The priors assume that the router's probability is correct and that lifts are rare. The
prediction is corrected by the difference between the observed and the predicted change. Noisy differences are shrunk towards
0. Resamples use both the resampled prediction and the resampled observation, so that the interval has the width of the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.learning.quality import resampled_weights
from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers
from arbitrage_cli.routing.presets import ALWAYS, NEVER, TauRow, TauTable
from arbitrage_cli.routing.router import LOOK_EVERY, clearly_above

ADVANTAGE_DIGITS = 9
"""The decimal places to which advantages are rounded, because means of equal rewards may differ by rounding errors."""

PARTS = 20  # into which the taus divide the states
TABLE_RESAMPLES = 400
CURVE_CELLS = 1 << 21  # in one batch of resamples; bounds the memory
NEAREST = 1e-6  # smallest distance of a probability from 0 and 1
TRUST = 0.5  # prior standard deviation of the missed loss, as a share of the expected drops
NEWTON_STEPS, LONGEST_STEP = 12, 2.0


class Prior(NamedTuple):
    """A Gaussian prior for the intercept and the slope of a curve's log-odds."""

    means: tuple[float, float]
    deviations: tuple[float, float]  # standard deviations


DROP = Prior(means=(0.0, 1.0), deviations=(1.0, 0.3))
LIFT = Prior(means=(-3.0, 0.5), deviations=(1.0, 0.5))


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """The outcomes of n states. Each column has shape (n,) and is grouped by solution and ordered by step.

    `is_written` is false for the states of a solution that the collection ended early, because the target never solves the
    problem. The solution has further steps, which nobody wrote, so its rewards count, but not its steps and tokens.
    """

    solution: Indices
    problem: Indices
    draft_reward: Numbers
    target_reward: Numbers
    draft_tokens: Numbers
    target_tokens: Numbers
    target_prefill_tokens: Numbers
    shared_tokens: Numbers
    is_written: Mask

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def advantage(self) -> Numbers:
        return np.round(self.target_reward - self.draft_reward, ADVANTAGE_DIGITS)

    @property
    def starts(self) -> Indices:
        """The index of each solution's first state."""
        return np.flatnonzero(np.diff(self.solution, prepend=-1))

    def take(self, chosen: Mask) -> "Outcomes":
        return Outcomes(*(getattr(self, column.name)[chosen] for column in fields(Outcomes)))

    def cut(self, stops: Numbers) -> "Outcomes":
        """Return the outcomes if each drafted step is stopped after its number of tokens in `stops`.

        Infinite numbers do not stop a step.
        """
        drafted, shared = (np.minimum(tokens, stops) for tokens in (self.draft_tokens, self.shared_tokens))
        return replace(self, draft_tokens=drafted, shared_tokens=shared)


# --- the expected loss of accepted steps


def chance(curve: Numbers, number: Numbers) -> Numbers:
    """Return the probabilities of r curves at n numbers, with shape (r, n).

    `curve` has shape (r, 2), and `number` has shape (n,).
    """
    values: Numbers = 1 / (1 + np.exp(-(curve[:, :1] + curve[:, 1:] * number)))
    return values


def fit_curves(number: Numbers, share: Numbers, weight: Numbers, prior: Prior) -> Numbers:
    """Fit a curve to n shares for each of r rows of weights. Return the curves, an array of shape (r, 2).

    The curves are maximum a posteriori estimates, computed by Newton's method.
    """
    mean = np.array(prior.means)
    precision = np.array(prior.deviations) ** -2.0
    inputs = np.stack([np.ones_like(number), number], axis=1)
    squares = np.stack([inputs[:, 0], number, number, number**2], axis=1)
    curve = np.tile(mean, (len(weight), 1))
    for _ in range(NEWTON_STEPS):
        now = chance(curve, number)
        slope = (weight * (share - now)) @ inputs - precision * (curve - mean)
        bend = ((weight * now * (1 - now)) @ squares).reshape(-1, 2, 2) + np.diag(precision)
        curve = curve + np.clip(np.linalg.solve(bend, slope[..., None])[..., 0], -LONGEST_STEP, LONGEST_STEP)
    return curve


class ExpectedLoss:
    """Estimates changes in reward from a router's probabilities for n states and the outcomes of these states."""

    def __init__(self, probability: Numbers, outcomes: Outcomes) -> None:
        clipped = np.clip(probability, NEAREST, 1 - NEAREST)
        log_odds = np.log(clipped / (1 - clipped))
        target_reward = outcomes.target_reward
        self._starts = outcomes.starts
        self._advantage = target_reward - outcomes.draft_reward
        lengths = np.diff(self._starts, append=len(outcomes))
        self._solution = np.repeat(np.arange(len(lengths)), lengths)
        self._place = np.arange(len(outcomes)) - np.repeat(self._starts, lengths)
        self._alone = target_reward[self._starts]  # the reward of the target alone
        problems = outcomes.problem[self._starts]
        self._num_problems = len(np.unique(problems))
        weights = resampled_weights(problems, TABLE_RESAMPLES)
        self._weight = np.concatenate(list(weights))  # (1 + TABLE_RESAMPLES, solutions); the first row is all ones
        by_state = self._weight[:, self._solution]
        gain, loss = np.maximum(self._advantage, 0), np.maximum(-self._advantage, 0)
        self._drop = _chances(log_odds, gain, target_reward, by_state, DROP)
        self._lift = _chances(log_odds, loss, 1 - target_reward, by_state, LIFT)

    def changes(self, accepted: Mask) -> tuple[float, float, float]:
        """Return the mean change in reward per solution, with its 95% interval, if these drafted steps are accepted."""
        expected = self._chain(accepted)
        observed = self._observed(accepted)
        drops = self._drop[0, accepted].sum() / len(observed)
        # Few solutions without a drop hardly vary, so the noise is at least that of the predicted number of drops.
        noise = max(np.var(self._means(observed - expected[0])[1:]), drops / self._num_problems)
        trust = (TRUST * drops) ** 2
        share = trust / (trust + noise) if trust else 0.0
        changes = self._means((1 - share) * expected + share * observed)
        low, high = np.percentile(changes, [2.5, 97.5])
        return float(changes[0]), float(low), float(high)

    def _means(self, changes: Numbers) -> Numbers:
        """Return the mean change per solution for each resample."""
        means: Numbers = (changes * self._weight).sum(axis=1) / self._weight.sum(axis=1)
        return means

    def _observed(self, accepted: Mask) -> Numbers:
        """Return the change in each solution's reward, computed from the recorded rewards."""
        lost = np.add.reduceat(np.where(accepted, self._advantage, 0.0), self._starts)
        return np.clip(self._alone - lost, 0.0, 1.0) - self._alone

    def _chain(self, accepted: Mask) -> Numbers:
        """Return the expected change in each solution's reward for each resample, with shape (1 + TABLE_RESAMPLES, solutions)."""
        reward = np.tile(self._alone, (len(self._weight), 1))
        for place in range(int(self._place.max()) + 1):
            chosen = np.flatnonzero(accepted & (self._place == place))
            of = self._solution[chosen]
            before = reward[:, of]
            reward[:, of] = before * (1 - self._drop[:, chosen]) + (1 - before) * self._lift[:, chosen]
        changes: Numbers = reward - self._alone
        return changes


def _chances(log_odds: Numbers, change: Numbers, of: Numbers, weight: Numbers, prior: Prior) -> NDArray[np.float32]:
    """Fit a curve to `change / of` for each row of weights. Return the fitted probabilities, in the shape of `weight`."""
    share = np.divide(change, of, out=np.zeros_like(of), where=of > 0)
    size = max(1, CURVE_CELLS // len(log_odds))
    batches = [weight[start : start + size] * of for start in range(0, len(weight), size)]
    return np.concatenate(
        [chance(fit_curves(log_odds, share, batch, prior), log_odds).astype(np.float32) for batch in batches]
    )


# --- the table of taus


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """The prefixes of drafted steps that a router scores. `state` contains the index of each prefix's state."""

    state: Indices
    tokens: Numbers
    probability: Numbers

    def stops(self, tau: float, num_states: int) -> Numbers:
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
    """Return a table of these taus plus `ALWAYS` and `NEVER`. `prefixes` are required for rows with early stops.

    At least one solution was written to its end.
    """
    taus = sorted({ALWAYS, NEVER, *map(float, taus)})
    loss = ExpectedLoss(probability, outcomes)
    rows = [_row(tau, probability > tau, outcomes, loss) for tau in taus]
    early: list[TauRow] = []
    if prefixes is not None:
        for tau in taus:
            stops = prefixes.stops(tau, len(outcomes))
            cut = outcomes.cut(stops)
            written = cut.take(cut.is_written)
            looks = float(written.draft_tokens.sum() / len(written.starts) / LOOK_EVERY)
            early.append(replace(_row(tau, (probability > tau) | np.isfinite(stops), cut, loss), looks=looks))
    written = outcomes.take(outcomes.is_written)
    count = len(written.starts)
    table = TauTable(
        rows=tuple(rows),
        steps=len(written) / count,
        prompt_tokens=float(written.target_prefill_tokens[written.starts].sum() / count),
        alone_tokens=float(written.target_tokens.sum() / count),
        named={},
        costs=costs,
        num_solutions=len(outcomes.starts),
        early=tuple(early),
    )
    return replace(table, named=table.with_presets().named)


def spread_taus(probability: Numbers) -> list[float]:
    """Return taus that split the states, or their total probability, into equal parts."""
    rising = np.sort(probability)
    shares = np.linspace(0, 1, PARTS + 1)[1:-1]
    by_loss = np.interp(shares * rising.sum(), rising.cumsum(), rising)
    levels = [*np.quantile(rising, shares).tolist(), *by_loss.tolist()]
    return sorted({float(f"{level:.3g}") for level in levels})


def _row(tau: float, escalated: Mask, outcomes: Outcomes, loss: ExpectedLoss) -> TauRow:
    is_better = outcomes.advantage > 0
    change, low, high = loss.changes(~escalated)
    written = outcomes.take(outcomes.is_written)
    called = escalated[outcomes.is_written]
    count = len(written.starts)
    target_tokens = written.target_tokens[called]
    shared = np.minimum(written.shared_tokens[called], target_tokens)
    return TauRow(
        tau=tau,
        escalation_rate=float(called.mean()),
        wasted=float((~is_better[escalated]).mean()) if escalated.any() else None,
        recall=float(escalated[is_better].mean()) if is_better.any() else None,
        change=100 * change,
        change_interval=(100 * low, 100 * high),
        draft_tokens=float(written.draft_tokens.sum() / count),
        draft_prefill_tokens=float(target_tokens.sum() / count),
        target_tokens=float((target_tokens - shared).sum() / count),
        target_verify_tokens=float(shared.sum() / count),
        target_prefill_tokens=float(_tokens_to_read(called, written).sum() / count),
    )


def _tokens_to_read(escalated: Mask, outcomes: Outcomes) -> Numbers:
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

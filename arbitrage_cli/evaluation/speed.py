"""Compares each policy's speed and price with those of the target alone. Times are either computed or measured by the clock.

The amount of work on a problem is deterministic: tokens in prefill, decoding and verification, scores, and tokens that the
program handles. Only the time of the work is noisy. The unit costs are means over many steps. A disturbed step counts as a
usual step of the same kind at a similar place in a solution. A change of model may slow down the next step. The first steps
after a change are therefore a separate kind, so that a policy pays for its changes. The computed time of an attempt is its
work multiplied by these unit costs. The work of a model without measured unit costs keeps its measured time, because most of
a server's time is latency, which does not depend on counted work.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Literal, NamedTuple

import numpy as np

from arbitrage_cli.costs.pair import PairCosts, Prices, has_prompts
from arbitrage_cli.evaluation.figures import Estimate, Factor, PolicyFigures
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Ratio, log_ratio
from arbitrage_cli.runs.results import Pairs, PolicyResults, Result, paired_done, sums_by_problem
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import WRITING, ByRole, ModelRole

PHASES = ("prefill", "decode", "verify")
DISTURBED = 2.0  # the factor by which a disturbed step is slower or faster than the usual step
NEIGHBOURS = 7  # steps before a place, and after it, that define the usual step
LEAST_PRICE = 0.001  # of a policy in a ratio of prices, as a share of the target's price
BLOCKS = 4  # consecutive parts of a run whose speeds are compared
MIN_STEPS = 8  # minimum steps of a policy; with fewer, all policies define the usual step

Units = ByRole[UnitCosts]
WorkKind = tuple[ModelRole, str, bool] | Literal["score", "program"]
"""A kind of work: scoring, the program's own work per token, or a model's prefill, decoding or verification.

The last part of the tuple is true if another model wrote the previous step. A step after another model's step may be slower.
"""


class Portion(NamedTuple):
    """The expected and measured seconds of a piece of work, and its place: the number of tokens written before."""

    place: int
    expected: float
    measured: float


def with_computed_seconds(run: Run, policies: Sequence[PolicyResults]) -> list[PolicyResults]:
    """Return the policies with the computed seconds of all finished attempts.

    The time spent on rating steps is measured, not computed, as is the time of models without unit costs. If several problems
    were solved at once, their steps shared batches, and the unit costs in run.json apply: the time of one problem at a time.
    """
    is_shared = run.decided.concurrency > 1
    units = run.decided.unit_costs
    everything = _by_kind(policies, units)

    def computed(policy: PolicyResults) -> PolicyResults:
        found = _by_kind([other for other in policies if _is_same_work(policy, other)], units)
        scales = {
            kind: 1.0 if is_shared and isinstance(kind, tuple) else _scale(own, everything[kind])
            for kind, own in found.items()
        }
        results = {
            key: replace(result, computed=_computed(result, units, scales)) if result.is_done else result
            for key, result in policy.results.items()
        }
        return replace(policy, results=results)

    return [computed(policy) for policy in policies]


def _computed(result: Result, units: Units, scales: Mapping[WorkKind, float]) -> dict[str, float]:
    """Return the computed seconds of each model role, of the program and of the ratings."""
    seconds: dict[str, float] = defaultdict(float, rewards=result.tally.reward_cost.seconds)
    for kind, piece in _pieces(result, units):
        seconds[kind if isinstance(kind, str) else kind[0]] += scales[kind] * piece.expected
    for role, cost in result.steps:
        seconds[role] += 0.0 if role in units else cost.seconds
    return seconds


def _by_kind(policies: Iterable[PolicyResults], units: Units) -> Mapping[WorkKind, Sequence[Portion]]:
    found: dict[WorkKind, list[Portion]] = defaultdict(list)
    for result in (result for policy in policies for result in policy.done):
        for kind, piece in _pieces(result, units):
            found[kind].append(piece)
    return found


def _pieces(result: Result, units: Units) -> Iterator[tuple[WorkKind, Portion]]:
    """Yield the pieces of work that take time and that `units` cover."""
    found: list[tuple[WorkKind, Portion]] = []
    place, previous = 0, None
    for role, cost in result.steps:
        if role in units:
            measured = cost.prefill_seconds, cost.decode_seconds, cost.verify_seconds
            for phase, expected, seconds in zip(PHASES, units[role].seconds(cost), measured, strict=True):
                found.append(((role, phase, previous not in (None, role)), Portion(place, expected, seconds)))
        place, previous = place + cost.decode_tokens + cost.verify_kept, role
    found.append(("score", Portion(0, result.num_scores, result.router_seconds)))
    found.append(("program", Portion(0, place, result.program_seconds)))
    return ((kind, piece) for kind, piece in found if piece.expected)


def _scale(own: Sequence[Portion], everything: Sequence[Portion]) -> float:
    """Return the total measured seconds of a policy's pieces of one kind, divided by their total expected seconds.

    A disturbed piece gets the usual time of the pieces at similar places.
    """
    ordered, total = sorted(own, key=lambda piece: piece.place), 0.0
    for index, piece in enumerate(ordered):
        near = ordered[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1] if len(own) >= MIN_STEPS else everything
        usual = piece.expected * median(one.measured / one.expected for one in near)
        is_usual = usual <= DISTURBED * piece.measured and piece.measured <= DISTURBED * usual
        total += piece.measured if is_usual else usual
    return total / math.fsum(piece.expected for piece in own)


def work(result: Result, units: Units) -> float | None:
    """Return the seconds of the models' counted work at these unit costs, or None if a model was not measured."""
    if not {role for role, _ in result.steps} <= units.keys():
        return None
    return math.fsum(piece.expected for kind, piece in _pieces(result, units) if isinstance(kind, tuple))


def change_of_speed(results: Sequence[Result], units: Units) -> float:
    """Return the standard deviation of the logarithm of the models' speed between parts of a run, in the order of its rows."""
    logs = []
    for block in np.array_split(np.arange(len(results)), min(BLOCKS, len(results) or 1)):
        pieces = [piece for index in block for kind, piece in _pieces(results[index], units) if isinstance(kind, tuple)]
        if pieces:
            logs.append(math.log(math.fsum(one.measured for one in pieces) / math.fsum(one.expected for one in pieces)))
    return float(np.std(logs)) if logs else 0.0


def _is_same_work(policy: PolicyResults, other: PolicyResults) -> bool:
    """Return whether the models wrote the same tokens in the same batches.

    For example, speculation that proposes nothing does the same work as the target alone.

    Prefill tokens are not compared, because a later policy reuses the prompt prefix that an earlier policy cached.
    """
    pairs = paired_done(policy, other)
    is_alike = bool(pairs) and policy.policy.reads_token_stats == other.policy.reads_token_stats
    return policy is other or (is_alike and all(_written(one) == _written(two) for one, two in pairs))


def _written(result: Result) -> list[tuple[ModelRole, int, int, int]]:
    return [(role, cost.decode_tokens, cost.verify_tokens, cost.verify_batches) for role, cost in result.steps]


def token_ratio(run: Run, policies: Iterable[PolicyResults]) -> Estimate:
    """Return the cost of a decoded target token in draft tokens in this run.

    It is unknown if a model has no measured unit costs. If a model decoded nothing, the machine's speed during the run is
    unknown, and the ratio is that of the unit costs.
    """
    units = run.decided.unit_costs
    pieces = _by_kind(policies, units)
    decoded = {role: [*pieces.get((role, "decode", False), ()), *pieces.get((role, "decode", True), ())] for role in units}
    if not (costs := PairCosts.of(units)):
        return Estimate()
    is_known = all(decoded[role] for role in WRITING)
    draft, target = (_scale(decoded[role], decoded[role]) if is_known else 1.0 for role in WRITING)
    low, high = costs.token_ratio_interval
    ratio = Ratio(target * costs.target.decode, draft * costs.draft.decode)
    return Estimate(ratio, (target / draft * low, target / draft * high))


def with_times(
    figures: PolicyFigures, policy: PolicyResults, target: PolicyResults | None, units: Units, *, has_clock: bool
) -> PolicyFigures:
    """Return the figures with the times, computed from the counted work and, if `has_clock` is true, measured by the clock.

    Problems that are solved concurrently share the elapsed time.
    """
    pairs = paired_done(policy, target) if target else []
    own = [result for result, _ in pairs]
    others = [other for _, other in pairs]
    # The errors of different models are independent. The error of a model affects a speed-up as far as the model's shares of
    # the two times differ, so a policy that does the target's work has no such error.
    common = math.hypot(*(costs.error * (share_of(role, own) - share_of(role, others)) for role, costs in units.items()))
    count = len(policy.done)
    computed = replace(
        figures,
        seconds_mean=Ratio(math.fsum(result.computed_seconds for result in policy.done), count),
        speedup=speedup(pairs, lambda result: result.computed_seconds, common),
    )
    if not has_clock:
        return computed
    return replace(
        computed,
        measured_seconds_mean=Ratio(math.fsum(map(_clock_seconds, policy.done)), count),
        measured_speedup=speedup(pairs, _clock_seconds, common),
    )


def _clock_seconds(result: Result) -> float:
    """Return the wall-clock seconds of a finished attempt."""
    return result.seconds or 0.0


def speedup(pairs: Pairs, cost: Callable[[Result], float], common: float = 0.0) -> Factor:
    """Return the target's cost divided by the policy's cost.

    All problems share one error, whose standard deviation is `common`. The target compared with itself has no interval.
    """
    if not pairs:
        return Factor()
    table = sums_by_problem(((own.key[0], [cost(target), cost(own)]) for own, target in pairs), 2)
    error, interval = log_ratio(table, common)
    is_target = all(own is target for own, target in pairs)
    return Factor(Ratio(*(math.fsum(column) for column in table.T)), None if is_target else interval, error)


def share_of(role: ModelRole, results: Sequence[Result]) -> float:
    """Return a model's share of the computed time."""
    whole = math.fsum(result.computed_seconds for result in results) or 1.0
    return math.fsum(result.computed.get(role, 0.0) for result in results) / whole


def with_prices(
    figures: PolicyFigures, policy: PolicyResults, target: PolicyResults | None, run: Run, prices: Prices
) -> PolicyFigures:
    """Return the figures with the mean price of an attempt, and the saving.

    They stay unknown if a server did not report all tokens. Speculation that drafted no tokens has the target's price.
    """
    if policy.policy.is_lossless and policy.done and not policy.tally.target_cost.verify_tokens:
        policy = target or policy
    if not counts_tokens(run, policy):
        return figures

    def price(result: Result) -> float:
        return math.fsum(own.of(result.tally.costs[role]) for role, own in prices.items())

    priced = replace(figures, price=Ratio(math.fsum(map(price, policy.done)), len(policy.done)))
    found = speedup(paired_done(policy, target) if target and counts_tokens(run, target) else [], price)
    if found.ratio is None or not found.ratio.numerator:  # nothing is saved against a free target
        return priced
    alone, own = found.ratio.numerator, found.ratio.denominator
    saved = (1 - 1 / found.interval[0], 1 - 1 / found.interval[1]) if found.interval else None
    return replace(
        priced,
        price_ratio=replace(found, ratio=Ratio(alone, max(own, LEAST_PRICE * alone))),
        saving=Estimate(Ratio(alone - own, alone), saved),
    )


def counts_tokens(run: Run, policy: PolicyResults) -> bool:
    """Return whether servers reported all token counts. A stream that is closed at the end of a step reports none."""
    served = {role for role, model in run.decided.models.items() if model.served}
    works = (
        [cost for role, cost in result.steps if role == one and cost.seconds] for result in policy.done for one in served
    )
    return all(has_prompts(costs, is_single=not policy.policy.routes_steps) for costs in works)

"""Makes the flow of each policy: converts the settings of a route to the arguments of a flow in `arbitrage.py`."""

from collections.abc import Callable
from dataclasses import replace
from math import inf

from arbitrage_cli.arbitrage import Flow, Scorer, arbitrage, by_token_stats, oracle, single, uniform_draw
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.thoughts import BUDGET, lead_probe_stay, probe_tau
from arbitrage_cli.types import ModelRole, Trace, frozen


@frozen
class FlowSettings:
    """The settings of a flow, in addition to its trace.

    `helper` scores drafted steps, or compares answers. `thoughts_budget` is the share of the thoughts that the target writes
    if the router was not trained on thinking.
    """

    seed: int
    tau: float | None = None
    helper: Scorer | Checker | None = None
    stops_early: bool = False
    thoughts_budget: float = BUDGET

    @property
    def known_tau(self) -> float:
        """The tau. Raises ValueError if the policy has none."""
        if self.tau is None:
            raise ValueError("the policy needs a tau")
        return self.tau

    @property
    def thoughts_tau(self) -> float:
        """The tau for thoughts if the router was not trained on thinking."""
        if 0 < self.known_tau < 1:
            return probe_tau(self.thoughts_budget)
        return inf if self.known_tau >= 1 else -inf


MakeFlow = Callable[[Trace, FlowSettings], Flow]
"""Returns the flow that solves a trace. Raises ValueError if a tau, a scorer or a checker that it needs is missing."""


def by_one_model(model: ModelRole, *, speculates: bool = False) -> MakeFlow:
    return lambda trace, settings: single(trace, model, speculates=speculates)


def by_oracle(trace: Trace, settings: FlowSettings) -> Flow:
    return oracle(trace, settings.known_tau)


def by_checker(trace: Trace, settings: FlowSettings) -> Flow:
    if not isinstance(settings.helper, Checker):
        raise ValueError("the policy needs a checker")
    return settings.helper.flow(trace)


def by_scorer(trace: Trace, settings: FlowSettings) -> Flow:
    tau, scorer = settings.known_tau, settings.helper
    if not isinstance(scorer, Scorer):
        raise ValueError("the policy needs a router")
    routed = scorer if settings.stops_early else replace(scorer, early_stop=None)
    if scorer.routes_thoughts or not trace.problem.thinks:
        return arbitrage(trace, routed, tau)
    of_thoughts = by_token_stats(lead_probe_stay(settings.thoughts_budget, uniform_draw(settings.seed)))
    return _chain(arbitrage(trace, of_thoughts, settings.thoughts_tau, "think"), arbitrage(trace, routed, tau))


def _chain(*flows: Flow) -> Flow:
    for flow in flows:
        yield from flow

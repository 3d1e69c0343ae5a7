"""What each policy can save at most, by the costs of tokens alone, and the verdict if no policy can save enough."""

import pytest
from made_up_runs import as_run, make_run
from made_up_tuning import pair_costs, unit_costs

from arbitrage_cli.costs.pair import PairCosts, Price, Prices
from arbitrage_cli.evaluation.bounds import bounds_of, bounds_of_run
from arbitrage_cli.evaluation.expected import effects_of
from arbitrage_cli.evaluation.verdict import TARGET, verdict
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import load

TABLE = TauTable.from_json(load(router_file("builtin:builtin")).card.taus)
SPECULATIVE, AGREE = Route(POLICIES["speculative"]), Route(POLICIES["agree"])
CAREFUL, ALWAYS = (Route(POLICIES["arbitrage"], tau, "careful") for tau in (0.35, 0.0))
ROUTES = [TARGET, Route(POLICIES["draft"]), SPECULATIVE, CAREFUL, AGREE]
GOOD = pair_costs(0.1, 1.0, 0.01)


def bounds(costs: PairCosts, *routes: Route) -> dict[str, tuple[float, float]]:
    found = bounds_of(routes or ROUTES, costs, TABLE)
    return {one.route.policy.name: (one.at_most, one.likely) for one in found}


@pytest.mark.parametrize("ratio", [1.1, 2.0, 4.0, 10.0])
def test_nothing_is_faster_than_the_draft(ratio: float) -> None:
    """Which every policy that routes or compares answers pays for; speculation also verifies."""
    found = bounds(pair_costs(1.0 / ratio, 1.0, 0.0))
    assert found.keys() == {"speculative", "arbitrage", "agree"}
    assert found["arbitrage"][0] == pytest.approx(ratio, rel=0.01)
    assert found["agree"][0] == pytest.approx(ratio / 3, rel=0.01)
    assert all(at_most >= likely for at_most, likely in found.values())


def test_speculation_needs_cheap_batches() -> None:
    cheap, dear = (PairCosts(unit_costs(0.1), unit_costs(1.0, *batches)) for batches in ((1.0, 1.1), (4.0, 16.0)))
    assert bounds(cheap)["speculative"][0] > 3
    assert bounds(dear)["speculative"] == (1.0, 1.0)


def test_a_checker_takes_the_place_of_two_solutions_of_the_draft() -> None:
    (alone,) = bounds_of([AGREE], GOOD, TABLE)
    (checked,) = bounds_of([AGREE], GOOD, TABLE, unit_costs(0.1))
    assert checked.at_most == pytest.approx(1.5 * alone.at_most, rel=0.02)


def test_a_tau_that_escalates_every_step_saves_nothing() -> None:
    (found,) = bounds_of([ALWAYS], GOOD, TABLE)
    assert (found.escalates_all, found.is_certain, found.is_excluded) == (True, True, True)


@pytest.mark.parametrize(("ratio", "is_decided"), [(1.05, True), (8.0, False)])
def test_a_verdict_needs_no_problem_if_no_policy_can_save_enough(ratio: float, *, is_decided: bool) -> None:
    """The draft alone may still be faster, but it is another model."""
    costs = pair_costs(1.0 / ratio, 1.0, 0.0)
    made = verdict([], effects_of(ROUTES, costs), bounds_of(ROUTES, costs, TABLE))
    assert made is not None
    assert (made.route, made.is_decided, made.is_final, made.num_problems) == (TARGET, is_decided, is_decided, 0)


def test_speculation_that_even_an_accurate_draft_would_not_speed_up_is_excluded() -> None:
    """A perfect draft would. The costs were measured on two cores, with models of 0.5 and 1.5 billion parameters."""
    draft = UnitCosts((0.0309, 0.0527, 0.0527, 0.0799, 0.1123), 0.0038, 0.028)
    target = UnitCosts((0.0637, 0.1124, 0.1268, 0.1684, 0.1977), 0.0038, 0.079)
    (found,) = bounds_of([SPECULATIVE], PairCosts(draft, target), None)
    assert found.at_most > 1.4
    assert (found.likely, found.is_certain, found.is_excluded) == (1.0, False, True)


@pytest.mark.parametrize(("ratio", "is_certain"), [(1.105, True), (1.12, False)])
def test_a_policy_that_cannot_save_a_tenth_of_the_price_is_not_worth_it(ratio: float, *, is_certain: bool) -> None:
    """Which needs a higher ratio than a speed-up of 1.1x."""
    run = as_run(make_run(1, columns=[("target", None), ("agree", None)]).run)
    prices: Prices = {"draft": Price(1.0, 1.0, 1.0), "target": Price(3 * ratio, 3 * ratio, 3 * ratio)}
    (found,) = bounds_of_run(run, None, prices)
    assert found.at_most == pytest.approx(ratio, rel=0.001)
    assert found.is_certain == is_certain


def test_without_costs_nothing_is_known() -> None:
    assert bounds_of(ROUTES, None, TABLE) == []

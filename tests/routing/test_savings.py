"""What token costs say about routes: whether another policy is faster, and warnings about those that save nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import pair_costs, unit_costs
from small_routers import CHEAP_DRAFT, make_table, write_router

from arbitrage_cli.costs.pair import PairCosts, parse_prices, price_costs
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import AvailableRouter, make_route, parse_route
from arbitrage_cli.routing.router import Router, load
from arbitrage_cli.routing.savings import faster_than_routing, warning_by_costs

SLOW_DRAFT = pair_costs(0.9, 1.0, prefill=0.5)


def available_router(folder: Path, **changes: Any) -> AvailableRouter:
    small = load(write_router(folder / "router.safetensors"))
    table = replace(make_table(), **changes)
    return AvailableRouter(Router(small.network, replace(small.card, taus=table.to_json())), "router.safetensors")


def test_an_empty_tau_is_refused(tmp_path: Path) -> None:
    for name in ("arbitrage@", "entropy@"):
        policy, tau = parse_route(name)
        with pytest.raises(UsageError):
            make_route(policy, tau, available_router(tmp_path))


def faster(available: AvailableRouter, tau: str | None = None) -> str:
    """The policy that is faster than routing at a tau, or `arbitrage`."""
    found = faster_than_routing(make_route(POLICIES["arbitrage"], tau, available), available)
    return found.policy.name if found else "arbitrage"


@pytest.mark.parametrize("source", ["router.safetensors", UNIVERSAL_ROUTER])
def test_the_target_alone_is_faster_than_a_tau_that_escalates_every_step(tmp_path: Path, source: str) -> None:
    """It writes the same text in less time, even if costs are unknown."""
    named = {"careful": 0.0, "balanced": 0.3, "fast": 0.6}
    available = replace(available_router(tmp_path, costs=SLOW_DRAFT, named=named), source=source)
    assert faster(available, "0") == "target"
    assert warning_by_costs(make_route(POLICIES["arbitrage"], "0", available), available)


def test_routing_may_be_slower_at_the_costs_of_another_machine(tmp_path: Path) -> None:
    """Those on the card count if the costs of this machine are not known. Routing that was typed gets a warning."""
    available = available_router(tmp_path, costs=SLOW_DRAFT)
    assert faster(available) == "target"
    assert warning_by_costs(make_route(POLICIES["arbitrage"], None, available), available)


@pytest.mark.parametrize(
    ("priced", "machine", "words"), [(False, True, "this machine"), (False, False, "card"), (True, True, "price")]
)
def test_the_reason_names_the_costs_and_the_ratio(tmp_path: Path, words: str, *, priced: bool, machine: bool) -> None:
    available = available_router(tmp_path, costs=SLOW_DRAFT)
    available = replace(available, costs=SLOW_DRAFT if machine else None, is_priced=priced)
    route = make_route(POLICIES["arbitrage"], None, available)
    found, table = faster_than_routing(route, available), available.table
    assert found
    assert route.tau
    ratio = (table.time(table.row_at(route.tau)) or 0) / (table.time_lossless() if machine else 1)
    assert all(part in found.reason for part in (words, f"{ratio:.2f}x"))


@pytest.mark.parametrize(("verify", "policy"), [(0.05, "speculative"), (0.9, "arbitrage")])
def test_the_fastest_way_without_a_loss_is_taken(tmp_path: Path, verify: float, policy: str) -> None:
    """Routing that saves less time than speculation is not used, because it may lose answers."""
    costs = pair_costs(0.02, 1.0, prefill=0.01, verify=verify)
    written = (40.0, 8.0, 8.0, 0.0)
    rows = tuple(
        replace(row, draft_tokens=600.0, target_tokens=count, target_verify_tokens=0.0)
        for row, count in zip(make_table().rows, written, strict=True)
    )
    table = replace(make_table(), rows=rows, costs=costs)
    available = replace(available_router(tmp_path, rows=rows, costs=costs), costs=costs)
    routed = table.time(table.row_at(0.3))
    assert table.at_costs(costs).named["careful"] == 0.3
    assert routed is not None
    assert (table.time_lossless() < routed < 1) is (policy == "speculative")
    assert faster(available) == policy


@pytest.mark.parametrize(("concurrency", "policy"), [(1, "arbitrage"), (8, "target")])
def test_problems_at_once_share_batches(tmp_path: Path, concurrency: int, policy: str) -> None:
    """A target token costs four draft tokens, but little more than two if eight problems share a batch (Qwen2.5-Coder, F16)."""
    draft = UnitCosts((0.0141, 0.020, 0.036, 0.065, 0.11), 0.002)
    costs = PairCosts(draft, UnitCosts((0.0575, 0.0835, 0.103, 0.149, 0.203), 0.005), concurrency=concurrency)
    always, half, *others = make_table().rows
    rows = (always, replace(half, draft_tokens=40.0, target_tokens=20.0, target_verify_tokens=0.0), *others)
    available = replace(available_router(tmp_path, rows=rows), costs=costs)
    time = available.table.time(rows[1])
    assert time is not None
    assert (time < available.table.time_lossless()) is (policy == "arbitrage")
    assert faster(available, "0.3") == policy
    warning = warning_by_costs(make_route(POLICIES["arbitrage"], "0.3", available), available)
    assert (warning is None) is (policy == "arbitrage")


@pytest.mark.parametrize(
    ("width", "costs", "policy", "is_short"),
    [(0.5, CHEAP_DRAFT, "arbitrage", False), (9.0, CHEAP_DRAFT, "target", True), (9.0, SLOW_DRAFT, "target", False)],
)
def test_careful_is_the_target_if_there_are_too_few_solutions(
    tmp_path: Path, width: float, costs: PairCosts, policy: str, *, is_short: bool
) -> None:
    """A tau without an expected loss is not used if its interval is wide. More solutions do not make a slow tau faster."""
    always, *others = make_table().rows
    rows = (always, *(replace(row, change_interval=(row.change - width, row.change + width)) for row in others))
    table = replace(make_table(), rows=rows, costs=costs, num_solutions=54)
    available = available_router(tmp_path, rows=rows, costs=costs, num_solutions=54, named=table.with_presets().named)
    careful = make_route(POLICIES["arbitrage"], None, available)
    found = faster_than_routing(careful, available)
    assert faster(available) == policy
    assert ("(escalates every step)" in careful.label) is (width > 1)
    assert ("54 solutions" in str(found and found.reason)) is is_short


QWEN = PairCosts(
    UnitCosts((0.055, 0.0756, 0.0922, 0.1319, 0.2092), 0.0073), UnitCosts((0.1078, 0.1985, 0.2245, 0.2797, 0.3565), 0.0074)
)
BUILT_IN = PairCosts(
    UnitCosts((0.041, 0.213, 0.217, 0.278, 0.407), 0.02), UnitCosts((0.521, 0.974, 1.166, 1.682, 2.536), 0.13)
)


@pytest.mark.parametrize(
    ("costs", "needed"),
    [(QWEN, "at least 94%"), (SLOW_DRAFT, "even if the target keeps every"), (BUILT_IN, None)],
)
def test_a_warning_says_how_many_draft_tokens_must_be_kept(costs: PairCosts, needed: str | None) -> None:
    available = AvailableRouter(None, None, costs=costs)
    route = make_route(POLICIES["speculative"], None, available)
    warning = warning_by_costs(route, available)
    assert (warning is None) is (needed is None)
    assert needed is None or needed in str(warning)


QUARTER = unit_costs(0.25 * QWEN.target.decode)
HALF = unit_costs(0.5 * QWEN.target.decode)  # a draft token costs slightly more


@pytest.mark.parametrize(
    ("costs", "has_checker", "check", "is_slower"),
    [
        (QWEN, False, None, True),  # three draft solutions
        (BUILT_IN, False, None, False),
        (QWEN, True, HALF, True),
        (QWEN, True, QUARTER, False),
        (QWEN, True, None, False),  # unknown
        (replace(QWEN, concurrency=8), True, HALF, False),  # unknown, because models write in batches
        (None, True, HALF, False),
        (price_costs(parse_prices("draft=1/1,target=5/0")), False, None, False),  # only the prompt has a price
    ],
)
def test_a_warning_says_that_the_compared_solutions_cost_more_than_the_target(
    costs: PairCosts | None, check: UnitCosts | None, *, has_checker: bool, is_slower: bool
) -> None:
    available = AvailableRouter(None, None, costs=costs, has_checker=has_checker, check=check)
    warning = warning_by_costs(make_route(POLICIES["agree"], None, available), available)
    assert (warning is not None) is is_slower
    assert not is_slower or ("3 draft solutions" in str(warning)) is not has_checker

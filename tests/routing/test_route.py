"""From a request to a policy and its tau, where costs of this machine are not known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_routers import CHEAP_DRAFT, make_table, write_router

from arbitrage_cli.model_files.pairs import UNIVERSAL_ROUTER
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.presets import Costs
from arbitrage_cli.routing.route import AvailableRouter, make_route, route_or_target_alone
from arbitrage_cli.routing.router import Router, load

SLOW_DRAFT = Costs(draft_seconds_per_token=0.9, target_seconds_per_token=1.0, target_prefill_seconds_per_token=0.5)


def available_router(folder: Path, **changes: Any) -> AvailableRouter:
    small = load(write_router(folder / "router.safetensors"))
    table = replace(make_table(), **changes)
    return AvailableRouter(Router(small.network, replace(small.card, taus=table.to_json())), "router.safetensors")


@pytest.mark.parametrize("source", ["router.safetensors", UNIVERSAL_ROUTER])
@pytest.mark.parametrize(("is_default", "policy"), [(True, "target"), (False, "arbitrage")])
def test_a_tau_that_escalates_every_step_is_the_target_alone(
    tmp_path: Path, *, is_default: bool, policy: str, source: str
) -> None:
    """The target alone gives the same text in less time, even if costs are unknown. Explicit routing gets a warning."""
    named = {"careful": 0.0, "balanced": 0.3, "fast": 0.6}
    available = replace(available_router(tmp_path, costs=SLOW_DRAFT, named=named), source=source)
    route, warning = route_or_target_alone(
        make_route(POLICIES["arbitrage"], "0", available), available, is_default=is_default
    )
    assert (route.policy.name, route.tau) == (policy, None if policy == "target" else 0.0)
    assert warning is not None


@pytest.mark.parametrize(("is_default", "name"), [(True, "target"), (False, "arbitrage@careful")])
def test_routing_that_is_slower_is_no_default(tmp_path: Path, *, is_default: bool, name: str) -> None:
    """This holds at the costs of another machine, too, if those of this machine are not known."""
    available = available_router(tmp_path, costs=SLOW_DRAFT)
    route, warning = route_or_target_alone(
        make_route(POLICIES["arbitrage"], None, available), available, is_default=is_default
    )
    assert route.name == name
    assert warning is not None


@pytest.mark.parametrize(("verify", "policy"), [(0.05, "speculative"), (0.9, "arbitrage")])
def test_the_fastest_way_without_a_loss_is_taken(tmp_path: Path, verify: float, policy: str) -> None:
    """Routing that saves less time than speculation is not used, because it may lose answers."""
    costs = Costs(0.02, 1.0, 0.01, target_verify_seconds_per_token=verify)
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
    assert (table.time_alone() < routed < 1) is (policy == "speculative")
    route, _ = route_or_target_alone(make_route(POLICIES["arbitrage"], None, available), available, is_default=True)
    assert route.policy.name == policy


@pytest.mark.parametrize(
    ("width", "costs", "policy", "is_short"),
    [(0.5, CHEAP_DRAFT, "arbitrage", False), (9.0, CHEAP_DRAFT, "target", True), (9.0, SLOW_DRAFT, "target", False)],
)
def test_careful_is_the_target_if_there_are_too_few_solutions(
    tmp_path: Path, width: float, costs: Costs, policy: str, *, is_short: bool
) -> None:
    """A tau without an expected loss is not used if its interval is wide. More solutions do not make a slow tau faster."""
    always, *others = make_table().rows
    rows = (always, *(replace(row, change_interval=(row.change - width, row.change + width)) for row in others))
    table = replace(make_table(), rows=rows, costs=costs, num_solutions=54)
    available = available_router(tmp_path, rows=rows, costs=costs, num_solutions=54, named=table.at_costs(costs).named)
    careful = make_route(POLICIES["arbitrage"], None, available)
    route, warning = route_or_target_alone(careful, available, is_default=True)
    assert route.policy.name == policy
    assert ("(every step)" in careful.label) is (width > 1)
    assert ("54 solutions" in str(warning)) is is_short

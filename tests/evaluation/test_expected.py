"""What costs and a router's card say about a policy that has not run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
from small_routers import make_table

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.evaluation.verdict import (
    CARD_SPREAD,
    MIN_SPEEDUP,
    OTHER_SPREAD,
    UNKNOWN,
    Expected,
    chance_of_small_loss,
    chance_of_speedup,
    expected_effects,
)
from arbitrage_cli.inference.unit_costs import UnitCosts

DRAFT = UnitCosts((0.1, 0.1, 0.1, 0.1, 0.1), 0.001)
WIDE = UnitCosts((1.0, 1.02, 1.05, 1.1, 1.2), 0.01)  # a batch takes about as long as one token
NARROW = UnitCosts((1.0, 2.0, 4.0, 8.0, 16.0), 0.01)  # a batch takes as long as its tokens one by one
ROUTES = ("target", "speculative", "arbitrage@0.3", "entropy@0.5", "draft")


def expected_at(target: UnitCosts | None = WIDE, *, sha256: str = "t", router: bool = True) -> Mapping[str, Expected]:
    pair = {"draft": {"sha256": "d"}, "target": {"sha256": "t"}}
    run: dict[str, Any] = {
        "unit_costs": {"draft": asdict(DRAFT), "target": asdict(target)} if target else {},
        "models": {"draft": {"sha256": "d"}, "target": {"sha256": sha256}},
        "router": {"card": {"taus": make_table().to_json(), "pairs": [pair]}} if router else None,
        "policies": [
            {"policy": policy, "tau": float(tau) if tau else None, "tau_name": None}
            for policy, _, tau in (route.partition("@") for route in ROUTES)
        ],
    }
    return expected_effects(run)


def test_speculation_depends_on_the_cost_of_batches() -> None:
    cheap, dear = (expected_at(target)["speculative"] for target in (WIDE, NARROW))
    assert chance_of_speedup(cheap) > 0.9
    assert dear.most < MIN_SPEEDUP
    assert chance_of_speedup(dear) == 0
    assert cheap.interval[0] < cheap.speedup < cheap.interval[1] <= cheap.most


@pytest.mark.parametrize(("sha256", "spread"), [("t", CARD_SPREAD), ("another", OTHER_SPREAD)])
def test_routing_follows_the_card_at_the_costs_of_this_machine(sha256: str, spread: float) -> None:
    found = expected_at(sha256=sha256)["arbitrage@0.3"]
    table = make_table().at_costs(PairCosts.of({"draft": DRAFT, "target": WIDE}))
    time = table.time(table.row_at(0.3))
    assert time is not None
    assert found.speedup == pytest.approx(1 / time)
    assert (found.spread, found.change) == (spread, 0.0)
    assert found.gained + found.lost + found.kept <= 10


def test_the_draft_is_the_best_case_and_not_to_be_trusted() -> None:
    found = expected_at()
    assert found["draft"].speedup > 5
    assert found["arbitrage@0.3"].most >= found["draft"].speedup
    assert chance_of_small_loss(found["draft"]) < 0.3 < 0.5 < chance_of_small_loss(found["arbitrage@0.3"])


def test_nothing_is_known_without_costs_and_card() -> None:
    found = expected_at(None, router=False)
    assert (found["speculative"], found["entropy@0.5"]) == (UNKNOWN, UNKNOWN)
    assert "target" not in found

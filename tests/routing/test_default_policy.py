"""The rule for the policy of commands and calls: each row of its table, and what no row may do."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import pair_costs, unit_costs
from small_routers import CHEAP_DRAFT, make_table, write_router

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.default_policy import LEAST_GAIN, Situation, choose_policy
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import AvailableRouter, make_route
from arbitrage_cli.routing.router import Router, load

SLOW_DRAFT = pair_costs(0.9, 1.0, prefill=0.5)
FAST_VERIFIER = pair_costs(0.02, 1.0, prefill=0.01, verify=0.05)
SLOW_VERIFIER = pair_costs(0.02, 1.0, prefill=0.01, verify=0.9)


def router_with(
    folder: Path, here: PairCosts | None, card: PairCosts | None = CHEAP_DRAFT, **changes: Any
) -> AvailableRouter:
    """A router with the costs of this machine and those on its card, if they are known."""
    small = load(write_router(folder / "router.safetensors"))
    taus = replace(make_table(), costs=card, **changes).to_json()
    return AvailableRouter(Router(small.network, replace(small.card, taus=taus)), "router.safetensors", here)


Facts = dict[str, Any]


def situation(available: AvailableRouter | None = None, **facts: Any) -> Situation:
    """The situation with these facts, in which policies and the task have names, and in which a tau or a router was typed."""
    for name in ("policy", "pair_policy"):
        facts[name] = POLICIES[facts[name]] if name in facts else None
    facts["typed"] = frozenset(facts.get("typed", ()))
    return Situation(find_task(facts.pop("task", None)), **facts, available=available)


def named(policy: str) -> Facts:
    return {"policy": policy}


def of_pair(policy: str, tau: str | None = None) -> Facts:
    return {"pair": "mine", "pair_policy": policy, "pair_tau": tau}


WHOLE: Facts = {"writes_whole": True}
TALK: Facts = {"in_conversation": True}
NO_ROUTER: Facts = {"has_router": False}
SERVED: Facts = {"is_local": False}
CODE: Facts = {"task": "code"}
TAU: Facts = {"tau": "0.5", "typed": ["tau"]}
SET_TAU: Facts = {"tau": "fast"}

ROWS: list[tuple[Facts, str, bool]] = [
    # The user named a policy: no other fact counts, and no line is needed.
    (named("draft"), "draft", False),
    (named("entropy") | TAU | of_pair("agree"), "entropy@0.5", False),
    (named("target") | SET_TAU, "target", False),
    (named("speculative") | WHOLE | NO_ROUTER, "speculative", False),
    # The pair has a policy.
    (of_pair("agree"), "agree", True),
    (of_pair("logprob", "0.3"), "logprob@0.3", True),
    (of_pair("logprob", "0.3") | TAU, "logprob@0.5", True),
    (of_pair("arbitrage", "fast"), "arbitrage@fast", False),
    (of_pair("speculative") | CODE | NO_ROUTER, "speculative", True),
    (of_pair("agree") | TALK, "arbitrage", False),
    # A model writes only whole solutions.
    (WHOLE, "target", True),
    (WHOLE | SET_TAU, "target", True),
    (WHOLE | NO_ROUTER | CODE, "target", True),
    (WHOLE | TAU, "arbitrage@0.5", False),  # whose error says that these models cannot be routed
    # A tau or a router is for routing.
    (TAU, "arbitrage@0.5", False),
    (SET_TAU, "arbitrage@fast", False),
    ({"pair": "mine", "pair_tau": "balanced"}, "arbitrage@balanced", False),
    ({"sets_routing": True}, "arbitrage", False),
    ({"typed": ["router"]}, "arbitrage", False),
    # There is no router for the task, or for the models.
    (NO_ROUTER | CODE, "speculative", True),
    (NO_ROUTER | CODE | SERVED, "target", True),
    (NO_ROUTER | CODE | SET_TAU, "speculative", True),
    (NO_ROUTER, "entropy", True),
    (NO_ROUTER | SET_TAU, "entropy", True),
    (NO_ROUTER | TAU, "entropy@0.5", True),
    # Costs are not known yet.
    ({}, "arbitrage", False),
    (SERVED, "arbitrage", False),
]


@pytest.mark.parametrize(("facts", "route", "has_line"), ROWS, ids=str)
def test_the_first_row_that_applies_decides(facts: Facts, route: str, *, has_line: bool) -> None:
    choice = choose_policy(situation(**facts))
    assert (choice.policy.name, choice.tau or "") == (route.partition("@")[0], route.partition("@")[2])
    assert bool(choice.line) is has_line


@pytest.mark.parametrize(
    ("costs", "card", "policy"),
    [
        (CHEAP_DRAFT, CHEAP_DRAFT, "arbitrage"),
        (SLOW_DRAFT, CHEAP_DRAFT, "target"),
        (None, SLOW_DRAFT, "target"),
        (None, CHEAP_DRAFT, "arbitrage"),
        (None, None, "arbitrage"),
        (FAST_VERIFIER, CHEAP_DRAFT, "speculative"),
        (SLOW_VERIFIER, CHEAP_DRAFT, "arbitrage"),
        (replace(SLOW_DRAFT, concurrency=8), CHEAP_DRAFT, "target"),
    ],
)
def test_costs_decide_last(tmp_path: Path, costs: PairCosts | None, card: PairCosts | None, policy: str) -> None:
    """Those of this machine or, if they are not known, those on the router's card."""
    counts = (40.0, 8.0, 8.0, 0.0)
    rows = tuple(
        replace(row, draft_tokens=600.0, target_tokens=count, target_verify_tokens=0.0)
        for row, count in zip(make_table().rows, counts, strict=True)
    )
    changes: dict[str, Any] = {"rows": rows} if costs in (FAST_VERIFIER, SLOW_VERIFIER) else {}
    choice = choose_policy(situation(router_with(tmp_path, costs, card, **changes)))
    assert (choice.policy.name, choice.tau, bool(choice.line)) == (policy, None, policy != "arbitrage")


@pytest.mark.parametrize("facts", [TAU, SET_TAU, of_pair("arbitrage"), named("arbitrage")], ids=str)
def test_costs_replace_no_policy_or_tau_that_was_named(tmp_path: Path, facts: Facts) -> None:
    assert choose_policy(situation(router_with(tmp_path, SLOW_DRAFT), **facts)).policy.name == "arbitrage"


@pytest.mark.parametrize("task", ["math", "code", "free"])
def test_no_default_asks_a_checker_or_models_that_cannot_answer(tmp_path: Path, task: str) -> None:
    """A server of a checker that nobody asked for must not matter: only the user or the pair chooses policy `agree`."""
    all_costs = (None, SLOW_DRAFT, CHEAP_DRAFT)
    for costs, (is_local, has_router, whole, talks) in product(all_costs, product([False, True], repeat=4)):
        available = router_with(tmp_path, costs) if has_router else AvailableRouter(None, None, costs)
        facts: Facts = {"has_router": has_router, "is_local": is_local, "writes_whole": whole, "in_conversation": talks}
        policy = choose_policy(situation(available, task=task, **facts)).policy
        assert "check" not in policy.models
        assert is_local or not policy.needs_local_models
        assert not (whole and policy.routes_steps)


@pytest.mark.parametrize(("facts", "is_named"), [({}, True), (TALK, False), (CODE, False)], ids=str)
def test_the_line_about_whole_solutions_names_agree_where_answers_can_be_compared(facts: Facts, *, is_named: bool) -> None:
    line = choose_policy(situation(**WHOLE, **facts)).line
    assert ("policy agree" in line) is is_named


def costs_of_pair(seconds: float, ratio: float, batch: float, prefill: float) -> PairCosts:
    """Costs of a pair. A batch of 16 tokens takes the time of `batch` tokens, and a prefilled token that of `prefill` tokens."""
    draft, target = (
        unit_costs(one, few=1 + (batch - 1) / 5, many=batch, prefill=prefill * one) for one in (seconds, ratio * seconds)
    )
    return PairCosts(draft, target)


ROUTERS = ("builtin", "builtin-thinking", "qwen2.5-coder", "universal")
SHAPES = [(16.0, 0.9), (8.0, 0.5), (3.0, 0.15), (1.5, 0.05)]  # slow batches, as of small models on a CPU, to those of a GPU
RATIOS = [1.2 * 1.25**number for number in range(15)]
NOISE = 1.05  # of the ratio of the costs of two models


def gain_of_routing(available: AvailableRouter) -> float:
    """The time of the best policy that loses nothing, in times of routing with the preset `careful`."""
    route = make_route(POLICIES["arbitrage"], None, available)
    time = available.table.time(available.table.row_at(route.tau or 0.0, stops_early=route.stops_early))
    return available.table.time_lossless() / (time or 1.0)


@pytest.mark.parametrize("name", ROUTERS)
def test_two_good_measurements_choose_the_same_tau_and_the_same_policy(name: str) -> None:
    """The tau never depends on measured costs. The policy depends on them only where routing is about LEAST_GAIN faster."""
    source = f"builtin:{name}"
    router, seconds = load(router_file(source)), 2e-5 if name.startswith("builtin") else 0.02
    taus, gains = set[tuple[float | None, bool]](), list[float]()
    for ratio, (batch, prefill) in product(RATIOS, SHAPES):
        found = [
            AvailableRouter(router, source, costs_of_pair(seconds * noise, ratio / noise, batch, prefill))
            for noise in (1 / NOISE, 1.0, NOISE)
        ]
        routes = [make_route(POLICIES["arbitrage"], None, one) for one in found]
        taus |= {(route.tau, route.stops_early) for route in routes}
        if len({choose_policy(situation(one)).policy.is_lossless for one in found}) > 1:
            gains.append(gain_of_routing(found[1]))
    assert len(taus) == 1
    assert len(gains) <= 3  # of 60
    assert all(LEAST_GAIN / NOISE < gain < LEAST_GAIN * NOISE for gain in gains)


@pytest.mark.parametrize("name", ROUTERS)
def test_where_routing_pays_no_tau_within_the_limits_is_much_faster_than_the_preset(name: str) -> None:
    """So nothing is lost by choosing presets when a router is trained."""
    source = f"builtin:{name}"
    router, seconds = load(router_file(source)), 2e-5 if name.startswith("builtin") else 0.02
    for ratio, shape in product(RATIOS, SHAPES):
        available = AvailableRouter(router, source, costs_of_pair(seconds, ratio, *shape))
        if gain_of_routing(available) > 1:
            table = available.table
            best = replace(available, is_priced=True).table  # prices may choose other taus
            for preset, tau in table.named.items():
                usual, fastest = (one.time(one.followed_row(tau)) for one, tau in ((table, tau), (best, best.named[preset])))
                assert usual is not None
                assert fastest is not None
                assert usual < 1.03 * fastest

"""The rule for the policy of commands and calls: each row of its table, and what no row may do."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from made_up_tuning import pair_costs
from small_routers import CHEAP_DRAFT, make_table, write_router

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.default_policy import Situation, choose_policy
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import AvailableRouter
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

"""Prices: their notation, and the figures computed from them."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from made_up_runs import as_run, figures, make_run, results

from arbitrage_cli.costs.pair import Price, bill, parse_prices
from arbitrage_cli.errors import UsageError
from arbitrage_cli.runs.records import tally_of
from arbitrage_cli.runs.results import results_by_policy
from arbitrage_cli.runs.rows import WrittenStep
from arbitrage_cli.types import (
    ROLES,
    WRITING,
    Check,
    CheckedSolution,
    Cost,
    Decision,
    Finished,
    Limits,
    ModelRole,
    Problem,
    Step,
    Trace,
)


def report(step: dict[str, Any], prompt_tokens: int) -> None:
    step["cost"] |= {"prefill_tokens": prompt_tokens, "cached_tokens": 0}


def test_a_policy_with_unreported_prompt_tokens_has_no_price() -> None:
    """A single model reports the prompt of a response once, routed steps report each prompt."""
    made = make_run(10, columns=(("target", None), ("draft", None), ("entropy", -1.0)))
    made.run["decided"]["models"]["target"]["served"] = {"facts": {"model": "toy"}}
    of_target, _, of_entropy = made.rows[:3]
    assert min(len(row["steps"]) for row in made.rows) > 1

    def priced() -> dict[str, bool]:
        shown = figures(made.run, made.rows, prices=parse_prices("target=1/1"))["policies"]
        return {one["policy"]: one["price"] is not None for one in shown}

    for step in (step for row in made.rows for step in row["steps"]):
        report(step, 50)
    assert priced() == {"target": True, "draft": True, "entropy": True}
    for step in (*of_target["steps"][:-1], of_entropy["steps"][-1]):
        report(step, 0)
    assert priced() == {"target": True, "draft": True, "entropy": False}
    report(of_target["steps"][-1], 0)
    assert priced() == {"target": False, "draft": True, "entropy": False}
    shown = figures(made.run, made.rows, prices=parse_prices("target=1/1"))
    assert {one["saving"] for one in shown["policies"]} == {None}
    assert shown["notes"]


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_pair_is_judged_by_time_if_a_price_is_unknown(is_reported: bool) -> None:
    """There is a verdict either way, as 24 problems were finished."""
    made = make_run(24, columns=(("target", None), ("draft", None), ("entropy", -1.0)))
    made.run["decided"]["models"]["target"]["served"] = {"facts": {"model": "toy"}}
    for row in made.rows:
        for step in row["steps"]:
            report(step, 50 if is_reported or row["policy"] != "entropy" else 0)
    found = figures(made.run, made.rows, prices=parse_prices("target=1/1"))["verdict"]
    assert (found["basis"], found["confidence"] is not None) == ("price" if is_reported else "time", True)
    assert {one["is_measured"] for one in found["candidates"]} == {True}


@pytest.mark.parametrize(("verified", "is_same"), [(0, True), (3, False)])
def test_speculation_that_drafts_nothing_has_the_price_of_the_target(verified: int, is_same: bool) -> None:
    made = make_run(15, columns=[("target", None), ("speculative", None)])
    for row in made.rows:
        if row["policy"] == "speculative":
            work = {"verify_tokens": verified, "verify_batches": verified, "verify_kept": verified}
            row["steps"][0]["cost"] |= {**work, "prefill_tokens": 1}  # the rest of the prompt was cached
    shown = figures(made.run, made.rows, prices=parse_prices("target=1/1"))
    target, speculative = shown["policies"]
    assert (speculative["price"] == target["price"], speculative["saving"] == 0.0) == (is_same, is_same)
    assert shown["notes"] == []


def test_prices_are_of_a_million_tokens() -> None:
    prices = parse_prices("draft=0.02/0.10, target=0.60/0.15/2.40")
    assert prices == {"draft": Price(0.02, 0.02, 0.1), "target": Price(0.6, 0.15, 2.4)}
    cost = Cost(prefill_tokens=1_000_000, cached_tokens=2_000_000, decode_tokens=500_000, verify_kept=500_000)
    assert prices["target"].of(cost) == pytest.approx(0.6 + 0.3 + 2.4)


@pytest.mark.parametrize(
    "text", ["", "draft", "draft=1", "draft=1/2/3/4", "judge=1/2", "draft=1/2,draft=1/2", "draft=-1/2", "draft=nan/1"]
)
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_prices(text)
    assert caught.value.option == "price"


def test_savings_are_against_the_target_on_the_same_attempts() -> None:
    made = make_run(40)
    prices = parse_prices("draft=0/0,target=1/1")
    policies = {policy["label"]: policy for policy in figures(made.run, made.rows, prices=prices)["policies"]}
    totals = {
        policy.route.label: sum(
            one.tally.target_cost.prefill_tokens + one.tally.target_cost.decode_tokens for one in policy.done
        )
        for policy in results_by_policy(as_run(made.run), results(made.rows))
    }
    for label, policy in policies.items():
        assert policy["price"] == pytest.approx(totals[label] / 1e6 / 40)
    assert (policies["target"]["saving"], policies["target"]["saving_interval"]) == (0.0, None)
    saving, (low, high) = policies["entropy@0.5"]["saving"], policies["entropy@0.5"]["saving_interval"]
    assert saving == pytest.approx(1 - totals["entropy@0.5"] / totals["target"])
    assert low < saving < high
    assert policies["draft"]["saving"] == 1.0


@pytest.mark.parametrize("text", ["draft=0.02/0.10", "draft=1/1,target=0/0"])
def test_nothing_is_saved_against_a_free_target(text: str) -> None:
    made = make_run(10)
    policies = figures(made.run, made.rows, prices=parse_prices(text))["policies"]
    assert [one["price"] > 0 for one in policies] == [one["policy"] != "target" for one in policies]
    assert {(one["saving"], one["saving_interval"]) for one in policies} == {(None, None)}


def test_a_problem_has_the_price_of_its_attempt() -> None:
    """Speculation, the solutions of a check, rollouts, ratings and what a server wrote ahead have the same prices in both."""
    prices = parse_prices("draft=1/2,target=3/4,prm=5/6,check=7/8")
    cost = Cost(prefill_tokens=50, decode_tokens=10, decode_seconds=1.0)
    draft, check, target = (Step(role, "t", 10, cost, "separator") for role in ("draft", "check", "target"))
    speculated = replace(target, speculation_cost=Cost(decode_tokens=40, decode_seconds=0.5))
    trace = Trace(Problem("p", "?"), Limits(), [Decision(speculated, draft=draft, target=speculated)])
    trace.check = Check([CheckedSolution("draft", "4", [draft]), CheckedSolution("check", "5", [check])], agrees=False)
    trace.rollouts.append(target)
    finished = Finished(trace, reward_cost=cost, prompt_tokens=50, abandoned=[target, check])
    billed = bill(prices, finished, {"check"})
    assert billed
    costs = tally_of(finished).costs
    assert billed.spent == pytest.approx(sum(prices[role].of(costs[role]) for role in prices))


@pytest.mark.parametrize("served", ["", "draft", "target"])
def test_a_server_must_report_what_it_read_for_a_price(served: str) -> None:
    """A model on this machine may have nothing to read: here, the draft continues its own step."""
    prices = parse_prices("draft=1/2,target=3/4")
    first = Step("draft", "t", 10, Cost(prefill_tokens=50, decode_tokens=10, decode_seconds=1.0), "separator")
    second = replace(first, cost=Cost(decode_tokens=10, decode_seconds=1.0))
    trace = Trace(Problem("p", "?"), Limits(), [Decision(one, draft=one, score=0.1) for one in (first, second)])
    billed = bill(prices, Finished(trace, prompt_tokens=50), {role for role in ROLES if role == served})
    assert (billed is None) == (served == "draft")


@pytest.mark.parametrize("role", WRITING)
def test_one_response_with_many_steps_has_a_price(role: ModelRole) -> None:
    """A server reports what it read once, with the last step of its response."""
    costs = (Cost(decode_tokens=10, decode_seconds=1.0), Cost(prefill_tokens=50, decode_tokens=10, decode_seconds=1.0))
    steps = [Step(role, "t", 10, cost, "separator") for cost in costs]
    of_draft = role == "draft"
    decisions = [Decision(step, draft=step) if of_draft else Decision(step, target=step) for step in steps]
    finished = Finished(Trace(Problem("p", "?"), Limits(), decisions), prompt_tokens=50)
    billed = bill(parse_prices("draft=1/2,target=1/2"), finished, {role})
    assert billed
    assert (billed.spent, billed.target_alone) == (90e-6, None)


@pytest.mark.parametrize("kept", WRITING)
def test_the_price_of_the_target_alone_is_known_for_its_own_text_alone(kept: ModelRole) -> None:
    """A draft may write more than the target would have written, and the difference is no saving."""
    cost = Cost(prefill_tokens=50, decode_tokens=10, decode_seconds=1.0)
    steps = {role: Step(role, "t", 10, cost, "separator") for role in WRITING}
    trace = Trace(Problem("p", "?"), Limits(), [Decision(steps[kept], draft=steps["draft"], target=steps["target"])])
    billed = bill(parse_prices("draft=1/2,target=1/2"), Finished(trace, prompt_tokens=50), {})
    assert billed
    assert billed.target_alone == (70e-6 if kept == "target" else None)


@pytest.mark.parametrize("role", ["prm", "check"])
def test_scoring_and_checking_have_their_prices(role: str) -> None:
    made = make_run(4, columns=[("target", None)])
    cost = asdict(Cost(prefill_tokens=500, prefill_seconds=1.0))
    for row in made.rows:
        if role == "prm":
            row["timing"]["reward"] = cost
        else:
            solution = {name: row["steps"][0][name] for name in WrittenStep.model_fields} | {"model": "check", "cost": cost}
            compared = {"model": "check", "sample": 0, "answer": "4", "has_ended": True, "steps": [solution]}
            row["check"] = {"agrees": False, "solutions": [compared]}
    (shown,) = figures(made.run, made.rows, prices=parse_prices(f"{role}=2/2"))["policies"]
    assert shown["price"] == pytest.approx(500 * 2 / 1e6)

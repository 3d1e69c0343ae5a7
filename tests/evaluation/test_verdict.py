"""The verdict on a pair: what is expected of a policy before it has run, the answer, and whether its confidence holds."""

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from marks import rarely
from small_routers import make_table

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.evaluation.bounds import UNLIKELY, Bound
from arbitrage_cli.evaluation.expected import (
    CARD_SPREAD,
    MAX_LOSS,
    MAX_LOST,
    MIN_SPEEDUP,
    OTHER_SPREAD,
    UNKNOWN,
    Expected,
    after_answers,
    after_problems,
    chance_of_saving,
    chance_of_small_loss,
    effects_of,
)
from arbitrage_cli.evaluation.figures import Estimate, Factor, PolicyFigures
from arbitrage_cli.evaluation.verdict import LIKELY, SURE, Basis, Verdict, verdict
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.routing.policies import POLICIES, TARGET_ALONE
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import ModelRole

Interval = tuple[float, float] | None
CARD = Expected(1.3, 0.25, gained=0.5, lost=0.5, kept=9)
NOTHING: Mapping[str, Expected] = {}
EXPECTED: Mapping[str, Expected] = {"arbitrage@careful": CARD}


TAUS = {"careful": 0.2, "balanced": 0.4, "x": 0.3, "y": 0.5}
Spec = dict[str, Any]
"""Fields of `PolicyFigures`."""


def route(name: str) -> Route:
    """A route by its name, such as `arbitrage@careful`. Presets have taus of their own."""
    policy, _, tau = name.partition("@")
    return Route(POLICIES[policy], (TAUS[tau] if tau in TAUS else float(tau)) if tau else None, tau or None)


def policy(
    name: str, speedup: float, interval: Interval, lost: int = 0, problems: int = 20, *, error: float | None = None
) -> Spec:
    """The figures of a policy that was compared with the target on some problems."""
    error = math.log(interval[1] / interval[0]) / 4 if interval else error
    return {
        "route": route(f"{name}@careful" if name == "arbitrage" else name),
        "speedup": factor(speedup, interval, error),
        "draft_tokens_per_second": Ratio(20, 1),
        "both_finished": problems,
        **lost_of(lost, problems),
    }


def factor(value: float, interval: Interval, error: float | None) -> Factor:
    return Factor(Ratio(value, 1), interval, error)


def lost_of(lost: int, problems: int = 20, *, gained: int = 0, right: float = 0.9) -> Spec:
    """Return the figures on answers, of which the target has the share `right` right."""
    return {
        "accuracy_difference": Estimate(Ratio(gained - lost, problems)),
        "answers_gained": Ratio(gained, problems),
        "answers_lost": Ratio(lost, problems),
        "target_right": Ratio(right * problems, problems),
        "answers_same": Ratio(0, 0),
    }


def same_of(same: int, problems: int = 20) -> Spec:
    """Return the figures on answers without grades, of which `same` are the same as the target's."""
    return lost_of(0, 0) | {"answers_same": Ratio(same, problems), "both_finished": problems}


def priced(ratio: float, *, has_interval: bool = True) -> Spec:
    """Return the figures of a policy whose price is the target's price divided by `ratio`."""
    interval = (ratio / 1.06, ratio * 1.06) if has_interval else None
    return {"price_ratio": factor(ratio, interval, 0.03 if has_interval else None)}


def verdict_on(
    *policies: Spec,
    samples: int = 1,
    expected: Mapping[str, Expected] = NOTHING,
    bounds: Sequence[Bound] = (),
    basis: Basis = "time",
) -> Verdict:
    made = [PolicyFigures(Route(TARGET_ALONE)), *(PolicyFigures(**one) for one in policies)]
    found = verdict(made, {route(name): one for name, one in expected.items()}, bounds, samples=samples, basis=basis)
    assert found is not None
    return found


SPECULATIVE = policy("speculative", 1.5, (1.4, 1.6))
BALANCED = policy("arbitrage", 2.5, (2.2, 2.8)) | {"route": route("arbitrage@balanced")}
CAREFUL = policy("arbitrage", 2.0, (1.7, 2.3))
SLOW = policy("arbitrage", 0.8, (0.7, 0.9))


def test_the_other_presets_are_not_considered_beside_careful() -> None:
    """A tau that the user chose is."""
    own = [Route(POLICIES["arbitrage"], 0.3), Route(POLICIES["arbitrage"], 0.5, "30%")]
    found = verdict_on(CAREFUL, BALANCED, *(BALANCED | {"route": route} for route in own))
    assert {one.route for one in found.candidates} == {CAREFUL["route"], *own}


@pytest.mark.parametrize(
    ("policies", "route"),
    [
        ([SPECULATIVE], "speculative"),
        ([SPECULATIVE, CAREFUL], "arbitrage@careful"),
        ([SPECULATIVE, CAREFUL | lost_of(4)], "speculative"),
        ([CAREFUL, BALANCED], "arbitrage@careful"),
        ([BALANCED], "arbitrage@balanced"),
        ([SLOW, BALANCED], "target"),
        ([policy("speculative", 1.02, (1.0, 1.04)), SLOW], "target"),
        ([policy("speculative", 1.5, None, problems=8, error=0.1), SLOW], "speculative"),
        ([policy("speculative", 1.5, None) | {"draft_tokens_per_second": None}], "target"),
        ([CAREFUL | {"draft_tokens_per_second": None}], "arbitrage@careful"),
        ([policy("draft", 3.0, (2.5, 3.5), lost=2), SLOW], "target"),
        ([policy("draft", 3.0, (2.5, 3.5), problems=40), SLOW], "draft"),
        ([policy("oracle", 3.0, (2.0, 4.0)), SLOW], "target"),
    ],
    ids=[
        "the target's own text", "the fastest", "but not if it loses answers", "the lossless preset", "another one that was asked for",
        "but not instead of the lossless one", "nothing is faster", "too few problems for an interval", "speculation that drafts nothing",
        "routing whose draft takes no time",
        "a draft that loses answers", "the draft alone", "the oracle is no candidate",
    ],
)  # fmt: skip
def test_the_route_to_use(policies: list[Spec], route: str) -> None:
    expected = {one["route"].name: CARD for one in policies if one["route"].policy.needs_router}
    found = verdict_on(*policies, expected=expected)
    assert (found.route.name, found.confidence is not None) == (route, True)


def case(name: str, speedup: float, lost: int = 0, gained: int = 0, problems: int = 500, right: float = 0.9) -> Spec:
    made = policy("draft", speedup, (speedup / 1.06, speedup * 1.06), problems=problems)
    return made | {"route": route(name)} | lost_of(lost, problems, gained=gained, right=right)


@pytest.mark.parametrize(
    ("policies", "route"),
    [
        ([case("entropy@x", 1.5, 20, 30)], "entropy@x"),
        ([case("entropy@x", 1.05)], "target"),
        ([case("entropy@x", 2.64, 18), case("logprob@y", 2.32, 27, 42)], "logprob@y"),
        ([case("entropy@x", 1.5, 20)], "target"),
        ([case("entropy@x", 3.0, 30, 30, right=0.8)], "entropy@x"),
        ([case("entropy@x", 2.0, 20, right=0.05)], "target"),
        ([case("entropy@x", 1.5, 1, 1, 40)], "entropy@x"),
        ([case("entropy@x", 1.15), case("logprob@y", 2.64, 18)], "entropy@x"),
        ([case("logprob@x", 2.53, 18, 12), case("arbitrage@careful", 2.23, 4, 12)], "arbitrage@careful"),
        ([case("arbitrage@careful", 1.36, 1, 0, 40, right=0.05)], "target"),
        ([case("arbitrage@careful", 3.41, 4, 0, 200, right=0.04)], "target"),
    ],
    ids=[
        "gains more than it loses", "not fast enough", "similar speeds", "only loses", "as many gained as lost",
        "weak target", "few problems", "a fast policy that loses", "the measured run", "weak target, few problems",
        "half of a weak target's answers lost",
    ],
)  # fmt: skip
@pytest.mark.parametrize("expected", [NOTHING, EXPECTED], ids=["no card", "card"])
def test_advice_on_cases_with_a_known_answer(policies: list[Spec], route: str, expected: Mapping[str, Expected]) -> None:
    found = verdict_on(
        *policies, expected=expected if any(one["route"].policy.needs_router for one in policies) else NOTHING
    )
    assert (found.route.name, found.is_decided) == (route, True)


@pytest.mark.parametrize(
    ("policies", "route"),
    [
        ([case("entropy@x", 1.0) | priced(2.0)], "entropy@x"),
        ([case("entropy@x", 3.0) | priced(1.05)], "target"),
        ([case("entropy@x", 1.0, 20) | priced(2.0)], "target"),
        (
            [case("entropy@x", 0.7) | priced(0.8), case("draft", 0.9, problems=60) | priced(1000.0, has_interval=False)],
            "draft",
        ),
        ([case("entropy@x", 1.5) | priced(1.67), case("logprob@y", 0.9, 0, 12) | priced(1.61)], "logprob@y"),
    ],
    ids=["as fast as the target", "saves too little", "loses answers", "a draft without a price", "similar savings"],
)
def test_a_pair_with_prices_is_judged_by_the_price(policies: list[Spec], route: str) -> None:
    found = verdict_on(*policies, basis="price")
    assert (found.route.name, found.is_decided) == (route, True)


@pytest.mark.parametrize(
    ("policies", "route"),
    [
        ([case("entropy@x", 1.5, problems=40) | same_of(40, 40)], "entropy@x"),
        ([case("entropy@x", 1.5) | same_of(495, 500)], "entropy@x"),
        ([case("entropy@x", 1.5) | same_of(400, 500)], "target"),
        ([case("draft", 12.0, problems=40) | same_of(40, 40)], "draft"),
        ([case("entropy@x", 0.8, problems=5) | same_of(5, 5)], "target"),
    ],
    ids=["all are the same", "1% differs", "a fifth differs", "the draft gives all answers", "too slow"],
)
def test_without_grades_answers_that_differ_are_half_lost(policies: list[Spec], route: str) -> None:
    found = verdict_on(*policies)
    assert (found.route.name, found.is_decided) == (route, True)


@pytest.mark.parametrize(
    ("policies", "is_known"),
    [
        ([case("draft", 3.0, 1, problems=1)], False),
        ([case("draft", 3.0, 0, problems=4)], False),
        ([case("draft", 3.0, 0, problems=5)], True),
        ([case("draft", 3.0) | same_of(0, 0)], False),
        ([policy("speculative", 1.5, None, problems=4, error=0.1)], False),
        ([policy("speculative", 1.5, None, problems=5, error=0.1)], True),
    ],
    ids=["one problem", "four", "five", "nothing can be compared", "speculation on four", "speculation on five"],
)
def test_a_confidence_needs_five_finished_and_compared_problems(policies: list[Spec], is_known: bool) -> None:
    found = verdict_on(*policies)
    assert (found.confidence is not None) == is_known
    assert is_known or not found.is_final


@pytest.mark.parametrize(
    ("made", "is_ruled_out"),
    [
        (case("draft", 3.0, 1, problems=1), False),
        (case("draft", 3.0, 2, problems=2), True),
        (case("draft", 3.0, 0, problems=2), False),
        (case("entropy@x", 0.5, problems=2), True),
        (case("entropy@x", 1.0, problems=2), False),
    ],
    ids=["one problem", "the draft loses two", "the draft loses none", "too slow", "perhaps not too slow"],
)
def test_two_problems_may_rule_a_policy_out(made: Spec, *, is_ruled_out: bool) -> None:
    """A policy is recommended after five at the earliest."""
    found = verdict_on(made)
    assert (found.route.name, found.is_decided, found.is_final) == ("target", is_ruled_out, is_ruled_out)
    assert [one.is_hopeless for one in found.candidates] == [is_ruled_out]


def test_beside_a_fast_policy_a_slow_one_is_soon_ruled_out() -> None:
    """Alone, its two problems would leave it open."""
    slow = case("agree", 0.95, problems=2)
    beside, alone = verdict_on(slow, SPECULATIVE), verdict_on(slow)
    assert [one.is_hopeless for one in beside.candidates if one.route == slow["route"]] == [True]
    assert (alone.candidates[0].is_hopeless, alone.is_final) == (False, False)


@pytest.mark.parametrize(("low", "route"), [(0.94, "target"), (1.05, "speculative")])
def test_an_interval_that_contains_the_targets_speed_is_not_worth_it(low: float, route: str) -> None:
    found = verdict_on(policy("speculative", 1.26, (low, 1.69)))
    assert (found.route.name, found.is_decided) == (route, route == "speculative")


def test_failed_attempts_are_no_evidence() -> None:
    few, failed = (verdict_on(case("draft", 3.0, problems=5) | {"errors": errors}) for errors in (0, 35))
    assert (few.best, few.num_problems) == (failed.best, 5)


def test_routing_is_compared_with_speculation() -> None:
    """Speculation loses nothing, so routing must be faster than both."""
    fast, similar = (case("arbitrage@careful", speedup) for speedup in (2.0, 1.6))
    alone, beside, faster = (
        verdict_on(*one, expected=EXPECTED) for one in ([similar], [similar, SPECULATIVE], [fast, SPECULATIVE])
    )
    assert (alone.route.name, beside.route.name, faster.route.name) == (
        "arbitrage@careful",
        "speculative",
        "arbitrage@careful",
    )
    assert beside.best.saves > LIKELY
    assert next(one for one in beside.candidates if one.route.policy.needs_router).saves < 0.5


def test_a_change_has_its_interval() -> None:
    (found,) = verdict_on(case("arbitrage@careful", 2.0, 4, 12), expected=EXPECTED).candidates
    low, high = found.change_interval
    assert found.change == pytest.approx(8 / 510)
    assert -0.01 < low < found.change < high < 0.04


def test_the_ratio_of_a_policy_is_the_measured_one() -> None:
    """The expectation weighs in the confidence, but not in the figures."""
    expected = {"speculative": Expected(1.2, 0.1)}
    assert verdict_on(policy("speculative", 1.88, None, problems=8), expected=expected).best.ratio == 1.88
    assert verdict_on(expected=expected).best.ratio == 1.2


def test_an_open_question_is_undecided() -> None:
    found = verdict_on(case("entropy@x", 2.0, 1, 0, 40))
    assert LIKELY > found.candidates[0].confidence > 1 - LIKELY
    assert (found.route.name, found.confidence is None, found.is_decided) == ("target", False, False)


def test_an_expectation_is_no_evidence() -> None:
    hopeful, hopeless = (
        verdict_on(expected=expected)
        for expected in (
            {"arbitrage@careful": Expected(2.0, 0.2, gained=0.5, lost=0.5, kept=60)},
            {"speculative": Expected(0.8, 0.05)},
        )
    )
    assert (hopeful.route.name, hopeful.confidence, hopeful.is_final) == ("target", None, False)
    assert (hopeless.route.name, hopeless.confidence, hopeless.is_final) == ("target", None, False)
    for expected in ({"speculative": Expected(0.8, 0.15)}, expected_at(NARROW)):
        found = verdict_on(policy("speculative", 3.49, (3.2, 3.8), problems=40), expected=expected)
        assert (found.route.name, found.is_decided) == ("speculative", True)


EXCLUDED = Bound(route("speculative"), 1.05, 1.0, 0.05)
NEVER = replace(EXCLUDED, chance=0.0)
UNTRIED_PAIR = {"speculative": Expected(0.8, 0.05)}
UNTRIED = UNTRIED_PAIR | {"draft": Expected(2.0, 0.5)}


@pytest.mark.parametrize("measured", [[], [case("draft", 0.8, 0, 3, problems=7)], [case("draft", 3.0, 3, problems=4)]])
def test_bounds_that_exclude_all_are_a_verdict(measured: list[Spec]) -> None:
    """The draft alone may be run. It is another model, and not a way to use a pair."""
    found = verdict_on(*measured, expected=UNTRIED, bounds=[EXCLUDED])
    assert (found.route.name, found.is_decided, found.is_by_bounds, found.is_final) == ("target", True, True, True)
    assert [one.bound for one in found.candidates if one.route == EXCLUDED.route] == [EXCLUDED]


@pytest.mark.parametrize(("problems", "is_known"), [(4, False), (40, True)])
def test_beside_an_excluded_policy_the_others_are_measured(problems: int, *, is_known: bool) -> None:
    """Its chance lowers the confidence, but more problems cannot raise that."""
    slow = case("arbitrage@careful", 1.0 if problems < 5 else 0.8, 0, 3, problems=problems)
    found, certain = (verdict_on(slow, expected=UNTRIED_PAIR, bounds=bounds) for bounds in ([EXCLUDED], [NEVER]))
    assert (found.confidence is not None, found.is_final, found.is_by_bounds) == (is_known, is_known, False)
    assert not is_known or found.confidence == pytest.approx(0.95 * (certain.confidence or 0.0))


def test_a_policy_that_was_run_is_judged_by_what_was_measured() -> None:
    found = verdict_on(SPECULATIVE, expected=UNTRIED, bounds=[EXCLUDED])
    assert (found.route.name, found.best.bound, found.best.is_measured) == ("speculative", None, True)


def test_more_evidence_is_more_certain() -> None:
    for speedup in (0.7, 0.9, 1.0, 1.3, 1.6):
        chances = [chance_of_saving(after_problems(Expected(), speedup, 0.05, count)) for count in (5, 10, 20, 40)]
        assert chances == sorted(chances, reverse=speedup < MIN_SPEEDUP)
    chances = [chance_of_saving(after_problems(CARD, speedup, None, 3)) for speedup in (0.5, 0.9, 1.0, 1.2, 2.0)]
    assert chances == sorted(chances)
    lost = [chance_of_small_loss(after_answers(CARD, 0, lost, 0, 40)) for lost in range(6)]
    assert lost == sorted(lost, reverse=True)
    gained = [chance_of_small_loss(after_answers(CARD, gained, 2, 0, 40)) for gained in range(6)]
    assert gained == sorted(gained)
    kept = [chance_of_small_loss(after_answers(CARD, 0, 0, 0, compared)) for compared in (0, 10, 20, 40)]
    assert kept == sorted(kept)
    assert lost[0] > 0.85 > 0.2 > lost[4]


def test_samples_are_not_problems() -> None:
    one, two = (verdict_on(CAREFUL, samples=samples, expected=EXPECTED) for samples in (1, 2))
    assert (one.num_problems, two.num_problems) == (20, 10)
    assert two.best.confidence < one.best.confidence


@pytest.mark.parametrize("bias", [0.0, *rarely(0.2, -0.2)], ids=["the card is right", "too low", "too high"])
def test_the_confidence_holds(bias: float) -> None:
    """Of the claims of 9 in 10, at least 8 in 10 are right, and of all claims as many as they say, within a tenth.

    In each simulation, the true speed-ups are drawn around what was expected, and problems vary around them. A claim is right
    if the route is fast enough and keeps the accuracy, or if no route does. Claims of an undecided verdict are left out.
    """
    dice, claims = random.Random(1), list[tuple[float, bool]]()
    for _ in range(600):
        names = {"speculative": Expected(dice.uniform(0.8, 1.6), 0.15), "arbitrage": Expected(dice.uniform(0.5, 2.0), 0.25)}
        truth = {name: one.ratio * math.exp(dice.gauss(bias, one.spread)) for name, one in names.items()}
        shares = {"speculative": (0.0, 0.0), "arbitrage": (dice.betavariate(0.7, 12), dice.betavariate(0.7, 12))}
        problems = dice.randint(5, 20)
        made = [simulated(dice, name, truth[name], shares[name], problems) for name in names]
        found = verdict_on(*made, expected={"speculative": names["speculative"], "arbitrage@careful": names["arbitrage"]})
        least = {"speculative": MIN_SPEEDUP, "arbitrage": MIN_SPEEDUP * max(1.0, truth["speculative"])}
        good = {
            name
            for name, (gained, lost) in shares.items()
            if truth[name] >= least[name] and lost - gained <= min(MAX_LOSS, 0.9 * MAX_LOST)
        }
        claims.append(
            (found.confidence or 0.0, found.best.route.policy.name in good if found.route.name != "target" else not good)
        )
    sure = [is_right for confidence, is_right in claims if confidence >= 0.9]
    assert len(sure) > 150
    assert sum(sure) / len(sure) >= 0.8
    if not bias:
        decided = [claim for claim in claims if claim[0] >= LIKELY]
        said, held = sum(confidence for confidence, _ in decided), sum(is_right for _, is_right in decided)
        assert held >= said - 0.05 * len(decided)


def simulated(dice: random.Random, name: str, speedup: float, shares: tuple[float, float], problems: int) -> Spec:
    ratios = [math.log(speedup) + dice.gauss(0, 0.3) for _ in range(problems)]
    mean = sum(ratios) / problems
    error = math.sqrt(sum((one - mean) ** 2 for one in ratios) / problems / max(1, problems - 1))
    interval = None if problems < 5 else (math.exp(mean - 2 * error), math.exp(mean + 2 * error))
    gained, lost = ((dice.random() < share for _ in range(problems)) for share in shares)
    return policy(name, math.exp(mean), interval, problems=problems) | lost_of(sum(lost), problems, gained=sum(gained))


def test_published_answers_are_replayed(tmp_path: Path) -> None:
    dice, path = random.Random(1), tmp_path / "answers.jsonl"
    models = {"small-1B": 0.5, "middle-3b-it": 0.7, "large-70B": 0.9}
    answers = [
        {name: {"answer": "4", "right": dice.random() < share, "chars": 300} for name, share in models.items()}
        for _ in range(60)
    ]
    path.write_text("".join(json.dumps({"id": number, "models": one}) + "\n" for number, one in enumerate(answers)))
    command: list[str | Path] = [
        sys.executable,
        Path(__file__).parents[1] / "benchmarks" / "claims.py",
        "--sessions",
        "4",
        path,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(re.findall(r"^\| (?:99 in 100|[6-9] in 10) \|", ended.stdout, re.MULTILINE)) == 5


def test_a_run_ends_when_the_answer_is_sure() -> None:
    """A faster policy that is not known yet keeps the question open."""
    known = policy("speculative", 1.5, (1.45, 1.55))
    assert verdict_on(known).is_final
    open_one = verdict_on(known, policy("arbitrage", 2.0, (1.5, 3.0), lost=1, problems=6), expected=EXPECTED)
    assert (open_one.route.name, open_one.best.confidence >= SURE, open_one.is_final) == ("speculative", True, False)


DRAFT = UnitCosts((0.1, 0.1, 0.1, 0.1, 0.1), 0.001)
WIDE = UnitCosts((1.0, 1.02, 1.05, 1.1, 1.2), 0.01)  # a batch takes about as long as one token
NARROW = UnitCosts((1.0, 2.0, 4.0, 8.0, 16.0), 0.01)  # a batch takes as long as its tokens one by one
ROUTES = ("target", "speculative", "arbitrage@0.3", "entropy@0.5", "draft")


def expected_at(target: UnitCosts | None = WIDE, *, is_own: bool = True, router: bool = True) -> Mapping[str, Expected]:
    parts = (route.partition("@") for route in ROUTES)
    routes = [Route(POLICIES[policy], float(tau) if tau else None) for policy, _, tau in parts]
    units: dict[ModelRole, UnitCosts] = {"draft": DRAFT, "target": target} if target else {}
    found = effects_of(routes, PairCosts.of(units), make_table() if router else None, is_own=is_own)
    return {route.name: effect for route, effect in found.items()}


def test_speculation_depends_on_the_cost_of_batches() -> None:
    cheap, dear = (expected_at(target)["speculative"] for target in (WIDE, NARROW))
    assert chance_of_saving(cheap) > 0.9
    assert chance_of_saving(dear) < UNLIKELY
    assert cheap.interval[0] < cheap.ratio < cheap.interval[1]


@pytest.mark.parametrize(("is_own", "spread"), [(True, CARD_SPREAD), (False, OTHER_SPREAD)])
def test_routing_follows_the_card_at_the_costs_of_this_machine(*, is_own: bool, spread: float) -> None:
    found = expected_at(is_own=is_own)["arbitrage@0.3"]
    table = make_table().at_costs(PairCosts.of({"draft": DRAFT, "target": WIDE}))
    time = table.time(table.row_at(0.3))
    assert time is not None
    assert found.ratio == pytest.approx(1 / time)
    assert (found.spread, found.change) == (spread, 0.0)
    assert found.gained + found.lost + found.kept <= 10


def test_the_draft_is_the_best_case_and_not_to_be_trusted() -> None:
    found = expected_at()
    assert found["draft"].ratio > 5
    assert chance_of_small_loss(found["draft"]) < 0.3 < 0.5 < chance_of_small_loss(found["arbitrage@0.3"])


def test_nothing_is_known_without_costs_and_card() -> None:
    found = expected_at(None, router=False)
    assert (found["speculative"], found["entropy@0.5"]) == (UNKNOWN, UNKNOWN)
    assert "target" not in found

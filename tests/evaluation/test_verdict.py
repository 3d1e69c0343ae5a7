"""What is said of a pair, from made-up figures: pays, does not pay, not decided, out of time."""

from typing import Any

import pytest

from arbitrage_cli.evaluation.verdict import advice_of_taus, token_ratio, verdict

Interval = tuple[float, float] | None


def policy(
    name: str, speedup: float | None, interval: Interval, lost: int = 0, problems: int = 12, **more: Any
) -> dict[str, Any]:
    return {
        "policy": name,
        "tau": 0.2 if name == "arbitrage" else None,
        "tau_name": None,
        "speedup": speedup,
        "speedup_interval": interval,
        "throughput_ratio": None,
        "throughput_ratio_interval": None,
        "acceptance_rate": None,
        "unscored": 0,
        "draft_tokens_per_second": None,
        "target_tokens_per_second": None,
        "ratios": {"accuracy_difference": {"numerator": -lost, "denominator": problems}},
        **more,
    }


def lost_of(lost: int, problems: int = 20) -> dict[str, Any]:
    return {"accuracy_difference": {"numerator": -lost, "denominator": problems}}


def of(*policies: dict[str, Any]) -> dict[str, Any]:
    target = policy("target", 1.0, None, target_tokens_per_second=10.0) | {"ratios": {}}
    return {"policies": [target, *policies]}


SPECULATIVE = policy("speculative", 1.5, (1.4, 1.6))
BALANCED = policy("arbitrage", 2.1, (1.8, 2.4), tau_name="balanced", problems=20)
EXACT = policy("arbitrage", 2.0, (1.7, 2.3), tau_name="exact", problems=20)
SLOW_DRAFT = policy("draft", 1.05, (1.0, 1.09), lost=4, draft_tokens_per_second=14.0)


@pytest.mark.parametrize(
    ("policies", "decision", "route"),
    [
        ([SPECULATIVE], "pays", "speculative"),
        ([SPECULATIVE, BALANCED], "pays", "arbitrage@balanced"),
        ([SPECULATIVE, BALANCED | {"ratios": lost_of(1, 12)}], "pays", "speculative"),
        ([BALANCED | {"ratios": lost_of(1, 20)}], "pays", "arbitrage@balanced"),
        ([BALANCED | {"ratios": lost_of(1)}, EXACT], "pays", "arbitrage@exact"),
        ([BALANCED | {"ratios": lost_of(1), "speedup": 3.0}, EXACT], "pays", "arbitrage@balanced"),
        ([policy("draft", 3.0, (2.5, 3.5), problems=20)], "pays", "draft"),
        ([policy("draft", 3.0, (2.5, 3.5), problems=19)], "not decided", None),
        ([policy("draft", 3.0, (2.5, 3.5), lost=1, problems=40)], "does not pay", None),
        ([policy("speculative", 0.8, (0.7, 0.9)), SLOW_DRAFT], "does not pay", None),
        ([policy("speculative", 1.2, (0.9, 1.5))], "not decided", None),
        ([policy("speculative", 1.5, (1.4, 1.6), problems=7)], "not decided", None),
        ([policy("speculative", 0.97, (0.94, 1.0), problems=5), SLOW_DRAFT], "does not pay", None),
        ([policy("speculative", 0.97, (0.94, 1.0), problems=4), SLOW_DRAFT], "not decided", None),
        ([BALANCED | {"ratios": lost_of(1, 7)}], "not decided", None),
        ([BALANCED | {"ratios": lost_of(2, 7)}], "does not pay", None),
        ([policy("speculative", 1.5, None)], "not decided", None),
        ([policy("oracle", 3.0, (2.0, 4.0)), policy("speculative", 0.8, (0.7, 0.9))], "does not pay", None),
        (
            [policy("speculative", None, None, throughput_ratio=1.5, throughput_ratio_interval=(1.2, 1.8))],
            "pays",
            "speculative",
        ),
    ],
    ids=[
        "the target's own text", "the fastest", "but not if it loses answers", "one of twenty may be lost", "one that is about as fast and loses none", "but not a slow one", "the draft alone", "with too few problems for answers",
        "which must lose none", "nothing is faster", "an interval around 1", "too few problems", "few problems show what is slow", "but not fewer",
        "one answer may be lost by chance", "two are not", "no interval",
        "the oracle is no way", "problems a second",
    ],
)  # fmt: skip
def test_what_is_decided(policies: list[dict[str, Any]], decision: str, route: str | None) -> None:
    found = verdict(of(*policies))
    assert found is not None
    assert (found.decision, found.route) == (decision, route)


def test_what_would_change_the_answer() -> None:
    """The ratio of costs, and from which one on routing would pay: 1/ratio + the escalated share is then 1/1.1."""
    routed = policy("arbitrage", 0.8, (0.7, 0.9), tau_name="balanced", acceptance_rate=0.5)
    found = verdict(of(SLOW_DRAFT, routed))
    assert found is not None
    assert token_ratio(of(SLOW_DRAFT)) == pytest.approx(1.4)
    assert "costs 1.4 of the draft's; from about 2.4 on they would" in found.text
    hopeless = verdict(of(SLOW_DRAFT, routed | {"acceptance_rate": 0.05}))
    assert hopeless is not None
    assert "they would" not in hopeless.text


def test_a_faster_way_that_is_not_known_yet_keeps_the_question_open() -> None:
    """Eight problems decide that speculation pays, and not whether routing keeps the answers."""
    open_one, closed = (verdict(of(SPECULATIVE, BALANCED | {"ratios": lost_of(0, count)})) for count in (8, 20))
    assert open_one is not None
    assert closed is not None
    assert (open_one.route, open_one.final) == ("speculative", False)
    assert "arbitrage@balanced is 2.10 [1.80-2.40] times as fast so far" in open_one.text
    assert (closed.route, closed.final) == ("arbitrage@balanced", True)


def test_time_that_ran_out_is_named() -> None:
    few = of(policy("speculative", 1.5, (1.4, 1.6), problems=3), policy("draft", 3.0, None, problems=3))
    found, other = verdict(few, out_of_time=True), verdict(few)
    assert found is not None
    assert other is not None
    assert found.decision == other.decision == "not decided"
    assert "Out of time after 3 problems: speculative is" in found.text != other.text


def test_without_known_answers_those_of_the_target_count() -> None:
    same = {"numerator": 18, "denominator": 20}
    ratios = {"accuracy_difference": {"numerator": 0, "denominator": 20}, "same_answers": same}
    found = verdict(of(BALANCED | {"unscored": 20, "ratios": ratios}))
    assert found is not None
    assert found.decision == "does not pay"
    assert "2 answers of the target lost in 20 problems" in found.text


@pytest.mark.parametrize(
    ("times", "changes", "said"),
    [
        ((0.6, 0.4, 0.2), (0.0, -12.5, -30.0), "--tau exact: 60% of the target's time, +0.0 points"),
        ((0.6, 0.4, 0.2), (0.0, -2.0, -30.0), "--tau balanced: 40%"),
        ((1.2, 1.1, 0.2), (0.0, -2.0, -30.0), "no named tau"),
        ((None, None, None), (0.0, 0.0, 0.0), "not known"),
    ],
    ids=["balanced costs too much", "balanced", "nothing saves time for little", "no costs"],
)
def test_a_table_of_taus_advises_by_its_own_rows(
    times: tuple[float | None, ...], changes: tuple[float, ...], said: str
) -> None:
    named = {"exact": 0.1, "balanced": 0.2, "fast": 0.4}
    rows = [
        {"tau": tau, "time": time, "change": change}
        for tau, time, change in zip(named.values(), times, changes, strict=True)
    ]
    assert said in advice_of_taus(named, rows)

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
        "accuracy_difference": 0.0,
        "draft_tokens_per_second": None,
        "target_tokens_per_second": None,
        "time": time(0.0),
        **lost_of(lost, problems),
        **more,
    }


def time(draft: float) -> dict[str, float]:
    """Of which this share is the draft's."""
    return {"wall": 10.0, "draft_decode": 8 * draft, "draft_prefill": 2 * draft, "draft_verify": 0.0}


def lost_of(lost: int, problems: int = 20, *, compared: int | None = None, graded: int | None = None) -> dict[str, Any]:
    count = problems if compared is None else compared
    difference, answers = {"numerator": 0, "denominator": problems}, {"numerator": lost, "denominator": count}
    graded = count if graded is None else graded
    return {"ratios": {"accuracy_difference": difference, "answers_lost": answers}, "answers_graded": graded}


def of(*policies: dict[str, Any]) -> dict[str, Any]:
    target = policy("target", 1.0, None, target_tokens_per_second=10.0, accuracy_difference=None)
    return {"policies": [target, *policies], "samples": 1}


SPECULATIVE = policy("speculative", 1.5, (1.4, 1.6))
BALANCED = policy("arbitrage", 2.1, (1.8, 2.4), tau_name="balanced", problems=20)
EXACT = policy("arbitrage", 2.0, (1.7, 2.3), tau_name="exact", problems=20)
SLOW_DRAFT = policy("draft", 1.05, (1.0, 1.09), lost=4, draft_tokens_per_second=14.0)


@pytest.mark.parametrize(("samples", "decision"), [(1, "pays"), (2, "not decided")])
def test_samples_make_no_problems(samples: int, decision: str) -> None:
    """Attempts at the same problem say less than attempts at others."""
    found = verdict(of(BALANCED | lost_of(0, 38)) | {"samples": samples})
    assert found is not None
    assert found.decision == decision
    assert ("38 attempts" in found.text) == (samples == 2)


@pytest.mark.parametrize(
    ("policies", "decision", "route"),
    [
        ([SPECULATIVE], "pays", "speculative"),
        ([SPECULATIVE, BALANCED], "pays", "arbitrage@balanced"),
        ([SPECULATIVE, BALANCED | lost_of(1, 12)], "pays", "speculative"),
        ([BALANCED | lost_of(1, 20)], "pays", "arbitrage@balanced"),
        ([BALANCED | lost_of(1), EXACT], "pays", "arbitrage@exact"),
        ([BALANCED | lost_of(1) | {"speedup": 3.0}, EXACT], "pays", "arbitrage@balanced"),
        ([policy("draft", 3.0, (2.5, 3.5), problems=20)], "pays", "draft"),
        ([policy("draft", 3.0, (2.5, 3.5), problems=19)], "not decided", None),
        ([policy("draft", 3.0, (2.5, 3.5), lost=1, problems=40)], "does not pay", None),
        ([policy("speculative", 0.8, (0.7, 0.9)), SLOW_DRAFT], "does not pay", None),
        ([policy("speculative", 1.2, (0.9, 1.5))], "not decided", None),
        ([policy("speculative", 1.5, (1.4, 1.6), problems=7)], "not decided", None),
        ([policy("speculative", 0.97, (0.94, 1.0), problems=5), SLOW_DRAFT], "does not pay", None),
        ([policy("speculative", 0.97, (0.94, 1.0), problems=4), SLOW_DRAFT], "not decided", None),
        ([BALANCED | lost_of(1, 7)], "not decided", None),
        ([BALANCED | lost_of(2, 7)], "does not pay", None),
        ([policy("speculative", 1.5, None)], "not decided", None),
        ([policy("speculative", 1.05, (1.02, 1.08))], "does not pay", None),
        ([BALANCED | lost_of(0, compared=0)], "not decided", None),
        ([policy("draft", 3.0, (2.5, 3.5)) | lost_of(0, compared=0)], "not decided", None),
        ([BALANCED | lost_of(0, compared=19)], "not decided", None),
        ([BALANCED | lost_of(1, 40, compared=20)], "pays", "arbitrage@balanced"),
        ([SPECULATIVE, BALANCED | lost_of(0, compared=0)], "pays", "speculative"),
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
        "faster, but not worth it", "nothing to compare with", "nor for the draft", "too few answers to compare", "enough of them",
        "answers that cannot be compared make no way",
        "the oracle is no way", "problems a second",
    ],
)  # fmt: skip
def test_what_is_decided(policies: list[dict[str, Any]], decision: str, route: str | None) -> None:
    found = verdict(of(*policies))
    assert found is not None
    assert (found.decision, found.route) == (decision, route)


@pytest.mark.parametrize("name", ["arbitrage", "speculative"])
def test_what_would_change_the_answer(name: str) -> None:
    """The ratio of costs, and from which one on it would pay: the draft's half of the time is then short enough for 1.1.

    With s the speed-up, r the ratio and r' the one that is needed: s / (1/2 + 1/2 * r / r') = 1.1.
    """
    slow = policy(name, 0.8, (0.7, 0.9), problems=20, time=time(0.5))
    found = verdict(of(SLOW_DRAFT, slow))
    assert found is not None
    assert token_ratio(of(SLOW_DRAFT)) == pytest.approx(1.4)
    assert "costs 1.40 of the draft's; from about 3.1 on they would" in found.text
    hopeless = verdict(of(SLOW_DRAFT, slow | {"time": time(0.2)}))
    assert hopeless is not None
    assert "they would" not in hopeless.text
    assert "a faster draft would not change that" in hopeless.text
    idle = verdict(of(SLOW_DRAFT, slow | {"policy": "speculative", "time": time(0.0)}))
    assert idle is not None
    assert "speculation proposes nothing; a faster draft might change that" in idle.text


def test_a_large_ratio_is_written_out() -> None:
    fast = SLOW_DRAFT | {"draft_tokens_per_second": 1234.0}
    found = verdict(of(fast, policy("speculative", 0.8, (0.7, 0.9))))
    assert found is not None
    assert "costs 123 of the draft's" in found.text


def test_a_faster_way_that_is_not_known_yet_keeps_the_question_open() -> None:
    """Eight problems decide that speculation pays, and not whether routing keeps the answers."""
    open_one, closed = (verdict(of(SPECULATIVE, BALANCED | lost_of(0, count))) for count in (8, 20))
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


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (lost_of(2), "2 right answers lost in 20 problems"),
        (lost_of(2, graded=0), "2 answers of the target lost in 20 problems"),
        (lost_of(2, graded=1), "2 answers lost in 20 problems"),
        (lost_of(2, 40, compared=21), "2 right answers lost in the 21 of 40 problems that can be compared"),
    ],
    ids=["all are known", "none is", "some are", "some cannot be compared"],
)
def test_what_is_lost_is_said_of_what_was_compared(answers: dict[str, Any], said: str) -> None:
    found = verdict(of(BALANCED | answers))
    assert found is not None
    assert found.decision == "does not pay"
    assert said in found.text


def test_more_problems_help_only_if_their_answers_can_be_compared() -> None:
    """Twenty problems without one are enough to say so; a few are not, nor is a way that keeps the target's text."""
    routed, open_one = BALANCED | lost_of(0, compared=0), policy("speculative", 1.2, (0.9, 1.5))
    several = (of(routed), of(routed | lost_of(0, 5, compared=0)), of(routed, open_one))
    found_of = [found for one in several if (found := verdict(one))]
    assert [one.final for one in found_of] == [True, False, False]
    assert [one.needs_answers for one in found_of] == [True, False, True]
    found = verdict(of(routed))
    assert found is not None
    assert "cannot be compared" in found.text
    assert "More problems" not in found.text


@pytest.mark.parametrize(
    ("times", "changes", "said"),
    [
        ((0.6, 0.4, 0.2), (0.0, -12.5, -30.0), "--tau exact: 60% of the target's time, +0.0 points"),
        ((0.6, 0.4, 0.2), (0.0, -0.9, -30.0), "--tau balanced: 40%"),
        ((0.6, 0.59, 0.2), (0.0, -4.9, -30.0), "--tau exact: 60%"),
        ((0.6, 0.59, 0.2), (0.0, -0.1, -30.0), "--tau exact: 60%"),
        ((1.2, 1.1, 0.2), (0.0, -2.0, -30.0), "no named tau"),
        ((None, None, None), (0.0, 0.0, 0.0), "not known"),
    ],
    ids=[
        "balanced costs too much",
        "balanced",
        "it costs much for little",
        "it is hardly faster",
        "nothing saves time for little",
        "no costs",
    ],
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

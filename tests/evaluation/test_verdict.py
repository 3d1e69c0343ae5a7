"""The verdict on a pair, from made-up figures: worth it, not worth it, not decided, out of time."""

from typing import Any

import pytest

from arbitrage_cli.evaluation.verdict import Verdict, best_preset, token_ratio, verdict

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
    """Return the times of an attempt, of which `draft` is the draft's share."""
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


def verdict_on(*policies: dict[str, Any], **options: bool) -> Verdict:
    found = verdict(of(*policies), **options)
    assert found is not None
    return found


@pytest.mark.parametrize(("samples", "decision"), [(1, "pays"), (2, "not decided")])
def test_samples_make_no_problems(samples: int, decision: str) -> None:
    """Samples of one problem do not count as several problems."""
    found = verdict(of(BALANCED | lost_of(0, 38)) | {"samples": samples})
    assert found is not None
    assert (found.decision, found.best.samples, found.num_problems) == (decision, samples, 38 // samples)


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
        "answers that cannot be compared",
        "the oracle is no candidate", "problems a second",
    ],
)  # fmt: skip
def test_what_is_decided(policies: list[dict[str, Any]], decision: str, route: str | None) -> None:
    found = verdict_on(*policies)
    assert (found.decision, found.route) == (decision, route)


@pytest.mark.parametrize("name", ["arbitrage", "speculative"])
def test_what_would_change_the_answer(name: str) -> None:
    """The cost ratio at which the pair would reach 1.1: the draft's half of the time is then short enough.

    With s the speed-up, r the ratio and r' the one that is needed: s / (1/2 + 1/2 * r / r') = 1.1.
    """
    slow = policy(name, 0.8, (0.7, 0.9), problems=20, time=time(0.5))
    found = verdict_on(SLOW_DRAFT, slow)
    assert token_ratio(of(SLOW_DRAFT)) == found.token_ratio == pytest.approx(1.4)
    assert found.ratio_needed == pytest.approx(1.4 / 2 / (0.8 / 1.1 - 0.5))
    hopeless = verdict_on(SLOW_DRAFT, slow | {"time": time(0.2)})
    assert (hopeless.ratio_needed, hopeless.is_idle, hopeless.best.route) == (None, False, found.best.route)
    assert verdict_on(SLOW_DRAFT, slow | {"policy": "speculative", "time": time(0.0)}).is_idle


def test_a_faster_policy_that_is_not_known_yet_keeps_the_question_open() -> None:
    """Eight problems decide that speculation is worth it, but not whether routing keeps the answers."""
    open_one, closed = (verdict_on(SPECULATIVE, BALANCED | lost_of(0, count)) for count in (8, 20))
    assert (open_one.route, open_one.final) == ("speculative", False)
    assert open_one.faster is not None
    assert open_one.faster.route == "arbitrage@balanced"
    assert (closed.route, closed.final, closed.faster) == ("arbitrage@balanced", True, None)


def test_time_that_ran_out_is_named() -> None:
    few = policy("speculative", 1.5, (1.4, 1.6), problems=3), policy("draft", 3.0, None, problems=3)
    found, other = verdict_on(*few, out_of_time=True), verdict_on(*few)
    assert found.decision == other.decision == "not decided"
    assert (found.out_of_time, other.out_of_time, found.num_problems, found.best.route) == (True, False, 3, "speculative")


def test_a_fast_policy_that_loses_answers_is_told_from_a_slow_one() -> None:
    found = verdict_on(BALANCED | lost_of(2, 40, compared=21))
    assert (found.decision, found.loses_answers) == ("does not pay", True)
    assert (found.best.num_lost, found.best.num_compared, found.best.num_attempts) == (2, 21, 40)
    assert not verdict_on(SLOW_DRAFT, policy("speculative", 0.8, (0.7, 0.9))).loses_answers


def test_more_problems_help_only_if_their_answers_can_be_compared() -> None:
    """Twenty problems without comparable answers stop the run. A few, or a policy that keeps the target's text, do not."""
    routed, open_one = BALANCED | lost_of(0, compared=0), policy("speculative", 1.2, (0.9, 1.5))
    found = [verdict_on(routed), verdict_on(routed | lost_of(0, 5, compared=0)), verdict_on(routed, open_one)]
    assert [one.final for one in found] == [True, False, False]
    assert [one.needs_answers for one in found] == [True, False, True]


@pytest.mark.parametrize(
    ("times", "changes", "preset"),
    [
        ((0.6, 0.4, 0.2), (0.0, -12.5, -30.0), "exact"),
        ((0.6, 0.4, 0.2), (0.0, -0.9, -30.0), "balanced"),
        ((0.6, 0.59, 0.2), (0.0, -4.9, -30.0), "exact"),
        ((0.6, 0.59, 0.2), (0.0, -0.1, -30.0), "exact"),
        ((1.2, 1.1, 0.2), (0.0, -2.0, -30.0), None),
        ((None, None, None), (0.0, 0.0, 0.0), None),
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
def test_a_threshold_table_advises_by_its_own_rows(
    times: tuple[float | None, ...], changes: tuple[float, ...], preset: str | None
) -> None:
    named = {"exact": 0.1, "balanced": 0.2, "fast": 0.4}
    rows = [
        {"tau": tau, "time": time, "change": change}
        for tau, time, change in zip(named.values(), times, changes, strict=True)
    ]
    found = best_preset(named, rows)
    assert (found and found[0]) == preset

"""Figures of a run: their denominators, unknown values, and their independence of the order of rows."""

import json
import math
import random
from dataclasses import fields, replace
from typing import Any

import pytest
from cli import accept, escalate, finish, make_trace
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from made_up_runs import (
    COLUMNS,
    MadeUp,
    as_run,
    describe,
    failed,
    figures,
    make_row,
    make_run,
    results,
    row_of,
    run_of,
    typed_figures,
    unscored,
)

from arbitrage_cli.app.asking.locate import card_of_run
from arbitrage_cli.costs.pair import parse_prices
from arbitrage_cli.evaluation import metrics
from arbitrage_cli.evaluation.figures import Estimate, shown_figures
from arbitrage_cli.numbers.intervals import Ratio, paired_difference, wilson
from arbitrage_cli.types import Decision

ALONE = (("target", None), ("draft", None))
TARGET_ONLY = (("target", None),)


def made_figures(made: MadeUp, **options: Any) -> dict[str, Any]:
    return figures(made.run, made.rows, **options)


def figures_of(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return made_figures(run_of(rows), **options)


def by_label(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {policy["label"]: policy for policy in made["policies"]}


def test_rates_are_those_of_the_tally() -> None:
    thought = replace(escalate().kept, phase="think", num_tokens=30)
    made = [
        finish(make_trace(accept(), escalate(), identifier="1")),
        finish(make_trace(escalate(stop="end"), identifier="2")),
    ]
    (policy,) = figures_of([row_of(one).to_dict() for one in made])["policies"]
    (thinking,) = figures_of([row_of(finish(make_trace(Decision(thought, target=thought)))).to_dict()])["policies"]
    assert policy["acceptance_rate"] == pytest.approx(1 / 3)
    assert policy["ratios"]["acceptance_rate"] == {"numerator": 1, "denominator": 3}
    assert policy["wasted_draft_tokens"] == 10
    assert (policy["thinking_tokens_mean"], thinking["thinking_tokens_mean"]) == (None, 30)
    assert (policy["draft_tokens_per_second"], policy["target_tokens_per_second"]) == (
        pytest.approx(10.0),
        pytest.approx(3.5),
    )
    assert thinking["draft_tokens_per_second"] is None  # it decoded nothing


def test_every_attempt_counts_exactly_once() -> None:
    """Correct, incorrect, unscored, failed and missing add up to the planned attempts. Accuracy is over all but the missing ones."""
    made = make_run(25, columns=ALONE)
    rows = [failed(made.rows[0]), unscored(made.rows[2]), *made.rows[4:-10]]
    target = by_label(figures(made.run, rows))["target"]
    counts = {name: target[name] for name in ("correct", "incorrect", "unscored", "errors", "missing")}
    assert sum(counts.values()) == target["n"] == 25
    assert (counts["unscored"], counts["errors"], counts["missing"]) == (1, 1, 5)
    assert target["accuracy"] == counts["correct"] / 20
    assert target["accuracy_interval"] == wilson(counts["correct"], 20)
    (note,) = figures(made.run, made.rows[:-1])["notes"]
    assert "1 attempt missing" in note
    assert made_figures(made)["notes"] == figures({**made.run, "skips_attempts": True}, made.rows[:-1])["notes"] == []


@pytest.mark.parametrize("samples", [1, 2])
def test_ungraded_answers_have_no_accuracy(samples: int) -> None:
    made = make_run(6, columns=ALONE, samples=samples)
    found = figures(made.run, [failed(made.rows[0]), *map(unscored, made.rows[1:])])
    assert {(one["accuracy"], one["accuracy_interval"]) for one in found["policies"]} == {(None, None)}
    assert (found["policies"][1]["both_finished"], found["policies"][0]["errors"]) == (6 * samples - 1, 1)
    (target, _) = figures(made.run, [failed(row) for row in made.rows])["policies"]
    assert target["accuracy"] == 0.0


def test_a_policy_that_advise_stopped_is_compared_on_its_own_problems() -> None:
    """The other policies keep their problems."""
    made = make_run(6, columns=[*ALONE, ("entropy", 0.5)])
    *rows, _, _, _ = (row for row in made.rows if row["policy"] == "entropy")
    found = figures({**made.run, "skips_attempts": True}, [*(row for row in made.rows if row["policy"] != "entropy"), *rows])
    compared = [one["ratios"].get("accuracy_difference", {}).get("denominator") for one in found["policies"]]
    assert (found["n"], [one["missing"] for one in found["policies"]], compared) == (6, [0, 0, 3], [None, 6, 3])


def test_attempts_cut_at_a_limit_are_counted() -> None:
    stops = ["max_tokens", "end", "context", "max_tokens", "max_tokens", "max_steps"]
    rows = [{**one, "stop": stop} for one, stop in zip(make_run(6, columns=TARGET_ONLY).rows, stops, strict=True)]
    made = figures_of([failed(rows[0]), *rows[1:]])
    assert made["policies"][0]["cut"] == 4
    for flag, count in (("--ctx", 1), ("--max-steps", 1), ("--max-tokens", 2)):
        (note,) = [note for note in made["notes"] if f"raise {flag}" in note]
        assert f"{count} of 5 attempts" in note


def graded(row: dict[str, Any], value: str, **changes: Any) -> dict[str, Any]:
    return {**row, "grade": {"value": value, "answer": None, "explanation": ""}, **changes}


def test_lost_and_gained_answers_are_counted() -> None:
    """Right and wrong answers of the target, then answers without grades, then failed and cut attempts, which do not count."""
    known = [("correct", "incorrect"), ("correct", "correct"), ("incorrect", "correct"), ("incorrect", "incorrect")]
    same = [True, False, None]
    rows = [
        graded(make_row(index, 0, column), value)
        for index, values in enumerate(known)
        for column, value in zip(ALONE, values, strict=True)
    ]
    rows += [
        graded(make_row(len(known) + index, 0, column), "unscored", same_as_target=value)
        for index, value in enumerate(same)
        for column in ALONE
    ]
    rows += [failed(make_row(8, 0, ALONE[0])), make_row(8, 0, ALONE[1])]
    rows += [graded(make_row(9, 0, ALONE[0]), "correct"), failed(make_row(9, 0, ALONE[1]))]
    cut = {"target": "max_tokens", "draft": "end"}
    rows += [graded(make_row(10, 0, one), "incorrect", stop=cut[one[0]]) for one in ALONE]
    target, draft = (by_label(figures_of(rows))[policy] for policy in ("target", "draft"))
    assert draft["ratios"]["answers_lost"] == {"numerator": 1, "denominator": 4}
    assert draft["ratios"]["answers_gained"] == {"numerator": 1, "denominator": 4}
    assert draft["ratios"]["target_right"] == {"numerator": 2, "denominator": 4}
    assert draft["ratios"]["answers_same"] == {"numerator": 1, "denominator": 2}
    assert draft["both_finished"] == 7
    assert draft["ratios"]["accuracy_difference"] == {"numerator": 0, "denominator": 10}
    assert draft["accuracy_difference_interval"] == paired_difference(1, 2, 2, 5)
    assert target["accuracy_difference"] is None


@pytest.mark.parametrize(("problems", "has_interval"), [(7, False), (14, False), (15, True)])
def test_few_problems_have_a_speedup_without_an_interval(problems: int, has_interval: bool) -> None:
    """Too few problems have no interval, because it would look too certain. A note says so."""
    made = made_figures(make_run(problems, columns=ALONE))
    draft = by_label(made)["draft"]
    assert draft["speedup"] > 1
    assert (draft["speedup_interval"] is not None) == has_interval
    assert draft["speedup_log_error"] > 0
    assert bool(made["notes"]) != has_interval


def test_samples_of_one_problem_count_as_one_problem_in_intervals() -> None:
    once = make_run(30, columns=ALONE)
    copies = [{**one, "sample": sample} for one in once.rows for sample in range(4)]
    repeated = made_figures(run_of(copies, samples=4))
    target, single = by_label(repeated)["target"], by_label(made_figures(once))["target"]
    assert target["n"] == 120
    assert target["accuracy"] == single["accuracy"]
    assert (target["speedup"], target["speedup_interval"]) == (1.0, None)
    assert target["accuracy_interval"] == pytest.approx(single["accuracy_interval"])
    assert any("intervals are over problems" in note for note in repeated["notes"])
    draft, alone = by_label(repeated)["draft"], by_label(made_figures(once))["draft"]
    for name in ("accuracy_difference_interval", "speedup_interval"):
        assert draft[name] == pytest.approx(alone[name])


def test_independent_samples_of_a_problem_count_as_attempts() -> None:
    dice = random.Random(3)
    rows = [
        graded(make_row(index, sample, ALONE[0]), dice.choice(["correct", "incorrect"]))
        for index in range(200)
        for sample in range(4)
    ]
    (target,) = made_figures(run_of(rows, samples=4))["policies"]
    low, high = target["accuracy_interval"]
    expected = wilson(target["correct"], 800)
    assert expected is not None
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.1)


def test_speedup_is_over_what_both_finished() -> None:
    """A note says that problems with failed attempts are excluded."""
    made = make_run(16, columns=ALONE)
    failing = {("made-up-0002", "draft"), ("made-up-0003", "target")}
    rows = [failed(one) if (one["id"], one["policy"]) in failing else one for one in made.rows]
    counted = [one for one in rows if one["id"] not in ("made-up-0002", "made-up-0003")]
    seconds = {
        policy: math.fsum(one["wall_seconds"] for one in counted if one["policy"] == policy)
        for policy in ("draft", "target")
    }
    found, kept = figures(made.run, rows), figures_of(counted)
    draft = by_label(found)["draft"]
    assert draft["speedup"] == pytest.approx(by_label(kept)["draft"]["speedup"])
    assert draft["measured_speedup"] == pytest.approx(seconds["target"] / seconds["draft"])
    assert draft["ratios"]["measured_speedup"]["denominator"] == pytest.approx(seconds["draft"])
    assert [note for note in found["notes"] if "1 for target, 1 for draft" in note]


@settings(max_examples=10, phases=[Phase.generate])  # a failure is the same in any order
@given(st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(dice: random.Random) -> None:
    rows = list(SHUFFLED.rows)
    dice.shuffle(rows)
    assert figures(SHUFFLED.run, rows) == IN_ORDER


SHUFFLED = make_run(6, columns=COLUMNS[:4], samples=2)
IN_ORDER = figures(SHUFFLED.run, SHUFFLED.rows)


def test_each_figure_is_in_json_under_its_name() -> None:
    """With its interval, if it is an estimate, and its numerator and denominator, if it is known."""
    made = typed_figures((run := make_run(20)).run, run.rows, prices=parse_prices("draft=1/1,target=2/2"))
    policy = made.policies[2]
    shown = policy.to_json()
    for one in fields(policy):
        figure = getattr(policy, one.name)
        ratio = figure.ratio if isinstance(figure, Estimate) else figure
        if isinstance(figure, Estimate):
            assert (shown[one.name], shown[f"{one.name}_interval"]) == (figure.value, figure.interval)
        if isinstance(ratio, Ratio):
            assert shown["ratios"][one.name] == {"numerator": ratio.numerator, "denominator": ratio.denominator}
        assert one.name in shown
    assert shown_figures().keys() <= shown.keys()


@pytest.mark.parametrize("made", [make_run(5), make_run(1), make_run(4, samples=3), MadeUp(describe({}), [])])
def test_figures_are_json(made: MadeUp) -> None:
    text = json.dumps(made_figures(made), allow_nan=False)
    assert json.loads(text)["n"] == len({one["id"] for one in made.rows})


@pytest.mark.parametrize("name", ["target", "draft"])
def test_a_difference_of_accuracy_needs_the_accuracy_of_both(name: str) -> None:
    made = make_run(10, columns=ALONE)
    rows = [unscored(row) if row["policy"] == name else row for row in made.rows]
    found = by_label(figures(made.run, rows))
    assert {label: one["accuracy"] is None for label, one in found.items()} == {
        label: label == name for label in ("target", "draft")
    }
    assert (found["draft"]["accuracy_difference"], found["draft"]["accuracy_difference_interval"]) == (None, None)


@pytest.mark.parametrize(("served", "computes"), [((), ["all"]), (("target",), ["draft"]), (("target", "draft"), [])])
def test_a_note_says_which_times_are_computed_for_one_problem_at_a_time(
    served: tuple[str, ...], computes: list[str]
) -> None:
    """The times of models on servers are measured while several problems are solved."""
    made = make_run(5, columns=ALONE)
    made.run["decided"]["concurrency"] = 4
    for role in served:
        made.run["decided"]["models"][role] |= {"costs": None, "threads": None, "served": {"facts": None}}
    (note,) = [text for text in made_figures(made)["notes"] if "at once" in text]
    assert ("one problem at a time" in note, "measured" in note) == (bool(computes), bool(served))


def test_without_the_card_of_its_router_a_run_has_no_verdict() -> None:
    """The expected effect of routing is on the card, and a verdict without it would be another one."""
    made = make_run(columns=[("target", None), ("draft", None), ("arbitrage", 0.5)])
    run = as_run(made.run)
    found = metrics.figures(run, results(made.rows), card_of_run(run))
    without = metrics.figures(run, results(made.rows))
    assert found.verdict
    assert without.verdict is None
    assert replace(without, notes=(), verdict=None) == replace(found, notes=(), verdict=None)
    (note,) = set(without.notes) - set(found.notes)
    assert "builtin:builtin" in note

"""Comparisons of two runs: only attempts at the same problem by the same policy are paired."""

import copy
import math
import random
from typing import Any

import pytest
from made_up_runs import MadeUp, as_run, make_run, results, slow_down, unscored

from arbitrage_cli.evaluation.comparison import compare_runs
from arbitrage_cli.numbers.intervals import paired_difference

COLUMNS = (("target", None), ("entropy", 0.5))


def compared(first: MadeUp, second: MadeUp) -> dict[str, Any]:
    return compare_runs(as_run(first.run), results(first.rows), as_run(second.run), results(second.rows)).to_json()


def with_verdicts(made: MadeUp, verdicts: str, factor: float = 1.0) -> MadeUp:
    values = {"+": "correct", "-": "incorrect"}
    rows = [
        {**copy.deepcopy(one), "grade": {"value": values[verdict], "answer": None, "explanation": ""}}
        for one, verdict in zip(made.rows, verdicts, strict=True)
    ]
    for one in rows:
        slow_down(one, factor)
    return MadeUp(made.run, rows)


def test_a_run_equals_itself() -> None:
    made = make_run(20, columns=COLUMNS)
    for entry in compared(made, made)["policies"]:
        assert (entry["n"], entry["only_first"], entry["only_second"]) == (20, 0, 0)
        assert (entry["accuracy_difference"], entry["seconds_ratio"]) == (0.0, 1.0)
        low, high = entry["accuracy_difference_interval"]
        assert low < 0 < high
        low, high = entry["seconds_ratio_interval"]
        assert low < 1 < high


def test_a_version_is_as_fast_as_itself_on_a_machine_that_changes_its_speed() -> None:
    """In 100 comparisons, the speed is a random walk, which continues for a while between the two runs."""
    dice, made = random.Random(1), make_run(16, columns=COLUMNS)

    def run(speed: float) -> tuple[MadeUp, float]:
        rows = copy.deepcopy(made.rows)
        for row in rows:
            speed += dice.gauss(0, 0.03)
            slow_down(row, math.exp(speed))
        return MadeUp(made.run, rows), speed

    differ = 0
    for _ in range(100):
        first, speed = run(0.0)
        second, _ = run(speed + dice.gauss(0, 0.03 * math.sqrt(len(made.rows))))
        low, high = compared(first, second)["policies"][0]["seconds_ratio_interval"]
        differ += not low <= 1 <= high
    assert differ <= 7


def test_problems_are_paired_by_id() -> None:
    made = make_run(6, columns=[("target", None)])
    first, second = with_verdicts(made, "+++---", 2.0), with_verdicts(made, "++-+--", 1.0)
    (entry,) = compared(first, MadeUp(second.run, second.rows[::-1]))["policies"]
    assert entry["correct"] == (3, 3)
    assert {name: [one[-1] for one in entry[name]] for name in ("fixed", "broken")} == {"fixed": ["3"], "broken": ["2"]}
    (entry,) = compared(with_verdicts(made, "++++++", 2.0), second)["policies"]
    assert entry["accuracy_difference"] == pytest.approx(-0.5)
    assert entry["accuracy_difference_interval"] == paired_difference(3, 0, 3, 0)
    assert entry["seconds_ratio"] == pytest.approx(2.0)


def test_another_question_under_the_same_id_is_left_out() -> None:
    first = make_run(4, columns=COLUMNS)
    rows = [{**one, "problem": "another"} if one["id"] == "made-up-0001" else one for one in first.rows]
    entries = compared(first, MadeUp(first.run, rows))["policies"]
    assert {(entry["n"], entry["only_first"], entry["only_second"]) for entry in entries} == {(3, 1, 1)}


def test_what_makes_runs_less_comparable_is_noted() -> None:
    first, second = make_run(2, columns=COLUMNS), make_run(2, columns=COLUMNS)
    second.run["decided"]["settings"]["sampler"]["seed"] = 1
    second.run["decided"]["machine"] = {"cpu": "another"}
    second.run["grader"] = "2"
    notes = compared(first, second)["notes"]
    assert all(
        words in " ".join(notes)
        for words in (
            "settings differ: seed 0, then 1.",
            "processor made-up processor, then another",
            "versions of the grader",
        )
    )
    assert len(compared(first, first)["notes"]) == 1


def test_each_thing_that_changes_the_times_is_named() -> None:
    """And nothing else: neither what both runs share nor facts that change no time."""
    first, second = make_run(2, columns=COLUMNS), make_run(2, columns=COLUMNS)
    second.run["decided"]["models"]["draft"]["threads"] = 4
    second.run["decided"]["machine"]["llama_cpp_python"] = "0.4"
    second.run["decided"]["machine"]["python"] = "9"
    second.run["created"] = "2026-11-27T10:00:00Z"
    differing, load = compared(first, second)["notes"]
    assert ("threads of the draft 2, then 4" in differing, "llama-cpp-python 0.3.36, then 0.4" in differing) == (True, True)
    assert not any(name in differing for name in ("processor", "python 9", "target"))
    assert ("2026-11-25" in load, "2026-11-27" in load) == (True, True)


def test_counted_work_does_not_depend_on_the_load() -> None:
    """The same work at another speed. It is compared only for models that are the same files."""
    made = make_run(20, columns=COLUMNS)
    slow = with_verdicts(made, "+" * len(made.rows), 3.0)
    for entry in compared(slow, made)["policies"]:
        assert (entry["seconds_ratio"], entry["work_ratio"]) == (pytest.approx(3.0, rel=0.1), pytest.approx(1.0))
    other = make_run(20, columns=COLUMNS)
    other.run["decided"]["models"]["target"]["sha256"] = "2" * 64
    assert compared(made, other)["policies"][0]["work_ratio"] is None


def test_samples_are_paired() -> None:
    first = make_run(10, columns=[("draft", None)], samples=3)
    second = MadeUp(first.run, [unscored(one) if index % 4 == 0 else one for index, one in enumerate(first.rows)])
    (entry,) = compared(first, second)["policies"]
    assert entry["n"] == 30
    low, high = entry["accuracy_difference_interval"]
    assert low < entry["accuracy_difference"] < min(0, high)


def test_more_samples_in_one_run_change_no_interval_of_the_shared_ones() -> None:
    first, more = make_run(10, columns=[("draft", None)]), make_run(10, columns=[("draft", None)], samples=2)
    rows = [*first.rows, *(row for row in more.rows if row["sample"])]
    (entry,) = compared(first, MadeUp(more.run, rows))["policies"]
    assert (entry["n"], entry["only_second"]) == (10, 10)
    assert entry["accuracy_difference_interval"] == compared(first, first)["policies"][0]["accuracy_difference_interval"]
    assert entry["seconds_ratio_interval"] is None  # fewer than 15 problems


def test_interval_of_the_times_includes_the_errors_of_the_unit_costs() -> None:
    made = make_run(20, columns=[("target", None)])
    widths = []
    for error in (0.0, 0.1):
        made.run["decided"]["models"]["target"]["costs"]["error"] = error
        low, high = compared(made, made)["policies"][0]["seconds_ratio_interval"]
        widths.append(math.log(high / low))
    assert widths == [0.0, pytest.approx(2 * 2.09 * math.hypot(0.1, 0.1), rel=0.1)]


def test_ungraded_answers_have_no_difference() -> None:
    made = make_run(4, columns=[("draft", None)])
    ungraded = MadeUp(made.run, [unscored(row) for row in made.rows])
    (entry,) = compared(ungraded, ungraded)["policies"]
    assert (entry["n"], entry["seconds_ratio"]) == (4, 1.0)
    assert {entry[name] for name in ("accuracy_difference", "accuracy_difference_interval")} == {None}


def test_taus_of_one_name_are_compared_and_others_are_named() -> None:
    """`careful` may be a different number in each run. A note lists policies that only one run has."""
    first = make_run(6, columns=(("target", None), ("entropy", 0.3)))
    second = make_run(6, columns=(("target", None), ("entropy", 0.5), ("random", 0.3)))
    for made in (first, second):
        made.run["decided"]["routes"][1]["tau_name"] = "careful"
    found = compared(first, second)
    assert [(entry["first"], entry["second"]) for entry in found["policies"]][1] == (
        "entropy@careful (0.3)",
        "entropy@careful (0.5)",
    )
    assert any("random@0.3" in note for note in found["notes"])


def test_a_policy_that_advise_skipped_is_not_compared() -> None:
    first, second = (make_run(6, columns=(*COLUMNS, ("random", 0.3))) for _ in range(2))
    skipped = MadeUp(first.run, [row for row in first.rows if row["policy"] == "target"])
    only_routed = MadeUp(second.run, [row for row in second.rows if row["policy"] != "random"])
    found = compared(skipped, only_routed)
    assert [(entry["first"], entry["n"]) for entry in found["policies"]] == [("target", 6)]
    assert "entropy" in found["notes"][0]
    assert "random" not in found["notes"][0]


def test_answers_without_grades_are_neither_right_nor_wrong() -> None:
    made = make_run(10, columns=[("target", None)])
    blank = MadeUp(made.run, list(map(unscored, made.rows)))
    for first, second in ((blank, blank), (blank, made), (made, blank)):
        (entry,) = compared(first, second)["policies"]
        assert (entry["n"], entry["correct"], entry["fixed"], entry["broken"]) == (10, None, [], [])
        assert (entry["accuracy_difference"], entry["accuracy_difference_interval"]) == (None, None)

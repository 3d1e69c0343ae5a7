"""Two runs against each other, over the problems that both have: accuracy and time of the same policy, then and now.

Pairs attempts by problem id and sample, and looks whether the question is the same. Knows no file and no terminal.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.metrics import difference_interval
from arbitrage_cli.runs.rows import Group, Result, group_rows, paired, sums_by_problem
from arbitrage_cli.stats.intervals import bootstrap, mcnemar, ratio_of_sums
from arbitrage_cli.stats.ratios import over

Row = Mapping[str, Any]


def compare(
    first_run: Mapping[str, Any], first_rows: Sequence[Row], second_run: Mapping[str, Any], second_rows: Sequence[Row]
) -> dict[str, Any]:
    """The comparison as JSON. Policies are paired by name and tau; where each run has only one, these are compared.

    UsageError if no policy, or no problem, is in both.
    """
    changed = _changed_questions(first_rows, second_rows)
    first = group_rows(first_run, (row for row in first_rows if row["id"] not in changed))
    second = group_rows(second_run, (row for row in second_rows if row["id"] not in changed))
    is_timed = _concurrency(first_run) == _concurrency(second_run) == 1
    compared = [_compare(one, other, is_timed=is_timed) for one, other in _pairs(first, second)]
    if not any(entry["n"] for entry in compared):
        raise UsageError("the two runs have no problem in common", "compare runs of the same data set")
    return {
        "dataset": [(run.get("dataset") or {}).get("name") for run in (first_run, second_run)],
        "policies": compared,
        "changed_questions": sorted(changed),
        "notes": _notes(first_run, second_run, changed),
    }


def _changed_questions(first: Iterable[Row], second: Iterable[Row]) -> set[str]:
    """Ids that stand for different questions in the two runs."""
    questions = {row["id"]: row.get("problem") for row in first}
    return {row["id"] for row in second if row["id"] in questions and questions[row["id"]] != row.get("problem")}


def _pairs(first: Sequence[Group], second: Sequence[Group]) -> list[tuple[Group, Group]]:
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    others = {(group.policy, group.tau): group for group in second}
    pairs = [(group, others[group.policy, group.tau]) for group in first if (group.policy, group.tau) in others]
    if not pairs:
        names = ["; ".join(group.label for group in groups) for groups in (first, second)]
        raise UsageError("the two runs have no policy in common", f"the first has {names[0]}, the second {names[1]}")
    return pairs


def _concurrency(run: Mapping[str, Any]) -> int:
    return run.get("concurrency") or 1


def _compare(first: Group, second: Group, *, is_timed: bool) -> dict[str, Any]:
    """`is_timed`: whether the times are those of one problem at a time."""
    pairs = paired(first, second)
    samples = 1 + max((key[1] for key in first.results.keys() | second.results.keys()), default=0)
    return {
        "first": first.label,
        "second": second.label,
        "n": len(pairs),
        "only_first": len(first.results) - len(pairs),
        "only_second": len(second.results) - len(pairs),
        **_accuracy(pairs, samples),
        **_seconds([(one, other) for one, other in pairs if is_timed and one.is_done and other.is_done]),
    }


def _accuracy(pairs: Sequence[tuple[Result, Result]], samples: int) -> dict[str, Any]:
    first_only = sum(one.is_correct and not other.is_correct for one, other in pairs)
    second_only = sum(other.is_correct and not one.is_correct for one, other in pairs)
    interval = difference_interval([(other, one) for one, other in pairs], samples)
    return {
        "correct": [sum(one.is_correct for one, _ in pairs), sum(other.is_correct for _, other in pairs)],
        "first_only_correct": first_only,
        "second_only_correct": second_only,
        "accuracy_difference": over(second_only - first_only, len(pairs)),
        "accuracy_difference_interval": interval,
        "mcnemar_p": mcnemar(first_only, second_only) if samples == 1 and pairs else None,
    }


def _seconds(pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
    values = [(one.key[0], [one.seconds or 0.0, other.seconds or 0.0]) for one, other in pairs]
    table = sums_by_problem(values, 2)
    first, second = (math.fsum(column) for column in table.T)
    return {
        "seconds": [first, second],
        "seconds_n": len(pairs),
        "seconds_ratio": over(first, second),
        "seconds_ratio_interval": bootstrap(table, ratio_of_sums),
    }


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What results depend on and both runs name, where it is not the same: `seed 0, then 1`. The grader has its own note."""
    shared = [name for name in first if name in second and name != "grader"]
    return [f"{name} {first[name]}, then {second[name]}" for name in shared if first[name] != second[name]]


def _notes(first: Mapping[str, Any], second: Mapping[str, Any], changed: set[str]) -> list[str]:
    """What stands in the way of taking the two for alike."""
    notes = []
    if changed:
        notes.append(f"{len(changed)} problems are left out: under the same id the runs have different questions.")
    differing = _differing(first.get("fingerprint") or {}, second.get("fingerprint") or {})
    if differing:
        notes.append(f"What they were made with differs: {'; '.join(differing)}.")
    if first.get("grader") != second.get("grader"):
        notes.append("The runs were graded by different versions of the grader: grade both anew with arbitrage grade.")
    if max(_concurrency(first), _concurrency(second)) > 1:
        notes.append("Times are not compared: of several problems solved at once none has a time of its own.")
    if first.get("machine") != second.get("machine"):
        notes.append(
            "The runs were made on different machines, or with different threads or libraries: times differ by that."
        )
    notes.append("The runs were not interleaved: what the machine did meanwhile is in the ratio of times.")
    return notes

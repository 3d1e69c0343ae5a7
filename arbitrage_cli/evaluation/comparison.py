"""Compares the accuracy and time of two runs on the problems that both contain.

Attempts are paired by problem ID, question and sample.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.metrics import difference_interval
from arbitrage_cli.evaluation.speed import change_of_speed, share_of, speedup, with_computed_seconds
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.runs.results import Pairs, PolicyResults, Result, paired, results_by_policy
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Json, ModelRole

BETWEEN_RUNS = 2.5  # a machine's change of speed between runs, as a multiple of the change within a run: tests/benchmarks


def compare_runs(first_run: Run, first: Iterable[Result], second_run: Run, second: Iterable[Result]) -> Json:
    """Return the comparison as JSON.

    A policy is compared at the same preset or tau. If each run has a single policy, these two policies are always compared.
    Raises UsageError if the runs have no policy or no problem in common.
    """
    first, second = list(first), list(second)
    before, after = (
        [policy for policy in with_computed_seconds(run, results_by_policy(run, results)) if policy.results]
        for run, results in ((first_run, first), (second_run, second))
    )
    runs = (first_run, second_run)
    timed = runs if first_run.decided.concurrency == second_run.decided.concurrency == 1 else ()
    changes = (
        change_of_speed(results, run.decided.unit_costs) for run, results in ((first_run, first), (second_run, second))
    )
    drift, pairs = BETWEEN_RUNS * math.hypot(*changes), _pairs(before, after)
    compared = [_compare(one, other, timed, drift) for one, other in pairs]
    if not any(entry["n"] for entry in compared):
        raise UsageError("the two runs have no problem in common", "compare runs of the same data set")
    return {
        "dataset": [run.dataset and run.dataset.name for run in (first_run, second_run)],
        "policies": compared,
        "notes": [*_left_out([*before, *after], pairs), *_notes(first_run, second_run)],
    }


def _pairs(first: Sequence[PolicyResults], second: Sequence[PolicyResults]) -> list[tuple[PolicyResults, PolicyResults]]:
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    others = {policy.route.name: policy for policy in second}
    pairs = [(policy, others[policy.route.name]) for policy in first if policy.route.name in others]
    if not pairs:
        names = ["; ".join(policy.route.label for policy in policies) or "no results" for policies in (first, second)]
        raise UsageError(
            "the two runs have no policy in common", f"the first run has {names[0]}; the second run has {names[1]}"
        )
    return pairs


def _left_out(policies: Sequence[PolicyResults], pairs: Sequence[tuple[PolicyResults, PolicyResults]]) -> Iterator[str]:
    compared = {id(policy) for pair in pairs for policy in pair}
    if names := dict.fromkeys(policy.route.label for policy in policies if id(policy) not in compared):
        yield f"Not compared, because only one run has results: {', '.join(names)}."


def _compare(first: PolicyResults, second: PolicyResults, timed: Sequence[Run], drift: float) -> Json:
    pairs = [(before, after) for before, after in paired(first, second) if before.question == after.question]
    is_graded = any(result.is_graded for pair in pairs for result in pair)
    return {
        "first": first.route.label,
        "second": second.route.label,
        "n": len(pairs),
        "only_first": len(first.results) - len(pairs),
        "only_second": len(second.results) - len(pairs),
        **_accuracy(pairs if is_graded else []),
        **_seconds([(before, after) for before, after in pairs if timed and before.is_done and after.is_done], timed, drift),
    }


def _accuracy(pairs: Pairs) -> Json:
    first_only = sum(before.is_correct and not after.is_correct for before, after in pairs)
    second_only = sum(after.is_correct and not before.is_correct for before, after in pairs)
    return {
        "fixed": _ids(pairs, (False, True)),
        "broken": _ids(pairs, (True, False)),
        "correct": [sum(before.is_correct for before, _ in pairs), sum(after.is_correct for _, after in pairs)],
        "accuracy_difference": Ratio(second_only - first_only, len(pairs)).value,
        "accuracy_difference_interval": difference_interval([(after, before) for before, after in pairs]),
    }


def _ids(pairs: Pairs, verdicts: tuple[bool, bool]) -> list[str]:
    return list(dict.fromkeys(before.key[0] for before, after in pairs if (before.is_correct, after.is_correct) == verdicts))


def _seconds(pairs: Pairs, runs: Sequence[Run], drift: float) -> Json:
    """Return the ratio of the total seconds, and its interval.

    The interval includes the errors of both runs' unit costs, and the `drift` of the machine's speed between the runs.
    """
    errors = [
        costs.error * share_of(role, results)
        for results, run in zip(zip(*pairs, strict=True), runs, strict=False)
        for role, costs in run.decided.unit_costs.items()
    ]
    reversed_pairs = [(after, before) for before, after in pairs]
    ratio, _, interval = speedup(reversed_pairs, attrgetter("computed_seconds"), math.hypot(drift, *errors))
    return {"seconds_ratio": ratio and ratio.value, "seconds_ratio_interval": interval}


def _notes(first: Run, second: Run) -> Iterator[str]:
    before, after = _settings(first), _settings(second)
    shared = [name for name in before if name in after and before[name] != after[name]]
    if differing := [f"{name.replace('_', ' ')} {before[name]!s:.80}, then {after[name]!s:.80}" for name in shared]:
        yield f"The settings differ: {'; '.join(differing)}."
    if first.grader != second.grader:
        yield "The runs used different versions of the grader; regrade both with arbitrage report RUN --regrade."
    if max(first.decided.concurrency, second.decided.concurrency) > 1:
        yield "Times are not compared, because at least one run solved several problems at once."
    if first.decided.machine != second.decided.machine or _threads(first) != _threads(second):
        yield "The runs used different machines, threads or libraries, which affects the times."
    yield "The runs were not interleaved. The interval of the ratio of their times allows for a machine that changes its speed."


def _settings(run: Run) -> Json:
    """Return the settings that affect solutions, and the identity of each model."""
    models = run.decided.models.items()
    identities = {f"{role} model": f"sha256 {one.sha256[:16]}" if one.sha256 else one.name for role, one in models}
    return run.decided.settings.of_call() | identities | {"data set": run.dataset and f"sha256 {run.dataset.sha256[:16]}"}


def _threads(run: Run) -> dict[ModelRole, int | None]:
    return {role: model.threads for role, model in run.decided.models.items()}

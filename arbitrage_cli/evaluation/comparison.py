"""Compares the accuracy and time of two runs on the problems that both contain.

Attempts are paired by problem ID, question and sample.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.figures import Estimate, flat
from arbitrage_cli.evaluation.metrics import difference_interval, is_scored
from arbitrage_cli.evaluation.speed import Units, change_of_speed, share_of, speedup, with_computed_seconds, work
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.runs.results import Pairs, PolicyResults, Result, paired, results_by_policy
from arbitrage_cli.runs.run import MACHINE, Run
from arbitrage_cli.types import Json, frozen

BETWEEN_RUNS = 2.5  # a machine's change of speed between runs, as a multiple of the change within a run: tests/benchmarks


@frozen
class PolicyComparison:
    """The comparison of a policy in two runs, on the `n` attempts that both contain.

    The IDs in `fixed` belong to problems that only the second run solved; those in `broken`, to problems that only the first
    run solved. `correct` contains the numbers of correct answers, or is None if the answers of a run have no grades.
    `seconds_ratio` is the first run's computed seconds divided by the second run's. `work_ratio` is the ratio of their
    counted work, at the same costs of tokens.
    """

    first: str
    second: str
    n: int
    only_first: int
    only_second: int
    fixed: Sequence[str]
    broken: Sequence[str]
    correct: tuple[int, int] | None
    accuracy_difference: Estimate
    seconds_ratio: Estimate
    work_ratio: Estimate


@frozen
class Comparison:
    """The comparison of two runs. `dataset` contains the names of their data sets."""

    dataset: tuple[str | None, str | None]
    policies: Sequence[PolicyComparison]
    notes: Sequence[str]

    def to_json(self) -> Json:
        return flat(self) | {"policies": [flat(one) for one in self.policies]}


@dataclass(frozen=True)
class _Times:
    """The facts that are needed to compare the times of two runs. `drift` is the machine's change of speed between the runs.

    `units` contains the unit costs at which work is compared: none if the runs have different models.
    """

    runs: tuple[Run, Run]
    drift: float
    units: Units

    @property
    def are_comparable(self) -> bool:
        """Whether no run solved several problems at once."""
        return all(run.decided.concurrency == 1 for run in self.runs)


def compare_runs(first_run: Run, first: Iterable[Result], second_run: Run, second: Iterable[Result]) -> Comparison:
    """Return the comparison.

    A policy is compared at the same preset or tau. If each run has a single policy, these two policies are always compared.
    Raises UsageError if the runs have no policy or no problem in common.
    """
    first, second = list(first), list(second)
    before, after = _policies(first_run, first), _policies(second_run, second)
    pairs = _pairs(before, after)
    changes = change_of_speed(first, first_run.decided.unit_costs), change_of_speed(second, second_run.decided.unit_costs)
    times = _Times((first_run, second_run), BETWEEN_RUNS * math.hypot(*changes), _common_units(first_run, second_run))
    compared = [_compare(one, other, times) for one, other in pairs]
    if not any(entry.n for entry in compared):
        raise UsageError("the two runs have no problem in common", "compare runs of the same data set")
    return Comparison(
        dataset=(_name_of_data(first_run), _name_of_data(second_run)),
        policies=compared,
        notes=[*_left_out([*before, *after], pairs), *_notes(first_run, second_run)],
    )


def _name_of_data(run: Run) -> str | None:
    return run.dataset.name if run.dataset else None


def _policies(run: Run, results: Sequence[Result]) -> list[PolicyResults]:
    return [policy for policy in with_computed_seconds(run, results_by_policy(run, results)) if policy.results]


def _common_units(first: Run, second: Run) -> Units:
    """Return the first run's unit costs of the models that are the same files in both runs."""
    others = second.decided.models
    same = {
        role
        for role, model in first.decided.models.items()
        if model.sha256 and role in others and model.sha256 == others[role].sha256
    }
    return {role: costs for role, costs in first.decided.unit_costs.items() if role in same}


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


def _compare(first: PolicyResults, second: PolicyResults, times: _Times) -> PolicyComparison:
    pairs = [pair for pair in paired(first, second) if pair[0].question == pair[1].question]
    before, after = [one for one, _ in pairs], [other for _, other in pairs]
    graded = pairs if is_scored(before) and is_scored(after) else []
    done = [(later, earlier) for earlier, later in pairs if earlier.is_done and later.is_done]
    return PolicyComparison(
        first=first.route.label,
        second=second.route.label,
        n=len(pairs),
        only_first=len(first.results) - len(pairs),
        only_second=len(second.results) - len(pairs),
        fixed=_ids(graded, (False, True)),
        broken=_ids(graded, (True, False)),
        correct=(sum(one.is_correct for one in before), sum(one.is_correct for one in after)) if graded else None,
        accuracy_difference=_difference(graded),
        seconds_ratio=_seconds_ratio(done, times) if times.are_comparable else Estimate(),
        work_ratio=_work_ratio(done, times.units),
    )


def _difference(pairs: Pairs) -> Estimate:
    gained = sum(after.is_correct - before.is_correct for before, after in pairs)
    return Estimate(Ratio(gained, len(pairs)), difference_interval([(after, before) for before, after in pairs]))


def _ids(pairs: Pairs, verdicts: tuple[bool, bool]) -> list[str]:
    return list(dict.fromkeys(before.key[0] for before, after in pairs if (before.is_correct, after.is_correct) == verdicts))


def _seconds_ratio(reversed_pairs: Pairs, times: _Times) -> Estimate:
    """Return the ratio of the total seconds, first / second.

    The interval includes the errors of both runs' unit costs, and the change of the machine's speed between the runs.
    """
    second, first = ([pair[side] for pair in reversed_pairs] for side in (0, 1))
    errors = [
        costs.error * share_of(role, results)
        for results, run in zip((first, second), times.runs, strict=True)
        for role, costs in run.decided.unit_costs.items()
    ]
    found = speedup(reversed_pairs, lambda result: result.computed_seconds, math.hypot(times.drift, *errors))
    return Estimate(found.ratio, found.interval)


def _work_ratio(reversed_pairs: Pairs, units: Units) -> Estimate:
    """Return the ratio of the counted work, first / second. It is unknown if a model's work is not counted."""
    if any(work(result, units) is None for pair in reversed_pairs for result in pair):
        return Estimate()
    found = speedup(reversed_pairs, lambda result: work(result, units) or 0.0)
    return Estimate(found.ratio, found.interval)


def _notes(first: Run, second: Run) -> Iterator[str]:
    if differing := _differences(_settings(first), _settings(second)):
        yield f"The settings differ: {differing}."
    if first.grader != second.grader:
        yield "The runs used different versions of the grader; regrade both with arbitrage report RUN --regrade."
    if max(first.decided.concurrency, second.decided.concurrency) > 1:
        yield "Times are not compared, because at least one run solved several problems at once."
        return
    if differing := _differences(_conditions(first), _conditions(second)):
        yield f"These differences affect only the times: {differing}."
    days = " and ".join(dict.fromkeys(run.created[: len("2026-12-01")] for run in (first, second)))
    yield (
        f"The runs were not interleaved (begun on {days}), so their times are comparable only if the machine was equally busy. "
        "The intervals allow for some change of its speed. The ratios of work do not depend on it."
    )


def _differences(before: Json, after: Json) -> str:
    """Return what both contain with different values, such as `seed 0, then 1; ctx 2048, then 4096`."""
    shared = [name for name in before if name in after and before[name] != after[name]]
    return "; ".join(f"{name.replace('_', ' ')} {before[name]!s:.80}, then {after[name]!s:.80}" for name in shared)


def _conditions(run: Run) -> Json:
    """Return what affects only the times: the machine, the libraries, and the threads of each model."""
    machine = {shown: run.decided.machine[name] for name, shown in MACHINE.items() if name in run.decided.machine}
    threads = {f"threads of the {role}": model.threads for role, model in run.decided.models.items() if model.threads}
    return machine | {"arbitrage": run.tool} | threads


def _settings(run: Run) -> Json:
    """Return the settings that affect solutions, and the identity of each model."""
    models = run.decided.models.items()
    identities = {f"{role} model": f"sha256 {one.sha256[:16]}" if one.sha256 else one.name for role, one in models}
    return run.decided.settings.of_call() | identities | {"data set": run.dataset and f"sha256 {run.dataset.sha256[:16]}"}

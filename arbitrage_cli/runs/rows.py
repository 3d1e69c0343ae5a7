"""Rows of a run as results, grouped by policy and tau: what figures are counted from.

A result is that of one attempt: one problem, tried once with one policy at one tau. Knows the fields of a row, no file and
no figure.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, Literal

import numpy as np

from arbitrage_cli.errors import UsageError
from arbitrage_cli.runs.labels import label, tau_number
from arbitrage_cli.runs.summary import Share, Tally
from arbitrage_cli.stats.intervals import Floats
from arbitrage_cli.types import Cost

Level = str | int | None
Outcome = Literal["correct", "incorrect", "unscored", "error"]
Key = tuple[str, int]
"""Problem id and sample: what two policies have in common."""

COST_FIELDS = tuple(one.name for one in fields(Cost))


@dataclass(frozen=True, slots=True)
class Result:
    """One row, as far as figures need it. Seconds are None where the row is not done; of an error nothing is counted.

    `share` is its part of a throughput run's time, None in any other run.
    """

    key: Key
    level: Level
    outcome: Outcome
    seconds: float | None
    tally: Tally
    kept_steps: int
    kept_tokens: int
    kept_target_tokens: int
    router_seconds: float
    reward_seconds: float
    share: Share | None = None

    @property
    def is_correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def is_done(self) -> bool:
        """Whether it has a time, and steps to count."""
        return self.seconds is not None


@dataclass(frozen=True, slots=True)
class Group:
    """All results of one policy at one tau, in the order of their keys. `number` says what its router compares with tau.

    `superseded` are errors of attempts that were then made again: they count for nothing but the time they took.
    """

    policy: str
    tau: float | None
    number: str | None = None
    results: Mapping[Key, Result] = field(default_factory=dict)
    superseded: Sequence[Result] = ()

    @property
    def label(self) -> str:
        """What to call it in a table."""
        return label(self.policy, self.tau)

    @property
    def done(self) -> list[Result]:
        """The results that have a time."""
        return [result for result in self.results.values() if result.is_done]


def tally_of_row(row: Mapping[str, Any]) -> Tally:
    """The tally of the decisions that a row was made of."""
    steps = row.get("steps") or []
    written = [(step, True) for step in steps]
    written += [(step["discarded"], False) for step in steps if step.get("discarded")]
    drafted = [(step["tokens"], kept) for step, kept in written if step["model"] == "draft"]
    stopped = [step for step, _ in written if step["model"] == "draft" and step.get("stop") == "early"]
    by_target = [step["tokens"] for step, _ in written if step["model"] == "target"]
    timing = row.get("timing") or {}
    return Tally(
        drafted_steps=len(drafted),
        accepted_steps=sum(kept for _, kept in drafted),
        stopped_steps=len(stopped),
        target_steps=len(by_target),
        drafted_tokens=sum(tokens for tokens, _ in drafted),
        accepted_tokens=sum(tokens for tokens, kept in drafted if kept),
        target_tokens=sum(by_target),
        draft_cost=_cost(timing.get("draft") or {}),
        target_cost=_cost(timing.get("target") or {}),
    )


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies, field by field."""
    summed = Tally()
    for tally in tallies:
        summed = Tally(*(getattr(summed, one.name) + getattr(tally, one.name) for one in fields(Tally)))
    return summed


def group_rows(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The groups of a run, in the order of its plan; one that is planned and has no row yet is empty.

    An error row that was tried again is superseded. UsageError for two results of one problem with one policy.
    """
    numbers: dict[tuple[str, float | None], str | None] = {}
    for planned in run.get("policies") or []:
        numbers[planned["policy"], tau_number(planned.get("tau"))] = planned.get("number")
    found: dict[tuple[str, float | None], list[Result]] = {name: [] for name in numbers}
    for row in rows:
        found.setdefault((row["policy"], tau_number(row.get("tau"))), []).append(_result(row))
    unplanned = sorted(found.keys() - numbers.keys(), key=lambda name: (name[0], name[1] is not None, name[1] or 0.0))
    return [_group(*name, numbers.get(name), found[name]) for name in [*numbers, *unplanned]]


def paired(first: Group, second: Group) -> list[tuple[Result, Result]]:
    """What both policies have a row for, in the order of problem and sample."""
    keys = sorted(first.results.keys() & second.results.keys())
    return [(first.results[key], second.results[key]) for key in keys]


def paired_done(first: Group, second: Group) -> list[tuple[Result, Result]]:
    """What both policies finished, in the order of problem and sample: times are compared over these."""
    return [(one, other) for one, other in paired(first, second) if one.is_done and other.is_done]


def sums_by_problem(values: Iterable[tuple[str, Sequence[float]]], width: int) -> Floats:
    """Sums over the samples of each problem, in the order of the ids: (problems, width). A row is what is resampled."""
    sums: dict[str, list[float]] = {}
    for problem, numbers in values:
        before = sums.setdefault(problem, [0.0] * width)
        sums[problem] = [one + other for one, other in zip(before, numbers, strict=True)]
    return np.array([sums[problem] for problem in sorted(sums)], dtype=np.float64).reshape(len(sums), width)


def problems_of(groups: Iterable[Group]) -> dict[str, Level]:
    """Ids and levels of all problems that some policy has a row for."""
    results = chain.from_iterable(group.results.values() for group in groups)
    return {result.key[0]: result.level for result in results}


def _group(policy: str, tau: float | None, number: str | None, made: Iterable[Result]) -> Group:
    """A group of these results, of which one counts for each key."""
    counted: dict[Key, Result] = {}
    superseded: list[Result] = []
    for result in made:
        before = counted.setdefault(result.key, result)
        if before is result:
            continue
        if before.outcome != "error" and result.outcome != "error":
            raise UsageError(
                f"two results for problem {result.key[0]}, sample {result.key[1]}, policy {policy}",
                "rows of several runs are mixed: give each run its own folder",
            )
        if before.outcome == "error":
            counted[result.key] = result
        superseded.append(before if before.outcome == "error" else result)
    return Group(policy, tau, number, dict(sorted(counted.items(), key=_by_key)), superseded)


def _by_key(entry: tuple[Key, Result]) -> Key:
    return entry[0]


def _cost(record: Mapping[str, Any]) -> Cost:
    return Cost(**{name: record.get(name) or 0 for name in COST_FIELDS})


def _result(row: Mapping[str, Any]) -> Result:
    is_done = row.get("status") == "done"
    steps, timing = row.get("steps") or [], row.get("timing") or {}
    kept = [(step["model"], step["tokens"]) for step in steps]
    return Result(
        key=(row["id"], row.get("sample") or 0),
        level=row.get("level"),
        outcome=(row.get("score") or {}).get("value") or "unscored" if is_done else "error",
        seconds=_seconds(row.get("wall_seconds")) if is_done else None,
        tally=tally_of_row(row),
        kept_steps=len(steps),
        kept_tokens=sum(tokens for _, tokens in kept),
        kept_target_tokens=sum(tokens for model, tokens in kept if model == "target"),
        router_seconds=(timing.get("router") or {}).get("seconds") or 0.0,
        reward_seconds=(timing.get("reward") or {}).get("seconds") or 0.0,
        share=Share(**row["throughput"]) if row.get("throughput") else None,
    )


def _seconds(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None

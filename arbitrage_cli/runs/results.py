"""The rows of a run as results, grouped by policy and tau: what figures are counted from.

A result is one attempt: one problem, solved once with one policy at one tau. Knows the fields of a row; no file, no figure.
"""

import gc
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, Literal

import numpy as np

from arbitrage_cli.errors import DamagedRunError, UsageError
from arbitrage_cli.runs.records import label
from arbitrage_cli.runs.schema import Level
from arbitrage_cli.runs.summary import BlockShare, Tally
from arbitrage_cli.stats.intervals import Floats
from arbitrage_cli.types import Cost

Outcome = Literal["correct", "incorrect", "unscored", "error"]
SampleKey = tuple[str, int]
"""Problem id and sample: the same in the results of all policies."""


@dataclass(frozen=True, slots=True)
class DraftedStep:
    """A drafted step as a router saw it: the score that was compared with tau, and the advantage, if they are known.

    `state` stands for the text up to its end. It is equal in two attempts at a problem if both drafted the same there.
    """

    is_accepted: bool
    score: float | None
    advantage: float | None
    state: int


@dataclass(frozen=True, slots=True)
class Result:
    """What figures need of a row. `seconds` are None for an error, of which nothing else is counted either.

    `text` stands for the solution. `stop` is the `TraceStop` of the solution; `share` is its part of a throughput run's time, None in any other run.
    """

    key: SampleKey
    level: Level
    outcome: Outcome
    stop: str | None
    seconds: float | None
    tally: Tally
    kept_steps: int
    router_seconds: float
    reward_seconds: float
    text: int
    answer: str | None
    drafted: Sequence[DraftedStep] = ()
    share: BlockShare | None = None

    @property
    def is_correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def is_done(self) -> bool:
        """Whether it has a time, and steps to count."""
        return self.seconds is not None


@dataclass(frozen=True, slots=True)
class PolicyResults:
    """All results of one policy at one tau, in the order of their keys. `score_is` describes what its router compares with tau.

    `superseded` are errors of attempts that were made again: they count for nothing but their time.
    """

    policy: str
    tau: float | None
    score_is: str | None = None
    tau_name: str | None = None
    results: Mapping[SampleKey, Result] = field(default_factory=dict)
    superseded: Sequence[Result] = ()

    @property
    def label(self) -> str:
        """Its name in tables."""
        return label(self.policy, self.tau, self.tau_name)

    @property
    def done(self) -> list[Result]:
        """The results that have a time."""
        return [result for result in self.results.values() if result.is_done]


def results_by_policy(run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[PolicyResults]:
    """One for each policy and tau of run.json, in its order, also if it has no row yet.

    UsageError for two results of one problem with one policy, DamagedRunError for a row of another run.
    """
    plan = {_policy_of(one): one for one in run["policies"]}
    found: dict[tuple[str, float | None], list[Result]] = {policy: [] for policy in plan}
    with no_cycles():
        for row in rows:
            if _policy_of(row) not in found or row["id"] not in run["levels"]:
                reason = f"the row of problem {row['id']!r} with policy {row['policy']} is not one of this run"
                raise DamagedRunError(reason, "restore the run's files from a copy")
            found[_policy_of(row)].append(_read_result(row))
    return [
        PolicyResults(*policy, one["score_is"], one.get("tau_name"), *_counted(policy[0], found[policy]))
        for policy, one in plan.items()
    ]


@contextmanager
def no_cycles() -> Iterator[None]:
    """Keeps Python from looking for cycles among the records of a large run, which takes a third of the time. They have none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def tally_of_row(row: Mapping[str, Any]) -> Tally:
    """The tally of the decisions that a row was made of."""
    kept = row["steps"]
    written = [(step, True) for step in kept] + [(step["discarded"], False) for step in kept if step["discarded"]]
    drafted = [(step, is_kept) for step, is_kept in written if step["model"] == "draft"]
    accepted = [step["tokens"] for step, is_kept in drafted if is_kept]
    by_target = [step["tokens"] for step, _ in written if step["model"] == "target"]
    return Tally(
        drafted_steps=len(drafted),
        accepted_steps=len(accepted),
        stopped_steps=sum(step["stop"] == "early" for step, _ in drafted),
        target_steps=len(by_target),
        drafted_tokens=sum(step["tokens"] for step, _ in drafted),
        accepted_tokens=sum(accepted),
        target_tokens=sum(by_target),
        draft_cost=_cost(row["timing"]["draft"]),
        target_cost=_cost(row["timing"]["target"]),
    )


def drafted_steps_of(row: Mapping[str, Any]) -> Iterator[DraftedStep]:
    """The drafted steps of a row, in their order."""
    before = 0
    for step in row["steps"]:
        draft = step if step["model"] == "draft" else step["discarded"]
        if draft and draft["model"] == "draft":
            yield DraftedStep(draft is step, step["score"], step["advantage"], _after(before, draft["text"]))
        before = _after(before, step["text"])


def _after(before: int, text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"), before)


def paired(first: PolicyResults, second: PolicyResults) -> list[tuple[Result, Result]]:
    """The results of attempts that both have, in the order of problem and sample."""
    keys = sorted(first.results.keys() & second.results.keys())
    return [(first.results[key], second.results[key]) for key in keys]


def paired_done(first: PolicyResults, second: PolicyResults) -> list[tuple[Result, Result]]:
    """The same for attempts that both finished: times are compared over these."""
    return [(one, other) for one, other in paired(first, second) if one.is_done and other.is_done]


def sums_by_problem(values: Iterable[tuple[str, Sequence[float]]], width: int) -> Floats:
    """Sums over the samples of each problem, in the order of the ids: (problems, width). A row is what is resampled."""
    sums: dict[str, list[float]] = {}
    for problem, numbers in values:
        before = sums.get(problem)
        sums[problem] = (
            list(numbers) if before is None else [one + other for one, other in zip(before, numbers, strict=True)]
        )
    return np.array([sums[problem] for problem in sorted(sums)], dtype=np.float64).reshape(len(sums), width)


def _policy_of(record: Mapping[str, Any]) -> tuple[str, float | None]:
    """Policy and tau of a row, or of an entry of run.json: there a tau may be "inf" or "-inf"."""
    return record["policy"], None if record["tau"] is None else float(record["tau"])


def _counted(policy: str, results: Iterable[Result]) -> tuple[dict[SampleKey, Result], list[Result]]:
    """The result that counts for each attempt, and the errors that were superseded. The order of the rows does not matter."""
    counted: dict[SampleKey, Result] = {}
    superseded: list[Result] = []
    for result in results:
        before = counted.setdefault(result.key, result)
        if before is result:
            continue
        error, other = (before, result) if before.outcome == "error" else (result, before)
        if error.outcome != "error":
            raise UsageError(
                f"two results for problem {result.key[0]}, sample {result.key[1]}, policy {policy}",
                "rows of several runs are mixed: give each run its own folder",
            )
        counted[result.key] = other
        superseded.append(error)
    return {key: counted[key] for key in sorted(counted)}, superseded


_cost_values = itemgetter(*(one.name for one in fields(Cost)))


def _cost(record: Mapping[str, Any]) -> Cost:
    return Cost(*_cost_values(record))


def _read_result(row: Mapping[str, Any]) -> Result:
    is_done = row["status"] == "done"
    timing = row["timing"]
    return Result(
        key=(row["id"], row["sample"]),
        level=row["level"],
        outcome=row["grade"]["value"] if is_done else "error",
        stop=row["stop"],
        seconds=float(row["wall_seconds"]) if is_done else None,
        tally=tally_of_row(row),
        kept_steps=len(row["steps"]),
        router_seconds=timing["router"]["seconds"] if "router" in timing else 0.0,
        reward_seconds=timing["reward"]["seconds"] if "reward" in timing else 0.0,
        text=_after(0, row["text"]),
        answer=row["answer"],
        drafted=tuple(drafted_steps_of(row)),
        share=BlockShare(**row["throughput"]) if "throughput" in row else None,
    )

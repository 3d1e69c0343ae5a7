"""Holds the results of a run, which are read from its rows, grouped by policy and tau."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from arbitrage_cli.numbers.intervals import Numbers
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import NO_COST, Tally, tally, total
from arbitrage_cli.types import Check, Cost, Decision, ModelRole, Step, frozen

if TYPE_CHECKING:  # pydantic is slow to import
    from arbitrage_cli.runs.rows import AttemptRow
    from arbitrage_cli.runs.run import Run

Outcome = Literal["correct", "incorrect", "unscored", "error"]
SampleKey = tuple[str, int]  # problem ID and sample index, which all policies share


@frozen
class Result:
    """The fields of a row that are used for statistics.

    `seconds` is the wall-clock time, or None if the attempt failed. `steps` contains the cost of each step by model, in
    order, including discarded steps and speculation; rollouts and abandoned steps follow at the end. `program_seconds` is the time spent
    outside the models and the router. `computed` contains the computed seconds by model role, and of other work; it is set
    by `evaluation.speed`. `question` is a checksum.
    """

    route: Route
    key: SampleKey
    outcome: Outcome
    stop: str | None
    seconds: float | None
    tally: Tally
    question: int
    same_as_target: bool | None = None
    steps: Sequence[tuple[ModelRole, Cost]] = ()
    num_scores: int = 0
    router_seconds: float = 0.0
    program_seconds: float = 0.0
    computed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, row: "AttemptRow") -> Self:
        timing = row.timing
        decisions = row.decisions
        check = row.check.check if row.check else None
        abandoned = [written.step for written in row.abandoned]
        return cls(
            route=row.route,
            key=(row.id, row.sample),
            outcome=row.grade.value if row.grade and row.status == "done" else "error",
            stop=row.stop,
            seconds=float(row.wall_seconds) if row.status == "done" else None,
            tally=tally(decisions, timing.reward or NO_COST, check, row.rollouts, abandoned),
            question=zlib.crc32(row.problem.encode("utf-8", "surrogatepass")),
            same_as_target=row.same_as_target,
            steps=_steps(decisions, check, row.rollouts, abandoned),
            num_scores=sum(decision.score is not None for decision in decisions) + (check is not None),
            router_seconds=timing.router["seconds"] if timing.router else 0.0,
            program_seconds=timing.program["seconds"] if timing.program else 0.0,
        )

    @property
    def computed_seconds(self) -> float:
        return math.fsum(self.computed.values())

    @property
    def is_correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def is_graded(self) -> bool:
        return self.outcome in ("correct", "incorrect")

    @property
    def is_done(self) -> bool:
        return self.seconds is not None


@dataclass(frozen=True)
class PolicyResults:
    """The results of one route, sorted by key."""

    route: Route
    results: Mapping[SampleKey, Result] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        return self.route.policy

    @cached_property
    def done(self) -> list[Result]:
        return [result for result in self.results.values() if result.is_done]

    @cached_property
    def tally(self) -> Tally:
        return total(result.tally for result in self.done)


def results_by_policy(run: "Run", results: Iterable[Result]) -> list[PolicyResults]:
    """Return the results of each policy, in the order of run.json. A policy without rows has no results.

    Of several results of an attempt, the one that did not fail counts.
    """
    found: dict[Route, dict[SampleKey, Result]] = {route: {} for route in run.routes}
    for result in sorted(results, key=lambda result: result.is_done):
        found[result.route][result.key] = result
    return [PolicyResults(route, dict(sorted(own.items()))) for route, own in found.items()]


Pairs = Sequence[tuple[Result, Result]]
"""The results of two policies or runs for the same attempts."""


def paired(first: PolicyResults, second: PolicyResults) -> Pairs:
    others = second.results
    return [(result, others[key]) for key, result in first.results.items() if key in others]


def paired_done(first: PolicyResults, second: PolicyResults) -> Pairs:
    return [(result, other) for result, other in paired(first, second) if result.is_done and other.is_done]


def sums_by_problem(values: Iterable[tuple[str, Sequence[float]]], width: int) -> Numbers:
    """Return the sums over each problem's samples, with shape (problems, width), from which problems are resampled."""
    sums: dict[str, Sequence[float]] = {}
    for problem, numbers in values:
        before = sums.get(problem)
        sums[problem] = numbers if before is None else [sum(pair) for pair in zip(before, numbers, strict=True)]
    return np.array([sums[problem] for problem in sorted(sums)], dtype=np.float64).reshape(len(sums), width)


def _steps(
    decisions: Iterable[Decision], check: Check | None, rollouts: Iterable[Cost], abandoned: Iterable[Step]
) -> list[tuple[ModelRole, Cost]]:
    work: list[tuple[ModelRole, Cost]] = [(step.model, step.cost) for step in check.discarded] if check else []
    for step in (step for decision in decisions for step in (decision.draft, decision.target) if step):
        work += [("draft", step.speculation_cost), (step.model, step.cost)]
    work += [("target", cost) for cost in rollouts]
    work += [(step.model, step.cost) for step in abandoned]
    return [(role, cost) for role, cost in work if cost != NO_COST]

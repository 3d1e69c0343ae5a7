"""Reads collected states from the runs of `arbitrage collect`, or from files of packed states."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import ValidationError, model_validator

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import DamagedRunError, UsageError, os_errors
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.learning.examples import Examples, fold_of
from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.routing.router import TrainedModel
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.records import COLLECT
from arbitrage_cli.runs.rows import CollectedRow, Count, Record
from arbitrage_cli.runs.run import Run
from arbitrage_cli.system import xz
from arbitrage_cli.system.files import open_regular, reason_of
from arbitrage_cli.training.states import State, features_of, prefixes_of
from arbitrage_cli.training.taus import Outcomes
from arbitrage_cli.types import WRITING, Fields, Json, ModelRole, T

PACKED = ".xz"  # suffix of files of packed states
COLUMNS = ("draft_reward", "target_reward", "draft_tokens", "target_tokens", "target_prefill_tokens", "shared_tokens")


class CollectedSolution(Record):
    """The states of one problem in a run. `is_whole` is false if the solution is unfinished.

    A solution that `is_unsolved` ended early, because the target never solves the problem.
    """

    id: str
    question: str
    is_whole: bool
    is_unsolved: bool = False
    states: Sequence[State]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if [state.position for state in self.states] != list(range(len(self.states))):
            raise ValueError("the positions of its states are not consecutive")
        return self


class Conditions(Record):
    """The conditions of a collection. `configuration` identifies everything that affects states except the data set."""

    pair: Mapping[ModelRole, TrainedModel]
    configuration: str
    step_separator: str
    step_min_chars: Count
    think_min_chars: Count | None = None
    reward: Fields
    dataset: str
    dataset_sha256: str | None
    unit_costs: Mapping[ModelRole, UnitCosts]
    command: list[str]

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the conditions of a run of `arbitrage collect`."""
        settings = run.decided.settings
        dataset = run.dataset
        pair = {role: run.decided.models[role].known_as(run.name_of(role)) for role in WRITING}
        fixed = json.dumps([{role: asdict(model) for role, model in pair.items()}, settings.to_dict()], sort_keys=True)
        return cls(
            pair=pair,
            configuration=hashlib.sha256(fixed.encode()).hexdigest()[:16],
            step_separator=settings.step_separator,
            step_min_chars=settings.step_min_chars,
            think_min_chars=settings.think_min_chars,
            reward=run.reward or {},
            dataset=dataset.name if dataset else "",
            dataset_sha256=dataset.sha256 if dataset else None,
            unit_costs=run.decided.unit_costs,
            command=run.asked.command,
        )

    @property
    def step_end(self) -> StepEnd:
        return StepEnd(self.step_separator, self.step_min_chars)


@dataclass(frozen=True, slots=True, eq=False)
class CollectedRun:
    """The states of a run of `arbitrage collect`."""

    path: Path
    conditions: Conditions
    solutions: tuple[CollectedSolution, ...]

    @property
    def num_states(self) -> int:
        return sum(len(solution.states) for solution in self.solutions)

    @property
    def about(self) -> Json:
        """The run as recorded on a router's card."""
        return {
            "name": self.path.name,
            "dataset": self.conditions.dataset,
            "dataset_sha256": self.conditions.dataset_sha256,
            "problems": len({solution.question for solution in self.solutions}),
            "states": self.num_states,
            "think_min_chars": self.conditions.think_min_chars,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """The n states of one or more runs.

    `features` has shape (n, n_features). `fold` (from 0 to FOLDS - 1), `pair` (an index into `pairs`) and `is_whole` have
    shape (n,). `outcomes.problem` is an index into `questions`.
    """

    runs: tuple[CollectedRun, ...]
    features: Floats
    outcomes: Outcomes
    fold: Indices
    pair: Indices
    is_whole: Mask
    questions: tuple[str, ...]

    @property
    def pairs(self) -> tuple[Mapping[ModelRole, TrainedModel], ...]:
        return _distinct(run.conditions.pair for run in self.runs)

    @property
    def rewards(self) -> tuple[Fields, ...]:
        return _distinct(run.conditions.reward for run in self.runs)

    @property
    def is_measured(self) -> Mask:
        """Whether a state, shape (n,), is from the pair of the last run: the pair of a router's figures and presets."""
        found: Mask = self.pair == self.pairs.index(self.runs[-1].conditions.pair)
        return found

    @property
    def costs(self) -> PairCosts | None:
        """The token costs of the last run's pair, in its largest run whose models were measured, if any."""
        runs = [run for run in self.runs if run.conditions.pair == self.runs[-1].conditions.pair]
        found = {run.num_states: costs for run in runs if (costs := PairCosts.of(run.conditions.unit_costs))}
        return found[max(found)] if found else None

    @property
    def examples(self) -> Examples:
        """The features of the states, and whether they have an advantage. All pairs count the same."""
        return Examples(
            self.features, self.outcomes.advantage > 0, problem=self.outcomes.problem, group=self.pair, fold=self.fold
        )

    def prefixes(self, chosen: Mask) -> tuple[Floats, Indices, Numbers]:
        """Return the m prefixes that a router scores, taken from the chosen drafted steps.

        The first array contains the features and has shape (m, n_features). The other two, of shape (m,), contain each
        prefix's index among the chosen states and its token count.
        """
        rank = np.cumsum(chosen) - 1  # the index of a state among the chosen states
        found: list[tuple[Floats, int, int]] = []
        start = 0
        for solution in (solution for run in self.runs for solution in run.solutions):
            prefixes = prefixes_of(solution.question, solution.states)
            found += [(row, rank[start + index], count) for index, count, row in prefixes if chosen[start + index]]
            start += len(solution.states)
        features, states, lengths = zip(*found, strict=True) if found else ((), (), ())
        rows = np.array(features, np.float32).reshape(-1, len(FEATURES))
        return rows, np.array(states, np.int64), np.array(lengths, np.float64)


def read_states(paths: Sequence[Path]) -> Collected:
    """Read run folders of `arbitrage collect`, or files of packed states.

    Raises UsageError if a path has no states, if a solution occurs twice, or if steps end differently; DamagedRunError if a
    file is damaged.
    """
    runs = [read_packed(path) if path.suffix == PACKED else read_run(path) for path in paths]
    _refuse_duplicates(runs)
    for run in runs:
        if run.conditions.step_end != runs[0].conditions.step_end:
            reason = f"its steps end at {run.conditions.step_end}, but steps in {runs[0].path} end at {runs[0].conditions.step_end}"
            raise UsageError(f"{run.path}: {reason}", "use runs of a single task")
    if not any(run.num_states for run in runs):
        raise UsageError("these runs have no states", "collect states: arbitrage collect")
    return _join(runs)


def read_run(folder: Path) -> CollectedRun:
    contents = read_run_folder(folder, COLLECT)
    rows = {row.id: row for row in contents.rows}  # of several rows, the last one counts
    solutions = tuple(_solution(folder, row) for row in rows.values() if row.states)
    return CollectedRun(folder, Conditions.of(contents.run), solutions)


def _solution(folder: Path, row: CollectedRow) -> CollectedSolution:
    states: Any = row.states  # in JSON
    try:
        return CollectedSolution(
            id=row.id,
            question=row.question,
            is_whole=row.status == "done",
            is_unsolved=row.is_unsolved,
            states=states,
        )
    except ValidationError as error:
        message = f"{folder}: problem {row.id}: {reason_of(error)}"
        raise UsageError(message, "collect its states again: arbitrage collect") from error


def read_packed(path: Path) -> CollectedRun:
    """Read an xz file. Its first line contains the conditions, and each other line the states of a problem."""
    solutions: dict[str, CollectedSolution] = {}
    with os_errors(UsageError, f"{path}: cannot be read", "use a file of packed states"), open_regular(path, None) as stream:
        lines = xz.read_lines(stream)
        try:
            conditions = Conditions.model_validate_json(next(lines, b""))
            for number, line in enumerate(lines, start=2):
                solution = CollectedSolution.model_validate_json(line)
                if solution.id in solutions:
                    raise ValueError(f"line {number} repeats problem {solution.id}")
                solutions[solution.id] = solution
        except ValueError as error:
            reason = reason_of(error) if isinstance(error, ValidationError) else error
            raise DamagedRunError(f"{path}: not a file of packed states ({reason})", "download the file again") from error
    return CollectedRun(path, conditions, tuple(solutions.values()))


def _refuse_duplicates(runs: Sequence[CollectedRun]) -> None:
    seen: dict[tuple[str, str], CollectedRun] = {}
    for run in runs:
        for solution in run.solutions:
            earlier = seen.setdefault((run.conditions.configuration, solution.question), run)
            if earlier is not run:
                raise UsageError(
                    f"{run.path}: problem {solution.id} is also in {earlier.path}, with the same settings",
                    "remove one of the two runs, so that no solution is counted twice",
                )


def _join(runs: Sequence[CollectedRun]) -> Collected:
    of_runs = [(run, solution) for run in runs for solution in run.solutions]
    solutions = [solution for _, solution in of_runs]
    states = [state for solution in solutions for state in solution.states]
    lengths = [len(solution.states) for solution in solutions]
    questions = tuple(dict.fromkeys(solution.question for solution in solutions))
    index_of = {question: index for index, question in enumerate(questions)}
    pairs = _distinct(run.conditions.pair for run in runs)
    outcomes = Outcomes(
        solution=np.repeat(np.arange(len(solutions)), lengths),
        problem=np.repeat([index_of[solution.question] for solution in solutions], lengths),
        is_written=np.repeat([not solution.is_unsolved for solution in solutions], lengths),
        **{name: np.array([getattr(state, name) for state in states], np.float64) for name in COLUMNS},
    )
    return Collected(
        runs=tuple(runs),
        features=np.concatenate([features_of(solution.question, solution.states) for solution in solutions]),
        outcomes=outcomes,
        fold=np.array([fold_of(question) for question in questions])[outcomes.problem],
        pair=np.repeat([pairs.index(run.conditions.pair) for run, _ in of_runs], lengths),
        is_whole=np.repeat([solution.is_whole for solution in solutions], lengths),
        questions=questions,
    )


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    all_values = list(values)
    return tuple(value for index, value in enumerate(all_values) if value not in all_values[:index])

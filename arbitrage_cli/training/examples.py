"""Reads the output of `arbitrage collect`, and splits the problems into training, validation and test parts."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.step_text import BLANK_LINE, StepEnd
from arbitrage_cli.routing.features import FEATURES
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.records import COLLECT
from arbitrage_cli.runs.results import unit_costs_of
from arbitrage_cli.runs.rows import CollectedRow
from arbitrage_cli.training.expected_loss import Outcomes
from arbitrage_cli.training.states import State, features_of, prefixes_of, state_from_json

TRAINING, VALIDATION, TEST = 0, 1, 2
SPLIT = ("training", "validation", "test")
SHARES = (0.6, 0.2)  # shares of the problems in training and validation
SHARES_WITH_TEST = (0.75, 0.25)  # if there are separate test runs

COLUMNS = ("draft_reward", "target_reward", "draft_tokens", "target_tokens", "target_prefill_tokens", "shared_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class CollectedSolution:
    """The states of one problem in a run. `is_whole` is false if the solution is unfinished."""

    id: str
    question: str
    states: tuple[State, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """The n states of one or more runs.

    `features` has shape (n, n_features). `part`, `pair` (an index into `pairs`) and `is_whole` have shape (n,).
    `outcomes.problem` is an index into `questions`. `facts` contains one run.json for each pair.
    """

    features: Floats
    outcomes: Outcomes
    part: NDArray[np.int64]
    pair: NDArray[np.int64]
    is_whole: NDArray[np.bool_]
    runs: tuple[Mapping[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]
    rewards: tuple[Mapping[str, Any], ...]
    costs: PairCosts | None
    questions: tuple[str, ...]
    step_end: StepEnd = BLANK_LINE
    solutions: tuple[CollectedSolution, ...] = ()
    facts: tuple[Mapping[str, Any], ...] = ()

    @property
    def weight(self) -> NDArray[np.float64]:
        """The states' weights, an array of shape (n,).

        In each part, the mean weight is 1 and all pairs have the same total weight.
        """
        weight = np.ones(len(self.part))
        for part in np.unique(self.part):
            pairs, index, counts = np.unique(self.pair[self.part == part], return_inverse=True, return_counts=True)
            weight[self.part == part] = counts.sum() / (len(pairs) * counts[index])
        return weight

    def prefixes(self, chosen: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.int64], NDArray[np.float64]]:
        """Return the m prefixes that a router scores, taken from the chosen drafted steps.

        The first array contains the features and has shape (m, n_features). The other two, of shape (m,), contain each
        prefix's index among the chosen states and its token count.
        """
        rank = np.cumsum(chosen) - 1  # the index of a state among the chosen states
        found: list[tuple[Floats, int, int]] = []
        start = 0
        for solution in self.solutions:
            end = start + len(solution.states)
            if chosen[start:end].any():
                prefixes = prefixes_of(solution.question, solution.states)
                found += [(row, rank[start + index], count) for index, count, row in prefixes if chosen[start + index]]
            start = end
        features, states, lengths = zip(*found, strict=True) if found else ((), (), ())
        rows = np.array(features, np.float32).reshape(-1, len(FEATURES))
        return rows, np.array(states, np.int64), np.array(lengths, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class CollectedRun:
    """The contents of a run folder of `arbitrage collect`: run.json (`facts`), and the solutions with their states."""

    path: Path
    facts: Mapping[str, Any]
    solutions: tuple[CollectedSolution, ...]
    is_test: bool = False

    @property
    def num_states(self) -> int:
        return sum(len(solution.states) for solution in self.solutions)

    @property
    def step_end(self) -> StepEnd:
        return StepEnd(self.facts["settings"]["step_separator"], self.facts["settings"]["step_min_chars"])

    @property
    def pair(self) -> dict[str, Any]:
        """The models as recorded on a router's card, without file paths."""
        models = {role: self.facts["models"][role] for role in ("draft", "target")}
        return {
            role: {"name": model.get("name") or model.get("source"), "sha256": model.get("sha256")}
            for role, model in models.items()
        }


def read_states(folders: Sequence[Path], test_folders: Sequence[Path] = ()) -> Collected:
    """Read run folders of `arbitrage collect`. Problems in `test_folders` belong to the test set.

    Raises UsageError if a folder is not a run of `arbitrage collect`, if a solution occurs twice, or if steps end differently;
    DamagedRunError if a file is damaged.
    """
    runs = [read_run(folder) for folder in folders] + [read_run(folder, is_test=True) for folder in test_folders]
    _refuse_duplicates(runs)
    for run in runs:
        if run.step_end != runs[0].step_end:
            reason = f"its steps end at {run.step_end}, but steps in {runs[0].path} end at {runs[0].step_end}"
            raise UsageError(f"{run.path}: {reason}", "use runs of a single task")
    if not any(run.num_states for run in runs):
        raise UsageError("these runs have no states", "collect states: arbitrage collect")
    if test_folders and not any(run.num_states for run in runs if run.is_test):
        raise UsageError("the test runs have no states", "collect states: arbitrage collect", option="test")
    return _join(runs)


def read_run(folder: Path, *, is_test: bool = False) -> CollectedRun:
    contents = read_run_folder(folder, COLLECT)
    solutions = {row.id: _solution(folder, row) for row in contents.rows}  # of several rows, the last one counts
    found = tuple(solution for solution in solutions.values() if solution.states)
    return CollectedRun(folder, contents.run, found, is_test)


def _solution(folder: Path, row: CollectedRow) -> CollectedSolution:
    try:
        states = sorted((state_from_json(entry) for entry in row.states), key=lambda state: state.position)
        if [state.position for state in states] != list(range(len(states))):
            raise ValueError("the positions of its states are not consecutive")
    except ValueError as error:
        raise UsageError(f"{folder}: problem {row.id}: {error}", "collect its states again: arbitrage collect") from error
    return CollectedSolution(row.id, row.question, tuple(states), row.status == "done")


def _refuse_duplicates(runs: Sequence[CollectedRun]) -> None:
    seen: dict[tuple[str, str], CollectedRun] = {}
    for run in runs:
        configuration = json.dumps(run.facts.get("fingerprint"), sort_keys=True)
        for solution in run.solutions:
            earlier = seen.setdefault((configuration, solution.question), run)
            if earlier is not run:
                raise UsageError(
                    f"{run.path}: problem {solution.id} is also in {earlier.path}, with the same settings",
                    "remove one of the two runs, so that no solution is counted twice",
                )


def _join(runs: Sequence[CollectedRun]) -> Collected:
    of_runs = [(run, solution) for run in runs for solution in run.solutions]
    solutions = tuple(solution for _, solution in of_runs)
    lengths = [len(solution.states) for solution in solutions]
    questions = tuple(dict.fromkeys(solution.question for solution in solutions))
    index_of = {question: index for index, question in enumerate(questions)}
    tested = frozenset(solution.question for run, solution in of_runs if run.is_test)
    pairs = _distinct(run.pair for run in runs)
    outcomes = Outcomes(
        solution=np.repeat(np.arange(len(solutions)), lengths),
        problem=np.repeat([index_of[solution.question] for solution in solutions], lengths),
        **{
            name: np.array([getattr(state, name) for solution in solutions for state in solution.states], np.float64)
            for name in COLUMNS
        },
    )
    return Collected(
        features=np.concatenate([features_of(solution.question, solution.states) for solution in solutions]),
        outcomes=outcomes,
        part=np.array([part_of(question, tested) for question in questions])[outcomes.problem],
        pair=np.repeat([pairs.index(run.pair) for run, _ in of_runs], lengths),
        is_whole=np.repeat([solution.is_whole for solution in solutions], lengths),
        runs=tuple(_about(run) for run in runs),
        pairs=pairs,
        rewards=_distinct(dict(run.facts["reward"]) for run in runs),
        costs=_costs_of(runs),
        questions=questions,
        step_end=runs[0].step_end,
        solutions=solutions,
        facts=tuple(next(run.facts for run in runs if run.pair == pair) for pair in pairs),
    )


def part_of(question: str, tested: frozenset[str] = frozenset()) -> int:
    """Return the part to which a problem belongs. The part depends only on the problem's text.

    If `tested` is not empty, the test part consists of these problems.
    """
    if question in tested:
        return TEST
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    training, validation = SHARES_WITH_TEST if tested else SHARES
    if place < training:
        return TRAINING
    return VALIDATION if place < training + validation or tested else TEST


def _distinct(values: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    all_values = list(values)
    return tuple(value for index, value in enumerate(all_values) if value not in all_values[:index])


def _about(run: CollectedRun) -> dict[str, Any]:
    dataset = run.facts.get("dataset") or {}
    return {
        "name": run.path.name,
        "dataset": dataset.get("name"),
        "dataset_sha256": dataset.get("sha256"),
        "problems": len({solution.question for solution in run.solutions}),
        "states": run.num_states,
        "think_min_chars": run.facts["settings"].get("think_min_chars"),
        "is_test": run.is_test,
    }


def _costs_of(runs: Sequence[CollectedRun]) -> PairCosts | None:
    """Return the costs of the largest run, or None if a run has no costs."""
    found = {run.num_states: PairCosts.of(unit_costs_of(run.facts)) for run in runs}
    return found[max(found)] if all(found.values()) else None

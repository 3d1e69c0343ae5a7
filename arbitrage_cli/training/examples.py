"""What `arbitrage collect` left in its runs, as arrays: read, checked, joined, split by problem.

Problems are split three ways, by their text alone: a training, a validation and a test part (`training` says what for). Knows no
head and no learning, and runs no model.
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.features import Floats
from arbitrage_cli.routing.states import State, features_of, state_from_json
from arbitrage_cli.routing.thresholds import Costs, Outcomes
from arbitrage_cli.runs.folder import COLLECT, encode, latest, read_run_folder
from arbitrage_cli.types import Problem

TRAINING, VALIDATION, TEST = 0, 1, 2
SPLIT = ("training", "validation", "test")
SHARES = (0.6, 0.2)  # of the problems that learn, and that choose; the rest is the test
SHARES_WITH_TEST = (0.75, 0.25)  # where the test is given

COLUMNS = ("draft_reward", "target_reward", "draft_tokens", "target_tokens", "target_prefill_tokens", "shared_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """The states of some runs: `features` (n, n_features), `hidden` (n, hidden_size) or None.

    Hidden states are None where the runs have none, or are of different drafts. `part` (n,) is the split, `pair` (n,) the
    index of each state's models in `pairs`, and `is_whole` (n,) whether its solution was collected to its end: the others are
    learned from, but what a tau does is told of whole solutions.
    """

    features: Floats
    hidden: NDArray[np.float16] | None
    outcomes: Outcomes
    part: NDArray[np.int64]
    pair: NDArray[np.int64]
    is_whole: NDArray[np.bool_]
    runs: tuple[Mapping[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]
    rewards: tuple[Mapping[str, Any], ...]
    costs: Costs | None

    @property
    def weight(self) -> NDArray[np.float64]:
        """What each state counts (n,): in each part every pair the same in sum, whatever its number of states; 1 on average."""
        weight = np.ones(len(self.part))
        for part in np.unique(self.part):
            pairs, index, counts = np.unique(self.pair[self.part == part], return_inverse=True, return_counts=True)
            weight[self.part == part] = counts.sum() / (len(pairs) * counts[index])
        return weight


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """The states of one row, the question they are about, and the index of its run."""

    question: str
    states: tuple[State, ...]
    run: int
    is_test: bool
    is_whole: bool


def read_states(folders: Sequence[Path], test_folders: Sequence[Path] = ()) -> Collected:
    """Read runs of `arbitrage collect`. The problems of `test_folders` are the test, wherever else they occur.

    UsageError for a run that is none of those, does not go with the others, or is there twice; DamagedRunError.
    """
    _refuse_twice((*folders, *test_folders))
    solutions: list[_Solution] = []
    runs: list[dict[str, Any]] = []
    known: dict[Hashable, Path] = {}
    for folder in (*folders, *test_folders):
        run, rows = _read(folder)
        index, is_test = len(runs), len(runs) >= len(folders)
        found = [
            _Solution(row["question"], states, index, is_test, row["status"] == "done")
            for row in rows
            if (states := _states(folder, row))
        ]
        _refuse_known(folder, run, rows, known)
        runs.append({**run, "path": folder, "states": sum(len(one.states) for one in found), "is_test": is_test})
        solutions += found
    if not any(run["states"] for run in runs):
        raise UsageError("there are no states in these runs", "collect some: arbitrage collect")
    if test_folders and not any(solution.is_test for solution in solutions):
        raise UsageError("there are no states in the runs that are to be the test", "collect some: arbitrage collect")
    return _join(solutions, runs)


def _refuse_twice(folders: Sequence[Path]) -> None:
    """By whichever path a folder is named."""
    places: set[Path] = set()
    for folder in folders:
        place = folder.resolve()
        if place in places:
            raise UsageError(f"{folder} is given twice", "its solutions would count twice: give each run once")
        places.add(place)


def _refuse_known(
    folder: Path, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], known: dict[Hashable, Path]
) -> None:
    """A solution counts once: a copied row is no other, and neither is the same problem solved in the same way again.

    `known` are the solutions of the runs before, each with its folder; those of this run are added.
    """
    made_with = json.dumps(run["fingerprint"], sort_keys=True) if run.get("fingerprint") else None
    for row in rows:
        if not row["states"]:
            continue
        marks: list[Hashable] = [hashlib.sha256(encode(row)).digest()]
        if made_with is not None:
            marks.append((made_with, row["question"]))
        earlier = [known[mark] for mark in marks if known.get(mark, folder) != folder]
        if earlier:
            raise UsageError(
                f"{folder}: problem {row['id']} was collected in the same way in {earlier[0]}",
                "it would count twice: give one of the two runs, or collect one of them with another --roll-in",
            )
        known.update(dict.fromkeys(marks, folder))


def recorded(folder: Path) -> tuple[dict[str, Any], list[tuple[Problem, tuple[State, ...]]]]:
    """A run of `arbitrage collect`: its run.json, and each problem with its states. Errors as for `read_states`."""
    run, rows = _read(folder)
    return run, [(Problem(row["id"], row["question"]), states) for row in rows if (states := _states(folder, row))]


def _read(folder: Path) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    contents = read_run_folder(folder, COLLECT)
    run = contents.run or {}
    try:
        models = {role: dict(run["models"][role]) for role in ("draft", "target")}
        found = {**run, "models": models, "reward": dict(run["reward"])}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder}: run.json does not describe the states ({error})", "collect them again: arbitrage collect"
        ) from error
    return found, latest(contents.rows)


def _states(folder: Path, row: Mapping[str, Any]) -> tuple[State, ...]:
    """The states of a row, in the order of their steps."""
    try:
        states = sorted((state_from_json(entry) for entry in row["states"]), key=lambda state: state.position)
        if not isinstance(row["question"], str):
            raise ValueError("its question is not text")
        if [state.position for state in states] != list(range(len(states))):
            raise ValueError("its states are not the steps of one solution")
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{folder}: problem {row['id']}: {error}", "collect it again: arbitrage collect") from error
    return tuple(states)


def _join(solutions: Sequence[_Solution], runs: Sequence[Mapping[str, Any]]) -> Collected:
    states = [state for solution in solutions for state in solution.states]
    lengths = [len(solution.states) for solution in solutions]
    numbers: dict[str, int] = {}
    problems = [numbers.setdefault(solution.question, len(numbers)) for solution in solutions]
    pair_of = [{role: _named(run["models"][role]) for role in ("draft", "target")} for run in runs]
    pairs = _distinct(pair_of)
    tested = _tested(solutions)
    parts = [part_of(question, tested) for question in numbers]
    outcomes = Outcomes(
        np.repeat(np.arange(len(solutions)), lengths),
        np.repeat(problems, lengths),
        *(np.array([getattr(state, name) for state in states], np.float64) for name in COLUMNS),
    )
    return Collected(
        np.concatenate([features_of(solution.question, solution.states) for solution in solutions]),
        _hidden(states, pairs),
        outcomes,
        np.array(parts)[outcomes.problem],
        np.repeat([pairs.index(pair_of[solution.run]) for solution in solutions], lengths),
        np.repeat([solution.is_whole for solution in solutions], lengths),
        tuple(_about(run) for run in runs),
        pairs,
        _distinct(run["reward"] for run in runs),
        _mean_costs(runs),
    )


def _named(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as cards name it. Where its file is stays on the machine that has it."""
    return {"name": model.get("name") or model.get("source"), "sha256": model.get("sha256")}


def _tested(solutions: Sequence[_Solution]) -> frozenset[str] | None:
    """The questions of the runs that were given as the test; None if none were."""
    return frozenset(solution.question for solution in solutions if solution.is_test) or None


def part_of(question: str, tested: frozenset[str] | None = None) -> int:
    """The part of the split that a problem belongs to: a function of its text, whatever its id and whichever the runs.

    With problems given as the test, they are it, and the others learn and choose.
    """
    if tested is not None and question in tested:
        return TEST
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    learns, chooses = SHARES if tested is None else SHARES_WITH_TEST
    return TRAINING if place < learns else VALIDATION if place < learns + chooses or tested is not None else TEST


def _hidden(states: Sequence[State], pairs: Sequence[Mapping[str, Any]]) -> NDArray[np.float16] | None:
    """All hidden states, if every state has one, of the same draft."""
    drafts = _distinct(pair["draft"] for pair in pairs)
    rows = [state.hidden for state in states if state.hidden is not None]
    if len(drafts) != 1 or len(rows) != len(states):
        return None
    if len({len(row) for row in rows}) != 1:
        raise UsageError("the hidden states of these runs have different sizes", "collect them anew: arbitrage collect")
    return np.stack(rows)


def _distinct(values: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    found: list[Mapping[str, Any]] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


def _about(run: Mapping[str, Any]) -> dict[str, Any]:
    dataset = run.get("dataset") or {}
    return {
        "name": run["path"].name,
        "dataset": dataset.get("name"),
        "dataset_sha256": dataset.get("sha256"),
        "states": run["states"],
        "is_test": run["is_test"],
    }


def _mean_costs(runs: Sequence[Mapping[str, Any]]) -> Costs | None:
    """The mean over runs, by their states; None if one has none."""
    try:
        costs = [Costs.from_json(run.get("costs") or {}) for run in runs]
    except ValueError:
        return None
    weights = [run["states"] for run in runs]
    columns = {
        name: [getattr(one, name) for one in costs]
        for name in asdict(costs[0])
        if all(getattr(one, name) is not None for one in costs)
    }
    return Costs(**{name: float(np.average(values, weights=weights)) for name, values in columns.items()})

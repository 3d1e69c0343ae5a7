"""Collects the training states for routers, stores them as JSON, and reads them from the runs of `arbitrage collect`.

A state is a step that both models wrote from the same text, with both rewards. States store token statistics rather than
features, so new features do not require collecting states again.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import AllowInfNan, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from arbitrage_cli.arbitrage import Flow, RateSteps, WriteStep
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.errors import DamagedRunError, UsageError, os_errors
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.proposals import Proposal
from arbitrage_cli.inference.step_text import StepEnd
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.learning.examples import Examples, fold_of
from arbitrage_cli.numbers.intervals import Indices, Mask, Numbers
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.routing.router import TrainedModel, is_due
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.records import COLLECT
from arbitrage_cli.runs.rows import CollectedRow, Count, Record
from arbitrage_cli.runs.run import Run
from arbitrage_cli.system import xz
from arbitrage_cli.system.files import open_regular, reason_of
from arbitrage_cli.training.taus import ADVANTAGE_DIGITS, Outcomes
from arbitrage_cli.types import (
    WRITING,
    Cost,
    Decision,
    Fields,
    Json,
    ModelRole,
    Phase,
    Problem,
    Step,
    StepStop,
    T,
    TokenStats,
    Trace,
)

_PIECE = re.compile(r"\d|\s?[^\W\d]+|\s?[^\w\s]|\s+")
STATS = ("log_probabilities", "entropies", "margins")
STATS_TYPE = "<f2"

PACKED = ".xz"  # suffix of files of packed states

MAX_UNSOLVED = 2  # states

COLUMNS = ("draft_reward", "target_reward", "draft_tokens", "target_tokens", "target_prefill_tokens", "shared_tokens")


def _from_base64(value: object) -> object:
    return np.frombuffer(base64.b64decode(value, validate=True), STATS_TYPE).tolist() if isinstance(value, str) else value


Statistic = Annotated[
    Sequence[Annotated[float, AllowInfNan()]],
    BeforeValidator(_from_base64),
    PlainSerializer(lambda numbers: base64.b64encode(np.array(numbers, STATS_TYPE).tobytes()).decode()),
]
"""A number for each token of the drafted step. Stored as a base64 string of little-endian float16 numbers."""


Reward = Annotated[float, Field(ge=0, le=1)]


class State(Record):
    """The drafted step and the target's step at the same `position` of a solution, with both rewards.

    The target prefilled `target_prefill_tokens` tokens and then wrote `target_tokens` tokens. Raises ValidationError, a
    ValueError, if a number is invalid.
    """

    position: Count
    draft_text: str
    draft_stop: StepStop
    pieces: Sequence[str]
    log_probabilities: Statistic
    entropies: Statistic
    margins: Statistic
    target_text: str
    draft_reward: Reward
    target_reward: Reward
    advantage: float
    kept: ModelRole
    target_tokens: Count
    target_prefill_tokens: Count
    phase: Phase = "answer"

    @classmethod
    def of(cls, position: int, draft: Step, target: Step, draft_reward: float, target_reward: float) -> Self:
        """Return the state of a drafted step with known token statistics. The better step is kept, or the draft's."""
        advantage = round(target_reward - draft_reward, ADVANTAGE_DIGITS)  # so that equal differences compare equal
        return cls(
            position=position,
            draft_text=draft.text,
            draft_stop=draft.stop,
            **asdict(draft.known_token_stats),
            target_text=target.text,
            draft_reward=draft_reward,
            target_reward=target_reward,
            advantage=advantage,
            kept="target" if advantage > 0 else "draft",
            target_tokens=target.num_tokens,
            target_prefill_tokens=target.cost.prefill_tokens,
            phase=draft.phase,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = [getattr(self, name) for name in STATS]
        if {len(column) for column in columns} != {self.draft_tokens} or not self.draft_tokens:
            raise ValueError("a state does not have one value per token of the drafted step")
        if np.isnan(columns).any():
            raise ValueError("the token statistics of a state contain NaN")
        if self.advantage != round(self.target_reward - self.draft_reward, ADVANTAGE_DIGITS):
            raise ValueError("the advantage of a state is not the difference of its rewards")
        return self

    @property
    def draft_tokens(self) -> int:
        return len(self.pieces)

    @cached_property
    def draft(self) -> Step:
        token_stats = TokenStats(self.log_probabilities, self.entropies, self.margins, self.pieces)
        return Step("draft", self.draft_text, self.draft_tokens, Cost(), self.draft_stop, token_stats, phase=self.phase)

    @property
    def decision(self) -> Decision:
        target = Step("target", self.target_text, self.target_tokens, Cost(), "separator", phase=self.phase)
        return Decision(target if self.kept == "target" else self.draft, self.draft, target, advantage=self.advantage)

    @property
    def shared_tokens(self) -> int:
        """The estimated number of target tokens that the drafted step, as a proposal, would predict correctly.

        The estimate compares words, symbols and digits instead of tokens, so it does not depend on a vocabulary.
        """
        numbers: dict[str, int] = {}
        drafted, written = (
            [numbers.setdefault(piece, len(numbers)) for piece in _PIECE.findall(text)]
            for text in (self.draft_text, self.target_text)
        )
        lengths = {number: len(piece) for piece, number in numbers.items()}
        proposal = Proposal(drafted)
        shared = sum(lengths[number] for number in written if proposal.follow(number))
        return self.target_tokens * shared // max(1, len(self.target_text))


class Judgement(NamedTuple):
    """The target's step at the position of a drafted step, and the rewards of both steps."""

    target: Step
    draft_reward: float
    target_reward: float


Judge = Callable[[Trace, Step], Generator[WriteStep | RateSteps, Any, Judgement]]
"""Lets the target write its step beside a drafted one, and rates both."""


def by_rating(trace: Trace, draft: Step) -> Generator[WriteStep | RateSteps, Any, Judgement]:
    """Let the target write its step, and request a reward for each step unless both are equal."""
    target: Step = yield WriteStep("target", trace, proposal=draft)
    is_same = (draft.text, draft.ends_thoughts) == (target.text, target.ends_thoughts)
    rewards = yield RateSteps(trace, (draft,) if is_same else (draft, target))
    return Judgement(target, rewards[0], rewards[-1])


def by_continuing(continuations: Continuations) -> Judge:
    """Reward each step with 1 if the target's continuation of it is right.

    The target's step is the first step of its own continuation, so a state takes at most one new continuation.
    """

    def judge(trace: Trace, draft: Step) -> Generator[WriteStep, Any, Judgement]:
        (target, *_), is_right = yield from continuations.after(trace)
        _, stays_right = yield from continuations.after(trace.followed_by(draft))
        return Judgement(target, float(stays_right), float(is_right))

    return judge


def collect(trace: Trace, judge: Judge, observe: Callable[[State], None]) -> Flow:
    """Write every step with both models, keep the better step, and pass each state to `observe`.

    If the rewards are equal, the drafted step is kept. The draft must record token statistics. The flow ends early if all
    rewards of the first `MAX_UNSOLVED` states are 0, because the target hardly ever solves such a problem.
    """
    best = 0.0
    while not trace.finished and (best or len(trace.decisions) < MAX_UNSOLVED):
        draft: Step = yield WriteStep("draft", trace)
        target, draft_reward, target_reward = yield from judge(trace, draft)
        state = State.of(len(trace.decisions), draft, target, draft_reward, target_reward)
        best = max(best, draft_reward, target_reward)
        observe(state)
        trace.add(Decision(target if state.kept == "target" else draft, draft, target, advantage=state.advantage))


def features_of(question: str, states: Sequence[State]) -> Floats:
    """Return the features of one solution's n states, an array of shape (n, n_features)."""
    rows = [features(state.draft) for state, features in _replayed(question, states)]
    return np.array(rows, np.float32).reshape(-1, len(FEATURES))


def prefixes_of(question: str, states: Sequence[State]) -> Iterator[tuple[int, int, Floats]]:
    """For each prefix that a router scores, yield the state index, the token count and the features."""
    for state, features in _replayed(question, states):
        for num_tokens in filter(is_due, range(1, state.draft_tokens)):
            yield state.position, num_tokens, features(prefix_of(state.draft, num_tokens))


def _replayed(question: str, states: Sequence[State]) -> Iterator[tuple[State, Callable[[Step], Floats]]]:
    """Yield each state with the function that computes the features of a step at its position."""
    earlier = EarlierSteps(Problem("", question))
    decisions = [state.decision for state in states]
    for index, state in enumerate(states):
        yield state, partial(earlier.features, decisions[:index])


def prefix_of(draft: Step, num_tokens: int) -> Step:
    token_stats = draft.known_token_stats
    first = TokenStats(**{name: getattr(token_stats, name)[:num_tokens] for name in (*STATS, "pieces")})
    return replace(draft, text="".join(first.pieces), num_tokens=num_tokens, stop="early", token_stats=first)


# --- reading runs


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
    def costs(self) -> PairCosts | None:
        """The token costs of the largest run whose models were measured, if any."""
        found = {run.num_states: costs for run in self.runs if (costs := PairCosts.of(run.conditions.unit_costs))}
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

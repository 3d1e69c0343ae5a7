"""Defines the rows of runs. One type for each kind of row builds, checks, writes and reads it.

Other programs read these rows, so fields may be added but not renamed. A field that was not set is not written.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from arbitrage_cli.errors import ContextFullError
from arbitrage_cli.numbers.formatting import count
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route, stored_route
from arbitrage_cli.runs.records import (
    BENCH,
    COLLECT,
    NO_COST,
    SCHEMA,
    SOLVE,
    AttemptKey,
    Explain,
    Level,
    RunInfo,
    Tally,
    Tau,
    attempt_error,
    problem_error,
    tally_of,
    tau_in_json,
)
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.types import (
    Check,
    CheckedSolution,
    Cost,
    Decision,
    Finished,
    Grade,
    Json,
    ModelRole,
    Phase,
    Step,
    StepStop,
    Trace,
    TraceStop,
)

Status = Literal["done", "error"]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Elapsed = Annotated[dict[Literal["seconds"], Seconds], Field(min_length=1)]


def _check_policy(policy: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}")
    return policy


_COST_FIELDS = tuple(field.name for field in fields(Cost))


def _numbers(cost: Cost) -> dict[str, float]:
    """Return the fields of a cost, much faster than `asdict`."""
    return {name: getattr(cost, name) for name in _COST_FIELDS}


def _check_cost(cost: Cost) -> Cost:
    if bad := [name for name, value in _numbers(cost).items() if not 0 <= value <= 2**53]:
        raise ValueError(f"{bad[0]} is out of range")
    return cost


PolicyName = Annotated[str, AfterValidator(_check_policy)]
ModelCost = Annotated[Cost, AfterValidator(_check_cost)]
StepCost = Annotated[
    ModelCost, PlainSerializer(lambda cost: {name: value for name, value in _numbers(cost).items() if value})
]


class Record(BaseModel):
    """A part of a row."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    def to_dict(self) -> Json:
        return self.model_dump(by_alias=True, exclude_unset=True)


class WrittenStep(Record):
    """A step as written by a model. Its costs omit fields whose value is 0."""

    model: ModelRole
    phase: Phase
    text: str
    tokens: Count
    seconds: Seconds
    stop: StepStop
    cost: StepCost
    speculation_cost: StepCost | None

    @classmethod
    def of(cls, step: Step, **more: Any) -> Self:
        return cls(
            model=step.model,
            phase=step.phase,
            text=step.text,
            tokens=step.num_tokens,
            seconds=step.seconds,
            stop=step.stop,
            cost=step.cost,
            speculation_cost=step.speculation_cost if step.speculation_cost != NO_COST else None,
            **more,
        )

    @property
    def step(self) -> Step:
        speculation = self.speculation_cost or NO_COST
        return Step(self.model, self.text, self.tokens, self.cost, self.stop, None, speculation, self.phase)


class KeptStep(WrittenStep):
    """A kept step, and the discarded step if both models wrote one. Only `solve --explain` sets `explanation`."""

    decision: Literal["accept", "escalate"] | None
    score: float | None
    advantage: float | None
    discarded: WrittenStep | None
    explanation: Json | None = None

    @classmethod
    def of_decision(cls, made: Decision, **more: Any) -> Self:
        discarded = WrittenStep.of(made.discarded) if made.discarded else None
        decided = {"decision": made.choice, "score": made.score, "advantage": made.advantage, "discarded": discarded}
        return cls.of(made.kept, **decided, **more)

    @property
    def made(self) -> Decision:
        kept = self.step
        discarded = self.discarded and self.discarded.step
        by_model = {step.model: step for step in (kept, discarded) if step}
        return Decision(kept, by_model.get("draft"), by_model.get("target"), self.score, self.advantage)


class ComparedSolution(Record):
    """A solution whose answer policy `agree` compared. If it was kept, its steps are those of the row."""

    model: ModelRole
    sample: Count
    answer: str | None
    has_ended: bool
    steps: list[WrittenStep]

    @classmethod
    def of(cls, solution: CheckedSolution) -> Self:
        steps = [WrittenStep.of(step) for step in solution.steps]
        return cls(
            model=solution.model,
            sample=solution.sample,
            answer=solution.answer,
            has_ended=solution.has_ended,
            steps=steps,
        )

    @property
    def solution(self) -> CheckedSolution:
        steps = [written.step for written in self.steps]
        return CheckedSolution(self.model, self.answer, steps, self.sample, self.has_ended)


class ComparedAnswers(Record):
    """The solutions that the `agree` policy compared, in the order in which they were begun."""

    agrees: bool
    solutions: list[ComparedSolution]

    @classmethod
    def of(cls, check: Check) -> Self:
        return cls(agrees=check.agrees, solutions=[ComparedSolution.of(solution) for solution in check.solutions])

    @property
    def check(self) -> Check:
        return Check([compared.solution for compared in self.solutions], self.agrees)


class Timing(Record):
    """Tokens and seconds spent by each model, by the router, on rating steps, and by the rest of the program."""

    draft: ModelCost
    target: ModelCost
    check: ModelCost | None = None
    router: Elapsed | None = None
    program: Elapsed | None = None
    reward: ModelCost | None = None

    @classmethod
    def of(cls, figures: Tally, **seconds: float | None) -> Self:
        """Return the timing of a solution. `seconds` contains other times, which are omitted if they are None."""
        others: Json = {name: {"seconds": spent} for name, spent in seconds.items() if spent is not None}
        others |= {
            name: cost for name, cost in (("check", figures.check_cost), ("reward", figures.reward_cost)) if cost != NO_COST
        }
        return cls(draft=figures.draft_cost, target=figures.target_cost, **others)


class Row(Record):
    """The fields of every row. `run` is the identity of the run, without which a row belongs to no run folder.

    `policy` is None only for an invalid line in the input of `solve`. `conditions` names what was not as the run decided, and changes no answer: the machine, threads, problems at once.
    """

    id: str
    run: str | None = None
    policy: PolicyName | None
    tau: Tau
    status: Status
    error: str | None
    conditions: Json | None = None

    @property
    def key(self) -> AttemptKey:
        return self.id, getattr(self, "sample", 0), self.policy, self.tau


class Solved(Row):
    """The fields shared by the rows of `bench` and `solve`.

    `rollouts` contains the costs of the steps that the target wrote only to rate other steps. `abandoned` contains the steps
    that a server had written ahead, or that a model was writing, when the problem ended.
    """

    policy: PolicyName
    problem: str
    text: str
    answer: str | None
    stop: TraceStop | None
    steps: list[KeptStep]
    check: ComparedAnswers | None = None
    rollouts: list[StepCost] = Field(default_factory=list)
    abandoned: list[WrittenStep] = Field(default_factory=list)
    acceptance_rate: float | None
    token_acceptance_rate: float | None
    seconds: Seconds
    target_alone_seconds_estimate: Seconds | None
    tau_name: str | None
    timing: Timing

    @property
    def decisions(self) -> list[Decision]:
        return [step.made for step in self.steps]

    @property
    def route(self) -> Route:
        return stored_route(dict(self))

    @classmethod
    def _of(
        cls, finished: Finished, route: Route, times: Mapping[str, float | None], explain: Explain | None, **more: Any
    ) -> Self:
        trace = finished.trace
        figures = tally_of(finished)
        shared: Json = {
            "id": trace.problem.id,
            "problem": trace.problem.question,
            "text": trace.text,
            "stop": trace.stop,
            "policy": route.policy.name,
            "tau": tau_in_json(route.tau),
            "tau_name": route.tau_name,
            "status": "error" if attempt_error(finished) else "done",
            "steps": [
                KeptStep.of_decision(made, **_explanation(explain, trace, index))
                for index, made in enumerate(trace.decisions)
            ],
            "acceptance_rate": figures.acceptance_rate,
            "token_acceptance_rate": figures.token_acceptance_rate,
            "seconds": figures.seconds,
            "target_alone_seconds_estimate": finished.target_alone_seconds,
            "timing": Timing.of(figures, **times),
        }
        if trace.check:
            shared["check"] = ComparedAnswers.of(trace.check)
        if trace.rollouts:
            shared["rollouts"] = [step.cost for step in trace.rollouts]
        if finished.abandoned:
            shared["abandoned"] = [WrittenStep.of(step) for step in finished.abandoned]
        return cls(**shared | more)


class SolutionRow(Solved):
    """A row that `solve` writes.

    `wrong_equations` contains the numbers, from 1, of kept steps with a wrong equation. It is empty except in task `math`.
    `warnings` says why the models probably cannot solve the problem.
    """

    wrong_equations: list[int]
    warnings: list[str]
    score_is: str | None
    settings: Json
    draft: str | None
    target: str | None
    models: dict[ModelRole, str]

    @classmethod
    def of(cls, finished: Finished, run: RunInfo) -> Self:
        error = problem_error(finished)
        return cls._of(
            finished,
            run.route,
            {},
            run.explain,
            answer=run.find_answer(finished.trace.text),
            error=error[0] if error else None,
            wrong_equations=run.wrong_equations(finished.trace),
            warnings=list(run.warnings(finished.trace.problem)),
            score_is=run.route.policy.score_is or None,
            settings=dict(run.settings),
            draft=run.models.get("draft"),
            target=run.models.get("target"),
            models=dict(run.descriptions),
        )


class AttemptRow(Solved):
    """A row that `bench` writes.

    If the target's answer has no grade, `same_as_target` says whether the answer equals the target's.
    """

    version: Literal[4] = Field(alias="schema")
    sample: Count
    level: Level
    gold: Json
    grade: Grade | None
    same_as_target: bool | None = None
    wall_seconds: Seconds

    @model_validator(mode="after")
    def _check_grade(self) -> Self:
        if self.grade is None and self.status == "done":
            raise ValueError("grade: missing for a finished attempt")
        return self

    @property
    def took(self) -> float:
        return self.wall_seconds

    @property
    def verdict(self) -> tuple[str, str]:
        """The grade and the answer, or "error" and the error. An answer without a grade may be compared with the target's."""
        if self.grade is None:
            return "error", self.error or ""
        if self.grade.value != "unscored" or self.same_as_target is None:
            return self.grade.value, self.grade.answer or ""
        return ("same answer" if self.same_as_target else "another answer"), self.grade.answer or ""

    @classmethod
    def of(cls, finished: Finished, route: Route, times: Mapping[str, float | None], **facts: Any) -> Self:
        """Return the row of an attempt. `times` contains the seconds of the router, if there is one, and of the program.

        `facts` contains the fields that the solution does not determine: `sample`, `level`, `gold`, `grade`, `answer`,
        `same_as_target` and `wall_seconds`.
        """
        routed = {**times, "router": None} if route.policy.keeps_every_token else times  # nothing is decided
        error = attempt_error(finished)
        cut = {"stop": "context"} if isinstance(finished.error, ContextFullError) and not error else {}
        return cls._of(
            finished,
            route,
            routed,
            None,
            error=error,
            schema=SCHEMA,
            **cut,
            **facts,
        )


class CollectedRow(Row):
    """A row that `collect` writes."""

    version: Literal[4] = Field(alias="schema")
    policy: PolicyName
    sample: Count
    level: Level
    question: str
    text: str
    states: list[Json]
    is_unsolved: bool = False  # all rewards were 0, so the collection ended before the solution
    seconds: Seconds

    @property
    def took(self) -> float:
        return self.seconds

    @property
    def verdict(self) -> tuple[str, str]:
        """The status, and the number of states or the error."""
        return self.status, self.error or count(len(self.states), "state")


class SolutionLine(Row, extra="allow"):
    """A row of `solve`, as read from a file. `problem` and `policy` are None for an invalid input line."""

    problem: str | None
    text: str
    answer: str | None
    steps: list[Json]

    @classmethod
    def unusable(cls, number: int, reason: str) -> Self:
        unknown = dict.fromkeys(("problem", "answer", "stop", "policy", "tau"))
        return cls(id=str(number), status="error", error=f"line {number}: {reason}", text="", steps=[], **unknown)


_KINDS: Mapping[str, type[Row]] = MappingProxyType({BENCH: AttemptRow, COLLECT: CollectedRow, SOLVE: SolutionLine})


def read_row(line: bytes, kind: str) -> Row:
    """Parse a row of a run of this kind. Raises ValueError, with the reason, if the row is invalid."""
    try:
        return _KINDS[kind].model_validate_json(line)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None


def _explanation(explain: Explain | None, trace: Trace, index: int) -> Json:
    """Return the field `explanation` of a step, if decisions are explained."""
    if explain is None:
        return {}
    found = explain(trace, index)
    return {"explanation": found and asdict(found) | {"features": dict(found.features)}}

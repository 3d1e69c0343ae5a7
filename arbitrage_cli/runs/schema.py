"""Defines the fields of rows and run.json as pydantic types. All files are validated with these types when they are read."""

from dataclasses import fields
from types import MappingProxyType
from typing import Annotated, Any, Literal, NotRequired, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.records import BENCH, COLLECT, SOLVE, Level
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.types import Cost, Grade, ModelRole, Phase, StepStop, TraceStop

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)

Json = dict[str, Any]
Tau = float | Literal["inf", "-inf"] | None
Status = Literal["done", "error"]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
_Spent = Annotated[dict[Literal["seconds"], Seconds], Field(min_length=1)]


def _check_policy(policy: str) -> str:
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}")
    return policy


PolicyName = Annotated[str, AfterValidator(_check_policy)]


def _fields_of(record: type, *, total: bool = True, **more: Any) -> Any:
    """Return the schema of a JSON object with the fields of a dataclass. If `total` is false, all fields are optional."""
    bounds = {int: Count, float: Seconds}
    hints = get_type_hints(record)
    own = {field.name: bounds.get(hints[field.name], hints[field.name]) for field in fields(record)}
    json_object = TypedDict(record.__name__, own | more, total=total)  # type: ignore[misc]
    return GetPydanticSchema(lambda source, handler: handler.generate_schema(json_object))


class Written(TypedDict):
    """A step as written by a model. Cost records omit fields whose value is 0."""

    model: ModelRole
    phase: Phase
    text: str
    tokens: Count
    seconds: Seconds
    stop: StepStop
    cost: Annotated[Json, _fields_of(Cost, total=False)]
    speculation_cost: Annotated[Json, _fields_of(Cost, total=False)] | None


class KeptStep(Written):
    """A kept step, and the discarded step if both models wrote one."""

    decision: Literal["accept", "escalate"] | None
    score: float | None
    advantage: float | None
    discarded: Written | None


class ExplainedStep(KeptStep):
    """A kept step with an explanation of its score, written by `solve --explain`."""

    explanation: Json | None


class Timing(TypedDict):
    """Tokens and seconds spent by each model, by the router, on rating steps, and by the rest of the program."""

    draft: Annotated[Json, _fields_of(Cost, decode_tokens_per_second=Seconds | None)]
    target: Annotated[Json, _fields_of(Cost, decode_tokens_per_second=Seconds | None)]
    router: NotRequired[_Spent]
    program: NotRequired[_Spent]
    reward: NotRequired[Annotated[Json, _fields_of(Cost, decode_tokens_per_second=Seconds | None, seconds=Seconds)]]


class Solved(TypedDict):
    """The fields shared by benchmark rows and `solve` records."""

    id: str
    problem: str
    policy: PolicyName
    tau: Tau
    tau_name: str | None
    text: str
    answer: str | None
    stop: TraceStop | None
    status: Status
    error: str | None
    steps: list[KeptStep]
    acceptance_rate: float | None
    token_acceptance_rate: float | None
    seconds: Seconds
    target_alone_seconds_estimate: Seconds | None
    timing: Timing


class Solution(Solved):
    """A record that `solve` writes."""

    score_is: str | None
    temperature: float
    seed: int
    settings: Json
    draft: str | None
    target: str | None
    models: dict[str, str]


@with_config({**_CONFIG, "extra": "forbid"})
class Attempted(Solved):
    """A row that `bench` writes."""

    schema: Literal[1]
    sample: Count
    level: Level
    gold: Json
    grade: Annotated[Json, _fields_of(Grade)] | None
    wall_seconds: Seconds


@with_config({**_CONFIG, "extra": "forbid"})
class Collected(TypedDict):
    """A row that `collect` writes."""

    schema: Literal[1]
    id: str
    sample: Count
    policy: PolicyName
    tau: Tau
    status: Status
    error: str | None
    level: Level
    question: str
    text: str
    states: list[Json]
    seconds: Seconds


@with_config({**_CONFIG, "extra": "allow"})
class _SolutionLine(TypedDict):
    """The fields that are read from a `solve` record. `problem` and `policy` are None for an invalid input line."""

    id: str
    problem: str | None
    policy: PolicyName | None
    tau: Tau
    text: str
    answer: str | None
    status: Status
    error: str | None
    steps: list[Json]


class _PolicyEntry(TypedDict):
    policy: PolicyName
    tau: Tau
    tau_name: str | None
    score_is: str | None


class _Served(TypedDict):
    model: str
    log_probabilities: int | None
    context_size: int | None


class _Model(TypedDict):
    source: str
    sha256: str | None
    file: NotRequired[str | None]
    name: NotRequired[str | None]
    description: NotRequired[str | None]
    threads: NotRequired[int | None]
    served: NotRequired[_Served | None]


class _Named(TypedDict):
    name: str
    sha256: str


class _Card(TypedDict):
    pairs: list[dict[str, Json]]
    taus: Json


class _Router(_Named):
    card: _Card


class _DataSet(_Named):
    count: Count


class _Sampling(TypedDict):
    temperature: float
    samples: Annotated[int, Field(ge=1)]


_Batches = Annotated[list[Seconds], Field(min_length=len(ROWS), max_length=len(ROWS))]


class _Machine(TypedDict):
    cpu: str | None


@with_config({**_CONFIG, "extra": "allow"})
class _SolveRun(TypedDict):
    schema: Literal[1]
    tool: str
    command: list[str]
    created: str
    policies: list[_PolicyEntry]
    models: dict[str, _Model]
    router: _Router | None
    tau_costs: str | None
    sampling: _Sampling
    limits: Json
    context: Json
    machine: _Machine
    warnings: list[str]
    fingerprint: dict[str, str]
    task: NotRequired[str]
    named_taus: NotRequired[dict[str, float] | None]
    unit_costs: NotRequired[dict[ModelRole, Annotated[Json, _fields_of(UnitCosts, batches=_Batches)]]]


@with_config({**_CONFIG, "extra": "allow"})
class _BenchRun(_SolveRun):
    dataset: _DataSet
    ids: list[str]
    levels: dict[str, Level]
    planned: Count
    grader: str
    concurrency: NotRequired[Annotated[int, Field(ge=1)] | None]
    price: NotRequired[str | None]
    skips_attempts: NotRequired[bool]


class _Pair(TypedDict):
    draft: _Model
    target: _Model
    prm: NotRequired[_Model]


@with_config({**_CONFIG, "extra": "allow"})
class _CollectRun(_BenchRun):
    models: _Pair  # type: ignore[misc]  # narrower than a dict
    reward: Json


_ROWS = MappingProxyType(
    {BENCH: TypeAdapter[Any](Attempted), COLLECT: TypeAdapter[Any](Collected), SOLVE: TypeAdapter[Any](_SolutionLine)}
)
_RUNS = MappingProxyType(
    {BENCH: TypeAdapter[Any](_BenchRun), COLLECT: TypeAdapter[Any](_CollectRun), SOLVE: TypeAdapter[Any](_SolveRun)}
)


def read_row(line: bytes, kind: str) -> Json:
    """Parse a row of a run of this kind. Raises ValueError, with the reason, if the row is invalid."""
    row = _checked(_ROWS[kind], line)
    if kind == BENCH and row["grade"] is None and row["status"] == "done":
        raise ValueError("grade: missing for a finished attempt")
    return row


def check_run(data: bytes, kind: str) -> None:
    """Raise ValueError, with the reason, if `data` is not a valid run.json of this kind."""
    if kind not in (*_RUNS,):  # it may be of any type
        raise ValueError(f"kind: expected {', '.join(_RUNS)}")
    _checked(_RUNS[kind], data)


def _checked(adapter: TypeAdapter[Any], data: bytes) -> Json:
    try:
        record: Json = adapter.validate_json(data)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None
    return record

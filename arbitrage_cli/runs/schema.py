"""What rows and run.json look like. A file with other types in it is refused where it is read, and nowhere else."""

from types import MappingProxyType
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from arbitrage_cli.system.files import reason_of

SCHEMA = 1
"""Of rows and run.json: a folder of another schema is refused."""
BENCH, COLLECT = "bench", "collect"
"""The commands that make runs; their rows differ. run.json of a benchmark does not name its kind."""

_CONFIG = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Json = dict[str, Any]
Level = str | int | None
Tau = float | Literal["inf", "-inf"] | None
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


# --- rows


class Key(TypedDict):
    """What every row has: what it is about, and whether it is a result."""

    schema: Literal[1]
    id: str
    sample: Count
    policy: str
    tau: Tau


class Written(TypedDict):
    """A step as one model wrote it."""

    model: Literal["draft", "target"]
    text: str
    tokens: Count
    seconds: Seconds
    stop: str | None


class StepRow(Written):
    """A step that was kept, and what was decided about it."""

    decision: Literal["accept", "escalate"] | None
    score: float | None
    advantage: float | None
    discarded: Written | None


class CostRow(TypedDict):
    """The work of one model: the fields of `Cost`."""

    prefill_tokens: Count
    prefill_seconds: Seconds
    decode_tokens: Count
    decode_seconds: Seconds
    verify_tokens: Count
    verify_seconds: Seconds
    verify_kept: Count
    cached_tokens: Count
    verify_batches: Count


class SecondsRow(TypedDict):
    """Time of work that is not a model's."""

    seconds: Seconds


class Timing(TypedDict):
    """The work of both models, of the router, and of what scores steps."""

    draft: CostRow
    target: CostRow
    router: NotRequired[SecondsRow]
    reward: NotRequired[SecondsRow]


class GradeRow(TypedDict):
    """The grade of an answer."""

    value: Literal["correct", "incorrect", "unscored"]
    answer: str | None
    explanation: str


class ShareRow(TypedDict):
    """One problem's part of the time of a block."""

    block: Count
    of: Count
    seconds: Seconds


class Attempted(Key):
    """An attempt of a benchmark."""

    problem: str
    text: str
    answer: str | None
    stop: str | None
    error: str | None
    steps: list[StepRow]
    level: Level
    gold: Json
    wall_seconds: Seconds
    timing: Timing
    tau_name: NotRequired[str | None]
    throughput: NotRequired[ShareRow]


class Done(Attempted):
    """One that has a result."""

    status: Literal["done"]
    grade: GradeRow


class Failed(Attempted):
    """One that has none."""

    status: Literal["error"]
    grade: GradeRow | None


@with_config(_CONFIG)
class Collected(Key):
    """The states of one problem. What a state is, `routing.states` checks."""

    status: Literal["done", "error"]
    level: Level
    question: str
    states: list[Json]


@with_config(_CONFIG)
class Solution(TypedDict):
    """A record in the file of `solve -o`. A line of the input that cannot be used has no problem, and no settings."""

    id: str
    problem: str | None
    text: str
    answer: str | None
    error: str | None
    steps: list[Json]
    settings: NotRequired[Json]


# --- run.json


class PolicyEntry(TypedDict):
    """A policy at a tau."""

    policy: str
    tau: Tau
    tau_name: str | None
    score_is: str | None


class Served(TypedDict):
    """A model on a server."""

    model: str
    log_probabilities: int | None
    context_size: int | None
    counts_tokens: bool


class Model(TypedDict):
    """A model. Without a file it is a demo model, or on a server."""

    source: str
    sha256: str | None
    file: NotRequired[str | None]
    name: NotRequired[str | None]
    description: NotRequired[str | None]
    threads: NotRequired[int | None]
    served: NotRequired[Served | None]


class Named(TypedDict):
    """Something with a name and a digest."""

    name: str
    sha256: str


class DataSet(Named):
    """A data set, by the digest of its rows."""

    count: Count


class Sampling(TypedDict):
    """How tokens are drawn."""

    temperature: float
    samples: Annotated[int, Field(ge=1)]


class Machine(TypedDict):
    """Where it ran."""

    cpu: str | None


class Run(TypedDict):
    """What run.json has for every kind of run."""

    schema: Literal[1]
    tool: str
    command: list[str]
    created: str
    policies: list[PolicyEntry]
    router: Named | None
    dataset: DataSet
    ids: list[str]
    levels: dict[str, Level]
    planned: Count
    grader: str
    sampling: Sampling
    limits: Json
    context: Json
    machine: Machine
    warnings: list[str]
    fingerprint: dict[str, str]
    concurrency: NotRequired[Annotated[int, Field(ge=1)] | None]
    task: NotRequired[str]


@with_config(_CONFIG)
class BenchRun(Run):
    """run.json of a benchmark."""

    models: dict[str, Model]


class Pair(TypedDict):
    """The two models of a pair, and what scores their steps."""

    draft: Model
    target: Model
    prm: NotRequired[Model]


@with_config(_CONFIG)
class CollectRun(Run):
    """run.json of collected states."""

    models: Pair
    reward: Json
    costs: NotRequired[Json]


# --- reading

_ATTEMPT = TypeAdapter[Any](Annotated[Done | Failed, Field(discriminator="status")], config=_CONFIG)
_ROWS = MappingProxyType({BENCH: _ATTEMPT, COLLECT: TypeAdapter[Any](Collected)})
_SOLUTION = TypeAdapter[Any](Solution)
_RUNS = MappingProxyType({BENCH: TypeAdapter[Any](BenchRun), COLLECT: TypeAdapter[Any](CollectRun)})


def read_row(line: bytes, kind: str) -> Json:
    """A row of that kind of run. ValueError with the reason if it is something else."""
    return _checked(_ROWS[kind], line)


def read_solution(line: bytes) -> Json:
    """A record of `solve -o`. ValueError with the reason if it is something else."""
    return _checked(_SOLUTION, line)


def check_run(data: bytes, kind: str) -> None:
    """ValueError with the reason unless this is run.json of that kind of run."""
    if kind not in (BENCH, COLLECT):
        raise ValueError(f"kind: neither {BENCH} nor {COLLECT}")
    _checked(_RUNS[kind], data)


def _checked(form: TypeAdapter[Any], data: bytes) -> Json:
    try:
        found: Json = form.validate_json(data)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None
    return found

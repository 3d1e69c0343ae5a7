"""Defines the fields of run.json as pydantic types, with which it is validated when it is read."""

from types import MappingProxyType
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.runs.records import BENCH, COLLECT, SOLVE, Level, Tau
from arbitrage_cli.runs.rows import Count, Json, PolicyName, Seconds
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.types import ModelRole

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)


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


class _UnitCosts(TypedDict):
    batches: Annotated[list[Seconds], Field(min_length=len(ROWS), max_length=len(ROWS))]
    prefill_token: Seconds
    prefill_call: Seconds
    error: Seconds


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
    settings: Json
    samples: Annotated[int, Field(ge=1)]
    machine: _Machine
    warnings: list[str]
    fingerprint: dict[str, str]
    unit_costs: NotRequired[dict[ModelRole, _UnitCosts]]


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


_RUNS = MappingProxyType(
    {BENCH: TypeAdapter[Any](_BenchRun), COLLECT: TypeAdapter[Any](_CollectRun), SOLVE: TypeAdapter[Any](_SolveRun)}
)


def check_run(data: bytes, kind: str) -> None:
    """Raise ValueError, with the reason, if `data` is not a valid run.json of this kind."""
    if kind not in (*_RUNS,):  # it may be of any type
        raise ValueError(f"kind: expected {', '.join(_RUNS)}")
    try:
        _RUNS[kind].validate_json(data)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None

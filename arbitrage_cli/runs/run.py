"""The record of a run, run.json: what was asked, what was decided from it on this machine, and what the run contains.

One type writes, checks and reads it. A resumed run reads the stored decisions and never makes them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Interval
from pydantic import AfterValidator, Field, ValidationError, model_validator

from arbitrage_cli.costs.pair import Prices, bill, parse_prices
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.step_text import THOUGHT_END
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.gguf import KV_BYTES
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.router import TrainedModel
from arbitrage_cli.runs.records import ADVISE, BENCH, COLLECT, Command, Kind, Level, Tau, tau_in_json
from arbitrage_cli.runs.rows import Count, PolicyName, Record
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.system.machine import MAX_THREADS
from arbitrage_cli.types import MAX_CONCURRENCY, MAX_CONTEXT, Bill, Finished, Json, ModelRole, Positive, RoleLimits

MACHINE: Mapping[str, str] = MappingProxyType({"cpu": "processor", "gpu": "GPU", "llama_cpp_python": "llama-cpp-python"})
"""The facts about a machine that affect times, by their names in run.json."""


def _check_kv_type(name: str) -> str:
    if name not in KV_BYTES:
        raise ValueError(f"unknown type {name!r}")
    return name


def _check_measured(costs: UnitCosts) -> UnitCosts:
    if not costs.decode:
        raise ValueError("no measured token is free")
    return costs


class Asked(Record):
    """The request of the user: the command, the options that were typed or set, and the names of those that were typed."""

    command: list[str]
    options: Json
    typed: list[str]


class ServedSetup(Record):
    """The identity of a model on a server: the server's facts, which must not change, and how the model is prompted.

    `facts` is None if the server was not asked. `template_sha256` belongs to the template that replaces the server's.
    """

    facts: Json | None = None
    template_sha256: str | None = None


class ModelSetup(Record):
    """The identity of a model. `sha256` is None without GGUF files, and `costs` if the model was not measured.

    The costs are approximate if other programs disturbed the measurement.
    The architecture, the number of parameters and the size of the vocabulary come from the files. `name` is shown to users:
    a file's name, a name on the Hub, the name of a built-in model, or that of a server's model. `threads` is None on a
    server.
    """

    name: str
    size: Count | None = None
    sha256: str | None = None
    architecture: str | None = None
    num_parameters: Count | None = None
    vocabulary_size: Count | None = None
    threads: Annotated[int, Interval(ge=1, le=MAX_THREADS)] | None = None
    context_size: Annotated[int, Interval(ge=1, le=MAX_CONTEXT)] | None = None
    costs: Annotated[UnitCosts, AfterValidator(_check_measured)] | None = None
    costs_are_approximate: bool = False
    served: ServedSetup | None = None

    def known_as(self, name: str) -> TrainedModel:
        """Return what a router's card says about the model, with the name that the loaded model has."""
        return TrainedModel(name, self.sha256, self.architecture, self.num_parameters, self.vocabulary_size)


class RouteSetup(Record):
    """A policy with its numeric tau, and whether its drafted steps are stopped early."""

    policy: PolicyName
    tau: Tau
    tau_name: str | None
    stops_early: bool

    @model_validator(mode="after")
    def _check_tau(self) -> Self:
        if (self.tau is not None) != POLICIES[self.policy].has_tau:
            raise ValueError(f"tau: policy {self.policy} has {'one' if self.tau is None else 'none'}")
        if self.tau_name and self.tau_name.endswith("%"):
            float(self.tau_name[:-1])  # raises ValueError
        return self

    @classmethod
    def of(cls, route: Route) -> Self:
        name = route.policy.name
        tau = tau_in_json(route.tau)
        return cls(policy=name, tau=tau, tau_name=route.tau_name, stops_early=route.stops_early)

    @property
    def route(self) -> Route:
        tau = None if self.tau is None else float(self.tau)
        return Route(POLICIES[self.policy], tau, self.tau_name, self.stops_early)


class RouterSetup(Record):
    """The identity of the router. Its card is in its file."""

    name: str
    sha256: str


class Settings(Record):
    """The settings that affect the text of every solution."""

    task: str
    step_separator: str
    step_min_chars: Count
    think_min_chars: Count | None
    system: str
    chat_template_kwargs: Json
    sampler: Sampler
    limits: RoleLimits
    reward: str | None
    kv_type: Annotated[str, AfterValidator(_check_kv_type)]
    gpu_layers: Annotated[int, Ge(-1)] | Literal["auto"]
    flash_attention: bool | Literal["auto"]

    def of_call(
        self, roles: Sequence[ModelRole] = ("target",), limits: RoleLimits | None = None, sampler: Sampler | None = None
    ) -> Json:
        """Return the settings for the record of a solution by models with these roles, with the limits and sampler of a call."""
        by_role = limits or self.limits
        own, check = by_role.of(*roles), by_role.check
        values = self.to_dict() | asdict(sampler or self.sampler)
        values |= {
            "max_steps": own.max_steps,
            "max_tokens": own.token_limit,
            "max_step_tokens": own.max_step_tokens,
            "think_tokens": own.thinking.max_tokens if own.thinking.is_on else 0,
            "think_min_chars": THOUGHT_END.min_chars if own.thinking.is_on else None,
            "quick_answers": by_role.has_quick_answers,
            "check_thinking": check and ("on" if check.thinking.is_on else "off"),
        }
        return {name: values[name] for name in values if name not in ("sampler", "limits")}

    @property
    def load(self) -> LoadOptions:
        """The options for loading any model, without its context size and threads."""
        return LoadOptions(
            gpu_layers=None if self.gpu_layers == "auto" else self.gpu_layers,
            flash_attention=None if self.flash_attention == "auto" else self.flash_attention,
            kv_type=self.kv_type,
            template_variables=self.chat_template_kwargs,
        )


class Setup(Record):
    """The decisions that followed from a request, on one machine at one moment.

    `left_out` maps the routes that an advice cannot try to the reasons. `concurrency` is the number of problems at once.
    `tau_costs` names the costs on which presets are based, if any are used.
    """

    models: dict[ModelRole, ModelSetup]
    routes: Annotated[list[RouteSetup], Field(min_length=1)]
    router: RouterSetup | None
    tau_costs: str | None
    price: str | None
    concurrency: Annotated[int, Interval(ge=1, le=MAX_CONCURRENCY)]
    settings: Settings
    machine: dict[str, str | None]
    notes: list[str] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        lacking = {role for one in self.routes for role in self._needed(one.route)} - self.models.keys()
        if lacking:
            raise ValueError(f"models: missing {', '.join(sorted(lacking))}")
        if self.router is None and any(one.route.policy.needs_router for one in self.routes):
            raise ValueError("router: missing")
        if not self.machine.get("cpu"):
            raise ValueError("machine: missing cpu")
        return self

    def _needed(self, route: Route) -> set[ModelRole]:
        """Return the models that a route needs. Without a checker, the draft takes its place."""
        needed: set[ModelRole] = {role for role in route.policy.models if role != "check"}
        return needed | {"prm"} if route.policy.needs_prm(self.settings.reward) else needed

    @property
    def route(self) -> Route:
        return self.routes[0].route

    @property
    def processor(self) -> str:
        return self.machine["cpu"] or ""

    @property
    def prices(self) -> Prices | None:
        return parse_prices(self.price) if self.price else None

    def bill(self, finished: Finished) -> Bill | None:
        served = {role for role, model in self.models.items() if model.served}
        return bill(self.prices, finished, served) if self.prices else None

    @property
    def names(self) -> dict[ModelRole, str]:
        return {role: model.name for role, model in self.models.items()}

    @property
    def unit_costs(self) -> dict[ModelRole, UnitCosts]:
        """The measured unit costs, which determine the relative costs of a model's kinds of work."""
        return {role: model.costs for role, model in self.models.items() if model.costs}


class DataSet(Record):
    """The data set of a run, whose problems may have been added to at its end."""

    name: str
    revision: str | None
    sha256: str
    count: Count


class LoadedModel(Record):
    """The facts that a model reported when it was loaded."""

    name: str
    description: str
    chat_template_sha256: str | None


class Run(Record):
    """The contents of run.json. `id` is the identity of the run, which is also in each of its rows.

    `levels` has an entry for each problem of the run, and is empty for runs of `solve`.

    `places` contains the paths of the models and the router, where they are found again by their checksums. Nothing is sent
    to an address that only run.json names. `reward` describes the rewards of collected states. A run that `skips_attempts` has
    rows only for the attempts that `advise` needed. `protections` limit the programs that models write. `loaded` and
    `flags`, those of llama.cpp, are known once a model is loaded.
    """

    version: Literal[4] = Field(alias="schema")
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    kind: Kind
    tool: str
    created: str
    asked: Asked
    decided: Setup
    places: dict[str, str] = Field(default_factory=dict)
    dataset: DataSet | None = None
    levels: dict[str, Level] = Field(default_factory=dict)
    samples: Positive = 1
    grader: str | None = None
    reward: Json | None = None
    skips_attempts: bool = False
    protections: list[str] = Field(default_factory=list)
    loaded: dict[ModelRole, LoadedModel] = Field(default_factory=dict)
    flags: str | None = None
    warnings: list[str] = Field(default_factory=list)

    def to_dict(self) -> Json:
        return self.model_dump(by_alias=True)

    def changed(self, **values: Any) -> Self:
        return self.model_copy(update=values)

    @property
    def command(self) -> Command:
        """The command that made the run: `advise`, or that of its kind."""
        return ADVISE if self.skips_attempts else self.kind

    @property
    def routes(self) -> list[Route]:
        return [decided.route for decided in self.decided.routes]

    def name_of(self, role: ModelRole) -> str:
        """Return the name that a model has in its file or on its server, or the name that the user gave."""
        return self.loaded[role].name if role in self.loaded else self.decided.models[role].name


def read_run(data: bytes) -> Run:
    """Parse run.json. Raises ValueError, with the reason, if it is invalid."""
    try:
        run = Run.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None
    if run.kind in (BENCH, COLLECT) and (run.dataset is None or run.grader is None):
        raise ValueError("dataset: missing")
    return run

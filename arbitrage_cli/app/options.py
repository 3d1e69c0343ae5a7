"""Groups of command options: frozen dataclasses whose field annotations define help texts, bounds and names."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import Limits

SOME_FAILED = 1
MAX_CONTEXT = 1 << 24  # tokens; above any model, and within llama.cpp's integers
MAX_THREADS = 512  # llama.cpp's limit, which it does not check


def given_options(explicit: Collection[str], *groups: Any) -> list[str]:
    """Return the options in `explicit` as command-line arguments."""
    parts: list[str] = []
    for group in groups:
        for name, kind in get_type_hints(type(group), include_extras=True).items():
            if name in explicit:
                value = getattr(group, name)
                on, _, off = kind.__metadata__[0].of(name, kind.__origin__).names[0].partition("/")
                parts += [on] if value is True else [off] if value is False else [on, str(value)]
    return parts


def resume_command(command: Sequence[str]) -> str:
    return shlex.join(part for part in command if part != "--fresh")


RewardSource = Literal["prm", "rollout"]
"""A process reward model, or rollouts that are checked against the known answer."""
ResultFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class Option:
    """The command-line form of an option: its help panel, bounds, and names (default: the parameter's name).

    If `is_setting` is false, the option can be set only by a flag; if `is_flag` is false, only by a setting.
    """

    panel: str
    help: str = ""
    metavar: str | None = None
    names: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    is_setting: bool = True
    is_flag: bool = True

    def of(self, parameter: str, kind: Any) -> "Option":
        """Return a copy with the names filled in. An optional bool has two flags, --name and --no-name."""
        name = f"--{parameter.replace('_', '-')}"
        return replace(self, names=self.names or (f"{name}/--no{name[1:]}" if kind == bool | None else name,))

    @property
    def name(self) -> str:
        """The first name without leading dashes, as used in settings files."""
        return self.names[0].removeprefix("--").partition("/")[0]

    @property
    def variable(self) -> str | None:
        return f"ARBITRAGE_{self.name.replace('-', '_').upper()}" if self.is_setting else None


_models, _routing, _generation = partial(Option, "Models"), partial(Option, "Routing"), partial(Option, "Generation")
_machine, _problems, _output = partial(Option, "Machine"), partial(Option, "Problems"), partial(Option, "Output")
_setting = partial(Option, "", is_flag=False)


Group = TypeVar("Group")


def check(group: Group) -> Group:
    """Return the option group. Raises UsageError if a value has the wrong type or is out of bounds."""
    values = {
        name: _checked(kind.__origin__, kind.__metadata__[0], name, getattr(group, name))
        for name, kind in get_type_hints(type(group), include_extras=True).items()
    }
    return type(group)(**values)


def _checked(kind: Any, option: Option, name: str, value: Any) -> Any:
    if value is None:
        return None
    from pydantic import Field, TypeAdapter, ValidationError  # slow to import

    bounded: Any = Annotated[kind, Field(ge=option.min, le=option.max)]
    try:
        return TypeAdapter(bounded).validate_python(value, strict=True)
    except ValidationError as error:
        raise UsageError(f"{error.errors()[0]['msg']}, not {value!r:.60}", option=name) from error


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """Draft, target and router."""

    draft: Annotated[
        str | None,
        _models("Fast model: a GGUF file, user/repo:quant on the Hub, or http://host:port/v1#model.", "MODEL"),
    ] = None
    target: Annotated[str | None, _models("Strong model, in the same format as --draft.", "MODEL")] = None
    pair: Annotated[str | None, _models("Pair of draft and target models; see arbitrage models list.", "NAME")] = None
    offline: Annotated[bool, _models("Use local files only; never contact the Hub.")] = False
    router: Annotated[
        str | None,
        _models("Trained router. Default: the pair's router, or the universal router.", "FILE"),
    ] = None


@dataclass(frozen=True, slots=True)
class ModelOptions(RouterOptions):
    """`RouterOptions` with a process reward model."""

    prm: Annotated[
        str | None, _models("Process reward model for policies rsd and oracle, and for --reward prm.", "MODEL")
    ] = None


_TAU_HELP = (
    "Escalate steps that score above this threshold (inf: none). With a router: also careful (default), balanced, fast, or the "
    "share of steps to escalate, such as 30%. For other defaults, see arbitrage guide routing."
)
_EARLY_STOP_HELP = "Stop poor drafted steps early and escalate them. Default: on if this saves time."


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """The policy and its threshold."""

    tau: Annotated[str | None, _routing(_TAU_HELP, "TAU")] = None
    early_stop: Annotated[bool | None, _routing(_EARLY_STOP_HELP)] = None
    policy: Annotated[
        str | None,
        _routing(
            "Routing policy: arbitrage (a trained router), draft or target (one model alone), speculative (the target "
            "verifies draft tokens), or another policy from arbitrage guide routing. Default: arbitrage.",
            "NAME",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class BenchRoutingOptions:
    """The policies to compare."""

    policy: Annotated[
        str | None,
        _routing(
            "Policies to compare, each with an optional tau, such as target,arbitrage@fast,entropy@0.5. Default: target, "
            "draft, speculative (only for local models), arbitrage and logprob.",
            "NAME[@TAU],...",
        ),
    ] = None
    early_stop: Annotated[bool | None, _routing(_EARLY_STOP_HELP)] = None
    reward: Annotated[
        RewardSource | None,
        _routing(
            "Reward for policy oracle: prm (a process reward model) or rollout (whether the target reaches the known "
            "answer)."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The task, the prompt, the limits and the sampling settings."""

    task: Annotated[
        str | None,
        _generation(
            "Task type, which determines the prompt, step boundaries and grading. Default: the data set's task, or math.",
            "math|code|choice|free",
        ),
    ] = None
    system: Annotated[str | None, _generation("System prompt. Default: the prompt of the pair or the task.", "TEXT")] = None
    think: Annotated[
        str | None,
        _generation(
            "Thinking before the answer: on, off, or limited to N tokens. Default: as set by the chat templates.",
            "on|off|N",
        ),
    ] = None
    max_steps: Annotated[int | None, _setting(min=1)] = None
    max_tokens: Annotated[
        int | None, _generation("Token limit per solution. Default: 4096, or 16384 with thinking.", min=1)
    ] = None
    max_step_tokens: Annotated[int, _setting(min=1)] = Limits().max_step_tokens
    temperature: Annotated[float, _generation("Sampling temperature; 0 is greedy.", min=0.0, max=10.0)] = 0.0
    top_p: Annotated[float, _setting(min=0.0, max=1.0)] = 1.0
    top_k: Annotated[int, _setting(min=0)] = 0
    min_p: Annotated[float, _setting(min=0.0, max=1.0)] = 0.0
    seed: Annotated[int, _generation("Seed for sampling and for policy random.")] = 0


@dataclass(frozen=True, slots=True)
class SamplingOptions(GenerationOptions):
    """`GenerationOptions` with flags for sampling."""

    top_p: Annotated[
        float,
        _generation("Top-p (nucleus) sampling: cumulative probability of the tokens to sample from.", min=0.0, max=1.0),
    ] = 1.0
    top_k: Annotated[int, _generation("Top-k sampling: number of tokens to sample from; 0 means all.", min=0)] = 0


@dataclass(frozen=True, slots=True)
class AccelerationOptions:
    """The loading options that affect token costs."""

    gpu_layers: Annotated[int | None, _setting(min=-1)] = None
    flash_attention: Annotated[bool | None, _setting()] = None
    kv_type: Annotated[Literal["auto", "f16", "q8_0", "q4_0", "f32"], _setting()] = "auto"


@dataclass(frozen=True, slots=True)
class ThreadOptions(AccelerationOptions):
    """`AccelerationOptions` with the context size and the number of threads."""

    ctx: Annotated[
        int | None,
        _machine("Context size in tokens. Default: up to 4096, or up to 16384 with thinking.", min=64, max=MAX_CONTEXT),
    ] = None
    threads: Annotated[
        int | None,
        _machine(
            "Threads per model. Default: as measured on this machine; if not measured, 1 for models up to 32 MiB and "
            "all physical cores for larger models.",
            min=1,
            max=MAX_THREADS,
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class MachineOptions(ThreadOptions):
    """`ThreadOptions` with the concurrency."""

    concurrency: Annotated[
        str | None,
        _machine(
            "Number of problems to solve at once: up to 64, or 1024 with models on servers. Higher values increase "
            "throughput and latency. Default: 1; for collect and serve, 8.",
            "N|auto",
        ),
    ] = None


RunCode = Annotated[
    Literal["sandboxed", "unprotected"] | None,
    _problems(
        "Allow programs written by models to run, which is required to grade code. --run-code runs them in bubblewrap; "
        "--run-code=unprotected is for use in containers. See arbitrage guide code.",
        names=("--run-code",),
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemOptions:
    """A data set and a selection of its problems."""

    dataset: Annotated[
        str,
        _problems(
            "Data set: math500, gsm8k, olympiadbench, aime24, aime25, amc23, humaneval, mbpp, arc, builtin, builtin-dev; or "
            "a JSONL, CSV or parquet file of problems with answers (for collect, answers are optional).",
            "NAME|FILE",
        ),
    ]
    mapping: Annotated[
        str | None,
        _problems("Field names in the file, such as question=prompt,answer=gold,id=key.", "FIELD=NAME,...", ("--map",)),
    ] = None
    limit: Annotated[
        str | None,
        _problems("Sample N problems with --seed, balanced across levels, or select a range such as 10-20.", "N|FIRST-LAST"),
    ] = None
    ids: Annotated[str | None, _problems("Use only the problems with these ids.", "ID,...")] = None
    run_code: RunCode = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The options for the output on standard error."""

    quiet: Annotated[bool, _output("Show only results, warnings and errors.", names=("--quiet", "-q"))] = False
    debug: Annotated[bool, _output("Show every step, llama.cpp messages and tracebacks.")] = False


Debug = Annotated[bool, _output("Show tracebacks.", names=("--debug",))]
JsonFigures = Annotated[bool, _output("Print the figures as a single line of JSON.", names=("--json",))]


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """The output format of tables."""

    json_line: JsonFigures = False
    explain: Annotated[bool, _output("Explain each figure below the table.")] = False


Price = Annotated[
    str | None,
    _output(
        "Show costs at these prices per million input and output tokens: draft=0.02/0.10,target=0.60/2.40. With three prices, "
        "the second is for cached input. Default: the price of the pair's target.",
        "ROLE=IN/OUT,...",
    ),
]


@dataclass(frozen=True, slots=True)
class FigureOptions(ComparisonOptions):
    """`ComparisonOptions` with prices."""

    price: Price = None


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The input file and the selection of its problems."""

    input_file: Annotated[
        str | None,
        _problems(
            "File with one problem per line, or in JSONL, CSV or parquet format. Use - for standard input.",
            "FILE",
            names=("--input", "-i"),
            is_setting=False,
        ),
    ] = None
    mapping: Annotated[
        str | None,
        _problems("Field names in the file, such as question=prompt.", "FIELD=NAME,...", names=("--map",), is_setting=False),
    ] = None
    limit: Annotated[
        str | None,
        _problems("Solve only the first N problems, or a range such as 10-20.", "N|FIRST-LAST", is_setting=False),
    ] = None


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """The destination and the format of results."""

    output_file: Annotated[
        Path | None,
        _output(
            "Write one JSON record per input line to this file. To resume, run the same command again.",
            "FILE",
            names=("--output", "-o"),
            is_setting=False,
        ),
    ] = None
    form: Annotated[
        ResultFormat | None,
        _output(
            "Format of standard output: text (answers) or json (records). Default: nothing with "
            "--output; otherwise text for one problem or on a terminal, and json in other cases.",
            names=("--format",),
        ),
    ] = None
    json_lines: Annotated[bool, _output("Same as --format json.", names=("--json",))] = False
    explain: Annotated[
        bool,
        _output("Explain each router decision with its main features and the step's cost per model.", is_setting=False),
    ] = False
    hide_thoughts: Annotated[bool, _output("Hide the thinking phase.")] = False


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """The folder of a run."""

    output_folder: Annotated[
        Path | None,
        _output("Run folder. Default: runs/NAME, named after the data set and the models.", "FOLDER", ("--output", "-o")),
    ] = None
    fresh: Annotated[
        bool, _output("Start over. Existing results in the folder are kept under another name.", is_setting=False)
    ] = False


_bench = partial(Option, "Benchmark")


@dataclass(frozen=True, slots=True)
class BenchOptions(FolderOptions):
    """The attempts and the run folder of a benchmark."""

    dry_run: Annotated[bool, _bench("Show the plan and the expected time, but run nothing.", is_setting=False)] = False
    samples: Annotated[int, _bench("Attempts per problem; sample k uses seed + k.", min=1)] = 1
    timeout: Annotated[float | None, _bench("Time limit per attempt, in seconds. Default: none.", min=0.001, max=1e6)] = None


KEY_VARIABLE = "ARBITRAGE_SERVE_API_KEY"
_server = partial(Option, "Server")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The address, API key and limits of the server."""

    host: Annotated[str, _server("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _server("Port to listen on; 0 selects a free port.", min=0, max=65535)] = 8080
    api_key_file: Annotated[
        Path | None, _server(f"File with the API key that clients must send. Default: the key in {KEY_VARIABLE}.", "FILE")
    ] = None
    no_api_key: Annotated[bool, _server("Allow other machines to connect without an API key.")] = False
    queue: Annotated[int, _server("Maximum number of waiting requests.", min=0, max=10_000)] = 64
    timeout: Annotated[float, _server("Time limit per request, in seconds.", min=1, max=86_400)] = 600.0


_advice = partial(Option, "Advice")


@dataclass(frozen=True, slots=True)
class AdviceOptions(FolderOptions):
    """The problems and time limit for advice, and where to save the result."""

    dataset: Annotated[
        str | None,
        _advice(
            "Problems similar to yours: a data set or a file of questions. Default: the built-in problems.",
            "NAME|FILE",
        ),
    ] = None
    mapping: Annotated[
        str | None,
        _advice("Field names in the file, such as question=prompt,answer=gold.", "FIELD=NAME,...", names=("--map",)),
    ] = None
    minutes: Annotated[
        float, _advice("Time limit in minutes, including loading and the measurement of token costs.", min=0.001, max=10_000)
    ] = 10.0
    save: Annotated[
        bool, _advice("Save the advice in the pair's entry in pairs.toml, so that other commands use it by default.")
    ] = False
    run_code: RunCode = None
    price: Price = None
    costs: Annotated[bool, _advice("Only measure and show token costs.", is_setting=False)] = False
    forget: Annotated[
        bool, _advice("Remove the measured token costs of these models, and the advice on them.", is_setting=False)
    ] = False


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """The options for step rewards."""

    reward: Annotated[
        RewardSource | None,
        Option(
            "Collect",
            "Source of step rewards: prm (a process reward model, the default) or rollout (whether the target's "
            "continuation of the step reaches the known answer; if no answer is known, the target's own answer).",
        ),
    ] = None
    rollouts: Annotated[
        int,
        Option("Collect", "Rollouts per step. A single rollout is greedy; multiple rollouts are sampled.", min=1, max=16),
    ] = 1


_training = partial(Option, "Training")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options for training a router."""

    test: Annotated[
        list[Path] | None,
        _training("Run whose problems are held out for testing. Default: a fifth of all problems is held out.", "RUN"),
    ] = None
    seed: Annotated[int, _training("Seed for the initial network weights.")] = 0
    source: Annotated[
        str | None,
        _training(
            "Keep the network of this router and recompute its presets, using token costs measured on this machine if "
            "available.",
            "ROUTER",
            names=("--from",),
            is_setting=False,
        ),
    ] = None

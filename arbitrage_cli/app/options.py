"""The options that commands share, in groups: each a frozen dataclass, and how a command line shows its fields."""

import shlex
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from arbitrage_cli.errors import UsageError
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Limits

NOT_REPEATED = ("--fresh",)
"""Flags that do not belong to the command that resumes a run."""
DEFAULTS = Limits()
SOME_FAILED = 1
"""The exit code if some problems failed and the others are done."""
MAX_CONTEXT = 1 << 24  # tokens: above any model, and below what llama.cpp counts in
MAX_THREADS = 512  # llama.cpp's own limit; it does not check it
_DEFAULT_TAUS = ", ".join(
    f"{name} {policy.default_tau:g}" for name, policy in POLICIES.items() if policy.default_tau is not None
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the program. `flags` are the parameters whose value was given on the command line, not by a setting."""

    arguments: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

    def count(self, flag: str) -> int:
        """How often a flag with a value was given."""
        return sum(part.partition("=")[0] == flag for part in self.arguments)

    @property
    def command(self) -> list[str]:
        """The command line as a list."""
        return ["arbitrage", *self.arguments]

    @property
    def resuming(self) -> str:
        """The command line that resumes a run of this one, quoted for a shell."""
        return shlex.join(part for part in self.command if part not in NOT_REPEATED)


class RewardSource(StrEnum):
    """Where the rewards of steps come from: a process reward model, or continuations that reach the known answer."""

    prm = "prm"
    rollout = "rollout"


class ResultFormat(StrEnum):
    """What standard output gets of a solved problem."""

    text = "text"
    json = "json"
    tsv = "tsv"


class KvType(StrEnum):
    """Number formats of the KV cache."""

    auto = "auto"
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    f32 = "f32"


@dataclass(frozen=True, slots=True)
class Option:
    """How a command line shows an option: its names, its panel of --help, its bounds. Without `is_setting` it is a flag alone.

    Without `is_flag` it is a setting alone, of a settings file or of the environment: `arbitrage guide settings` explains it.
    """

    panel: str
    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    is_setting: bool = True
    is_flag: bool = True

    @property
    def variable(self) -> str | None:
        """Its environment variable, named after the first of its names."""
        name = self.names[0].removeprefix("--").partition("/")[0].replace("-", "_").upper()
        return f"ARBITRAGE_{name}" if self.is_setting else None


def option(panel: str, *names: str, help: str, **more: Any) -> Option:  # noqa: A002 - the word of every command line
    """An option of a panel."""
    return Option(panel, names, help, **more)


_models, _routing, _generation = partial(option, "Models"), partial(option, "Routing"), partial(option, "Generation")
_machine, _problems, _output = partial(option, "Machine"), partial(option, "Problems"), partial(option, "Output")
_setting = partial(option, "", help="", is_flag=False)


def check_bounds(group: Any) -> None:
    """UsageError if a field of an option group is outside the bounds of its option: for callers without a command line."""
    for name, kind in get_type_hints(type(group), include_extras=True).items():
        shown, value = kind.__metadata__[0], getattr(group, name)
        least = -inf if shown.min is None else shown.min
        most = inf if shown.max is None else shown.max
        if isinstance(value, int | float) and not least <= value <= most:
            raise UsageError(f"{name} {value} is not between {least:g} and {most:g}", option=name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Which draft and target."""

    draft: Annotated[
        str | None,
        _models(
            "--draft",
            metavar="MODEL",
            help="Fast model: a GGUF file, user/repo[:quant] on the Hub, http://host:port/v1[#model], or scripted:draft.",
        ),
    ] = None
    target: Annotated[
        str | None, _models("--target", metavar="MODEL", help="Strong model, named in the same ways, or scripted:target.")
    ] = None
    pair: Annotated[
        str | None, _models("--pair", metavar="NAME", help="Draft and target by one name: see arbitrage models list.")
    ] = None
    offline: Annotated[bool, _models("--offline", help="Use only models that are on this machine; never ask the Hub.")] = (
        False
    )


@dataclass(frozen=True, slots=True)
class HeadOptions(PairOptions):
    """The same with a trained head."""

    head: Annotated[
        str | None, _models("--head", metavar="FILE", help="Trained head. Default: the pair's own, else the universal one.")
    ] = None


@dataclass(frozen=True, slots=True)
class ModelOptions(HeadOptions):
    """The same with a process reward model."""

    prm: Annotated[
        str | None,
        _models("--prm", metavar="MODEL", help="Process reward model, for policies rsd and oracle and for --reward prm."),
    ] = None


_TAU_HELP = (
    "Threshold: a step is escalated if the router's score is above it (inf: never). With a head also exact (default), "
    f"balanced, fast, or a budget such as 30%. Untuned defaults of the other policies: {_DEFAULT_TAUS}."
)
_EARLY_STOP_HELP = "Stop a drafted step that begins badly and call the target at once. Default: if that saves time."


@dataclass(frozen=True, slots=True)
class HeadRoutingOptions:
    """Which steps the target writes, for a command whose policy is always arbitrage."""

    tau: Annotated[str | None, _routing("--tau", metavar="TAU", help=_TAU_HELP)] = None
    early_stop: Annotated[bool | None, _routing("--early-stop/--no-early-stop", help=_EARLY_STOP_HELP)] = None


@dataclass(frozen=True, slots=True)
class RoutingOptions(HeadRoutingOptions):
    """The same with a policy."""

    policy: Annotated[
        str | None,
        _routing(
            "--policy",
            metavar="|".join(POLICIES),
            help="What decides who writes a step. draft, target: that model alone; speculative: the target's text but for "
            "near-ties, with tokens that the draft proposes. Default: arbitrage (entropy for scripted models).",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class BenchRoutingOptions:
    """What a benchmark compares."""

    policy: Annotated[
        str | None,
        _routing(
            "--policy",
            metavar="NAME[@TAU],...",
            help=f"What to compare: any of {', '.join(POLICIES)}. A policy may have its own tau: entropy@0.5,entropy@1. "
            "Default: target, draft, speculative where both are here, and arbitrage (entropy for scripted models).",
        ),
    ] = None
    tau: Annotated[str | None, _routing("--tau", metavar="TAU,...", help="Tau for policies without their own.")] = None
    early_stop: Annotated[bool | None, _routing("--early-stop/--no-early-stop", help=_EARLY_STOP_HELP)] = None
    reward: Annotated[
        RewardSource | None,
        _routing(
            "--reward", help="Reward of policy oracle: a process reward model, or rollouts that reach the known answer."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How steps are written."""

    task: Annotated[
        str | None,
        _generation(
            "--task",
            metavar="math|code|choice|free",
            help="What kind of problems: prompt, where a step ends, how answers are graded. Default: the data set's, else math.",
        ),
    ] = None
    system: Annotated[
        str | None, _generation("--system", metavar="TEXT", help="System prompt. Default: the pair's own, else the task's.")
    ] = None
    think: Annotated[
        str | None,
        _generation(
            "--think",
            metavar="on|off|N",
            help="Whether models think before they answer, and for how many tokens at most. Default: as their templates do.",
        ),
    ] = None
    think_format: Annotated[str | None, _setting("--think-format")] = None
    max_steps: Annotated[int | None, _setting("--max-steps", min=1)] = None
    max_tokens: Annotated[
        int | None,
        _generation("--max-tokens", min=1, help="Most tokens in a solution. Default: 4096, or 16384 with thoughts."),
    ] = None
    max_step_tokens: Annotated[int, _setting("--max-step-tokens", min=1)] = DEFAULTS.max_step_tokens
    temperature: Annotated[
        float, _generation("--temperature", min=0.0, max=10.0, help="Sampling temperature; 0 is greedy.")
    ] = 0.0
    top_p: Annotated[float, _generation("--top-p", min=0.0, max=1.0, help="Nucleus sampling: total probability kept.")] = 1.0
    top_k: Annotated[int, _setting("--top-k", min=0)] = 0
    min_p: Annotated[float, _setting("--min-p", min=0.0, max=1.0)] = 0.0
    sampling: Annotated[Literal["model"] | None, _setting("--sampling")] = None
    seed: Annotated[int, _generation("--seed", help="Seed of sampling and of policy random.")] = 0


@dataclass(frozen=True, slots=True)
class SamplingOptions(GenerationOptions):
    """The same, with the settings of sampling as flags."""

    top_k: Annotated[int, _generation("--top-k", min=0, help="Sample from this many of the likeliest tokens; 0: all.")] = 0
    min_p: Annotated[
        float,
        _generation("--min-p", min=0.0, max=1.0, help="Leave out tokens less likely than this share of the likeliest."),
    ] = 0.0


@dataclass(frozen=True, slots=True)
class LoadingOptions:
    """How models are loaded."""

    gpu_layers: Annotated[int | None, _setting("--gpu-layers", min=-1)] = None
    ctx: Annotated[
        int | None,
        _machine("--ctx", min=64, max=MAX_CONTEXT, help="Context in tokens. Default: 4096, or less if the model has less."),
    ] = None
    flash_attention: Annotated[bool | None, _setting("--flash-attention")] = None
    kv_type: Annotated[KvType, _setting("--kv-type")] = KvType.auto


@dataclass(frozen=True, slots=True)
class MachineOptions(LoadingOptions):
    """How models are loaded and run."""

    threads: Annotated[
        int | None,
        _machine(
            "--threads",
            min=1,
            max=MAX_THREADS,
            help="Threads of each model. Default: as arbitrage tune measured, else one for models up to 32 MiB, else the "
            "physical cores.",
        ),
    ] = None
    concurrency: Annotated[
        str | None,
        _machine(
            "--concurrency",
            metavar="N|auto",
            help="Problems solved at once, up to 64 (on servers 1024): more problems an hour, each of them later. "
            "Default: 1 (collect, serve: 8).",
        ),
    ] = None


RunCode = Annotated[
    Literal["sandboxed", "unprotected"] | None,
    _problems(
        "--run-code",
        help="Allow programs that models wrote to run: task code is graded by tests. --run-code alone means sandboxed, behind "
        "bubblewrap; --run-code=unprotected is for containers. See arbitrage guide code.",
    ),
]


@dataclass(frozen=True, slots=True)
class SelectionOptions:
    """Which problems of a data set."""

    mapping: Annotated[
        str | None,
        _problems("--map", metavar="FIELD=NAME,...", help="Names of a file's fields: question=prompt,answer=gold,id=key."),
    ] = None
    limit: Annotated[
        str | None,
        _problems(
            "--limit",
            metavar="N|FIRST-LAST",
            help="N problems, drawn by --seed and evenly over the levels; or 10-20: the 10th to the 20th.",
        ),
    ] = None
    ids: Annotated[str | None, _problems("--ids", metavar="ID,...", help="Only the problems with these ids.")] = None
    run_code: RunCode = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemOptions(SelectionOptions):
    """A data set, and which of its problems."""

    dataset: Annotated[
        str,
        _problems(
            "--dataset",
            metavar="NAME|FILE",
            help="Problems with answers (collect: or without): math500, gsm8k, olympiadbench, aime24, aime25, amc23, humaneval, mbpp, arc, "
            "builtin, builtin-dev; or a JSONL, CSV or parquet file.",
        ),
    ]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What goes to standard error."""

    quiet: Annotated[bool, _output("--quiet", "-q", help="Show results, warnings and errors only.")] = False
    debug: Annotated[
        bool, _output("--debug", help="Show also every step, informational messages, those of llama.cpp, and tracebacks.")
    ] = False


Debug = Annotated[bool, _output("--debug", help="Show tracebacks.")]
HideThoughts = Annotated[bool, _output("--hide-thoughts", help="Do not show thoughts, only the answer's steps.")]
JsonRecords = Annotated[bool, _output("--json", help="The same as --format json.")]
JsonFigures = Annotated[bool, _output("--json", help="The figures as one line of JSON.")]


PriceList = Annotated[
    str | None,
    _output(
        "--price",
        metavar="ROLE=IN/OUT,...",
        help="Also show prices: for a million tokens read and written, as in draft=0.02/0.10,target=0.60/2.40. "
        "Three figures: read, read from the server's cache, written.",
    ),
]


SpeedList = Annotated[
    str | None,
    _output(
        "--project",
        metavar="ROLE=IN/OUT,...",
        help="Also estimate the times on another machine, from tokens a second that each model reads and writes there, as in "
        "draft=5000/180,target=1200/40.",
    ),
]


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """How a table of figures is written."""

    json_line: JsonFigures = False
    explain: Annotated[bool, _output("--explain", help="Say below the table what each figure is.")] = False


@dataclass(frozen=True, slots=True)
class FigureOptions(ComparisonOptions):
    """The same for figures of a run."""

    price: PriceList = None
    project: SpeedList = None


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """Where the results of solved problems go, and in which form."""

    output_file: Annotated[
        Path | None,
        _output(
            *("--output", "-o"),
            metavar="FILE",
            help="Records go to this file, one a line of the input; the same command resumes after the last result.",
            is_setting=False,
        ),
    ] = None
    form: Annotated[
        ResultFormat | None,
        _output(
            "--format",
            help="Standard output: answers (text), records (json), or id, answer and error (tsv). Default: text for one problem and "
            "in a terminal, else json; nothing with --output.",
        ),
    ] = None
    json_lines: JsonRecords = False


RunFolderPath = Annotated[
    Path | None,
    _output(
        "--output", "-o", metavar="FOLDER", help="Folder of the run. Default: one below runs/, named after data and models."
    ),
]
Fresh = Annotated[bool, _output("--fresh", help="Start over; what is in the folder is set aside.", is_setting=False)]


# --- collect


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """How steps are rated."""

    reward: Annotated[
        RewardSource | None,
        option(
            "Collect",
            "--reward",
            help="How good a step is: a process reward model, or whether the target reaches the right answer from there: the "
            "known one, or its own if none is known. Default: the process reward model.",
        ),
    ] = None
    rollouts: Annotated[
        int,
        option("Collect", "--rollouts", min=1, max=16, help="Continuations of each step: one is greedy, more are sampled."),
    ] = 1
    rollout_temperature: Annotated[
        float, option("Collect", "--rollout-temperature", min=0.01, max=10.0, help="Temperature of more than one rollout.")
    ] = 0.7

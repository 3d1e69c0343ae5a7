"""Options that several commands share, each with its environment variable. Knows no command."""

import math
from enum import StrEnum
from typing import Annotated

import typer

from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Limits

_PROBLEMS = "Problems"
_MODELS, _SAMPLING, _MACHINE, _OUTPUT = "Models and routing", "Limits and sampling", "Machine", "Output"
DEFAULTS = Limits()
SOME_FAILED = 1
"""The exit code where some problems failed, and the others are done."""
MAX_CONTEXT = 1 << 24  # tokens: above any model, and below what llama.cpp counts in
MAX_THREADS = 512  # llama.cpp's own limit; it does not check it
_DEFAULT_TAUS = ", ".join(
    f"{name} {policy.default_tau:g}" for name, policy in POLICIES.items() if policy.default_tau is not None
)


def _a_number(value: float | None) -> float | None:
    """Refuses NaN, which is neither more nor less than anything."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


class RewardSource(StrEnum):
    """Where the rewards of steps come from: a process reward model, or whether the target reaches the answer from there."""

    prm = "prm"
    rollout = "rollout"


class KvType(StrEnum):
    """Number formats of the KV cache."""

    auto = "auto"
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"
    f32 = "f32"


DatasetName = Annotated[
    str,
    typer.Option(
        "--dataset",
        envvar="ARBITRAGE_DATASET",
        metavar="NAME|FILE",
        help="Problems with their answers: math500, gsm8k, olympiadbench, aime24, aime25, amc23, builtin, builtin-dev; "
        "or a JSONL or parquet file.",
        rich_help_panel=_PROBLEMS,
    ),
]
Mapped = Annotated[
    str | None,
    typer.Option(
        "--map",
        envvar="ARBITRAGE_MAP",
        metavar="FIELD=NAME,...",
        help="How a file's fields are called: question=prompt,answer=gold,id=key.",
        rich_help_panel=_PROBLEMS,
    ),
]
Limited = Annotated[
    str | None,
    typer.Option(
        "--limit",
        envvar="ARBITRAGE_LIMIT",
        metavar="N|FIRST-LAST",
        help="The first so many; or 10-20, the 10th to the 20th.",
        rich_help_panel=_PROBLEMS,
    ),
]
Ids = Annotated[
    str | None,
    typer.Option(
        "--ids",
        envvar="ARBITRAGE_IDS",
        metavar="ID,...",
        help="Only the problems with these ids.",
        rich_help_panel=_PROBLEMS,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        envvar="ARBITRAGE_DRAFT",
        metavar="MODEL",
        help="The fast model: a GGUF file, user/repo[:quant] on the Hugging Face Hub, or scripted:draft for the demo.",
        rich_help_panel=_MODELS,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        envvar="ARBITRAGE_TARGET",
        metavar="MODEL",
        help="The strong model: named in the same ways, or scripted:target for the demo.",
        rich_help_panel=_MODELS,
    ),
]
PairName = Annotated[
    str | None,
    typer.Option(
        "--pair",
        envvar="ARBITRAGE_PAIR",
        metavar="NAME",
        help="Draft and target by one name: see arbitrage models list.",
        rich_help_panel=_MODELS,
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar="ARBITRAGE_OFFLINE",
        help="Use models that are on this machine; never ask the Hub.",
        rich_help_panel=_MODELS,
    ),
]
RewardModel = Annotated[
    str | None,
    typer.Option(
        "--prm",
        envvar="ARBITRAGE_PRM",
        metavar="MODEL",
        help="A process reward model, named in the same ways: policies rsd and oracle ask it, and rewards come from it.",
        rich_help_panel=_MODELS,
    ),
]


class PrmStyleName(StrEnum):
    """How a process reward model is asked."""

    turns = "turns"
    steps = "steps"


PrmStyle = Annotated[
    PrmStyleName | None,
    typer.Option(
        "--prm-style",
        envvar="ARBITRAGE_PRM_STYLE",
        help="How it is asked: a turn for each step (as RLHFlow's models), or the steps as they are. Default: the pair's own.",
        rich_help_panel=_MODELS,
    ),
]
HeadFile = Annotated[
    str | None,
    typer.Option(
        "--head",
        envvar="ARBITRAGE_HEAD",
        metavar="FILE",
        help="The router's trained head. Default: the pair's own, else the universal one.",
        rich_help_panel=_MODELS,
    ),
]
PolicyName = Annotated[
    str | None,
    typer.Option(
        "--policy",
        envvar="ARBITRAGE_POLICY",
        metavar="|".join(POLICIES),
        help="What decides who writes a step. draft and target: that model alone; speculative: the target, "
        "sooner. Default: arbitrage; entropy for demo models.",
        rich_help_panel=_MODELS,
    ),
]
Tau = Annotated[
    str | None,
    typer.Option(
        envvar="ARBITRAGE_TAU",
        metavar="TAU",
        help="The target rewrites a step when the router's number is above TAU: inf never, a negative one always (oracle: below -1). "
        f"With a head also fast, balanced, exact (default) or a budget as 30%. Untuned defaults of the others: {_DEFAULT_TAUS}.",
        rich_help_panel=_MODELS,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        envvar="ARBITRAGE_BUDGET",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Instead of a tau: the share of steps that the target may write, by the head's own table.",
        rich_help_panel=_MODELS,
    ),
]
EarlyStop = Annotated[
    bool | None,
    typer.Option(
        "--early-stop/--no-early-stop",
        envvar="ARBITRAGE_EARLY_STOP",
        help="Whether a drafted step is stopped before it is finished where its beginning is bad enough, and the target called at once. "
        "Default: where that saves time, by the costs that are known.",
        rich_help_panel=_MODELS,
    ),
]
Instructions = Annotated[
    str | None,
    typer.Option(
        "--system",
        envvar="ARBITRAGE_SYSTEM",
        metavar="TEXT",
        help="The system prompt. Default: the pair's own, else the paper's.",
        rich_help_panel=_MODELS,
    ),
]
TemplateVariables = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        envvar="ARBITRAGE_CHAT_TEMPLATE_KWARGS",
        metavar="JSON",
        help="What the models' chat templates are told, as for llama-server: {\"enable_thinking\": false}. Default: the pair's own.",
        rich_help_panel=_MODELS,
    ),
]
MaxSteps = Annotated[
    int,
    typer.Option(
        envvar="ARBITRAGE_MAX_STEPS", min=1, help="At most so many steps in a solution.", rich_help_panel=_SAMPLING
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        envvar="ARBITRAGE_MAX_TOKENS", min=1, help="At most so many tokens in a solution.", rich_help_panel=_SAMPLING
    ),
]
MaxStepTokens = Annotated[
    int,
    typer.Option(
        envvar="ARBITRAGE_MAX_STEP_TOKENS", min=1, help="At most so many tokens in a step.", rich_help_panel=_SAMPLING
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        envvar="ARBITRAGE_TEMPERATURE", min=0.0, max=10.0, help="Of sampling; 0 is greedy.", rich_help_panel=_SAMPLING
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        envvar="ARBITRAGE_TOP_P",
        min=0.0,
        max=1.0,
        help="Nucleus sampling: from the likeliest tokens that have this probability together.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int, typer.Option(envvar="ARBITRAGE_SEED", help="Seed of sampling, and of policy random.", rich_help_panel=_SAMPLING)
]
Concurrency = Annotated[
    str,
    typer.Option(
        "--concurrency",
        envvar="ARBITRAGE_CONCURRENCY",
        metavar="N|auto",
        help="Problems that are solved at once, up to 64: more problems an hour, each of them later. auto: up to 16 (4 of models "
        "below 32 MiB), if they fit in half of the free memory.",
        rich_help_panel=_MACHINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="ARBITRAGE_THREADS",
        min=1,
        max=MAX_THREADS,
        help="Default: as arbitrage tune measured, else one for a model of at most 32 MiB, else the physical cores this process "
        "may use.",
        rich_help_panel=_MACHINE,
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        envvar="ARBITRAGE_GPU_LAYERS",
        min=-1,
        help="Layers on the GPU. Default: all, if there is one.",
        rich_help_panel=_MACHINE,
    ),
]
ContextSize = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        envvar="ARBITRAGE_CTX",
        min=64,
        max=MAX_CONTEXT,
        help="Context in tokens. Default: 4096, or what the model was trained for if that is less.",
        rich_help_panel=_MACHINE,
    ),
]
FlashAttention = Annotated[
    bool | None,
    typer.Option(
        "--flash-attention/--no-flash-attention",
        envvar="ARBITRAGE_FLASH_ATTENTION",
        help="Default: as llama.cpp thinks best, but off where --kv-type auto takes q8_0 keys. If either flag is given, "
        "--kv-type auto means f16.",
        rich_help_panel=_MACHINE,
    ),
]
KvCacheType = Annotated[
    KvType,
    typer.Option(
        "--kv-type",
        envvar="ARBITRAGE_KV_TYPE",
        help="Number format of the KV cache. auto: f16; where flash attention is not asked for either, q8_0 for the keys of "
        "attention heads of 32 numbers (the built-in models'), which a processor reads twice as fast.",
        rich_help_panel=_MACHINE,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", envvar="ARBITRAGE_JSON", help="One JSON object a problem on stdout.", rich_help_panel=_OUTPUT),
]
JsonFigures = Annotated[
    bool, typer.Option("--json", envvar="ARBITRAGE_JSON", help="The figures as one line of JSON.", rich_help_panel=_OUTPUT)
]
CostRatio = Annotated[
    float | None,
    typer.Option(
        "--cost-ratio",
        envvar="ARBITRAGE_COST_RATIO",
        min=0.001,
        max=1e6,
        callback=_a_number,
        help="Also project the speed-up of a pair whose target costs so many times the draft, per token.",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", envvar="ARBITRAGE_QUIET", help="Show results, warnings and errors only.", rich_help_panel=_OUTPUT
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", envvar="ARBITRAGE_VERBOSE", help="Also show informational messages.", rich_help_panel=_OUTPUT
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", envvar="ARBITRAGE_DEBUG", help="Show llama.cpp's messages, and tracebacks.", rich_help_panel=_OUTPUT
    ),
]

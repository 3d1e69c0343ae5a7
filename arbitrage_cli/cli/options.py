"""The options on the command line: the help, the names and the placeholder of each field of `app.options`."""

from collections.abc import Mapping
from types import MappingProxyType

from arbitrage_cli.types import frozen


@frozen
class Option:
    """The command-line form of an option. `names` defaults to the parameter's name.

    If `is_setting` is false, the option can be set only by a flag.
    """

    help: str
    metavar: str | None = None
    names: tuple[str, ...] = ()
    is_setting: bool = True


SHARED: Mapping[str, Mapping[str, Option]] = MappingProxyType(
    {
        "Models": {
            "draft": Option(
                "Fast model: a GGUF file, user/repo:quant on the Hub, ollama:name, lmstudio:publisher/repo, or "
                "http://host:port/v1#model.",
                "MODEL",
            ),
            "target": Option("Strong model, in the same format as --draft.", "MODEL"),
            "pair": Option("Pair of draft and target models (see 'arbitrage models list').", "NAME"),
            "router": Option("Trained router. Default: the pair's router, or the universal router.", "FILE"),
            "prm": Option("Process reward model for policies rsd and oracle, and for --reward prm.", "MODEL"),
            "check": Option("Checker for policy agree: a second small model. Default: the draft itself.", "MODEL"),
            "offline": Option("Use local files only; never contact the Hub."),
        },
        "Routing": {
            "policy": Option(
                "Routing policy: arbitrage (a trained router), draft or target (one model alone), speculative (the target "
                "verifies draft tokens), or another policy from 'arbitrage guide routing'. Default: the policy of the "
                "pair or, if it has none, arbitrage where routing saves time (see 'arbitrage guide routing').",
                "NAME",
            ),
            "tau": Option(
                "Escalate steps that score above this threshold (inf: none). With a router: also careful (default), balanced, "
                "fast, or the share of steps to escalate, such as 30%. For other defaults, see 'arbitrage guide routing'.",
                "TAU",
            ),
        },
        "Generation": {
            "task": Option(
                "Task type, which determines the prompt, step boundaries and grading. Default: the data set's task, or math.",
                "math|code|choice|free",
            ),
            "system": Option("System prompt. Default: the prompt of the pair or the task.", "TEXT"),
            "think": Option(
                "Thinking before the answer: on, off, auto (the target thinks only if two quick answers differ), or limited to "
                "N tokens. Default: as set by the chat templates.",
                "on|off|auto|N",
            ),
            "max_tokens": Option("Token limit per solution. Default: 4096, or 16384 with thinking.", "N"),
            "max_steps": Option(
                "Step limit per solution. Default: 100, or 1000 with thinking; none for a single model.", "N"
            ),
            "max_step_tokens": Option("Token limit per step. Default: 512.", "N"),
            "temperature": Option("Sampling temperature. Default: 0 (greedy decoding).", "T"),
            "top_p": Option(
                "Top-p (nucleus) sampling: cumulative probability of the tokens to sample from. Default: 1 (no limit).",
                "P",
            ),
            "top_k": Option("Top-k sampling: number of tokens to sample from. Default: 0 (no limit).", "N"),
            "min_p": Option("Min-p sampling: minimum probability of a token, relative to the top token. Default: 0.", "P"),
            "seed": Option("Seed for sampling and for policy random. Default: 0.", "N"),
        },
        "Machine": {
            "ctx": Option("Context size in tokens. Default: up to 4096, or up to 16384 with thinking.", "N"),
            "threads": Option(
                "Threads per model. Default: as measured on this machine; if not measured, 1 for models up to 32 MiB and "
                "all physical cores for larger models.",
                "N",
            ),
            "concurrency": Option(
                "Number of problems to solve at once: up to 64, or 1024 with models on servers. Higher values increase "
                "throughput and latency. Default: 1; for collect and serve, 8.",
                "N",
            ),
            "gpu_layers": Option("Number of layers on the GPU; 0 uses only the CPU. Default: all, if there is a GPU.", "N"),
            "flash_attention": Option(
                "Flash attention. To turn it off, use --no-flash-attention. Default: chosen by llama.cpp."
            ),
            "kv_type": Option(
                "Number format of the KV cache. Default: auto (f16, but q8_0 for the keys of some models on a CPU).",
                "auto|f16|q8_0|q4_0|f32",
            ),
        },
    }
)
"""The options of all commands that use models, by topic."""

SHOWN = ("draft", "target", "pair", "policy", "tau")
HIDDEN = tuple(name for topic in SHARED.values() for name in topic if name not in SHOWN)
"""The shared options that --help only names. They are described by `arbitrage guide options`."""

OPTIONS: Mapping[str, Option] = MappingProxyType(
    {name: option for topic in SHARED.values() for name, option in topic.items()}
    | {
        "dataset": Option(
            "Data set: math500, gsm8k, olympiadbench, aime24, aime25, amc23, humaneval, mbpp, arc, builtin, builtin-dev; or "
            "a JSONL, CSV or parquet file of problems with answers (for collect, answers are optional).",
            "NAME|FILE",
        ),
        "mapping": Option(
            "Field names in the file, such as question=prompt,answer=gold,id=key.", "FIELD=NAME,...", ("--map",)
        ),
        "limit": Option(
            "Sample N problems with --seed, balanced across levels, or select a range such as 10-20.", "N|FIRST-LAST"
        ),
        "ids": Option("Solve only the problems with these ids.", "ID,...", is_setting=False),
        "run_code": Option(
            "Allow programs written by models to run, which is required to grade code. --run-code runs them in bubblewrap; "
            "--run-code=unprotected is for use in containers. See 'arbitrage guide code'."
        ),
        "output_folder": Option(
            "Run folder. Default: runs/NAME, named after the data set and the models.", "FOLDER", ("--output", "-o")
        ),
        "fresh": Option("Start over. Existing results in the folder are kept under another name.", is_setting=False),
        "price": Option(
            "Show costs at these prices, in dollars per million prompt and completion tokens, for example "
            "draft=0.02/0.10,target=0.60/2.40. With three prices, the second is for cached prompt tokens. Default: the prices "
            "of the pair.",
            "ROLE=IN/OUT,...",
        ),
        "json_line": Option("Print the figures as a single line of JSON.", names=("--json",)),
        "quiet": Option("Show only results, warnings and errors.", names=("--quiet", "-q")),
        "debug": Option("Show every step, llama.cpp messages and tracebacks."),
    }
)
"""All options that several commands have."""


def options_page() -> str:
    """Return the guide to the shared options, as Markdown."""
    page = "# Options: shared by solve, chat, serve, bench, collect and advise\n"
    for topic, options in SHARED.items():
        page += f"\n## {topic}\n\n"
        for name, option in options.items():
            flag = f"--{name.replace('_', '-')} {option.metavar or ''}".strip()
            page += f"- `{flag}`: {option.help}\n"
    return page

"""`arbitrage collect` and `arbitrage train`: collect states, and train a router on them or recompute its presets."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.app.options import SOME_FAILED, CollectOptions, Options, ProblemOptions
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say, write_json
from arbitrage_cli.errors import UsageError
from arbitrage_cli.types import frozen


@command(
    without=["policy", "tau", "check", "router"],
    reward=Option(
        "Source of step rewards: prm (a process reward model, the default) or rollout. In a rollout, the target continues "
        "from the step. The reward is 1 if it reaches the known answer. Without a known answer, the target's own answer counts."
    ),
)
def collect(
    *,
    problems: ProblemOptions,
    run: CollectOptions,
    options: Options,
    output: OutputOptions,
) -> int:
    """Collect states to train a router on.

    Both models write every step, and both steps are rated. A state contains the token statistics of the drafted step, and the
    rewards of both steps. To resume an interrupted run, repeat the command.

    \b
    Examples:
      arbitrage collect --dataset builtin-dev -o runs/states
      arbitrage collect --pair mine --dataset train.jsonl --reward rollout -o runs/states
    """
    from arbitrage_cli.app.asking.request import ask_to_collect
    from arbitrage_cli.app.attempts.stored_run import offering_to_resume
    from arbitrage_cli.app.commands.collect import Collection
    from arbitrage_cli.app.entries.ask_run import ask_for_run
    from arbitrage_cli.app.entries.start import open_session
    from arbitrage_cli.runs.folder import RunFolder
    from arbitrage_cli.runs.records import COLLECT

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(command_display(output))
        asked = ask_for_run(ask_to_collect, options, problems, run, COLLECT, display)
        folder = stack.enter_context(RunFolder(asked.path, kind=COLLECT, fresh=run.fresh))
        session = stack.enter_context(open_session(asked.request, display, max_concurrency=len(asked.selected.items)))
        collection = Collection(session, asked.selected, folder)
        with offering_to_resume(session, folder):
            collection.collect()
        display.close()
    status = "" if collection.todo else "nothing to do: "
    say(f"{status}{folder.shown} has {collection.found}; {collection.next_step}", output)
    return SOME_FAILED if collection.num_errors else 0


@frozen
class TrainOptions:
    """The options for training a router."""

    seed: int = 0
    source: str | None = None
    output_file: Path = Path("router.safetensors")
    force: bool = False


@command(
    seed=Option("Seed for the initial network weights.", "N"),
    source=Option(
        "Keep the network of this router and recompute its presets.",
        "ROUTER",
        names=("--from",),
        is_setting=False,
    ),
    output_file=Option("Router file. The file name becomes the router's name.", "FILE.safetensors", ("--output", "-o")),
    force=Option("Overwrite an existing file.", is_setting=False),
    json_line=Option("Print the card as one line of JSON.", names=("--json",)),
)
def train(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders of arbitrage collect, or files of packed states (.xz)."),
    ],
    *,
    training: TrainOptions,
    json_line: bool = False,
    output: OutputOptions,
    explicit: frozenset[str],
    command: Sequence[str],
) -> None:
    """Train a router on collected states, and measure it on held-out problems.

    Requires scikit-learn: pip install "scikit-learn>=1.7". The router is cross-validated: each problem is measured by a
    network that was not trained on it. With --from, only recomputes the presets (careful, balanced, fast) and budgets, on
    problems that the router was not trained on.

    \b
    Examples:
      arbitrage train runs/states -o router.safetensors
      arbitrage train runs/one runs/two -o both.safetensors
      arbitrage train --from router.safetensors runs/others -o mine.safetensors
    """
    from arbitrage_cli.display.card import write_card
    from arbitrage_cli.routing.router import save
    from arbitrage_cli.training.routers import check_destination, train_router, with_new_presets

    output_file = training.output_file
    check_destination(output_file, force=training.force)
    name = output_file.stem

    def report(text: str) -> None:
        say(text, output)

    if training.source and "seed" in explicit:
        raise UsageError("--seed has no effect with --from", "omit this option, because the router is not trained")
    with command_display(output):
        if training.source:
            router = with_new_presets(training.source, runs, name=name, on_progress=report)
        else:
            router = train_router(runs, name=name, command=command, seed=training.seed, on_progress=report)
    save(router, output_file)
    if json_line:
        write_json(router.card.to_json())
    else:
        write_card(router.card.to_json(), sys.stdout, sha256=router.sha256)
    report(f"wrote {output_file}; to show its card: arbitrage models info {output_file}")
    report(f"to measure it: arbitrage bench --pair NAME --dataset OTHERS.jsonl --router {output_file}")

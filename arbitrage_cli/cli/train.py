"""`arbitrage train`: trains a router on collected states, or recalibrates its presets."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.app.options import LoadingOptions
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say, write_json
from arbitrage_cli.errors import UsageError

if TYPE_CHECKING:
    from arbitrage_cli.routing.router import Router


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options for training a router."""

    test: list[Path] | None = None
    seed: int = 0
    source: str | None = None
    output_file: Path = Path("router.safetensors")
    force: bool = False
    explain: bool = False


@command(
    test=Option("Run whose problems are held out for testing. Default: a fifth of all problems is held out.", "RUN"),
    seed=Option("Seed for the initial network weights."),
    source=Option(
        "Keep the network of this router and recompute its presets, using token costs measured on this machine if available.",
        "ROUTER",
        names=("--from",),
        is_setting=False,
    ),
    output_file=Option("Router file. The file name becomes the router's name.", "FILE.safetensors", ("--output", "-o")),
    force=Option("Overwrite an existing file.", is_setting=False),
    explain=Option("Show the whole card."),
    json_line=Option("Print the card as one line of JSON.", names=("--json",)),
)
def train(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of arbitrage collect.")],
    *,
    training: TrainOptions,
    loading: LoadingOptions,
    json_line: bool = False,
    output: OutputOptions,
    explicit: frozenset[str],
    command: Sequence[str],
) -> None:
    """Train a router on collected states, and measure it on held-out problems.

    Requires scikit-learn: pip install "scikit-learn>=1.7". The problems are divided into a training, a validation and a test
    set. With --from, only recalibrates the presets (careful, balanced, fast) and budgets, on problems that the router was not
    trained on.

    \b
    Examples:
      arbitrage train runs/states -o router.safetensors
      arbitrage train runs/one runs/two -o both.safetensors
      arbitrage train --from router.safetensors runs/others -o mine.safetensors
    """
    from arbitrage_cli.app.router_training import bench_command, check_destination, train_router, with_new_presets
    from arbitrage_cli.routing.router import save

    output_file = training.output_file
    check_destination(output_file, force=training.force)
    name = output_file.stem

    def report(text: str) -> None:
        say(text, output)

    if training.source and (unused := {"test", "seed"} & explicit):
        hint = "omit this option, because recalibration does not train the router"
        raise UsageError(f"--{min(unused)} has no effect with --from", hint)
    with command_display(output):
        if training.source:
            router = with_new_presets(training.source, runs, loading, name=name, on_progress=report)
        else:
            router = train_router(
                runs, training.test or [], name=name, command=command, seed=training.seed, on_progress=report
            )
    save(router, output_file)
    _show(router, as_json=json_line, explain=training.explain)
    report(f"wrote {output_file}: router {name}; to show its card: arbitrage models info {output_file}")
    report(f"to measure it: {shlex.join(bench_command(runs[0], output_file))}")


def _show(router: "Router", *, as_json: bool, explain: bool) -> None:
    from arbitrage_cli.display.card import write_card, write_summary

    card = router.card.to_json()
    if as_json:
        write_json(card)
    elif explain:
        write_card(card, sys.stdout, sha256=router.sha256)
    else:
        write_summary(card, sys.stdout)

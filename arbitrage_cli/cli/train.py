"""`arbitrage train`: a router's head from collected states. Runs no model."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.sources import models_of_states
from arbitrage_cli.display.text import write
from arbitrage_cli.errors import OutputError, UsageError

SUFFIX = ".safetensors"
SAYS_NOTHING = "head"  # as the stem of a head's file

HeadName = Annotated[
    str | None,
    typer.Option("--name", help="What the head is called. Default: as its file; head.safetensors as the pair, or the run."),
]


class InputKind(StrEnum):
    """What a head may read."""

    agnostic = "agnostic"
    hidden = "hidden"
    both = "both"


def train(
    context: typer.Context,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, as arbitrage collect makes them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the head is written: FILE.safetensors.")
    ] = Path(f"head{SUFFIX}"),
    name: HeadName = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="The problems of this run are the test. Default: a fifth of all problems."),
    ] = None,
    inputs: Annotated[
        list[InputKind] | None,
        typer.Option(help="What the head may read: features that any pair has, hidden states of this draft, or both."),
    ] = None,
    margin: Annotated[float, typer.Option(min=0.0, help="A step is worth escalating if its advantage is above this.")] = 0.0,
    by_advantage: Annotated[
        bool, typer.Option("--by-advantage", help="Let states count more whose advantage, or loss, is large.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the networks' first weights.")] = 0,
    json_line: Annotated[
        bool, typer.Option("--json", envvar="ARBITRAGE_JSON", help="The card as one line of JSON.")
    ] = False,
    quiet: shared.Quiet = False,
    debug: shared.Debug = False,
) -> None:
    """Train a router's head on collected states, and show how good it is on problems it never saw.

    Needs scikit-learn: pip install "scikit-learn>=1.7". Heads are chosen on a part of the problems that they did not
    learn from, and measured on a third part.
    """
    # Not at the top: NumPy takes longer to import than --help may take.
    from arbitrage_cli.display.card import write_card
    from arbitrage_cli.routing.head import save
    from arbitrage_cli.routing.thresholds import TauTable
    from arbitrage_cli.training.examples import read_states
    from arbitrage_cli.training.train import ALL_INPUTS, Settings
    from arbitrage_cli.training.train import train as train_head

    check_place(output)

    def tell(text: str) -> None:
        if not quiet:
            typer.echo(text, err=True)

    collected = read_states(runs, test or [])
    wanted = tuple(kind for kind in ALL_INPUTS if not inputs or kind in inputs)
    head = train_head(
        collected,
        Settings(margin, by_advantage, wanted, seed),
        name=name or name_of_head(output, runs),
        command=("arbitrage", *(context.obj or ())),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        watch=tell,
    )
    save(head, output)
    card = head.card.to_json()
    table = TauTable.from_json(card["taus"])
    if json_line:
        write(sys.stdout, json.dumps(card, ensure_ascii=True, allow_nan=False) + "\n")
    else:
        write_card(card, {row.tau: table.time(row) for row in table.rows}, sys.stdout)
    tell(f"wrote {output}")


def name_of_head(output: Path, runs: Sequence[Path]) -> str:
    """What a head of these runs is called that is written there: as its file, or as pairs or runs where that says nothing."""
    if output.stem != SAYS_NOTHING:
        return output.stem
    pairs = {run: models_of_states(run)[0] for run in runs}
    return "+".join(dict.fromkeys(pair.name if pair else run.resolve().name for run, pair in pairs.items()))


def check_place(output: Path) -> None:
    """Whether a head could be written there is better known before it is trained. UsageError, OutputError."""
    if output.suffix != SUFFIX:
        raise UsageError(f"{output}: a head is a {SUFFIX} file", f"name it so: -o {output.stem or 'head'}{SUFFIX}")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: cannot be written: no such folder, or not yours", "give another path: --output")

"""`arbitrage compare`: two runs against each other, over the problems that both have. Runs no model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Debug, JsonFigures
from arbitrage_cli.cli.output import is_drawable
from arbitrage_cli.display.text import write

Run = Annotated[Path, typer.Argument(help="A run folder of arbitrage bench.")]


@command
def compare(first: Run, second: Run, *, json_line: JsonFigures = False, debug: Debug = False) -> None:
    """Compare two runs, problem by problem: difference of accuracy and ratio of times, each with its interval.

    Policies are paired by name and tau; if each run has only one, these are compared.

    \b
    Examples:
      arbitrage compare runs/before runs/after
    """
    from arbitrage_cli.display.table import write_comparison
    from arbitrage_cli.evaluation import comparison  # NumPy is slow to import: not for --help
    from arbitrage_cli.runs.folder import latest, read_run_folder

    one, other = read_run_folder(first), read_run_folder(second)
    names = {"runs": [str(first), str(second)]}
    compared = names | comparison.compare(one.run or {}, latest(one.rows), other.run or {}, latest(other.rows))
    if json_line:
        write(sys.stdout, json.dumps(compared, ensure_ascii=True, allow_nan=False) + "\n")
    else:
        write_comparison(compared, sys.stdout, styled=is_drawable(sys.stdout))

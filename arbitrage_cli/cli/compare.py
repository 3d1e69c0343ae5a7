"""`arbitrage compare`: two runs against each other, over the problems that both have. Runs no model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.app.options import ComparisonOptions, Debug
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import write_table_as
from arbitrage_cli.display.text import is_drawable

Run = Annotated[Path, typer.Argument(help="A run folder of arbitrage bench.")]


@command
def compare(first: Run, second: Run, *, shown: ComparisonOptions, debug: Debug = False) -> None:
    """Compare two runs, problem by problem: difference of accuracy and ratio of times, each with its interval.

    Policies are paired by name and tau; if each run has only one, these are compared.

    \b
    Examples:
      arbitrage compare runs/before runs/after
    """
    from arbitrage_cli.display import table
    from arbitrage_cli.evaluation import comparison  # NumPy is slow to import: not for --help
    from arbitrage_cli.runs.folder import latest, read_run_folder

    is_for_people = shown.is_for_people
    one, other = read_run_folder(first), read_run_folder(second)
    names = {"runs": [str(first), str(second)]}
    compared = names | comparison.compare_runs(one.run, list(latest(one.rows)), other.run, list(latest(other.rows)))
    if is_for_people:
        table.write_comparison(compared, sys.stdout, explain=shown.explain, styled=is_drawable(sys.stdout))
    else:
        write_table_as(shown, compared, compared["policies"], table.comparison_table(compared))

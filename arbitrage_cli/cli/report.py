"""`arbitrage report` and `compare`: the figures of a run, or of two, as a table, as JSON, or as a page to look at. Runs no model."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.app.options import ComparisonOptions, Debug, FigureOptions, Option
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import figures_as_asked, show_figures, write_json
from arbitrage_cli.display.text import is_drawable
from arbitrage_cli.errors import OutputError, UsageError
from arbitrage_cli.system.files import write_atomically

if TYPE_CHECKING:
    from arbitrage_cli.runs.folder import Contents

ENDINGS = (".html", ".htm")
Run = Annotated[Path, typer.Argument(help="A run folder of arbitrage bench.")]


@command
def report(
    run: Run,
    *,
    page: Annotated[Path | None, Option("Output", "Write a page with every trace.", "FILE", names=("--html", "-o"))] = None,
    opens: Annotated[
        bool,
        Option("Output", "Open the page in a browser. Without -o: report.html in the folder of the run.", names=("--open",)),
    ] = False,
    figures: FigureOptions,
    debug: Debug = False,
) -> None:
    """Show the figures of a run: a table, or with -o FILE.html a page with charts and every trace, step by step.

    The page is one file, and needs no network.

    \b
    Examples:
      arbitrage report runs/builtin--builtin
      arbitrage report runs/builtin--builtin --open
    """
    from arbitrage_cli.runs.folder import read_run_folder

    if page is None and opens:
        page = run / "report.html"
    if page is not None and not all(path.suffix.lower() in ENDINGS for path in (page, Path(os.path.realpath(page)))):
        hint = "give -o FILE.html; --json has the figures for other programs"
        raise UsageError(f"{page}: a report is a page, and its name ends in .html", hint)
    contents = read_run_folder(run)
    if page is not None:
        _write(page, _page(contents, figures))
        if opens and not webbrowser.open(page.resolve().as_uri()):
            typer.echo(f"no browser could be opened: open {page} in one", err=True)
    if page is None or figures.json_line:
        show_figures(contents.run, contents.rows, figures)


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
    from arbitrage_cli.runs.folder import read_run_folder

    one, other = read_run_folder(first), read_run_folder(second)
    names = {"runs": [str(first), str(second)]}
    compared = names | comparison.compare_runs(one.run, one.rows, other.run, other.rows)
    if shown.json_line:
        write_json(compared)
    else:
        table.write_comparison(compared, sys.stdout, explain=shown.explain, styled=is_drawable(sys.stdout))


def _page(contents: "Contents", options: FigureOptions) -> str:
    from arbitrage_cli.display.page import render  # Jinja is slow to import: not for --help
    from arbitrage_cli.display.traces import TracePacker
    from arbitrage_cli.runs.results import no_cycles

    packer = TracePacker()
    with no_cycles():
        figures = figures_as_asked(contents.run, packer.watch(contents.rows), options)
        return render(contents.run, figures, packer.packed(figures["policies"]))


def _write(path: Path, page: str) -> None:
    """Write the whole page, or leave what was there."""
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})", "give another file: -o FILE") from error
    typer.echo(f"wrote {path}", err=True)

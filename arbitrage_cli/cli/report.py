"""`arbitrage report` and `arbitrage compare`: show the figures of runs as a table, as JSON, or as an HTML page."""

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.app.options import RunCode
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import (
    FigureOptions,
    OutputOptions,
    command_display,
    figures_of,
    say,
    show_figures,
    write_json,
)
from arbitrage_cli.display.text import width_of, wrapped, write_lines
from arbitrage_cli.errors import OutputError, UsageError, os_errors
from arbitrage_cli.system.files import write_atomically

if TYPE_CHECKING:
    from arbitrage_cli.runs.folder import Contents

SUFFIXES = (".html", ".htm")
RUNS = Path("runs")
OF_ONE_RUN = {"page", "opens", "explain", "regrade", "run_code", "price"}
"""Options that have no effect on a list of runs."""
First = Annotated[Path, typer.Argument(metavar="FIRST", help="Run folder of arbitrage bench.")]
Second = Annotated[Path, typer.Argument(metavar="SECOND", help="Run folder of arbitrage bench.")]


@command(
    page=Option("Write an HTML page with all traces.", "FILE", names=("--html", "-o")),
    opens=Option("Open the page in a browser. Default file: report.html in the run folder.", names=("--open",)),
    explain=Option("Explain the columns below the table.", is_setting=False),
    regrade=Option("First grade all answers again, without loading models.", is_setting=False),
)
def report(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Folder of a run, or a folder that contains runs. Default: runs.")
    ] = None,
    *,
    page: Path | None = None,
    opens: bool = False,
    explain: bool = False,
    regrade: bool = False,
    run_code: RunCode | None = None,
    figures: FigureOptions,
    output: OutputOptions,
    explicit: frozenset[str],
) -> None:
    """Show the figures of a run as a table. With -o FILE.html, write an HTML page with a chart and all traces.

    Without RUN, list the runs of arbitrage bench, newest first. Damaged rows are skipped, with a warning that names them.

    \b
    Examples:
      arbitrage report
      arbitrage report runs/builtin--builtin
      arbitrage report runs/builtin--builtin --explain
      arbitrage report runs/builtin--builtin --open
      arbitrage report runs/builtin--builtin --regrade
    """
    from arbitrage_cli.runs.folder import has_run, read_run_folder  # with NumPy

    if run is None or not has_run(run):
        with command_display(output):
            _list(run, explicit, as_json=figures.json_line)
        return
    if run_code and not regrade and "run_code" in explicit:
        raise UsageError("--run-code is used only with --regrade", "omit this option, or add --regrade")
    page = run / "report.html" if opens and page is None else page
    if explain and (page or figures.json_line):
        raise UsageError("--explain is used only with the table", "omit this option, or omit --html, --open and --json")
    if page:
        _check_name(page)
    if regrade:
        _regrade(run, run_code, output)
    with command_display(output):
        contents = read_run_folder(run)
        if page:
            _write_page(page, contents, figures)
            say(f"wrote {page}", output)
            if opens and not webbrowser.open(page.resolve().as_uri()):
                typer.echo(f"no browser found; open {page}", err=True)
        if page is None or figures.json_line:
            show_figures(contents.run, contents.results, figures, explains=explain)


@command()
def compare(first: First, second: Second, *, json_line: bool = False, debug: bool = False) -> None:
    """Compare two runs: differences in accuracy, and ratios of time over the same problems, with intervals.

    Policies are paired by name and tau. If each run has only one policy, these two policies are compared.

    \b
    Examples:
      arbitrage compare runs/before runs/after
    """
    from arbitrage_cli.display import table
    from arbitrage_cli.evaluation import comparison  # with NumPy
    from arbitrage_cli.runs.folder import read_run_folder

    with command_display(OutputOptions(debug=debug)):
        before, after = read_run_folder(first), read_run_folder(second)
        compared = comparison.compare_runs(before.run, before.results, after.run, after.results)
    if json_line:
        write_json({"runs": [str(first), str(second)]} | compared.to_json())
    else:
        table.write_comparison(compared, str(first), str(second), sys.stdout)


def _check_name(page: Path) -> None:
    """Raise UsageError if the name of the page, or of the file to which it is linked, does not end in .html."""
    if not all(path.suffix.lower() in SUFFIXES for path in (page, Path(os.path.realpath(page)))):
        hint = "use -o FILE.html, or --json to get the figures as data"
        raise UsageError(f"{page}: the file name must end in .html", hint)


def _write_page(path: Path, contents: "Contents", options: FigureOptions) -> None:
    from arbitrage_cli.display.page import Traces, render  # Jinja is slow to import
    from arbitrage_cli.runs.results import Result

    traces = Traces()
    figures = figures_of(contents.run, map(Result.of, traces.watch(contents.rows)), options)
    page = render(contents.run, figures, traces)
    with os_errors(OutputError, f"{path}: cannot be written", "use another file: -o FILE"):
        write_atomically(path, page.encode())


def _list(folder: Path | None, explicit: frozenset[str], *, as_json: bool) -> None:
    """List the runs in a folder. Raises UsageError if `folder` has no runs, or if an option needs a single run."""
    from arbitrage_cli.display.run_facts import run_lines
    from arbitrage_cli.runs.folder import list_runs

    records = list_runs(folder or RUNS)
    if not records and folder:
        reason = "contains no run" if folder.exists() else "does not exist"
        raise UsageError(f"{folder}: {reason}", "use the output folder of arbitrage bench")
    if unused := sorted(explicit & OF_ONE_RUN):
        raise UsageError("is used only with a run", "add the folder of a run, or omit this option", option=unused[0])
    if as_json:
        write_json(records)
        return
    for title, about in map(run_lines, records):
        write_lines(sys.stdout, [title, *wrapped(f"  {about}", width_of(sys.stdout))])
    if not records:
        typer.echo(f"no runs in {RUNS}; to start a run, use arbitrage bench", err=True)


def _regrade(run: Path, run_code: RunCode | None, output: OutputOptions) -> None:
    from arbitrage_cli.app.asking.needs import permitted
    from arbitrage_cli.app.commands.bench import regrade
    from arbitrage_cli.display.run_facts import grade_change
    from arbitrage_cli.problems.tasks import find_task
    from arbitrage_cli.runs.folder import RunFolder

    with command_display(output) as display, RunFolder(run) as folder:
        task = permitted(find_task(folder.run.decided.settings.task if folder.run else None), run_code)
        for before, now in regrade(folder, task):
            if not output.quiet:
                display.note(grade_change(before, now))

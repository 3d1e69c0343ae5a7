"""`arbitrage report`: the figures of runs as a table, as JSON, or as a page to look at. Runs no model."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import show_figures
from arbitrage_cli.display.text import write
from arbitrage_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from arbitrage_cli.runs.folder import Contents


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, as arbitrage bench makes them.")],
    page: Annotated[
        Path | None,
        typer.Option("--html", "-o", envvar="ARBITRAGE_HTML", metavar="FILE", help="Write a page, with every trace in it."),
    ] = None,
    cost_ratio: shared.CostRatio = None,
    json_lines: shared.JsonFigures = False,
    debug: shared.Debug = False,
) -> None:
    """Show the figures of runs: a table, or with -o FILE.html a page with curves and every trace, step by step.

    The page is one file, and needs no network. With --json, one line for each run.
    """
    from arbitrage_cli.runs.folder import is_file_of, read_run_folder

    if page is not None and any(is_file_of(folder, page) for folder in runs):
        raise UsageError(f"{page} is a file of the run: the page would take its place", "give another file: -o FILE.html")
    contents = {str(folder): read_run_folder(folder) for folder in runs}
    if page is not None:
        _write_page(page, contents, cost_ratio)
    if page is None or json_lines:
        _show(list(contents.values()), cost_ratio, as_json=json_lines)


def _show(contents: "Sequence[Contents]", cost_ratio: float | None, *, as_json: bool) -> None:
    for number, one in enumerate(contents):
        if number and not as_json:
            write(sys.stdout, "\n")
        show_figures(one.run or {}, one.rows, cost_ratio=cost_ratio, as_json=as_json)


def _write_page(path: Path, contents: "dict[str, Contents]", cost_ratio: float | None) -> None:
    """Write the whole page, or leave what was there."""
    from arbitrage_cli.display.html import Source, render
    from arbitrage_cli.evaluation.metrics import figures  # NumPy and Jinja are slow to import: not for --help
    from arbitrage_cli.runs.folder import latest

    sources = []
    for name, one in contents.items():
        run = one.run or {}
        sources.append(Source(name, run, latest(one.rows), figures(run, one.rows, cost_ratio=cost_ratio)))
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(render(sources), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})", "give another file: -o FILE") from error
    typer.echo(f"wrote {path}", err=True)

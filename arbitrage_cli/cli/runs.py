"""`arbitrage runs`: the run folders below a folder. Runs no model."""

import shlex
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from arbitrage_cli.app.options import Debug, JsonFigures
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import write_json
from arbitrage_cli.display.text import one_line, width_of, wrapped
from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.runs.folder import RESULTS, RUN, examine
from arbitrage_cli.runs.records import COLLECT, label
from arbitrage_cli.stats import rounding

DEFAULT = Path("runs")


@command
def runs(
    folder: Annotated[Path, typer.Argument(help="Where the run folders are.")] = DEFAULT,
    *,
    json_line: JsonFigures = False,
    debug: Debug = False,
) -> None:
    """Show the runs, the last one first: data set, policies, models, and how much is done."""
    records = sorted(map(_record, _folders(folder)), key=lambda one: one["age_seconds"])
    if json_line:
        write_json(records)
        return
    for one in records:
        typer.echo(_title(one))
        about = one.get("error") or f"{one['dataset']}: {one['policies']}; {one['models']}"
        for line in wrapped(about, width_of(sys.stdout) - 2):
            typer.echo(f"  {one_line(line)}")
    if not records:
        typer.echo(f"there are no runs in {folder}; arbitrage bench makes them", err=True)


def _folders(folder: Path) -> Iterator[Path]:
    """The run folders in this one."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if (path / RUN).is_file() or (path / RESULTS).is_file())


def _record(folder: Path) -> dict[str, Any]:
    newest = max((folder / name).stat().st_mtime for name in (RUN, RESULTS) if (folder / name).exists())
    about: dict[str, Any] = {"folder": str(folder), "age_seconds": max(0, round(time.time() - newest))}
    try:
        run, found = examine(folder)
        return about | _facts(run, list(found.statuses.values()).count("done"))
    except ArbitrageError as error:
        return about | {"error": error.message}


def _facts(run: dict[str, Any], num_done: int) -> dict[str, Any]:
    is_collection = run.get("kind") == COLLECT
    each = 1 if is_collection else run["sampling"]["samples"] * len(run["policies"])
    names = [label(one["policy"], one["tau"], one["tau_name"]) for one in run["policies"]]
    return {
        "kind": run.get("kind", "bench"),
        "dataset": run["dataset"]["name"],
        "models": ", ".join(str(model["source"]) for model in run["models"].values()),
        "policies": COLLECT if is_collection else ", ".join(names),
        "done": num_done,
        "planned": run["planned"] * each,
    }


def _title(record: dict[str, Any]) -> str:
    days = timedelta(seconds=record["age_seconds"]).days
    age = rounding.count(days, "day") if days else rounding.duration(record["age_seconds"])
    done = f"  {record['done']}/{record['planned']} done" if "done" in record else ""
    return f"{one_line(shlex.quote(record['folder']))}{done}, {age} ago"

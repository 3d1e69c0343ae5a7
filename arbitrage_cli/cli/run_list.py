"""`arbitrage runs`: the run folders below a folder, and removing them. Runs no model."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from arbitrage_cli.app.options import Debug, TableOptions
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import confirmed, write_table_as
from arbitrage_cli.display import rounding
from arbitrage_cli.display.downloads import size_words
from arbitrage_cli.display.text import one_line, width_of, wrapped
from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.runs.folder import COLLECT, RESULTS, RUN, examine, files_of_run, latest, remove_run
from arbitrage_cli.runs.records import label

NOT_REMOVED = 1
DEFAULT = Path("runs")


def make_group() -> typer.Typer:
    """The commands below `arbitrage runs`; without one it lists."""
    group = typer.Typer(help="List and remove run folders.", invoke_without_command=True)

    @group.callback()
    def list_by_default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            list_runs(context, folder=DEFAULT, json_line=False, csv=False, markdown=False, debug=False)

    commands: dict[str, Callable[..., int | None]] = {"list": list_runs, "rm": remove}
    for name, made in commands.items():
        group.command(name)(made)
    return group


@command
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where the run folders are.")] = DEFAULT,
    *,
    form: TableOptions,
    debug: Debug = False,
) -> None:
    """Show the runs, the last one first: data set, policies, models, and how much is done."""
    is_for_people = form.is_for_people
    records = sorted(map(_record, _folders(folder)), key=lambda one: one["age_seconds"])
    if not is_for_people:
        headings = list(records[0]) if records else ["folder"]
        table = headings, [[str(one.get(name, "")) for name in headings] for one in records]
        write_table_as(form, records, records, table)
    for one in records if is_for_people else ():
        typer.echo(_title(one))
        about = one.get("error") or f"{one['dataset']}: {one['policies']}; {one['models']}"
        for line in wrapped(about, width_of(sys.stdout) - 2):
            typer.echo(f"  {one_line(line)}")
    if is_for_people and not records:
        typer.echo(f"there are no runs in {folder}; arbitrage bench makes them", err=True)


@command
def remove(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> int:
    """Remove runs, and their folders if nothing else is in them. Asks first.

    \b
    Examples:
      arbitrage runs rm runs/builtin--builtin
    """
    for folder in folders:
        examine(folder)
    size = sum(path.lstat().st_size for folder in folders for path in files_of_run(folder))
    what = f"{', '.join(shlex.quote(str(folder)) for folder in folders)} ({size_words(size)})"
    if not yes and not confirmed(f"Remove {what}?"):
        return NOT_REMOVED
    for folder in folders:
        if not remove_run(folder):
            typer.echo(f"{one_line(str(folder))} is kept: not everything in it is the run's", err=True)
    typer.echo(f"removed {what}", err=True)
    return 0


def _folders(folder: Path) -> Iterator[Path]:
    """The run folders in this one."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if (path / RUN).is_file() or (path / RESULTS).is_file())


def _record(folder: Path) -> dict[str, Any]:
    newest = max((folder / name).stat().st_mtime for name in (RUN, RESULTS) if (folder / name).exists())
    about: dict[str, Any] = {"folder": str(folder), "age_seconds": max(0, round(time.time() - newest))}
    try:
        found = examine(folder)
        return about | _facts(found.run, [row for row in latest(found.rows) if row["status"] == "done"])
    except ArbitrageError as error:
        return about | {"error": error.message}
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # its checksum is right: another program wrote it
        return about | {"error": f"run.json does not describe a run ({type(error).__name__}: {error})"}


def _facts(run: dict[str, Any], done: list[Any]) -> dict[str, Any]:
    is_collection = run.get("kind") == COLLECT
    each = 1 if is_collection else run["sampling"]["samples"] * len(run["policies"])
    names = [label(one["policy"], one["tau"], one["tau_name"]) for one in run["policies"]]
    return {
        "kind": run.get("kind", "bench"),
        "dataset": run["dataset"]["name"],
        "models": ", ".join(str(model["source"]) for model in run["models"].values()),
        "policies": COLLECT if is_collection else ", ".join(names),
        "done": len(done),
        "planned": run["planned"] * each,
    }


def _title(record: dict[str, Any]) -> str:
    days = timedelta(seconds=record["age_seconds"]).days
    age = rounding.count(days, "day") if days else rounding.duration(record["age_seconds"])
    done = f"  {record['done']}/{record['planned']} done" if "done" in record else ""
    return f"{one_line(shlex.quote(record['folder']))}{done}, {age} ago"

"""The commands as one Typer application. Knows how help and usage errors look, not what a command does."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from arbitrage_cli import __version__
from arbitrage_cli.cli import (
    bench,
    calibrate,
    collect,
    compare,
    doctor,
    explain,
    grade,
    guide,
    models,
    report,
    settings,
    solve,
    train,
    tune,
)
from arbitrage_cli.cli.output import is_drawable

HELP = ["-h", "--help"]


def make_app() -> typer.Typer:
    """The command line as a Typer application. Help and usage errors are plain text where nothing can be drawn."""
    plain = not (is_drawable(sys.stdout) and is_drawable(sys.stderr))
    app = typer.Typer(
        name="arbitrage",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None if plain else "rich",
        context_settings={"help_option_names": HELP},
    )
    app.callback()(_root)
    app.command("solve")(settings.blaming_settings(solve.solve))
    app.command("bench")(settings.blaming_settings(bench.bench))
    app.command("grade")(grade.grade)
    app.command("report")(report.report)
    app.command("compare")(compare.compare)
    app.command("collect")(settings.blaming_settings(collect.collect))
    app.command("train")(settings.blaming_settings(train.train))
    app.command("calibrate")(settings.blaming_settings(calibrate.calibrate))
    app.command("explain")(settings.blaming_settings(explain.explain))
    app.command("tune")(settings.blaming_settings(tune.tune))
    app.add_typer(models.make_group(), name="models")
    app.command("doctor")(doctor.doctor)
    app.command("guide")(guide.guide)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Errors of the program itself are raised."""
    group = typer.main.get_group(make_app())
    explains = not arguments or arguments[0] in ("doctor", "guide") or not {*HELP, "--version"}.isdisjoint(arguments)
    # What helps to find a mistake in a settings file must work in spite of it.
    defaults = None if explains else settings.default_map(group.commands)
    try:
        group(args=list(arguments), prog_name="arbitrage", default_map=defaults, obj=tuple(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return os.EX_OK


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"arbitrage {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Faster reasoning on your own machine: a fast draft model writes step by step, a strong target model steps in
    where a router expects it to do better."""

"""The Typer application with all commands, its help, and its usage errors."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import typer

from arbitrage_cli import __version__
from arbitrage_cli.cli import models
from arbitrage_cli.cli.advise import advise
from arbitrage_cli.cli.bench import bench
from arbitrage_cli.cli.chat import chat
from arbitrage_cli.cli.doctor import doctor
from arbitrage_cli.cli.guide import guide
from arbitrage_cli.cli.report import compare, report
from arbitrage_cli.cli.serve import serve
from arbitrage_cli.cli.settings import origin_of
from arbitrage_cli.cli.solve import solve
from arbitrage_cli.cli.training import collect, train
from arbitrage_cli.display.text import is_drawable
from arbitrage_cli.errors import UsageError, in_plain_words

HELP = ["-h", "--help"]
RUN_CODE = "--run-code=sandboxed"
"""The value that replaces a bare `--run-code`. Typer does not support optional values."""
SET_UP = "Set up"
PANELS: Mapping[str, Sequence[Callable[..., int | None]]] = {
    "Solve": (solve, chat, serve),
    "Measure": (advise, bench, report, compare),
    "Train": (collect, train),
    SET_UP: (doctor, guide),
}
"""The commands in each panel of --help, in display order. Each command is named after its function."""


def make_app() -> typer.Typer:
    """Return the Typer application. The help is plain text unless both streams are terminals."""
    plain = not (is_drawable(sys.stdout) and is_drawable(sys.stderr))
    app = typer.Typer(
        name="arbitrage",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None if plain else "rich",
        context_settings={"help_option_names": HELP},
    )
    app.callback()(_root)
    for panel, commands in PANELS.items():
        for command in commands:
            short_help = (command.__doc__ or "").partition("\n\n")[0]
            app.command(command.__name__, short_help=short_help, rich_help_panel=panel)(command)
    app.add_typer(models.make_group(), name="models", rich_help_panel=SET_UP)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. Raises ArbitrageError if the command fails."""
    group: Any = typer.main.get_command(make_app())  # with the options that install shell completion
    try:
        code = group.main(
            args=[RUN_CODE if argument == "--run-code" else argument for argument in arguments],
            prog_name="arbitrage",
            obj=tuple(arguments),
            standalone_mode=False,
        )
    except typer.Abort:
        return 1
    except typer.TyperException as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            _refuse(error)
        context: Any = getattr(error, "ctx", None)
        sys.stderr.write(f"{context.get_help()}\n")
        return UsageError.exit_code
    return code if isinstance(code, int) else os.EX_OK


def _refuse(error: Any) -> NoReturn:
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path} --help" if context else "see arbitrage --help"
    parameter = getattr(error, "param", None)
    origin = origin_of(context, str(parameter.name)) if context and parameter and error.message else None
    message = in_plain_words(str(error.message))
    raise UsageError(f"{origin}: {message}" if origin else error.format_message(), hint) from error


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"arbitrage {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Faster reasoning with two language models: a fast draft writes each step, and a strong target rewrites the steps that a
    router predicts it would improve."""

"""The command line: `main(argv)` runs a command and returns its exit code.

The one place where errors are shown and signals become an end. Commands are thin: they read options, open models, and
join the scheduler to a display.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from arbitrage_cli import __version__
from arbitrage_cli.commands import doctor, settings, solve
from arbitrage_cli.errors import ArbitrageError, DefectError, InterruptedRunError
from arbitrage_cli.reporters import one_line

SIGPIPE_EXIT_CODE = 141  # what a shell reports for a program that a closed pipe ended


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


def make_app() -> typer.Typer:
    """The command line as a Typer application."""
    app = typer.Typer(name="arbitrage", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    app.command("solve")(solve.solve)
    app.command("doctor")(doctor.doctor)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own arguments) and return its exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _signals():
            group = typer.main.get_group(make_app())
            group(args=arguments, prog_name="arbitrage", default_map=settings.default_map(group.commands))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        # Nobody reads the results any more. Python would complain when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_EXIT_CODE
    except ArbitrageError as error:
        return _show(error, debug=_is_debugging(arguments))
    except Exception as error:  # noqa: BLE001 - a defect of this program: still one line, and how to see more
        wrapped = DefectError(f"unexpected {type(error).__name__}: {error}", "a defect: please report it, with --debug")
        wrapped.__cause__ = error
        return _show(wrapped, debug=_is_debugging(arguments))
    return 0


def _is_debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("ARBITRAGE_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _show(error: ArbitrageError, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    lines = [f"arbitrage: {one_line(error.message)}", f"  {one_line(error.hint)}" if error.hint else ""]
    with contextlib.suppress(OSError):
        sys.stderr.write("".join(f"{line}\n" for line in lines if line))
        sys.stderr.flush()
    return error.exit_code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that the terminal is restored. The second signal of a kind ends it at once."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise InterruptedRunError("interrupted", exit_code=128 + number)

    try:
        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the host program has the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

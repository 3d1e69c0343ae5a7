"""The output and the questions of commands: displays, log messages, JSON and tables."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from arbitrage_cli.app.protocol import Display
from arbitrage_cli.display.display import CommandDisplay, PlainScreen, Screen
from arbitrage_cli.display.text import is_drawable, one_line, show, write
from arbitrage_cli.types import frozen

if TYPE_CHECKING:
    from arbitrage_cli.evaluation.metrics import RunFigures
    from arbitrage_cli.runs.results import Result
    from arbitrage_cli.runs.run import Run


@frozen
class OutputOptions:
    """The options for the output on standard error."""

    quiet: bool = False
    debug: bool = False


@frozen
class FigureOptions:
    """The options for tables of figures."""

    json_line: bool = False
    price: str | None = None


@contextlib.contextmanager
def command_display(options: OutputOptions) -> Iterator[Display]:
    """Open a command's display, which also shows log messages.

    The display updates live in a terminal. Otherwise, or with `--quiet`, progress is displayed as plain lines.
    """
    with contextlib.closing(_choose_display(options)) as display, _log_to(display, options):
        yield display


def _choose_display(options: OutputOptions) -> Display:
    if options.quiet:
        return CommandDisplay(PlainScreen(sys.stderr), sys.stdout, verbosity=0)
    screen: Screen = PlainScreen(sys.stderr)
    if is_drawable(sys.stderr):
        from arbitrage_cli.display.live import LiveScreen  # Rich is slow to import

        screen = LiveScreen(sys.stderr)
    return CommandDisplay(screen, sys.stdout, verbosity=2 if options.debug else 1)


class _NoteHandler(logging.Handler):
    """Shows each log message once."""

    def __init__(self, display: Display, level: int) -> None:
        super().__init__(level)
        self._display = display
        self._shown = set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._shown:
            self._shown.add(message)
            self._display.note(message)


@contextlib.contextmanager
def _log_to(display: Display, options: OutputOptions) -> Iterator[None]:
    """Show the warnings of the program's loggers as notes, or all their messages with --debug."""
    logger = logging.getLogger("arbitrage")
    handler = _NoteHandler(
        display, logging.DEBUG if options.debug else logging.WARNING
    )  # child loggers may pass on records below it
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def say(text: str, options: OutputOptions) -> None:
    """Write a line to standard error unless --quiet is used. Call this function after the display is closed."""
    if not options.quiet:
        show(sys.stderr, one_line(text) + "\n")


def is_confirmed(question: str) -> bool:
    """Ask a question in the terminal, and return whether the answer is yes.

    Outside a terminal, return False without asking.
    """
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        return False
    show(sys.stderr, f"{one_line(question)} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def figures_of(run: "Run", results: "Iterable[Result]", options: FigureOptions) -> "RunFigures":
    from arbitrage_cli.app.asking.locate import card_of_run  # NumPy is slow to import
    from arbitrage_cli.costs.pair import parse_prices
    from arbitrage_cli.evaluation.metrics import figures

    return figures(run, results, card_of_run(run), prices=parse_prices(options.price) if options.price else None)


def show_figures(run: "Run", results: "Iterable[Result]", options: FigureOptions, *, explains: bool = False) -> None:
    from arbitrage_cli.display import table
    from arbitrage_cli.display.run_facts import facts_of_models

    figures = figures_of(run, results, options)
    if options.json_line:
        write_json(figures.to_json())
    else:
        facts = [*facts_of_models(run), ("machine", run.decided.processor)]
        table.write_table(figures, facts, sys.stdout, explains=explains)


def write_json(content: Any) -> None:
    write(sys.stdout, json.dumps(content, ensure_ascii=True, allow_nan=False) + "\n")

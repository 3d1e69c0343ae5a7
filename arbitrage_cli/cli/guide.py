"""`arbitrage guide` shows the guides."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import options_page
from arbitrage_cli.display.text import is_drawable, write, write_lines
from arbitrage_cli.errors import unknown

GUIDES = Path(__file__).parents[1] / "guides"
MAX_COLUMNS = 100


@command()
def guide(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Topic. Default: list all topics.")] = None,
) -> None:
    """Show a guide, or list the topics of the guides.

    In a terminal, the guide opens in a pager. Otherwise, plain Markdown is printed.

    \b
    Examples:
      arbitrage guide
      arbitrage guide routing
    """
    pages = _pages()
    if topic is None:
        titles = {name: page.partition("\n")[0].partition(": ")[2] for name, page in pages.items()}
        write_lines(sys.stdout, (f"{name:<12}{title}" for name, title in titles.items()))
    elif topic in pages:
        _show(pages[topic])
    else:
        raise unknown("topic", topic, pages)


def _pages() -> dict[str, str]:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in GUIDES.glob("*.md")} | {"options": options_page()}
    return dict(sorted(pages.items()))


def _show(text: str) -> None:
    if not is_drawable(sys.stdout):
        write(sys.stdout, text)
        return
    from rich.console import Console  # slow to import
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "FRX")  # git's default: keep colors, and quit if the text fits on the screen
    console = Console(width=min(Console().width, MAX_COLUMNS))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pager handles Ctrl-C
    try:
        with console.pager(styles=True):
            console.print(Markdown(text, hyperlinks=False))
    finally:
        signal.signal(signal.SIGINT, before)

"""`arbitrage doctor` describes the installation for bug reports, and `arbitrage guide` shows the guides."""

import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli import __version__
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import options_page
from arbitrage_cli.cli.settings import settings_file
from arbitrage_cli.display.text import is_drawable, write, write_lines
from arbitrage_cli.errors import ModelError, UsageError, unknown
from arbitrage_cli.inference.llama import binding_version
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.model_files import hub
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.files import user_folder
from arbitrage_cli.system.machine import default_threads, processor_name, total_memory

GUIDES = Path(__file__).parents[1] / "guides"
MAX_COLUMNS = 100


@command()
def doctor() -> None:
    """Show versions, the machine and the settings, for bug reports."""
    for name, value in _facts():
        typer.echo(f"{name:<18} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "arbitrage", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for package in ("numpy", "huggingface-hub"):
        yield package, importlib.metadata.version(package)
    yield from _llama()
    yield "processor", processor_name()
    yield "memory", formatting.size_words(total_memory())
    yield "default threads", f"{default_threads()} of {os.cpu_count()} logical processors; 1 for small models"
    yield "program sandbox", _sandbox()
    yield "settings file", f"{settings_file()}{'' if settings_file().is_file() else ' (does not exist)'}"
    yield "pairs file", str(user_folder() / "pairs.toml")
    yield "models cache", str(hub.cache_folder())
    yield "environment", ", ".join(sorted(name for name in os.environ if name.startswith("ARBITRAGE_"))) or "none"


def _sandbox() -> str:
    from arbitrage_cli.problems.code import find_sandbox

    try:
        find_sandbox()
    except UsageError as error:
        return f"none: {error.message}"
    return "bubblewrap"


def _llama() -> Iterator[tuple[str, str]]:
    yield "llama-cpp-python", binding_version()
    try:
        llama = load_llama()
        yield "llama.cpp", str(llama.system_info())
        for gpu in llama.gpus():
            yield "GPU", f"{gpu.name}, {formatting.size_words(gpu.total)} of memory, {formatting.size_words(gpu.free)} free"
        if not llama.gpus():
            yield "GPU", "none"
    except ModelError as error:
        yield "llama.cpp", error.message


# --- the guides


@command()
def guide(
    topic: Annotated[str | None, typer.Argument(help="Topic. Default: list all topics.")] = None,
) -> None:
    """Show a guide: routing, benchmarks, code, training, servers, output, settings, ...

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

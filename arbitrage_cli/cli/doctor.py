"""`arbitrage doctor`: describes the installation for bug reports."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence

import typer

from arbitrage_cli import __version__
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.settings import settings_files
from arbitrage_cli.costs.store import read_cache, tuned_file
from arbitrage_cli.display.text import one_line
from arbitrage_cli.errors import ModelError, UsageError
from arbitrage_cli.inference.llama.prebuilt import binding_version
from arbitrage_cli.model_files import hub
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.files import user_folder
from arbitrage_cli.system.machine import default_threads, processor_features, processor_name, total_memory

PACKAGES = ("typer", "rich", "numpy", "huggingface-hub", "jinja2")


@command()
def doctor() -> None:
    """Show versions, the machine and the settings, for bug reports."""
    for name, value in _facts():
        typer.echo(f"{name:<18} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "arbitrage", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for package in PACKAGES:
        yield package, importlib.metadata.version(package)
    yield from _llama()
    memory = total_memory()
    yield "processor", processor_name()
    yield "memory", formatting.size_words(memory) if memory else "unknown"
    yield "default threads", f"{default_threads()} of {os.cpu_count()} logical processors; 1 for small models"
    yield "program sandbox", _sandbox()
    yield "measured models", _measured()
    yield "settings files", ", ".join(map(str, settings_files())) or "none"
    yield "pairs file", str(user_folder() / "pairs.toml")
    yield "models cache", str(hub.cache_folder())
    yield "environment", ", ".join(sorted(name for name in os.environ if name.startswith("ARBITRAGE_"))) or "none"


def _sandbox() -> str:
    from arbitrage_cli.problems.programs import find_sandbox

    try:
        find_sandbox()
    except UsageError as error:
        return f"none: {error.message}"
    return "bubblewrap"


def _measured() -> str:
    from arbitrage_cli.costs.placement import machine_here  # slow to import

    faults = list[str]()
    try:
        known = read_cache(tuned_file(), faults.append).tuned
        found = [tuned for tuned in known if tuned.machine == machine_here()] if known else []
    except (UsageError, ModelError) as error:
        return error.message
    if faults:
        return faults[0]
    names = dict.fromkeys(f"{one_line(tuned.name)} ({formatting.count(tuned.threads, 'thread')})" for tuned in found)
    return ", ".join(names) or "none; arbitrage advise measures models"


def _llama() -> Iterator[tuple[str, str]]:
    from arbitrage_cli.inference.open import load_llama  # slow to import

    yield "llama-cpp-python", binding_version()
    try:
        llama = load_llama()
        yield "llama.cpp", str(llama.system_info())
        yield "built for", _build(llama.unused_instructions())
        for gpu in llama.gpus():
            yield "GPU", f"{gpu.name}, {formatting.size_words(gpu.total)} of memory, {formatting.size_words(gpu.free)} free"
        if not llama.gpus():
            yield "GPU", "none"
    except ModelError as error:
        yield "llama.cpp", error.message


def _build(unused: Sequence[str]) -> str:
    if not processor_features():
        return "unknown: this system does not report CPU features"
    return f"any processor; it does not use this processor's {', '.join(unused)}" if unused else "this processor"

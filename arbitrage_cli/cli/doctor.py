"""`arbitrage doctor` describes the installation, the machine, and what is stored about models, for bug reports."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

import typer

from arbitrage_cli import __version__
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.settings import settings_file
from arbitrage_cli.display.model_facts import stored_facts
from arbitrage_cli.display.text import one_line
from arbitrage_cli.errors import ModelError, UsageError
from arbitrage_cli.inference.llama import binding_version, prebuilt_library
from arbitrage_cli.inference.open import load_llama
from arbitrage_cli.model_files import hub
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.files import user_folder
from arbitrage_cli.system.machine import default_threads, processor_features, processor_name, total_memory

OWN_PACKAGE = "arbitrage-cli"
EXTRAS = "train|datasets"  # the extra `prebuilt` is shown with llama-cpp-python
Fact = tuple[str, str]


@command()
def doctor() -> None:
    """Show versions, the machine, the settings, and stored token costs, for bug reports."""
    for name, value in _facts():
        typer.echo(f"{name:<18} {one_line(value)}")


def _facts() -> Iterator[Fact]:
    yield "arbitrage", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    yield from _packages()
    yield from _llama()
    yield "processor", processor_name()
    yield "memory", formatting.size_words(total_memory())
    yield "default threads", f"{default_threads()} of {os.cpu_count()} logical processors; 1 for small models"
    yield "program sandbox", _sandbox()
    yield "settings file", f"{settings_file()}{'' if settings_file().is_file() else ' (does not exist)'}"
    yield "pairs file", str(user_folder() / "pairs.toml")
    yield "models cache", str(hub.cache_folder())
    yield "environment", ", ".join(sorted(name for name in os.environ if name.startswith("ARBITRAGE_"))) or "none"
    yield from _stored()


def _packages() -> Iterator[Fact]:
    """Yield the versions of the packages that this program requires, and of those of its extras."""
    requirements = importlib.metadata.requires(OWN_PACKAGE) or []
    own = [text for text in requirements if "extra ==" not in text]
    optional = [text for text in requirements if re.search(f"extra == '({EXTRAS})'", text)]
    names = dict.fromkeys(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in (*own, *optional))
    for name in names:
        if name == "llama-cpp-python":
            continue  # shown with its library
        version = "not installed"
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
        yield name, version


def _llama() -> Iterator[Fact]:
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


def _build(unused: list[str]) -> str:
    """Describe the processors for which llama.cpp was built. `unused` are the instruction sets that it does not use."""
    if not processor_features():
        return "unknown, because this system does not report the processor's instruction sets"
    if prebuilt_library():
        return "any processor with AVX2 (prebuilt)" + (f"; does not use {', '.join(unused)}" if unused else "")
    return f"another processor; does not use {', '.join(unused)}" if unused else "this processor"


def _sandbox() -> str:
    from arbitrage_cli.problems.code import find_sandbox

    try:
        find_sandbox()
    except UsageError as error:
        return f"none: {error.message}"
    return "bubblewrap"


def _stored() -> Iterator[Fact]:
    from arbitrage_cli.costs.store import read_cache, tuned_file

    notes: list[str] = []
    cache = read_cache(tuned_file(), notes.append)
    yield "stored in", f"{tuned_file()}{'' if cache.tuned else ' (nothing is stored)'}"
    yield from stored_facts(cache)
    yield from (("note", note) for note in notes)

"""Defaults of options from files: `arbitrage.toml` here, then the user's own `config.toml`. Flags and environment win.

A key is the long name of an option without its dashes: `draft = "small.gguf"`, `max-tokens = 1024`. Knows no option
itself: it asks the commands which they have.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.errors import UsageError

PROJECT_FILE = "arbitrage.toml"


def files() -> list[Path]:
    """The settings files there are, the one that wins first."""
    candidates = [Path(PROJECT_FILE), Path(typer.get_app_dir("arbitrage")) / "config.toml"]
    return [path for path in candidates if path.is_file()]


def default_map(commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Defaults for each command's parameters, as Typer takes them. UsageError for a file or key that makes no sense."""
    parameters = {name: _parameters(command) for name, command in commands.items()}
    known = {option for options in parameters.values() for option in options}
    defaults: dict[str, dict[str, Any]] = {name: {} for name in commands}
    for path in reversed(files()):
        settings = _read(path)
        unknown = sorted(settings.keys() - known)
        if unknown:
            raise UsageError(f"{path}: unknown setting '{unknown[0]}'", "settings: " + ", ".join(sorted(known)))
        for name, options in parameters.items():
            defaults[name] |= {options[key]: value for key, value in settings.items() if key in options}
    return defaults


def _parameters(command: Any) -> dict[str, str]:
    """Long option names of a command, without dashes, and the parameters that they set."""
    return {
        option.removeprefix("--"): parameter.name
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help", "--input")
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})", "correct the file, or move it away") from error

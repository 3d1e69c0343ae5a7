"""Defaults of options from files: `arbitrage.toml` here, then the user's own `config.toml`. Flags and environment win.

A key is the long name of an option without its dashes: `draft = "small.gguf"`, `max-tokens = 1024`. Knows no option
itself: it asks the commands which they have.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.errors import UsageError

PROJECT_FILE = "arbitrage.toml"
RIVALS = frozenset(("tau", "budget"))
"""Of which one is wanted: that of the file that wins."""


def user_folder() -> Path:
    """The user's own settings and pairs, for all projects."""
    return Path(typer.get_app_dir("arbitrage"))


def files() -> list[Path]:
    """The settings files there are, the one that wins first."""
    candidates = [Path(PROJECT_FILE), user_folder() / "config.toml"]
    return [path for path in candidates if path.is_file()]


def default_map(commands: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for each command's parameters, as Typer takes them. UsageError for a file or key that makes no sense."""
    known = set(_all_options(commands))
    merged: dict[str, Any] = {}
    for path in reversed(files()):
        settings = _read(path)
        unknown = sorted(settings.keys() - known)
        if unknown:
            raise UsageError(f"{path}: unknown setting '{unknown[0]}'", "settings: " + ", ".join(sorted(known)))
        merged = _over(merged, settings)
    return _defaults(commands, merged)


def _defaults(commands: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as each command takes them; those of a command with commands below it are nested."""
    defaults: dict[str, Any] = {}
    for name, command in commands.items():
        own = {parameter: settings[option] for option, parameter in _parameters(command).items() if option in settings}
        defaults[name] = own | _defaults(_below(command), settings)
    return defaults


def _over(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Both settings; the stronger win."""
    lost = RIVALS if RIVALS & stronger.keys() else frozenset()
    return {name: value for name, value in weaker.items() if name not in lost} | dict(stronger)


def _all_options(commands: Mapping[str, Any]) -> Iterator[str]:
    for command in commands.values():
        yield from _parameters(command)
        yield from _all_options(_below(command))


def _below(command: Any) -> Mapping[str, Any]:
    """The commands of a group; none for a command."""
    below: Mapping[str, Any] = getattr(command, "commands", {})
    return below


def _parameters(command: Any) -> dict[str, str]:
    """Long option names of a command, without dashes, and the parameters that they set."""
    return {
        option.removeprefix("--"): parameter.name
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help", "--input", "--debug", "--fresh", "--repair")
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})", "correct the file, or move it away") from error
    # An option is text on the command line, one that takes a table JSON.
    return {name: json.dumps(value, default=str) if isinstance(value, dict) else value for name, value in settings.items()}

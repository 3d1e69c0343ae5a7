"""Reads settings files: `arbitrage.toml` in the current folder, and `config.toml` in the user's settings folder.

A key is the long name of an option without its dashes: `draft = "small.gguf"`, `max-tokens = 1024` (or `max_tokens`). A
table named after a command sets options of this command only.
"""

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.errors import UsageError, unknown
from arbitrage_cli.system.files import read_text, user_folder

PROJECT_FILE = "arbitrage.toml"
PREFIX = "ARBITRAGE_"
FLAGS_ONLY = ("--debug",)
"""Options that have an environment variable but cannot be set in a file."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The merged settings of all files, in Typer's format, and the file that set each option of each command."""

    defaults: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Path]]


@dataclass(frozen=True, slots=True)
class ContextObject:
    """The `context.obj` of every command. Contains the program's arguments and the settings."""

    arguments: tuple[str, ...]
    settings: Settings


def settings_files() -> list[Path]:
    return [path for path in (Path(PROJECT_FILE), user_folder() / "config.toml") if path.is_file()]


def read_settings(commands: Mapping[str, Any]) -> Settings:
    """Read all settings files. Raises UsageError if a file cannot be read or an option is unknown."""
    values: dict[str, dict[str, Any]] = {name: {} for name in commands}
    files: dict[str, dict[str, Path]] = {name: {} for name in commands}
    for path in reversed(settings_files()):
        for name, settings in _read(path, commands).items():
            values[name] |= settings
            files[name] |= dict.fromkeys(settings, path)
    defaults = {name: _defaults(command, values[name]) for name, command in commands.items()}
    return Settings(defaults, files)


def unknown_variables(commands: Mapping[str, Any], environment: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each ARBITRAGE_ variable that is not a setting. Variables that hold API keys may have any name."""
    known = {str(parameter.envvar) for command in _all(commands) for parameter in command.params}
    for name in sorted(environment):
        if name.startswith(PREFIX) and not name.endswith("_API_KEY") and name not in known:
            similar = get_close_matches(name, known, n=1)
            guess = f": did you mean {similar[0]}?" if similar else ""
            yield f"the environment variable {name} does not match any setting{guess}"


def _all(commands: Mapping[str, Any]) -> Iterator[Any]:
    for command in commands.values():
        yield command
        yield from _all(getattr(command, "commands", {}))


def origin_of(context: typer.Context, name: str) -> str | None:
    """Return the flag, variable or file that set a parameter, or None if the parameter has its default value."""
    parameter = next((known for known in context.command.params if known.name == name), None)
    source = context.get_parameter_source(name)
    if parameter is None or source is None or source.name == "DEFAULT":
        return None
    if source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    option = parameter.opts[0].removeprefix("--")
    if source.name != "DEFAULT_MAP":
        return f"--{option}"
    return f"{context.obj.settings.files[context.command_path.split()[1]][option]}: {option}"


def _read(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(read_text(path))
        tables = {
            name: _dashed(path, value) for name, value in content.items() if name in commands and isinstance(value, dict)
        }
        general = _dashed(path, {name: value for name, value in content.items() if name not in tables})
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})", "correct or remove the file") from error
    _check_names(path, general, set(_option_names(commands)))
    for name, table in tables.items():
        _check_names(path, table, set(_option_names({name: commands[name]})), f"[{name}] ")
    return {name: general | tables.get(name, {}) for name in commands}


def _dashed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with dashes in their names, and with tables converted to JSON.

    Raises UsageError if a name is spelled both with dashes and with underscores.
    """
    dashed: dict[str, Any] = {}
    for name, value in settings.items():
        option = name.replace("_", "-")
        if option in dashed:
            raise UsageError(f"{path}: '{option}' is set twice: with dashes and with underscores", "keep one of them")
        dashed[option] = json.dumps(value, default=str) if isinstance(value, dict) else value
    return dashed


def _check_names(path: Path, settings: Mapping[str, Any], known: set[str], table: str = "") -> None:
    for name in settings:
        if name not in known:
            error = unknown("setting", name, sorted(known))
            raise UsageError(f"{path}: {table}{error.message}", error.hint)


def _defaults(command: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {parameter.name: settings[option] for option, parameter in _options(command) if option in settings}
    return own | {name: _defaults(below, settings) for name, below in getattr(command, "commands", {}).items()}


def _option_names(commands: Mapping[str, Any]) -> Iterator[str]:
    return (option for command in _all(commands) for option, _ in _options(command))


def _options(command: Any) -> Iterator[tuple[str, Any]]:
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and parameter.envvar and option not in FLAGS_ONLY:
                yield option.removeprefix("--"), parameter

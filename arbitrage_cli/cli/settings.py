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


Values = Mapping[str, tuple[Any, Path]]
"""The value of each option, and the file that set it."""


@dataclass(frozen=True, slots=True)
class ContextObject:
    """The `context.obj` of every command: the program's arguments, and the settings of each command."""

    arguments: tuple[str, ...]
    settings: Mapping[str, Values]


def settings_files() -> list[Path]:
    return [path for path in (Path(PROJECT_FILE), user_folder() / "config.toml") if path.is_file()]


def read_settings(commands: Mapping[str, Any]) -> Mapping[str, Values]:
    """Return the settings of each command. Raises UsageError if a file cannot be read or an option is unknown."""
    settings: dict[str, dict[str, tuple[Any, Path]]] = {name: {} for name in commands}
    for path in reversed(settings_files()):
        tables = _read(path, commands)
        for name, values in settings.items():
            values |= {option: (value, path) for option, value in {**tables[""], **tables.get(name, {})}.items()}
    return settings


def default_map(commands: Mapping[str, Any], settings: Mapping[str, Values]) -> dict[str, Any]:
    """Return the settings in Typer's format."""
    return {name: _defaults(commands[name], values) for name, values in settings.items()}


def unknown_variables(commands: Mapping[str, Any], environment: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each ARBITRAGE_ variable that is not a setting. Variables that hold API keys may have any name."""
    known = {str(parameter.envvar) for command in commands.values() for each in _all(command) for parameter in each.params}
    for name in sorted(environment):
        if name.startswith(PREFIX) and not name.endswith("_API_KEY") and name not in known:
            similar = get_close_matches(name, known, n=1)
            guess = f": did you mean {similar[0]}?" if similar else ""
            yield f"the environment variable {name} does not match any setting{guess}"


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
    return f"{context.obj.settings[context.command_path.split()[1]][option][1]}: {option}"


def _read(path: Path, commands: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of each table, and the general settings under an empty name."""
    try:
        general = tomllib.loads(read_text(path))
        tables = {name: general.pop(name) for name in commands if isinstance(general.get(name), dict)}
        checked = {name: _checked(path, f"[{name}] ", table, [commands[name]]) for name, table in tables.items()}
        return {"": _checked(path, "", general, commands.values()), **checked}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})", "correct or remove the file") from error


def _checked(path: Path, place: str, table: Mapping[str, Any], commands: Iterable[Any]) -> dict[str, Any]:
    """Return the settings with dashes in their names, and with tables converted to JSON.

    Raises UsageError if an option is unknown.
    """
    known = sorted({option for command in commands for each in _all(command) for option, _ in _options(each)})
    checked: dict[str, Any] = {}
    for name, value in table.items():
        option = name.replace("_", "-")
        if option not in known:
            error = unknown("setting", option, known)
            raise UsageError(f"{path}: {place}{error.message}", error.hint)
        checked[option] = json.dumps(value, default=str) if isinstance(value, dict) else value
    return checked


def _all(command: Any) -> Iterator[Any]:
    """Yield a command and the commands below it."""
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from _all(below)


def _defaults(command: Any, values: Values) -> dict[str, Any]:
    own = {parameter.name: values[option][0] for option, parameter in _options(command) if option in values}
    return own | {name: _defaults(below, values) for name, below in getattr(command, "commands", {}).items()}


def _options(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options that can be set in a file, and their parameters."""
    for parameter in command.params:
        for option in parameter.opts:
            if option.startswith("--") and parameter.envvar and option not in FLAGS_ONLY:
                yield option.removeprefix("--"), parameter

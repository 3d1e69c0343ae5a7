"""Reads the settings file: `config.toml` in the user's settings folder, or the file that --config names.

Files in the current folder are not read, because the folder may be somebody else's. A key is the long name of an option
without its dashes: `draft = "small.gguf"`, `max-tokens = 1024` (or `max_tokens`). A table named after a command sets options
of this command only.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.app.options import KEY_VARIABLE
from arbitrage_cli.display.text import one_line
from arbitrage_cli.errors import UsageError, os_errors, unknown
from arbitrage_cli.inference.servers.address import SHARED_KEY_VARIABLE, key_variable
from arbitrage_cli.model_files.pairs import user_pairs
from arbitrage_cli.system.files import read_text, user_folder
from arbitrage_cli.types import ROLES, Fields, Json

PREFIX = "ARBITRAGE_"
VARIABLE = "ARBITRAGE_CONFIG"
KEY_VARIABLES = (KEY_VARIABLE, SHARED_KEY_VARIABLE, *map(key_variable, ROLES))
FOR_TESTS = ("ARBITRAGE_TEST_", "ARBITRAGE_FUZZ")
FLAGS_ONLY = ("--debug", "--config")
"""Options that have an environment variable but cannot be set in a file."""


def settings_file() -> Path:
    """Return the settings file that is used if there is no --config. It may not exist."""
    return Path(os.environ.get(VARIABLE) or user_folder() / "config.toml")


def use_settings(context: typer.Context, config: Path | None) -> Path:
    """Use the settings as defaults of a command, and return the file. This function is the callback for --config.

    Environment variables that set nothing are reported on standard error. Raises UsageError if the file cannot be read or if
    it has an unknown setting.
    """
    root: Any = context.find_root().command
    if not context.resilient_parsing:  # the shell asks for completions
        for line in _unknown_variables(root):
            typer.echo(line, err=True)
    path = config or settings_file()
    if config or path.is_file():
        values = _read(path, root, context.command_path.split()[1])
        names = _settings(context.command)
        context.default_map = {names[option]: value for option, value in values.items() if option in names}
    return path


def origin_of(context: typer.Context, name: str) -> str | None:
    """Return the flag, variable or file that set a parameter, or None if the parameter has its default value."""
    parameter = next((known for known in context.command.params if known.name == name), None)
    source = context.get_parameter_source(name)
    if parameter is None or source is None or source.name == "DEFAULT":
        return None
    if source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    option = parameter.opts[0]
    return option if source.name != "DEFAULT_MAP" else f"{context.params['config']}: {option.removeprefix('--')}"


def _unknown_variables(root: Any) -> Iterator[str]:
    """Yield a line for each unknown variable that begins with PREFIX, with the most similar known name."""
    known = {str(parameter.envvar) for parameter in _parameters(root) if parameter.envvar} | {*KEY_VARIABLES}
    names = [name for name in sorted(os.environ) if name.startswith(PREFIX) and name not in known]
    if names:
        with suppress(UsageError):  # the command reports a damaged file
            entries = [entry for pair in user_pairs().values() for entry in pair.entries.values()]
            known |= {entry.api_key_env for entry in entries if entry.api_key_env}
    for name in names:
        if name not in known and not name.startswith(FOR_TESTS):
            similar = get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], n=1)
            guess = f"; did you mean {PREFIX}{similar[0]}?" if similar else ""
            yield one_line(f"the environment variable {name} has no effect{guess}")


def _read(path: Path, root: Any, command: str) -> Json:
    """Return the general settings, and those of a command. The settings of other commands are only checked."""
    try:
        with os_errors(UsageError, f"{path}: cannot be read", "correct the path or the permissions"):
            general = tomllib.loads(read_text(path))
        tables = {name: general.pop(name) for name in root.commands if isinstance(general.get(name), dict)}
        settings = _checked(path, "", general, root)
        own = {name: _checked(path, f"[{name}] ", table, root.commands[name]) for name, table in tables.items()}
        return settings | own.get(command, {})
    except (ValueError, RecursionError) as error:
        hint = 'correct the file; text needs quotes, such as tau = "fast"'
        raise UsageError(f"{path}: not valid TOML ({error})", hint) from error


def _checked(path: Path, place: str, table: Fields, command: Any) -> Json:
    """Return the settings with dashes in their names. Raises UsageError for an unknown setting, or a list or table."""
    known = sorted(_settings(command))
    settings = {name.replace("_", "-"): value for name, value in table.items()}
    for option, value in settings.items():
        if option not in known:
            error = unknown("setting", option, known)
            raise UsageError(f"{path}: {place}{error.message}", error.hint)
        if not isinstance(value, str | int | float):
            kinds: Mapping[type, str] = {dict: "a table", list: "a list"}
            kind = kinds.get(type(value), "a date or time")
            hint = f'write the value as on the command line, in quotes: {option} = "..."'
            raise UsageError(f"{path}: {place}{option}: expected text, a number, true or false; found {kind}", hint)
    return settings


def _settings(command: Any) -> dict[str, str]:
    """Return the options of a command that can be set in a file, and the names of their parameters."""
    options = ((option, each) for each in _parameters(command) if each.envvar for option in each.opts)
    return {option[2:]: each.name for option, each in options if option[:2] == "--" and option not in FLAGS_ONLY}


def _parameters(command: Any) -> Iterable[Any]:
    """Yield the parameters of a command and of the commands below it."""
    yield from command.params
    for below in getattr(command, "commands", {}).values():
        yield from _parameters(below)

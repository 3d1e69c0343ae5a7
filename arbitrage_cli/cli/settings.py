"""Defaults of options from files: `arbitrage.toml` here, then the user's own `config.toml`. Flags and environment win.

A key is the long name of an option without its dashes: `draft = "small.gguf"`, `max-tokens = 1024`. A table that is called as
a command holds for that command alone. Knows no option itself: it asks the commands which they have.
"""

import functools
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from arbitrage_cli.errors import UsageError
from arbitrage_cli.system.paths import user_folder

PROJECT_FILE = "arbitrage.toml"
RIVALS = frozenset(("tau", "budget"))
"""Of which one is wanted: that of the file that wins."""

QUOTED = ("policy", "tau", "limit", "ids", "mapping", "concurrency")
"""Parameters that an error about them tells by a part of their value."""

Settings = Mapping[str, Any]


def files() -> list[Path]:
    """The settings files there are, the one that wins first."""
    candidates = [Path(PROJECT_FILE), user_folder() / "config.toml"]
    return [path for path in candidates if path.is_file()]


def default_map(commands: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for each command's parameters, as Typer takes them. UsageError for a file or key that makes no sense."""
    merged: dict[str, dict[str, Any]] = {name: {} for name in commands}
    for path in reversed(files()):
        content = _read(path)
        _check_names(path, content, commands)
        for name, command in commands.items():
            settings = _of_command(content, name)
            _check_values(path, command, settings)
            merged[name] = _over(merged[name], settings)
    return {name: _defaults(command, merged[name]) for name, command in commands.items()}


def blaming_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The same command, but that an error about what is no flag names the file or variable that it is from."""

    @functools.wraps(command)
    def run(context: typer.Context, **given: Any) -> None:
        try:
            command(context, **given)
        except UsageError as error:
            place = _place_of(context, given, error.message)
            if place is None:
                raise
            raise UsageError(f"{place}: {error.message}", error.hint) from error

    return run


def _place_of(context: typer.Context, given: Mapping[str, Any], message: str) -> str | None:
    """Where that of which an error tells was set; None for a flag, and where it tells of nothing that was given."""
    meant = (one for one in context.command.params if _tells_of(message, one, given.get(str(one.name))))
    parameter = next(meant, None)
    source = context.get_parameter_source(str(parameter.name)) if parameter else None
    if parameter is None or source is None or source.name not in ("ENVIRONMENT", "DEFAULT_MAP"):
        return None
    if source.name == "ENVIRONMENT":
        return str(parameter.envvar)
    names = {option.removeprefix("--") for option in parameter.opts}
    return next(str(path) for path in files() if _of_command(_read(path), str(context.info_name)).keys() & names)


def _tells_of(message: str, parameter: Any, value: Any) -> bool:
    """Whether an error names the option, or quotes its value, or a part of one that is a list."""
    if any(re.search(rf"{option}(?![\w-])", message) for option in parameter.opts if option.startswith("--")):
        return True
    if value is None or parameter.name not in QUOTED:
        return False
    return not {str(value), *re.split("[,@ ]+", str(value))}.isdisjoint(re.findall("'([^']*)'", message))


def _check_names(path: Path, content: Settings, commands: Mapping[str, Any]) -> None:
    """UsageError for a key that is no option of any command, and in a command's table none of that."""
    tables = {name: commands[name] for name in commands if isinstance(content.get(name), dict)}
    for table, settings, known in [
        ("", content.keys() - tables.keys(), set(_all_options(commands))),
        *((f"[{name}] ", content[name].keys(), set(_all_options({name: tables[name]}))) for name in tables),
    ]:
        unknown = sorted(settings - known)
        if unknown:
            raise UsageError(f"{path}: {table}unknown setting '{unknown[0]}'", "settings: " + ", ".join(sorted(known)))


def _check_values(path: Path, command: Any, settings: Settings) -> None:
    """UsageError for a value that the option does not take."""
    context = typer.Context(command)
    for option, parameter in _parameters(command).items():
        if option in settings:
            try:
                parameter.process_value(context, settings[option])
            except typer.BadParameter as error:
                reason = error.message.removeprefix("Value error, ")
                raise UsageError(
                    f"{path}: {option} = {json.dumps(settings[option], default=str)}: {reason}", "correct the file"
                ) from error
    for below in _below(command).values():
        _check_values(path, below, settings)


def _of_command(content: Settings, name: str) -> dict[str, Any]:
    """What a file says of a command's options, as a command line would; its own table comes before what is for all."""
    settings = _over(content, _table(content, name))
    return {key: json.dumps(value, default=str) if isinstance(value, dict) else value for key, value in settings.items()}


def _table(content: Settings, name: str) -> Settings:
    table = content.get(name)
    return table if isinstance(table, dict) else {}


def _over(weaker: Settings, stronger: Settings) -> dict[str, Any]:
    """Both settings; the stronger win."""
    lost = RIVALS if RIVALS & stronger.keys() else frozenset()
    return {name: value for name, value in weaker.items() if name not in lost} | dict(stronger)


def _defaults(command: Any, settings: Settings) -> dict[str, Any]:
    """The settings as a command takes them; those of the commands below it are nested."""
    own = {one.name: settings[option] for option, one in _parameters(command).items() if option in settings}
    return own | {name: _defaults(below, settings) for name, below in _below(command).items()}


def _all_options(commands: Mapping[str, Any]) -> Iterator[str]:
    for command in commands.values():
        yield from _parameters(command)
        yield from _all_options(_below(command))


def _below(command: Any) -> Mapping[str, Any]:
    """The commands of a group; none for a command."""
    below: Mapping[str, Any] = getattr(command, "commands", {})
    return below


def _parameters(command: Any) -> dict[str, Any]:
    """Long option names of a command, without dashes, and the parameters that they set."""
    return {
        option.removeprefix("--"): parameter
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help", "--input", "--debug", "--fresh")
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as TOML ({error})", "correct the file, or move it away") from error

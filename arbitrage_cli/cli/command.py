"""Makes a Typer command of a function that takes option groups.

An option group is a frozen dataclass whose fields are annotated as Typer options. A command names the groups it takes; Typer
sees their fields as the command's options.
"""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from arbitrage_cli.app.options import Invocation, Option
from arbitrage_cli.cli.settings import place_of, setting_of
from arbitrage_cli.errors import UsageError

Command = Callable[..., int | None]
"""A command returns its exit code; None is 0."""


def command(function: Command) -> Command:
    """The same command with the fields of its option groups as options. An error about an option says where that was set."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint) and hint is not Invocation}
    takes_invocation = [name for name, hint in hints.items() if hint is Invocation]

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> int | None:
        try:
            values |= {name: setting.value(context) for name, setting in settings.items()}
            made = {
                name: group(**{one.name: values.pop(one.name) for one in fields(group)}) for name, group in groups.items()
            }
            made |= dict.fromkeys(takes_invocation, _invocation_of(context))
            return function(**made, **values)
        except UsageError as error:
            place = place_of(context, error.option) if error.option else None
            raise (UsageError(f"{place}: {error.message}", error.hint) if place else error) from error.__cause__

    settings = {one.name: made for group in groups.values() for one in fields(group) if (made := _setting(one, group))}
    setattr(run, "settings", {made.name: made.variable for made in settings.values()})  # noqa: B010 - read by the settings files
    signature = inspect.signature(function)
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, parameter in signature.parameters.items():
        if name in groups:
            known = get_type_hints(groups[name], include_extras=True)
            parameters += [_parameter(one, known) for one in fields(groups[name]) if one.name not in settings]
        elif name not in takes_invocation:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_for_typer(hints[name])))
    setattr(run, "__signature__", signature.replace(parameters=parameters))  # noqa: B010 - Typer reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True, slots=True)
class _Setting:
    """A field of an option group that is not a flag, by its name in settings files and in the environment."""

    name: str
    variable: str
    kind: Any
    least: float | None
    default: Any

    def value(self, context: typer.Context) -> Any:
        """Its value, from the environment, else a settings file, else its default. UsageError."""
        given = os.environ.get(self.variable) or setting_of(context, self.name)
        if given is None:
            return self.default
        from pydantic import Field as Bounds  # slow to import
        from pydantic import TypeAdapter, ValidationError

        try:
            bounded: Any = Annotated[self.kind, Bounds(ge=self.least)]
            return TypeAdapter(bounded).validate_python(given)
        except ValidationError as error:
            raise UsageError(f"{error.errors()[0]['msg']}, not {given!r}", option=self.name) from error


def _setting(one: Field[Any], group: Any) -> _Setting | None:
    """The field as a setting; None if it is a flag."""
    kind, option = get_args(get_type_hints(group, include_extras=True)[one.name])[:2]
    if not isinstance(option, Option) or option.is_flag:
        return None
    return _Setting(option.names[0].removeprefix("--"), str(option.variable), kind, option.min, one.default)


def _parameter(one: Field[Any], hints: dict[str, Any]) -> inspect.Parameter:
    default = inspect.Parameter.empty if one.default is MISSING else one.default
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_for_typer(hints[one.name])
    )


def _for_typer(annotation: Any) -> Any:
    """The annotation with a Typer option in place of an `Option`."""
    kind, *details = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    if not details or not isinstance(details[0], Option):
        return annotation
    one: Option = details[0]
    made = typer.Option(
        *one.names,
        envvar=one.variable,
        help=one.help,
        rich_help_panel=one.panel,
        metavar=one.metavar,
        min=one.min,
        max=one.max,
    )
    return Annotated[kind, made]


def _invocation_of(context: typer.Context) -> Invocation:
    """The call that Typer parsed into this context."""
    sources = {str(one.name): context.get_parameter_source(str(one.name)) for one in context.command.params}
    flags = frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return Invocation(tuple(context.obj.arguments if context.obj else ()), flags)

"""Makes a Typer command of a function that takes option groups.

An option group is a frozen dataclass whose fields are annotated as Typer options. A command names the groups it takes; Typer
sees their fields as the command's options.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from arbitrage_cli.app.options import FIRST, Invocation, Option
from arbitrage_cli.cli.settings import place_of, setting_of
from arbitrage_cli.errors import UsageError

Command = Callable[..., int | None]
"""A command returns its exit code; None is 0."""


def command(function: Command) -> Command:
    """The same command with the fields of its option groups as options. An error about an option says where that was set."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint) and hint is not Invocation}
    takes_invocation = [name for name, hint in hints.items() if hint is Invocation]
    settings: dict[str, _Setting] = {}  # by the names of their fields
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    ranks = {"context": -1}  # by parameter

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

    for name, default, annotation in _options(inspect.signature(function), groups, hints):
        kind, option = (*get_args(annotation), None)[:2]
        if isinstance(option, Option) and not option.is_flag:
            settings[name] = _Setting(kind, option.of(name, kind), default)
        else:
            shown = Annotated[kind, _for_typer(option.of(name, kind))] if isinstance(option, Option) else annotation
            ranks[name] = option.of(name, kind).rank if isinstance(option, Option) else len(FIRST)
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=shown))
    parameters.sort(key=lambda one: ranks[one.name])
    setattr(run, "settings", {one.option.name: str(one.option.variable) for one in settings.values()})  # noqa: B010 - read by the settings files
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - Typer reads it
    run.__doc__ = _in_paragraphs(function.__doc__ or "")
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _in_paragraphs(text: str) -> str:
    """A docstring with each paragraph in one line, but for examples: drawn help would keep the line feeds."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(one if one.startswith("\b") else " ".join(one.split()) for one in paragraphs)


def _options(
    signature: inspect.Signature, groups: Mapping[str, Any], hints: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name, default and annotation of each option of a command, those of its groups in their place."""
    for name, parameter in signature.parameters.items():
        if name in groups:
            known = get_type_hints(groups[name], include_extras=True)
            for one in fields(groups[name]):
                yield one.name, inspect.Parameter.empty if one.default is MISSING else one.default, known[one.name]
        elif hints[name] is not Invocation:
            yield name, parameter.default, hints[name]


@dataclass(frozen=True, slots=True)
class _Setting:
    """A field of an option group that is not a flag."""

    kind: Any
    option: Option
    default: Any

    def value(self, context: typer.Context) -> Any:
        """Its value, from the environment, else a settings file, else its default. UsageError."""
        given = os.environ.get(str(self.option.variable)) or setting_of(context, self.option.name)
        if given is None:
            return self.default
        from pydantic import Field as Bounds  # slow to import
        from pydantic import TypeAdapter, ValidationError

        try:
            bounded: Any = Annotated[self.kind, Bounds(ge=self.option.min, le=self.option.max)]
            return TypeAdapter(bounded).validate_python(given)
        except ValidationError as error:
            raise UsageError(f"{error.errors()[0]['msg']}, not {given!r}", option=self.option.name) from error


def _for_typer(one: Option) -> Any:
    """The option as Typer has it."""
    return typer.Option(
        *one.names,
        envvar=one.variable,
        show_envvar=False,
        help=one.help,
        rich_help_panel=one.panel if one.rank == len(FIRST) else None,
        metavar=one.metavar,
        min=one.min,
        max=one.max,
        autocompletion=one.complete,
    )


def _invocation_of(context: typer.Context) -> Invocation:
    """The call that Typer parsed into this context."""
    sources = {str(one.name): context.get_parameter_source(str(one.name)) for one in context.command.params}
    flags = frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return Invocation(tuple(context.obj.arguments if context.obj else ()), flags)

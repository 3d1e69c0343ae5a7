"""The `command` decorator, which converts a function with option groups to a Typer command.

An option group is a frozen dataclass. Each field that is described as an option becomes an option of the command.
"""

import contextlib
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from arbitrage_cli.cli.options import HIDDEN, OPTIONS, Option
from arbitrage_cli.cli.output import is_confirmed
from arbitrage_cli.cli.settings import VARIABLE, origin_of, use_settings
from arbitrage_cli.errors import ProgramsNotAllowedError, UsageError
from arbitrage_cli.types import Fields, Json

HELP_COLUMNS = 76  # of the names of options, which must not be divided
INVOCATION = ("explicit", "command", "config")
"""Parameters that describe the command line: the names of the options that it contains, its words, and its settings file."""

CONFIG = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar=VARIABLE,
        show_envvar=False,
        is_eager=True,  # before the options whose defaults it sets
        callback=use_settings,
        help="Settings file. Default: config.toml in the settings folder (see 'arbitrage doctor').",
    ),
]

Command = Callable[..., int | None]
"""A command that returns an exit code, or None for success."""


def command(*, without: Collection[str] = (), **own: Option) -> Callable[[Command], Command]:
    """Return a decorator that makes a Typer command of a function, with an option for each field of its option groups.

    `own` describes options of this command; `without` names shared options that the command does not have. If the function
    raises a UsageError about an option, the message names the flag, variable or file that set the option. If it may not run
    programs, the terminal's user is asked, and the function is called again.
    """

    def decorate(function: Command) -> Command:
        hints = get_type_hints(function, include_extras=True)
        described = {**OPTIONS, **own}
        inputs = [one for one in _inputs(function, hints) if one.name not in (*INVOCATION, *without)]
        names = [one.name for one in inputs]
        hidden = [name for name in HIDDEN if name in names and name not in own]

        @functools.wraps(function)
        def run(context: typer.Context, config: Path | None = None, **values: Any) -> int | None:
            with _naming_origins(context):
                _refuse_repeated(context)
                return _call(function, hints, {**values, **_invocation(context), "config": config})

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
        parameters += [_parameter(one, described.get(one.name), is_hidden=one.name in hidden) for one in inputs]
        if not described.keys().isdisjoint(names):
            parameters.append(inspect.Parameter("config", keyword, default=None, annotation=CONFIG))
        setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - read by Typer
        run.__doc__ = _help(function.__doc__ or "", list(map(_flag, hidden)))
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


@contextlib.contextmanager
def _naming_origins(context: typer.Context) -> Iterator[None]:
    """Add the flag, variable or file that set an option to the message of each UsageError about it."""
    try:
        yield
    except UsageError as error:
        origin = origin_of(context, error.option) if error.option else None
        if origin is None and error.option == "tau" and "@" in (context.params.get("policy") or ""):
            origin = origin_of(context, "policy")  # which may name the tau: entropy@0.5
        if origin is None:
            raise
        raise UsageError(f"{origin}: {error.message}", error.hint) from error.__cause__


def _call(function: Command, hints: Fields, values: Fields) -> int | None:
    """Call the function. If it may not run programs, ask the terminal's user whether it may, and call it again."""
    try:
        return function(**_arguments(hints, values))
    except ProgramsNotAllowedError as error:
        if not is_confirmed(f"{error.message}; run them in the sandbox?"):
            raise
    return function(**_arguments(hints, {**values, "run_code": "sandboxed"}))


def _inputs(function: Command, hints: Fields) -> Iterator[inspect.Parameter]:
    """Yield the function's parameters, in which the fields of option groups replace the groups."""
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            kinds = get_type_hints(hint, include_extras=True)
            for field in fields(hint):
                default = parameter.empty if field.default is MISSING else field.default
                yield parameter.replace(name=field.name, default=default, annotation=kinds[field.name])
        else:
            yield parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hint)


def _parameter(parameter: inspect.Parameter, option: Option | None, *, is_hidden: bool) -> inspect.Parameter:
    """Return the parameter as Typer reads it. An optional bool has two flags, --name and --no-name."""
    if option is None:
        return parameter
    parts = [parameter.annotation, *get_args(parameter.annotation)]
    bounds = next((part.__metadata__[0] for part in parts if get_origin(part) is Annotated), None)
    kind = _without_bounds(parameter.annotation)
    flag = _flag(parameter.name)
    names = option.names or (f"{flag}/--no{flag[1:]}" if kind == bool | None else flag,)
    setting = names[0].removeprefix("--").partition("/")[0]
    typer_option: Any = typer.Option(
        *names,
        envvar=f"ARBITRAGE_{setting.replace('-', '_').upper()}" if option.is_setting else None,
        show_envvar=False,
        help=option.help,
        metavar=option.metavar,
        hidden=is_hidden,
        min=getattr(bounds, "ge", None),
        max=getattr(bounds, "le", None),
    )
    return parameter.replace(annotation=Annotated[kind, typer_option])


def _without_bounds(annotation: Any) -> Any:
    """Return a type, such as `int | None`, without the bounds of its parts, which Typer takes as arguments of the option."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return functools.reduce(operator.or_, map(_without_bounds, get_args(annotation)))
    return annotation


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_repeated(context: typer.Context) -> None:
    """Raise UsageError if an option for a list occurs more than once, because only its last value counts."""
    flags = [word.partition("=")[0] for word in context.obj]
    for one in context.command.params:
        if (one.metavar or "").endswith(",...") and flags.count(one.opts[0]) > 1:
            hint = f"use one list: {one.opts[0]} FIRST,SECOND"
            raise UsageError("the option occurs more than once", hint, option=one.name)


def _arguments(hints: Fields, values: Fields) -> Json:
    """Return the arguments of the function, with an option group for each dataclass."""
    names = [name for name in hints if name != "return"]
    return {name: values[name] if name in values else _group(hints[name], values) for name in names}


def _group(kind: Any, values: Fields) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def _help(text: str, hidden: Sequence[str]) -> str:
    """Join the lines of each docstring paragraph except examples, because Rich keeps line breaks. Name the hidden options."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    paragraphs = [part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs]
    if hidden:
        more = f"More options (see 'arbitrage guide options'): {', '.join(hidden)}"
        paragraphs.append(f"\b\n{textwrap.fill(more, HELP_COLUMNS, break_on_hyphens=False)}")
    return "\n\n".join(paragraphs)


def _invocation(context: typer.Context) -> Json:
    """Return the names of the parameters that were set on the command line, and the command line."""
    sources = {str(one.name): context.get_parameter_source(str(one.name)) for one in context.command.params}
    explicit = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return {"explicit": frozenset(explicit), "command": ["arbitrage", *context.obj]}

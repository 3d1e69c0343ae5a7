"""The `command` decorator, which converts a function with option groups to a Typer command.

An option group is a frozen dataclass whose fields are annotated as options. Each field becomes an option of the command.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from arbitrage_cli.app.options import Option
from arbitrage_cli.cli.completion import COMPLETIONS
from arbitrage_cli.cli.settings import origin_of
from arbitrage_cli.errors import UsageError

FIRST = (
    *("dataset", "input", "draft", "target", "pair", "policy", "tau", "limit", "minutes", "save", "host", "port"),
    *("output", "json"),
)
"""The options at the top of every --help, in order."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """A single run of the program. `flags` contains the names of the parameters that were set on the command line."""

    arguments: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

    @property
    def command(self) -> list[str]:
        return ["arbitrage", *self.arguments]


Command = Callable[..., int | None]
"""A command that returns an exit code, or None for success."""


def command(function: Command) -> Command:
    """Return a Typer command with an option for each field of the function's option groups.

    If the function raises a UsageError about an option, the message names the flag, variable or file that set the option.
    """
    hints = get_type_hints(function, include_extras=True)
    inputs = sorted(_inputs(function, hints), key=lambda entry: entry.rank)
    settings = {entry.name: entry.option for entry in inputs if entry.option and not entry.option.is_flag}

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> int | None:
        try:
            invocation = _invocation_of(context)
            _refuse_flags(settings, invocation)
            return function(**_arguments(hints, values, invocation))
        except UsageError as error:
            origin = origin_of(context, error.option) if error.option else None
            raise (UsageError(f"{origin}: {error.message}", error.hint) if origin else error) from error.__cause__

    context_parameter = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context_parameter, *(entry.parameter for entry in inputs)]
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010 - read by Typer
    run.__doc__ = _unwrapped(function.__doc__ or "")
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True, slots=True)
class _Input:
    """A parameter of a command, or a field of one of its option groups."""

    name: str
    default: Any
    annotation: Any

    @property
    def kind(self) -> Any:
        return get_args(self.annotation)[0]

    @property
    def option(self) -> Option | None:
        annotated = get_args(self.annotation)[1]
        return annotated.of(self.name, self.kind) if isinstance(annotated, Option) else None

    @property
    def rank(self) -> int:
        return FIRST.index(self.option.name) if self.option and self.option.name in FIRST else len(FIRST)

    @property
    def parameter(self) -> inspect.Parameter:
        annotation = Annotated[self.kind, _typer_option(self.option)] if self.option else self.annotation
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=annotation)


def _inputs(function: Command, hints: Mapping[str, Any]) -> Iterator[_Input]:
    for name, parameter in inspect.signature(function).parameters.items():
        if _is_group(hints[name]):
            field_hints = get_type_hints(hints[name], include_extras=True)
            for field in fields(hints[name]):
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                yield _Input(field.name, default, field_hints[field.name])
        elif hints[name] is not Invocation:
            yield _Input(name, parameter.default, hints[name])


def _refuse_flags(settings: Mapping[str, Option], invocation: Invocation) -> None:
    """Raise UsageError if an option that can only be a setting is used as a flag."""
    for name in invocation.flags & settings.keys():
        option = settings[name]
        raise UsageError("has no flag", f"set {option.name} in a settings file, or {option.variable}", option=name)


def _arguments(hints: Mapping[str, Any], values: Mapping[str, Any], invocation: Invocation) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, hint in hints.items():
        if hint is Invocation:
            arguments[name] = invocation
        elif _is_group(hint):
            arguments[name] = hint(**{field.name: values[field.name] for field in fields(hint)})
        elif name != "return":
            arguments[name] = values[name]
    return arguments


def _is_group(hint: Any) -> bool:
    return is_dataclass(hint) and hint is not Invocation


def _unwrapped(text: str) -> str:
    """Join the lines of each docstring paragraph except examples, because Rich keeps line breaks."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def _typer_option(option: Option) -> Any:
    return typer.Option(
        *option.names,
        envvar=option.variable,
        show_envvar=False,
        help=option.help,
        rich_help_panel=option.panel if option.name not in FIRST else None,
        metavar=option.metavar,
        hidden=not option.is_flag,
        min=option.min,
        max=option.max,
        autocompletion=COMPLETIONS.get(option.name),
    )


def _invocation_of(context: typer.Context) -> Invocation:
    names = [str(parameter.name) for parameter in context.command.params]
    sources = {name: context.get_parameter_source(name) for name in names}
    flags = frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return Invocation(tuple(context.obj.arguments if context.obj else ()), flags)

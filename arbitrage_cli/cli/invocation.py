"""How the program was called: the command line, and where the value of each setting comes from. Knows no setting."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import typer

NOT_REPEATED = ("--fresh",)
"""Flags that do not belong to the command that resumes a run."""


class Origin(IntEnum):
    """Where a value comes from. Of two settings that contradict each other the one with the higher origin holds."""

    default = 0
    file = 1
    environment = 2
    flag = 3


_ORIGINS = {"DEFAULT_MAP": Origin.file, "ENVIRONMENT": Origin.environment, "COMMANDLINE": Origin.flag}


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the program.

    `origins` has the origin of each parameter that is not at its default; `configured` what the environment, or else a settings
    file, says of a parameter, whatever the command line says.
    """

    arguments: tuple[str, ...] = ()
    origins: Mapping[str, Origin] = field(default_factory=lambda: MappingProxyType({}))
    configured: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def origin(self, parameter: str) -> Origin:
        """Where the value of a parameter comes from."""
        return self.origins.get(parameter, Origin.default)

    def is_flag(self, parameter: str) -> bool:
        """Whether the value was given on the command line."""
        return self.origin(parameter) is Origin.flag

    def count(self, flag: str) -> int:
        """How often a flag with a value was given."""
        return sum(part.partition("=")[0] == flag for part in self.arguments)

    @property
    def command(self) -> list[str]:
        """The command line as a list."""
        return ["arbitrage", *self.arguments]

    @property
    def resuming(self) -> str:
        """The command line that resumes a run of this one, quoted for a shell."""
        return shlex.join(part for part in self.command if part not in NOT_REPEATED)


def invocation_of(context: typer.Context) -> Invocation:
    """The call that Typer parsed into this context."""
    names = [str(parameter.name) for parameter in context.command.params]
    found = {name: context.get_parameter_source(name) for name in names}
    origins = {name: _ORIGINS[source.name] for name, source in found.items() if source and source.name in _ORIGINS}
    return Invocation(tuple(context.obj.arguments if context.obj else ()), origins, _configured(context))


def _configured(context: typer.Context) -> dict[str, str]:
    values: dict[str, Any] = {}
    for parameter in context.command.params:
        variable = os.environ.get(str(parameter.envvar), "") if parameter.envvar else ""
        values[str(parameter.name)] = variable or context.lookup_default(str(parameter.name))
    return {name: str(value) for name, value in values.items() if value not in (None, "")}

"""How the program was called: its command line, and which of its values are flags."""

import shlex
from dataclasses import dataclass

import typer

NOT_REPEATED = ("--fresh",)
"""Flags that do not belong to the command that resumes a run."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the program. `flags` are the parameters whose value was given on the command line, not by a setting."""

    arguments: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()

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
    sources = {str(one.name): context.get_parameter_source(str(one.name)) for one in context.command.params}
    flags = frozenset(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return Invocation(tuple(context.obj.arguments if context.obj else ()), flags)

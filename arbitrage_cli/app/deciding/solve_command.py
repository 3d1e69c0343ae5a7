"""The command line that solves a problem with the models and settings of another command."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Self

from arbitrage_cli.app.asking.request import Request
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import frozen

OF_POLICY = ("router", "check", "policy", "tau", "concurrency")
"""Options that depend on the policy."""

OF_PAIR = ("draft", "target", "pair", "prm", "ctx", "system")
"""Further options whose values the entry of a pair holds."""


@frozen
class SolveCommand:
    """The words of a command line for `solve`.

    `options` are for all policies; beside a saved pair, only those in `beside_pair`, which an entry cannot hold, are needed.
    `router` and `checker` are added for the policies that use them, and the data set's task unless `options` name one.
    """

    options: Sequence[str]
    beside_pair: Sequence[str]
    router: Sequence[str]
    checker: Sequence[str]
    names_task: bool

    @classmethod
    def of(cls, request: Request) -> Self:
        """Return the words for a request."""
        router = request.typed_router
        return cls(
            options=_shared_options(request),
            beside_pair=_typed(request, {*OF_POLICY, *OF_PAIR}),
            router=["--router", router] if router else [],
            checker=_checker_option(request),
            names_task=request.options.task is not None,
        )

    def with_pair(self, pair: str, task_of_data: str | None) -> str:
        """Return the command line that solves a problem with a saved pair, whose entry names the policy."""
        words = ["arbitrage", "solve", "--pair", pair, *self.beside_pair, *self._task(task_of_data)]
        return shlex.join([*words, "PROBLEM"])

    def line(self, route: str, task_of_data: str | None) -> str:
        """Return the command line that solves a problem with a route. `task_of_data` is the task that the data set names."""
        name, _, tau = route.partition("@")
        policy = POLICIES[name]
        words = ["arbitrage", "solve", *self.options]
        if policy.needs_router:
            words += self.router
        if "check" in policy.models:
            words += self.checker
        words += [*self._task(task_of_data), "--policy", name]
        if tau:
            words += ["--tau", tau]
        return shlex.join([*words, "PROBLEM"])

    def _task(self, task_of_data: str | None) -> list[str]:
        return ["--task", task_of_data] if task_of_data and not self.names_task else []


def _shared_options(request: Request) -> list[str]:
    """Return the options that name the models, and the typed ones, without those that depend on the policy."""
    options = request.options
    names_models = bool(options.explicit & {"draft", "target", "pair"})
    models = [] if names_models else request.named.arguments
    return [*models, *_typed(request, OF_POLICY)]


def _typed(request: Request, without: Collection[str]) -> list[str]:
    """Return the typed options, without some."""
    options = request.options
    return replace(options, explicit=options.explicit.difference(without)).arguments


def _checker_option(request: Request) -> list[str]:
    """Return the option that names the checker, unless it is that of the pair."""
    pair, checker = request.named.pair, request.named.sources.get("check")
    is_of_pair = pair is not None and pair.sources.get("check") == checker
    return [] if checker is None or is_of_pair else ["--check", checker]

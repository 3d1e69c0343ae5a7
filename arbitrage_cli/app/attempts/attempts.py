"""The attempts of a run: which are missing, how many have ended, and their results in the order of their problems."""

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from arbitrage_cli.app.protocol import RunProgress, Standing
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import AttemptKey, tau_in_json
from arbitrage_cli.runs.results import SampleKey
from arbitrage_cli.types import frozen

T = TypeVar("T")


@frozen
class Attempt:
    """One attempt to solve a problem, in at most `seconds`. Problems of one `block` may be solved at once.

    `is_alone` is true if llama.cpp crashed while it solved the problem.
    """

    item: Item
    sample: int
    route: Route
    block: int = 0
    seconds: float | None = None
    is_alone: bool = False

    @property
    def id(self) -> str:
        return self.item.problem.id

    @property
    def key(self) -> AttemptKey:
        return self.id, self.sample, self.route.policy.name, tau_in_json(self.route.tau)


def missing(attempts: Sequence[Attempt], statuses: Mapping[AttemptKey, str]) -> list[Attempt]:
    """Return the attempts that have no row, followed by the attempts that ended in an error."""
    new = [attempt for attempt in attempts if attempt.key not in statuses]
    return new + [attempt for attempt in attempts if statuses.get(attempt.key) == "error"]


class RunCounts:
    """The counts of a run, of which each route has `planned` attempts. The run stops at `ends`. `label` names a route."""

    def __init__(
        self,
        title: str,
        routes: Sequence[Route],
        planned: int,
        ends: float = math.inf,
        label: Callable[[Route], str] = lambda route: route.label,
    ) -> None:
        self._title, self._planned, self._ends, self.label = title, planned, ends, label
        self._ended: dict[Route, dict[SampleKey, tuple[float | None, bool]]] = {route: {} for route in routes}
        """The seconds of each attempt, or None if it failed, and whether its answer is correct."""

    def add(self, route: Route, row: Any) -> None:
        seconds = row.took if row.status == "done" else None
        self._ended[route][row.id, row.sample] = seconds, row.verdict[0] == "correct"

    def now(self) -> RunProgress:
        standings = list(map(self._standing, self._ended))
        finished = sum(standing.tried for standing in standings)
        return RunProgress(self._title, finished, self._planned * len(standings), standings, self._ends)

    def _standing(self, route: Route) -> Standing:
        ended = self._ended[route].values()
        done = [seconds for seconds, _ in ended if seconds is not None]
        return Standing(self.label(route), self._planned, len(ended), len(done), sum(right for _, right in ended), sum(done))


class InOrder(Generic[T]):
    """Holds results until all earlier results are ready. Their order is that of `expect`."""

    def __init__(self) -> None:
        self._expected: deque[Hashable] = deque()
        self._held: dict[Hashable, T] = {}

    def expect(self, key: Hashable) -> None:
        self._expected.append(key)

    def put(self, key: Hashable, result: T) -> None:
        self._held[key] = result

    def ready(self) -> Iterator[T]:
        """Yield and remove the results that precede the first unfinished problem."""
        while self._expected and self._expected[0] in self._held:
            yield self._held.pop(self._expected.popleft())

    def rest(self) -> Iterator[T]:
        """Yield all remaining results in order."""
        yield from (self._held[key] for key in self._expected if key in self._held)

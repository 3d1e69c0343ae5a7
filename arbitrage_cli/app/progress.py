"""Counts the attempts of a run by route, and estimates the time left."""

from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from arbitrage_cli.app.protocol import RunProgress, Standing
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.results import SampleKey


class RunCounts:
    """The counts of a run, of which each route has `planned` attempts; `left` are missing. `shown` may adapt what is shown."""

    def __init__(
        self,
        title: str,
        routes: Sequence[Route],
        planned: int,
        left: int,
        *,
        concurrency: int = 1,
        shown: Callable[[RunProgress], RunProgress] = lambda progress: progress,
    ) -> None:
        self._title, self._planned, self._left, self._concurrency, self._shown = title, planned, left, concurrency, shown
        self._began, self._finished = perf_counter(), 0
        self._tried: dict[Route, set[SampleKey]] = {route: set() for route in routes}
        self._done: dict[Route, dict[SampleKey, float]] = {route: {} for route in routes}  # seconds
        self._correct = Counter[Route]()

    def begin(self) -> RunProgress:
        """Measure the time from now on."""
        self._began = perf_counter()
        return self.now()

    def add(self, route: Route, row: Any, *, is_new: bool = True) -> None:
        """Count the row of an attempt. `is_new` is false for an attempt of an earlier command."""
        key = row.id, row.sample
        self._tried[route].add(key)
        if row.status == "done":
            self._done[route][key] = row.took
            self._correct[route] += row.verdict[0] == "correct"
        self._left -= is_new
        self._finished += is_new

    def now(self) -> RunProgress:
        total = self._planned * len(self._tried)
        standings = list(map(self._standing, self._tried))
        return self._shown(RunProgress(self._title, total - self._left, total, standings, self._seconds_left))

    def _standing(self, route: Route) -> Standing:
        done, target = self._done[route], next((self._done[one] for one in self._done if one.policy.name == "target"), {})
        shared = done.keys() & target.keys()
        own = sum(done[key] for key in shared)
        speedup = sum(target[key] for key in shared) / own if own and self._concurrency == 1 else None
        counts = self._planned, len(self._tried[route]), len(done), self._correct[route]
        return Standing(route.label, *counts, sum(done.values()), speedup)

    @property
    def _seconds_left(self) -> float | None:
        """The estimated time left, from the mean time of the attempts so far. Attempts in progress count as half done."""
        begun = min(self._concurrency - 1, self._left) / 2
        each = (perf_counter() - self._began) / (self._finished + begun) if self._finished else None
        return each and each * (self._left - begun)

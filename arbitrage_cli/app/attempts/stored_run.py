"""A run in its folder: the attempts of a command, and those that are missing."""

import contextlib
import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arbitrage_cli.app.attempts.attempts import Attempt, RunCounts, missing
from arbitrage_cli.app.attempts.loop import Loop, Stopwatch
from arbitrage_cli.app.attempts.run_record import RunDetails, run_of, with_loaded
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.opening.session import Session
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.types import Finished, Trace


class StoredRun(ABC):
    """A run folder: its attempts, the missing attempts, and run.json. `name` is the command's.

    `count` is called for each row of the folder, and for each new row. The run stops at `ends`, by the monotonic clock.
    """

    def __init__(
        self,
        session: Session,
        selected: Selection,
        folder: RunFolder,
        attempts: Sequence[Attempt],
        name: str,
        ends: float = math.inf,
        details: RunDetails | None = None,
    ) -> None:
        self.session, self.folder, self.attempts = session, folder, attempts
        self.todo = missing(attempts, folder.statuses)
        self.run = run_of(session, folder, selected, details)
        routes = session.routes
        self._counts = RunCounts(f"{name} {selected.title}", routes, len(attempts) // len(routes), ends, self.label)
        route_of = {attempt.key: attempt.route for attempt in attempts}
        for row in folder.rows:
            self.count(row)
            if row.status == "done" and row.key in route_of:
                self._counts.add(route_of[row.key], row)

    @property
    def num_errors(self) -> int:
        return sum(self.folder.statuses.get(attempt.key) == "error" for attempt in self.attempts)

    def label(self, route: Route) -> str:
        """Return the name of a route in the progress of the run."""
        return route.label

    @abstractmethod
    def count(self, row: Any) -> None:
        """Add a row of the folder, or a new one, to the results of the command."""

    def loop(
        self,
        scheduler: Callable[[Attempt], Scheduler],
        flow: Callable[[Attempt, Trace], Flow],
        row: Callable[[Attempt, Finished, Stopwatch], Any],
    ) -> Loop:
        """Return the loop that makes attempts, once the models are loaded."""
        session, settings = self.session, self.session.decided.settings
        self.run = with_loaded(self.run, session)
        self.folder.save_run(self.run)
        return Loop(
            scheduler=scheduler,
            flow=flow,
            limits=session.limits,
            row=row,
            display=session.display,
            store=self.folder,
            conditions=session.conditions,
            sampler=settings.sampler,
            kept=self.count,
            counts=self._counts,
            timer=session.models.writing.clock,
        )


@contextlib.contextmanager
def offering_to_resume(session: Session, folder: RunFolder | None) -> Iterator[None]:
    """Show how to resume a run if it is interrupted for any reason."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ArbitrageError):  # a closed output stream is reported by its own error
            session.display.close()  # first, because a second Ctrl-C would leave the cursor hidden
            if folder and folder.statuses:
                saved = formatting.count(len(folder.statuses), "result")
                command = shlex.join(part for part in session.plan.command if part != "--fresh")
                session.display.note(f"{saved} saved in {folder.shown}; to resume: {command}")
        raise

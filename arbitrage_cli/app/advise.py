"""Recommends a policy for a pair: measures token costs, then compares policies on a few problems within a time limit."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from arbitrage_cli.app.bench import BenchRun
from arbitrage_cli.app.loop import Attempt
from arbitrage_cli.app.options import AdviceOptions
from arbitrage_cli.app.problem_source import Selection
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.app.session import OpenSession
from arbitrage_cli.app.stored_run import offering_to_resume
from arbitrage_cli.costs.store import AdvisedPair, StoredAdvice, keep_advice, tuned_file
from arbitrage_cli.errors import ArbitrageError, DefectError
from arbitrage_cli.evaluation.figures import PolicyFigures
from arbitrage_cli.evaluation.metrics import RunFigures, figures
from arbitrage_cli.evaluation.verdict import Verdict
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import TARGET_ALONE
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.rows import AttemptRow

COSTS_TIME = 1 / 10  # share of the time for the measurement of token costs
LONGEST = 0.5  # the maximum share of the time for one attempt


@dataclass(frozen=True, slots=True, repr=False)
class Advice:
    """The verdict on a pair, and the figures behind it. `command` is a command line that applies the verdict."""

    verdict: Verdict
    figures: RunFigures
    command: str

    def __repr__(self) -> str:
        return f"<Advice: {self.verdict.route.name}, confidence={self.confidence}>"

    @property
    def num_errors(self) -> int:
        return sum(one.errors for one in self.figures.policies)

    @property
    def policy(self) -> str:
        """The recommended policy: `target` if no other policy is worth using."""
        return self.verdict.route.policy.name

    @property
    def tau(self) -> str | None:
        """The recommended preset or threshold, or None if the policy has no tau."""
        return self.verdict.route.name.partition("@")[2] or None

    @property
    def confidence(self) -> float | None:
        """The probability that the recommendation is right, from 0.5 to 1, or None if too few problems were finished."""
        return self.verdict.confidence

    @property
    def speedup(self) -> float | None:
        """The speed-up of the recommended policy or, if this is the target alone, of the most promising other policy.

        None if this policy and the target finished none of the problems.
        """
        return self._best.speedup.value if self._best else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return self._best.speedup.interval if self._best else None

    @property
    def _best(self) -> PolicyFigures | None:
        found = self.figures.of(self.verdict.best.route)
        return found if found and found.both_finished else None


def advise(
    open_session: OpenSession,
    selected: Selection,
    path: Path,
    advice: AdviceOptions,
    display: Display,
    ends: float,
    *,
    is_repeatable: bool = True,
) -> Advice:
    """Measure missing token costs and compare the policies. If the folder is kept, repeating the command adds problems.

    Raises UsageError if an option is invalid; RouterError, ModelError, HubError or ServerError if a router or model fails.
    """
    with (
        RunFolder(path, fresh=advice.fresh) as folder,
        open_session(display, limit=COSTS_TIME * 60 * advice.minutes) as session,
    ):
        # In a pseudo-random order, the first problems are a representative sample.
        drawn = sorted(selected.items, key=lambda item: hashlib.sha256(item.problem.id.encode()).digest())
        run = BenchRun(session, replace(selected, items=drawn), folder, name="advise", ends=ends)
        advisor = _Advisor(run, ends)
        with offering_to_resume(session, folder if is_repeatable else None):
            if not advisor.is_done:
                run.measure(advisor.attempts(), advisor.is_kept)
            run.compare_earlier()
        found, decided = advisor.judged()
    plan = session.plan
    if decided.is_decided and plan.advised:
        _store(plan.advised, decided.route.name, display)
    return Advice(decided, found, plan.solve_command(decided.route.name, selected.dataset.task))


def _store(pair: AdvisedPair, route: str, display: Display) -> None:
    """Store the advice, so that the default policy of other commands follows it."""
    try:
        keep_advice(tuned_file(), StoredAdvice(pair, route, formatting.timestamp()))
    except ArbitrageError as error:
        display.note(f"other commands will not follow this advice, because it cannot be stored: {error.message}")


class _Advisor:
    """Chooses the attempts of a benchmark that may change the verdict until the time limit is reached.

    The target solves each problem first. Policies that cannot be worthwhile are skipped.
    """

    def __init__(self, run: BenchRun, ends: float) -> None:
        self._run = run
        self._ends = self._attempt_ends = ends
        self._todo = sorted(run.todo, key=lambda attempt: (attempt.block, attempt.route.policy is not TARGET_ALONE))
        self._seconds = _seconds_until(ends)
        self._block: int | None = None
        self._decided = self.judged()[1]

    @property
    def is_done(self) -> bool:
        return not any(map(self._is_needed, self._todo))

    def attempts(self) -> Iterator[Attempt]:
        """Yield the attempts that are needed when they begin, with their time limits."""
        for attempt in filter(self._is_needed, self._todo):
            limit = min(LONGEST * self._seconds, _seconds_until(self._ends))
            self._attempt_ends = time.monotonic() + limit
            yield replace(attempt, seconds=limit)

    def is_kept(self, row: AttemptRow) -> bool:
        """Return whether a row is stored. The row of an attempt that ended at its time limit is not stored."""
        return row.status == "done" or time.monotonic() < self._attempt_ends

    def judged(self) -> tuple[RunFigures, Verdict]:
        """Return the figures and the verdict on the attempts so far."""
        found = figures(self._run.run, self._run.results)
        if found.verdict is None:
            raise DefectError("advise has no policy to compare")
        return found, found.verdict

    def _is_needed(self, attempt: Attempt) -> bool:
        if self._block != attempt.block and not self._decided.is_final:
            self._block, self._decided = attempt.block, self.judged()[1]
        if self._decided.is_final or not _seconds_until(self._ends):
            return False
        return attempt.route not in {one.route for one in self._decided.candidates if one.is_hopeless}


def _seconds_until(ends: float) -> float:
    return max(0.0, ends - time.monotonic())

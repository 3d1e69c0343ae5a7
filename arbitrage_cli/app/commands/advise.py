"""Recommends a policy for a pair: measures token costs, then compares policies on a few problems within a time limit."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from arbitrage_cli.app.attempts.attempts import Attempt
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.attempts.stored_run import offering_to_resume
from arbitrage_cli.app.commands.bench import BenchRun
from arbitrage_cli.app.opening.session import OpenSession
from arbitrage_cli.app.options import AdviceOptions
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import DefectError, PairNotSavedError
from arbitrage_cli.evaluation.bounds import Bound, bounds_of_run
from arbitrage_cli.evaluation.metrics import RunFigures, figures
from arbitrage_cli.evaluation.verdict import MIN_PROBLEMS, Basis, Verdict
from arbitrage_cli.model_files.pairs import PairEntry
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import DRAFT_ALONE, TARGET_ALONE
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import ADVISE
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import frozen

COSTS_TIME = 1 / 10  # share of the time for the measurement of token costs
USED = 0.85  # the share of a time limit in which problems are solved
LONGEST = 0.5  # the maximum share of the time for one attempt


@frozen
class Advice:
    """The verdict on a pair, and the figures behind it. `command` is a command line that applies the verdict.

    `bounds` limit what each policy can save, where this follows from the token costs. Without a verdict, `finished` counts
    the problems that all remaining policies finished, and `minutes` is the time limit that would probably be enough for a
    verdict, or None if more time does not help. `saved` is the entry that was added to pairs.toml with the verdict. If it was
    to be added, but could not be, `not_saved` is the error. `is_approximate` is true if the verdict follows from token costs
    whose measurement other programs disturbed.
    """

    verdict: Verdict
    figures: RunFigures
    command: str
    bounds: Sequence[Bound] = ()
    finished: int = 0
    minutes: float | None = None
    saved: PairEntry | None = None
    not_saved: PairNotSavedError | None = None
    is_approximate: bool = False

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


def advise(
    open_session: OpenSession,
    selected: Selection,
    path: Path,
    advice: AdviceOptions,
    display: Display,
    ends: float,
) -> Advice:
    """Measure missing token costs and compare the policies. Repeating the command adds problems.

    Raises UsageError if an option is invalid; RouterError, ModelError, HubError or ServerError if a router or model fails.
    """
    with (
        RunFolder(path, fresh=advice.fresh) as folder,
        open_session(display, cost_seconds=COSTS_TIME * 60 * advice.minutes) as session,
    ):
        # In a pseudo-random order, the first problems are a representative sample.
        drawn = sorted(selected.items, key=lambda item: hashlib.sha256(item.problem.id.encode()).digest())
        run = BenchRun(session, replace(selected, items=drawn), folder, name=ADVISE, ends=ends)
        prices = session.decided.prices
        bounds = bounds_of_run(run.run, run.card, prices)
        advisor = _Advisor(run, ends, bounds)
        with offering_to_resume(session, folder):
            if advisor.is_done:
                folder.save_run(run.run)
            else:
                _tell_of(bounds, "price" if prices else "time", display)
                run.measure(advisor.attempts(), advisor.is_kept)
            run.compare_earlier()
        found, decided = advisor.judge()
        finished, minutes = advisor.finished, advisor.minutes_needed(advice.minutes)
    plan = session.plan
    command = plan.solve_command.line(decided.route.name, selected.dataset.task)
    disturbed = any(model.costs_are_approximate for model in session.decided.models.values())
    is_approximate = disturbed and decided.is_by_bounds and decided.basis == "time"
    return Advice(decided, found, command, bounds, finished, minutes, is_approximate=is_approximate)


def _tell_of(bounds: Sequence[Bound], basis: Basis, display: Display) -> None:
    """Say which policies are not tried, and why."""
    for bound in bounds:
        if bound.escalates_all:
            display.tell(f"not tried: {bound.route.name}, because its tau escalates every step")
        elif bound.is_excluded:
            probably = "" if bound.is_certain else "probably "
            ratio = bound.at_most if bound.is_certain else bound.likely
            if basis == "price":
                effect = f"{probably}costs at least {formatting.percent(1 / ratio)} of the target's price"
            else:
                effect = f"is {probably}at most {formatting.number(ratio)}x as fast as the target alone"
            display.tell(f"not tried: {bound.route.name} {effect}")


class _Advisor:
    """Chooses the attempts of a benchmark that may change the verdict until the time limit is reached.

    The target and the draft solve each problem first, then the policies in the order of their chances to save enough.
    Hopeless policies are skipped.
    """

    def __init__(self, run: BenchRun, ends: float, bounds: Sequence[Bound]) -> None:
        self._run = run
        self._ends = self._attempt_ends = ends
        self._began = time.monotonic()
        self._chances = {bound.route: bound.chance for bound in bounds}
        self._todo = sorted(run.todo, key=lambda attempt: (attempt.block, *self._rank(attempt.route)))
        self._seconds = _seconds_until(ends)
        self._block: int | None = None
        self._decided = self.judge()[1]

    @property
    def is_done(self) -> bool:
        return not any(map(self._is_needed, self._todo))

    def attempts(self) -> Iterator[Attempt]:
        """Yield attempts with their time limits. An attempt is skipped if it is not needed when its turn comes."""
        for attempt in filter(self._is_needed, self._todo):
            limit = min(LONGEST * self._seconds, _seconds_until(self._ends))
            self._attempt_ends = time.monotonic() + limit
            yield replace(attempt, seconds=limit)

    def is_kept(self, row: AttemptRow) -> bool:
        """Return whether a row is stored. The row of an attempt that ended at its time limit is not stored."""
        return row.status == "done" or time.monotonic() < self._attempt_ends

    def judge(self) -> tuple[RunFigures, Verdict]:
        """Judge the attempts so far. Return the figures and the verdict."""
        found = figures(self._run.run, self._run.results, self._run.card)
        if found.verdict is None:
            raise DefectError("advise has no policy to compare")
        self._decided = found.verdict
        return found, found.verdict

    @property
    def finished(self) -> int:
        """The number of problems that all policies finished, without hopeless policies, when they were last judged."""
        return min((one.num_problems for one in self._decided.candidates if not one.is_hopeless), default=0)

    def minutes_needed(self, minutes: float) -> float | None:
        """Return the time limit with which there would probably be a verdict, or None if more time does not help."""
        tried = [attempt for attempt in self._todo if not self._is_hopeless(attempt)]
        left = {attempt.id for attempt in tried if attempt.key not in self._run.folder.statuses}
        is_known = self._decided.confidence is not None or self.finished >= MIN_PROBLEMS
        if is_known or self.finished + len(left) < MIN_PROBLEMS:
            return None
        used = min(minutes, (time.monotonic() - self._began) / 60 / USED)
        return float(math.ceil(used * (MIN_PROBLEMS + 1) / max(self.finished, 0.5)))

    def _rank(self, route: Route) -> tuple[int, float]:
        if route.policy is TARGET_ALONE:
            return 0, 0.0
        return (1, 0.0) if route.policy is DRAFT_ALONE else (2, -self._chances.get(route, 1.0))

    def _is_needed(self, attempt: Attempt) -> bool:
        if not _seconds_until(self._ends):
            return False
        if self._block != attempt.block and not self._decided.is_final:
            self._block = attempt.block
            self.judge()
        return not self._decided.is_final and not self._is_hopeless(attempt)

    def _is_hopeless(self, attempt: Attempt) -> bool:
        return any(one.is_hopeless for one in self._decided.candidates if one.route == attempt.route)


def _seconds_until(ends: float) -> float:
    return max(0.0, ends - time.monotonic())

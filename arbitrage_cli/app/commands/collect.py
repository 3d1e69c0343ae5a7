"""Collects the states on which routers are trained. Both models write every step, and both steps are rated."""

import contextlib
import shlex
from functools import partial

from arbitrage_cli.app.attempts.attempts import Attempt
from arbitrage_cli.app.attempts.loop import Loop, Stopwatch
from arbitrage_cli.app.attempts.run_record import RunDetails
from arbitrage_cli.app.attempts.selection import Selection
from arbitrage_cli.app.attempts.stored_run import StoredRun
from arbitrage_cli.app.opening.session import Session
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import InterruptedRunError, OutputError, ProblemError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.tasks import is_correct
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import COLLECT, SCHEMA, attempt_error, tally_of, tau_in_json
from arbitrage_cli.runs.rows import CollectedRow
from arbitrage_cli.system.signals import noted_signals
from arbitrage_cli.training.states import State, by_continuing, by_rating, collect
from arbitrage_cli.training.train import ENOUGH_SOLUTIONS, MIN_CLASS, problems_needed
from arbitrage_cli.types import Finished, Json, Trace

REQUIRED = (
    f"a router needs at least {MIN_CLASS} states in which the target's step is better, and {MIN_CLASS} in which it is not; "
    f"preset careful needs about {ENOUGH_SOLUTIONS} problems"
)


class Collection(StoredRun):
    """A collection: its attempts, and those that are missing.

    `held` counts the stored states of each problem, and `improvable` those with an advantage. If a problem has no known
    answer, the answer of the target's own solution counts as known.
    """

    def __init__(self, session: Session, selected: Selection, folder: RunFolder) -> None:
        self.held: dict[str, int] = {}
        self.improvable: dict[str, int] = {}
        self._golds: Json = {item.problem.id: item.gold for item in selected.items}
        self._by_rollouts = session.decided.settings.reward == "rollout"
        self._unfinished: dict[str, tuple[Trace, list[State]]] = {}
        attempts = [Attempt(item, 0, session.route) for item in selected.items]
        is_unanswered = self._by_rollouts and not all(self._golds.values())
        reward = {"kind": session.decided.settings.reward} | ({"answers": "target"} if is_unanswered else {})
        super().__init__(session, selected, folder, attempts, COLLECT, details=RunDetails(reward=reward))

    @property
    def num_states(self) -> int:
        return sum(self.held.values())

    @property
    def found(self) -> str:
        """The number of states and of solutions. In a state with an advantage, the target's step is better."""
        states, problems = formatting.count(self.num_states, "state"), formatting.count(len(self.held), "problem")
        return f"{states} from {problems}; the target's step is better in {sum(self.improvable.values())}"

    @property
    def next_step(self) -> str:
        """The command to train a router or, with too few states, the number of problems that a router needs."""
        improvable = sum(self.improvable.values())
        more = problems_needed(len(self.held), improvable, self.num_states - improvable)
        if more is None:
            return f"to train a router: arbitrage train {shlex.quote(str(self.folder.shown))} -o router.safetensors"
        number = f"; collect about {more:,} problems" if self.num_states else ""
        return f"a router needs at least {MIN_CLASS} in which it is better, and {MIN_CLASS} in which it is not{number}"

    def label(self, route: Route) -> str:
        return "both models"

    def collect(self) -> None:
        """Store each problem as soon as it is solved. If the run is interrupted, store the states of unfinished problems."""
        if not self.todo:
            return
        session = self.session
        session.display.note(f"so far {self.found}" if self.held else REQUIRED)
        session.load()
        if count := sum(not self._golds[attempt.id] for attempt in self.todo) if self._by_rollouts else 0:
            which = f"{formatting.count(count, 'problem')} without a known answer"
            session.display.note(f"{which}: the target's own answer is assumed to be correct")
        with session.task.open_grader() as self._grader:
            scheduler = session.models.collector(session.route.policy)
            loop = self.loop(lambda attempt: scheduler, self._flow, self._row)
            try:
                for attempt in loop.run(self.todo):
                    self._unfinished.pop(attempt.id, None)
            finally:
                self._store_unfinished(loop)

    def count(self, row: CollectedRow) -> None:
        self.held[row.id] = len(row.states)  # of several rows, the last one counts
        self.improvable[row.id] = sum(state.get("advantage", 0) > 0 for state in row.states)

    def _row(self, attempt: Attempt, finished: Finished, timing: Stopwatch) -> CollectedRow | None:
        """Return the row of a problem, or None if it failed with fewer states than are stored."""
        error = attempt_error(finished)
        _, states = self._unfinished.get(attempt.id, (None, ()))
        if error and len(states) < self.held.get(attempt.id, 0):
            return None
        return CollectedRow(
            schema=SCHEMA,
            id=attempt.id,
            sample=0,
            policy=attempt.route.policy.name,
            tau=tau_in_json(attempt.route.tau),
            status="error" if error else "done",
            error=error,
            level=attempt.item.level,
            question=attempt.item.problem.question,
            text=finished.trace.text,
            states=[state.to_dict() for state in states],
            is_unsolved=not error and not finished.trace.finished,
            seconds=tally_of(finished).seconds,
        )  # the states are valid even if the problem failed

    def _flow(self, attempt: Attempt, trace: Trace) -> Flow:
        states: list[State] = []
        self._unfinished[attempt.id] = trace, states
        is_right = partial(self._is_right, attempt.id)
        return collect(trace, by_continuing(Continuations(is_right)) if self._by_rollouts else by_rating, states.append)

    def _is_right(self, problem: str, text: str) -> bool:
        if not self._golds[problem]:  # this is the target's own solution
            answer = self._grader.grade(text, {}).answer
            if answer is None:
                hint = "raise --max-tokens, use problems with answers, or use --reward prm"
                raise ProblemError("the target's solution has no answer, so its steps cannot be rated", hint)
            self._golds[problem] = {"answer": answer}
        return is_correct(self._grader, text, self._golds[problem])

    def _store_unfinished(self, loop: Loop) -> None:
        with noted_signals(), contextlib.suppress(OutputError):  # an OutputError that ended the run is already shown
            for name, (trace, states) in self._unfinished.items():
                if len(states) > self.held.get(name, 0):
                    error = None if trace.finished else InterruptedRunError("interrupted")
                    loop.end(loop.in_flight[name], Finished(trace, error))

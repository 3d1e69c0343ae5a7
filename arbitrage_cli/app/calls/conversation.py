"""Conversations, in which the models see all earlier questions and answers: those of the API, and those of `arbitrage chat`."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from math import inf

from arbitrage_cli.app.calls.call import PairCall, Solution
from arbitrage_cli.app.opening.session import Session
from arbitrage_cli.errors import UsageError
from arbitrage_cli.inference.scheduler import Job, Refusals
from arbitrage_cli.model_files.pairs import is_built_in
from arbitrage_cli.problems.rows import make_problem
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.savings import warning_by_costs
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import ByRole, Finished, Message, Note, Problem

FORGETS = "the built-in models do not support conversations, so each question is answered separately"

log = logging.getLogger("arbitrage")


class Turns:
    """The questions and answers of a conversation.

    The built-in models were not trained on conversations, so they receive each question alone, and `note` reports this once.
    """

    def __init__(self, models: ByRole[str], note: Note, system: str | None = None) -> None:
        self._remembers = not any(map(is_built_in, models.values()))
        self._note, self._system = note, system
        self._num_questions = 0
        self._answered: tuple[Message, ...] = ()

    def problem(self, question: str) -> Problem:
        try:
            problem = make_problem(question, str(self._num_questions + 1))
        except ValueError as error:
            raise UsageError(str(error)) from error
        if self._num_questions == 1 and not self._remembers:
            self._note(FORGETS)
        self._num_questions += 1
        return replace(problem, turns=self._answered, system=self._system)

    def add(self, question: str, answer: str) -> None:
        if self._remembers:
            self._answered += (Message("user", question), Message("assistant", answer))

    def clear(self) -> None:
        self._answered = ()


class Conversation:
    """A conversation, created by `Pair.conversation`. Failed questions are not remembered."""

    def __init__(self, solve: Callable[[PairCall, Problem], Solution], call: PairCall, models: ByRole[str]) -> None:
        self._solve, self._call = solve, call
        self._turns = Turns(models, log.warning, call.system)

    def ask(self, question: str) -> Solution:
        """Answer a question. Raises the same errors as `Pair.solve`."""
        solution = self._solve(self._call, self._turns.problem(question))
        self._turns.add(solution.problem.question, solution.text)
        return solution

    def clear(self) -> None:
        self._turns.clear()


class RoutedConversation:
    """A conversation whose `route` may change between questions."""

    def __init__(self, session: Session) -> None:
        self.menu = session.menu()
        self.route = self.menu.default
        self._session, self._display = session, session.display
        self._turns = Turns(session.decided.names, session.display.note)
        self._scheduler = session.models.scheduler()
        self._shown: tuple[Route, str | None] | None = None
        self._are_models_shown = False
        self._last: tuple[Finished, RunInfo] | None = None

    def choose(self, name: str) -> None:
        """Select a route such as `arbitrage@fast`, with a note if it is expected to be slower than the target alone.

        Raises UsageError if the menu does not contain the route.
        """
        self.route = self.menu.find(name, "policy")
        self.show_route()
        if warning := warning_by_costs(self.route, self._session.router):
            self._display.tell(warning)

    def ask(self, question: str) -> Finished:
        """Answer a question and remember the answer. Raises UsageError if the question is not valid text."""
        route = self.route
        finished = self._solve(self._turns.problem(question), route)
        if finished.error is None:
            self._turns.add(finished.trace.problem.question, finished.trace.text)
            run = self._session.run_info(num_problems=1, route=route)
            self._last = finished, replace(run, explain=self._session.explain(route))
        return finished

    @property
    def last(self) -> tuple[Finished, RunInfo]:
        """The last answer and its settings. Raises UsageError if there is no answer yet."""
        if self._last is None:
            raise UsageError("there is no answer yet", "ask a question first")
        return self._last

    def ask_target(self) -> Finished:
        """Let the target answer the last question again, without remembering the new answer.

        Raises UsageError if there is no question yet.
        """
        return self._solve(self.last[0].trace.problem, self.menu.find("target"))

    def clear(self) -> None:
        self._turns.clear()
        self._last = None

    def answer(self, finished: Finished) -> str:
        text = finished.trace.text
        return self._session.task.find_answer(text) or text.strip()

    def show_route(self) -> None:
        self._show(self.route)

    def close_view(self) -> None:
        """Show the unfinished step of an interrupted question."""
        self._display.close()
        self._shown = None

    def _solve(self, problem: Problem, route: Route) -> Finished:
        self._show(route)
        job = Job(problem, self._session.flow(route), self._session.limits.of(*route.policy.models))
        with contextlib.closing(self._scheduler.run([job], refusals=Refusals(inf))) as events:
            for event in events:
                self._display.handle(event)
                if isinstance(event, Finished):
                    finished = event
        self._display.end()
        return finished

    def _show(self, route: Route) -> None:
        if (route, route.tau_name) != self._shown:
            run = replace(self._session.run_info(num_problems=1, route=route), needs_answer=False)
            self._display.begin(replace(run, descriptions={}, names={}) if self._are_models_shown else run)
            self._shown, self._are_models_shown = (route, route.tau_name), True

"""The Python API: `open_pair` loads a draft and a target, and returns a `Pair` that solves problems.

Of the user's settings, only the named pairs and the variables with API keys of servers are read. Nothing is printed:
warnings about models go to the logger `arbitrage`.
"""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from inspect import GEN_RUNNING, getgeneratorstate
from typing import NoReturn, Unpack

from arbitrage_cli.app.asking.request import ask
from arbitrage_cli.app.attempts.attempts import InOrder
from arbitrage_cli.app.calls.call import (
    CallOptions,
    PairCall,
    Question,
    Solution,
    StreamEvent,
    Token,
    in_python,
    options_of,
    python_errors,
    resolve_call,
)
from arbitrage_cli.app.calls.conversation import Conversation
from arbitrage_cli.app.deciding.decide import NO_CHECKS
from arbitrage_cli.app.deciding.plan import Plan
from arbitrage_cli.app.entries.start import session_of
from arbitrage_cli.app.opening.session import OpenSession, Session
from arbitrage_cli.app.options import Options
from arbitrage_cli.app.protocol import LogDisplay
from arbitrage_cli.errors import ProblemError, UsageError
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import (
    Decided,
    Event,
    Finished,
    Problem,
    Started,
    Trace,
    Wrote,
)

ModelName = str | os.PathLike[str]
log = logging.getLogger("arbitrage")


class Pair(contextlib.AbstractContextManager["Pair"]):
    """A draft and a target, loaded by `open_pair`. Calls run one at a time, in one thread, and accept `CallOptions`."""

    _is_closed = True  # until the models are loaded

    def __init__(self, open_session: OpenSession, open_checked: OpenSession) -> None:
        """`open_checked` opens the pair with its checker, which is loaded when a call first needs it."""
        self._open_session, self._open_checked = open_session, open_checked
        self._stack = contextlib.ExitStack()
        self._schedulers: dict[str | None, Scheduler] = {}  # by the source of rewards
        self._events: Generator[Event, None, None] | None = None
        self._busy = threading.Lock()  # held during a call
        self._session: Session | None = None
        self._plan = self._loaded().plan
        self._is_closed = False

    def __del__(self) -> None:
        if not self._is_closed and not sys.is_finalizing():
            self.close()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a pair holds loaded models, so it cannot be copied or pickled; call open_pair again")

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        models = ", ".join(f"{role}={source!r}" for role, source in self._plan.sources.items())
        return f"<Pair {models}, policy={self._plan.setup.route.name!r}>"

    def close(self) -> None:
        """Stop a running call and free the models. Closing a closed pair has no effect.

        Raises UsageError while another thread computes with this pair.
        """
        if self._busy.locked():
            if self._events is None or getgeneratorstate(self._events) == GEN_RUNNING:
                raise UsageError("another thread is solving a problem with this pair", "close the pair after the call")
            self._events.close()  # before the models are freed
        self._is_closed = True
        self._stack.close()

    def solve(self, question: Question, **options: Unpack[CallOptions]) -> Solution:
        """Solve a problem. Raises UsageError if an argument is invalid, or the error that ends the solution."""
        call = self._call(options)
        return self._solve(call, call.problem(question, "1"))

    def solve_many(self, questions: Iterable[Question], **options: Unpack[CallOptions]) -> Generator[Solution, None, None]:
        """Solve problems, up to the pair's concurrency at once. Yield the solutions in the order of the questions.

        If a problem fails or a question is invalid, its solution has an `error`. Raises UsageError if an option is invalid or
        `questions` is a single question. Errors that affect all problems, such as ServerError, are raised.
        """
        _check_many(questions)
        return self._solve_many(self._call(options), questions)

    def stream(self, question: Question, **options: Unpack[CallOptions]) -> Generator[StreamEvent, None, None]:
        """Solve one problem.

        Yield tokens and decisions as they occur, then the solution. Raises the same errors as `solve`.
        """
        call = self._call(options)
        return self._stream(call, call.problem(question, "1"))

    def conversation(self, **options: Unpack[CallOptions]) -> Conversation:
        """Begin a conversation. The models see all earlier questions and answers.

        Raises UsageError if an option is invalid, or the policy cannot be used in a conversation.
        """
        call = self._call(options, in_conversation=True)
        if call.route.policy.compares_answers:
            hint = "pass another policy to conversation(...)"
            raise UsageError(f"policy {call.route.policy.name} cannot be used: {NO_CHECKS}", hint, option="policy")
        return Conversation(self._solve, call, self._plan.setup.names)

    def _loaded(self, earlier: Plan | None = None) -> Session:
        """Return the session, and load the models if they are not loaded. What was decided in an `earlier` plan stays."""
        if self._session is None:
            with contextlib.ExitStack() as stack:
                session = stack.enter_context(self._open_session(LogDisplay(log), earlier=earlier))
                session.load()
                self._stack.push(stack.pop_all())
            self._session = session
        return self._session

    def _unload(self) -> None:
        self._stack.close()
        self._session = None
        self._schedulers.clear()

    @python_errors()
    def _call(self, options: CallOptions, *, in_conversation: bool = False) -> PairCall:
        self._check_free()
        if self._lacks_checker(options.get("policy")):
            with self._reserved():
                self._load_checker()
        return resolve_call(self._loaded(self._plan), options, in_conversation=in_conversation)

    def _load_checker(self) -> None:
        """Load the models again with the checker. If it cannot be used, later calls do without it."""
        self._unload()
        without, self._open_session = self._open_session, self._open_checked
        try:
            self._plan = self._loaded(self._plan).plan
        except BaseException:
            self._open_session = without
            raise

    def _lacks_checker(self, name: str | None) -> bool:
        """Return whether a policy uses the pair's checker, and it is not loaded yet."""
        plan = self._plan
        uses_checker = name is not None and name in POLICIES and "check" in POLICIES[name].models
        return uses_checker and plan.task.has_answers and "check" in plan.named and "check" not in plan.sources

    def _solve(self, call: PairCall, problem: Problem) -> Solution:
        (solution,) = (event for event in self._stream(call, problem) if isinstance(event, Solution))
        return solution

    def _solve_many(self, call: PairCall, questions: Iterable[Question]) -> Generator[Solution, None, None]:
        in_order = InOrder[Solution]()
        with contextlib.closing(self._run(call, _jobs(call, questions, in_order))) as events:
            for event in events:
                if isinstance(event, Started):
                    in_order.expect(event.trace)
                elif isinstance(event, Finished):
                    if event.error and not isinstance(event.error, ProblemError):
                        in_python(event.error)
                        raise event.error
                    in_order.put(event.trace, call.solution(event))
                yield from in_order.ready()
        yield from in_order.ready()

    def _stream(self, call: PairCall, problem: Problem) -> Generator[StreamEvent, None, None]:
        with contextlib.closing(self._run(call, [call.job(problem)])) as events:
            for event in events:
                match event:
                    case Wrote() if event.text:
                        yield Token(event.model, event.phase, event.text)
                    case Decided():
                        yield event.decision
                    case Finished():
                        yield _solution_or_error(call, event)

    def _run(self, call: PairCall, jobs: Iterable[Job]) -> Generator[Event, None, None]:
        with self._reserved():
            self._events = self._scheduler(call).run(jobs)
            with contextlib.closing(self._events):
                yield from self._events
            if self._is_closed:
                raise UsageError("this pair was closed before the problem was solved")

    @contextlib.contextmanager
    def _reserved(self) -> Iterator[None]:
        """Refuse the calls of other threads in the `with` block."""
        if self._is_closed or not self._busy.acquire(blocking=False):
            raise self._refusal
        try:
            yield
        finally:
            self._events = None
            self._busy.release()

    def _check_free(self) -> None:
        if self._is_closed or self._busy.locked():
            raise self._refusal

    @property
    def _refusal(self) -> UsageError:
        return UsageError(f"this pair is {'closed' if self._is_closed else 'solving another problem'}")

    def _scheduler(self, call: PairCall) -> Scheduler:
        policy, session = call.route.policy, self._loaded(self._plan)
        if policy.reward not in self._schedulers:
            models = session.models
            has_both = {"draft", "target"} <= models.by_role.keys()
            self._schedulers[policy.reward] = models.scheduler(None if has_both else session.route, policy)
        return self._schedulers[policy.reward]


@python_errors()
def open_pair(
    draft: ModelName | None = None,
    target: ModelName | None = None,
    *,
    pair: str | None = None,
    router: ModelName | None = None,
    prm: ModelName | None = None,
    check: ModelName | None = None,
    task: str | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    concurrency: int = 1,
    offline: bool = False,
    **defaults: Unpack[CallOptions],
) -> Pair:
    """Load a draft and a target (default: the built-in pair). Use the returned pair as a context manager to free the models.

    A model is a GGUF file, `user/repo:quant` on the Hub, or the URL of a server. `check` is the checker of policy `agree`.
    `concurrency` is the number of problems that `solve_many` solves at once. `defaults` apply to every call that does not
    override them.

    Raises UsageError if an argument is invalid; RouterError, ModelError or HubError if a router or model cannot be used.
    """
    paths = {"draft": draft, "target": target, "router": router, "prm": prm, "check": check}
    named = {name: os.fspath(path) if isinstance(path, os.PathLike) else path for name, path in paths.items()}
    options = options_of(
        Options(),
        defaults,
        **named,
        pair=pair,
        task=task,
        ctx=ctx,
        threads=threads,
        gpu_layers=gpu_layers,
        concurrency=concurrency,
        offline=offline or None,
    )
    request = ask(options, find_task(options.task), use="calls")
    checker = request.named.sources.get("check")
    checked = replace(request, options=replace(request.options, check=checker), policies=[(POLICIES["agree"], None)])
    return Pair(session_of(request), session_of(checked))


def _check_many(questions: object) -> None:
    if isinstance(questions, str | Problem | Mapping) or not isinstance(questions, Iterable):
        hint = "pass a list, or use solve for a single question"
        raise UsageError(f"expected several questions, found {questions!r:.60}", hint, option="questions")


def _jobs(call: PairCall, questions: Iterable[Question], in_order: InOrder[Solution]) -> Iterator[Job]:
    for number, question in enumerate(questions, start=1):
        try:
            yield call.job(call.problem(question, str(number)))
        except UsageError as error:
            trace = Trace(Problem(str(number), question if isinstance(question, str) else ""), call.own_limits)
            in_order.expect(trace)
            in_order.put(trace, call.solution(Finished(trace, error)))


@python_errors()
def _solution_or_error(call: PairCall, finished: Finished) -> Solution:
    if finished.error:
        raise finished.error
    return call.solution(finished)

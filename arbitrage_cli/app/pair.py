"""The Python API: `open_pair` loads a draft and a target, and returns a `Pair` that solves problems.

Options in settings files and environment variables are ignored; only the user's named pairs are read. Nothing is printed:
warnings about models go to the logger `arbitrage`.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import GEN_RUNNING, getgeneratorstate
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from arbitrage_cli.app.conversation import Turns
from arbitrage_cli.app.options import AdviceOptions, Options, check
from arbitrage_cli.app.protocol import LogDisplay
from arbitrage_cli.app.request import Request, ask, choose_route, needed_models, refuse_on_servers
from arbitrage_cli.app.session import Session, open_session
from arbitrage_cli.app.solution import InOrder, Solution, StreamEvent, Token
from arbitrage_cli.app.spec import Spec, limits_of, refuse_without_thinking, sampler_of
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import ArbitrageError, ProblemError, UsageError
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.problems.rows import make_conversation, make_problem
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.routing.route import Route, make_route
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Decided, Event, Finished, Limits, ModelRole, Problem, Started, Trace, Wrote

Question = str | Problem | Sequence[Mapping[str, str]]
"""A question: a string, a `Problem` with an id, or a list of chat messages such as `{"role": "user", "content": "..."}`."""

NO_ROUTING: Mapping[str, Any] = {"policy": None, "tau": None, "early_stop": None}


class CallOptions(TypedDict, total=False):
    """The options of a call. The pair's defaults apply to options that are missing or None.

    - `policy` decides which model writes each step: `"arbitrage"` (a router), `"target"`, `"draft"`, `"speculative"`, ...
    - `tau` is the threshold: a number, a preset (`"careful"`, `"balanced"`, `"fast"`) or a budget such as `"30%"`.
    - `early_stop` stops a drafted step as soon as it is likely to be escalated.
    - `think` turns thinking on or off, or sets the maximum number of thinking tokens.
    - `max_tokens` limits the whole solution, including thinking.
    - `temperature` (0 is greedy), `top_p` and `seed` control sampling.
    - `system` replaces the task's system prompt.
    """

    policy: str | None
    tau: float | str | None
    early_stop: bool | None
    think: bool | int | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    system: str | None


def options_of(defaults: Options, options: CallOptions, **more: Any) -> Options:
    """Return the options of a call. Raises TypeError if an option is unknown; UsageError if a value is invalid."""
    for name in options.keys() - CallOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument '{name}'")
    values: dict[str, Any] = {**options, **more}
    if type(values.get("tau")) in (int, float):
        values["tau"] = str(values["tau"])
    match values.get("think"):
        case bool(switch):
            values["think"] = "on" if switch else "off"
        case int(limit):
            values["think"] = str(limit)
        case other if other is not None:
            raise UsageError(f"expected a bool or a number of tokens, found {other!r}", option="think")
    return defaults.with_values(values)


@contextlib.contextmanager
def python_errors() -> Iterator[None]:
    """In error hints, replace command-line options with the names of Python arguments."""
    try:
        yield
    except ArbitrageError as error:
        error.hint = re.sub("--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), error.hint)
        raise


@dataclass(frozen=True, slots=True)
class Call:
    """The resolved options of a call. `run` contains the settings for solution records."""

    route: Route
    limits: Limits
    sampler: Sampler
    system: str | None
    make_flow: Callable[[Trace], Flow]
    run: RunInfo

    def problem(self, question: Question, identifier: str) -> Problem:
        """Convert a question to a problem. Raises UsageError if the question is invalid."""
        problem = _read_question(question, identifier)
        system = self.system if problem.system is None else problem.system
        return replace(problem, system=system)

    def job(self, problem: Problem) -> Job:
        return Job(problem, self.make_flow, self.limits, sampler=self.sampler)

    def solution(self, finished: Finished) -> Solution:
        """Return the solution of a finished problem. Its record contains the problem's system prompt."""
        system = finished.trace.problem.system
        run = self.run if system is None else replace(self.run, settings={**self.run.settings, "system": system})
        return Solution.of(finished, run)


def resolve_call(session: Session, given: CallOptions) -> Call:
    """Combine a call's options with the pair's options. Raises UsageError if an option is invalid or a model is missing."""
    spec = session.spec
    own = spec.request.options  # the pair's tau belongs to the pair's policy
    options = options_of(replace(own, **NO_ROUTING) if given.get("policy") is not None else own, given)
    route, named = spec.route, spec.request.named
    if NO_ROUTING.keys() & options.explicit:
        policy, tau = choose_route(named, spec.task, options)
        route = make_route(policy, tau, spec.available_router, early_stop=named.early_stop(options.early_stop, [policy]))
    _check_loaded(session, route.policy)
    limits = limits_of(options, spec.limits.think_tokens if options.think is None else options.think_tokens)
    sampler = sampler_of(options)
    if limits.thinks is False:
        refuse_without_thinking(session.prompts())
    run = session.run_info(num_problems=None, route=route, limits=limits, sampler=sampler)
    system = options.system if "system" in options.explicit else None
    return Call(route, limits, sampler, system, session.flow(route, sampler), run)


def _check_loaded(session: Session, policy: Policy) -> None:
    spec = session.spec
    for role in needed_models([policy], spec.request.named.sources, spec.reward).keys() - spec.models.keys():
        hint = f"pass {role}=... to open_pair"
        raise UsageError(f"policy {policy.name} needs the {role} model, which is not loaded", hint, option="policy")
    refuse_on_servers([policy], spec.sources)
    session.check_token_stats([policy])


def _read_question(question: Question, identifier: str) -> Problem:
    try:
        match question:
            case Problem():
                return replace(question, question=make_problem(question.question, question.id).question)
            case str():
                return make_problem(question, identifier)
            case [_, *_]:
                return make_conversation(list(map(_role_and_text, question)), identifier)
            case _:
                raise ValueError(f"expected a str, a Problem or a list of messages, found {question!r:.60}")
    except ValueError as error:
        raise UsageError(str(error), option="question") from error


def _role_and_text(message: Any) -> tuple[str, str]:
    match message:
        case {"role": "system" | "developer" | "user" | "assistant" as role, "content": str(text)}:
            return role, text
    raise ValueError(f"expected a message such as {{'role': 'user', 'content': '...'}}, found {message!r:.60}")


if TYPE_CHECKING:
    from arbitrage_cli.app.advise import Advice

log = logging.getLogger("arbitrage")


class Pair(contextlib.AbstractContextManager["Pair"]):
    """A draft and a target, loaded by `open_pair`. Calls run one at a time, in one thread, and accept `CallOptions`."""

    _is_closed = True  # until the models are loaded

    def __init__(self, request: Request) -> None:
        self._request = request
        self._stack = contextlib.ExitStack()
        self._schedulers: dict[str | None, Scheduler] = {}  # by the source of rewards
        self._events: Generator[Event, None, None] | None = None
        self._busy = threading.Lock()  # held during a call
        self._session: Session | None = None
        self._spec = self._loaded().spec
        self._is_closed = False

    def __del__(self) -> None:
        if not self._is_closed and not sys.is_finalizing():
            self.close()
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        models = ", ".join(f"{role}={source!r}" for role, source in self._spec.sources.items())
        return f"<Pair {models}, policy={self._spec.route.name!r}>"

    def close(self) -> None:
        """Stop a running call and free the models. Closing a closed pair has no effect.

        Raises UsageError if another thread is solving a problem with this pair.
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
        """Solve one problem. Yield tokens and decisions as they occur, then the solution. Raises the same errors as `solve`."""
        call = self._call(options)
        return self._stream(call, call.problem(question, "1"))

    def conversation(self, **options: Unpack[CallOptions]) -> "Conversation":
        """Begin a conversation. The models see all earlier questions and answers."""
        return Conversation(self._solve, self._call(options), self._spec.sources)

    @python_errors()
    def advise(self, questions: Iterable[str | Mapping[str, Any]], *, minutes: float = 10.0) -> "Advice":
        """Compare policies on sample questions until a policy is clearly best or the time limit is reached.

        A question may be a mapping with a reference answer: `{"question": "...", "answer": "36"}`. The models are freed
        during the measurement and reloaded by the next call. Raises UsageError if a question is invalid; ModelError or ServerError
        if a model cannot be used.
        """
        from arbitrage_cli.app.advise import advise_on  # slow to import

        self._check_free()
        _check_many(questions)
        minutes = check(AdviceOptions, "minutes", minutes)
        options, task = self._request.options, self._request.task
        replaced = {**NO_ROUTING, "concurrency": None}
        single = replace(options, **replaced, explicit=options.explicit - replaced.keys())
        with self._reserved():
            self._stack.close()
            self._session = None
            self._schedulers.clear()
            return advise_on(questions, single, task, minutes=minutes, display=LogDisplay(log))

    def _loaded(self, spec: Spec | None = None) -> Session:
        """Return the session, and load the models if they are not loaded."""
        if self._session is None:
            with contextlib.ExitStack() as stack:
                session = stack.enter_context(open_session(self._request, LogDisplay(log), spec=spec))
                session.load()
                self._stack.push(stack.pop_all())
            self._session = session
        return self._session

    @python_errors()
    def _call(self, options: CallOptions) -> Call:
        self._check_free()
        return resolve_call(self._loaded(self._spec), options)

    def _solve(self, call: Call, problem: Problem) -> Solution:
        (solution,) = (event for event in self._stream(call, problem) if isinstance(event, Solution))
        return solution

    def _solve_many(self, call: Call, questions: Iterable[Question]) -> Generator[Solution, None, None]:
        in_order = InOrder[Solution]()
        with contextlib.closing(self._run(call, _jobs(call, questions, in_order))) as events:
            for event in events:
                if isinstance(event, Started):
                    in_order.expect(event.trace)
                elif isinstance(event, Finished):
                    if event.error and not isinstance(event.error, ProblemError):
                        raise event.error
                    in_order.put(event.trace, call.solution(event))
                yield from in_order.ready()
        yield from in_order.ready()

    def _stream(self, call: Call, problem: Problem) -> Generator[StreamEvent, None, None]:
        with contextlib.closing(self._run(call, [call.job(problem)])) as events:
            for event in events:
                match event:
                    case Wrote() if event.text:
                        yield Token(event.model, event.trace.phase, event.text)
                    case Decided():
                        yield event.decision
                    case Finished():
                        yield _solution_or_error(call, event)

    def _run(self, call: Call, jobs: Iterable[Job]) -> Generator[Event, None, None]:
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

    def _scheduler(self, call: Call) -> Scheduler:
        policy, session = call.route.policy, self._loaded(self._spec)
        if policy.reward not in self._schedulers:
            has_both = {"draft", "target"} <= session.models.keys()
            self._schedulers[policy.reward] = session.scheduler(
                None if has_both else self._spec.route, session.rater(policy)
            )
        return self._schedulers[policy.reward]


class Conversation:
    """A conversation, created by `Pair.conversation`. Failed questions are not remembered."""

    def __init__(self, solve: Callable[[Call, Problem], Solution], call: Call, sources: Mapping[ModelRole, str]) -> None:
        self._solve, self._call = solve, call
        self._turns = Turns(sources, log.warning, call.system)

    def ask(self, question: str) -> Solution:
        """Answer a question. Raises the same errors as `Pair.solve`."""
        solution = self._solve(self._call, self._turns.problem(question))
        self._turns.add(solution.problem.question, solution.text)
        return solution

    def clear(self) -> None:
        self._turns.clear()


@python_errors()
def open_pair(
    draft: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    *,
    pair: str | None = None,
    router: str | os.PathLike[str] | None = None,
    prm: str | os.PathLike[str] | None = None,
    check: str | os.PathLike[str] | None = None,
    task: str | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    concurrency: int = 1,
    offline: bool = False,
    **defaults: Unpack[CallOptions],
) -> Pair:
    """Load a draft and a target (default: the built-in pair). Use the returned pair as a context manager to free the models.

    A model is a GGUF file, `user/repo:quant` on the Hub, or the URL of a server. `check` is the checker of policy `agree`,
    which may also be `"think"`: the draft in its other thinking mode. `concurrency` is the number of problems that
    `solve_many` solves at once. `defaults` apply to every call that does not override them.

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
    return Pair(ask(options, find_task(options.task), loads="named"))


def _check_many(questions: object) -> None:
    if isinstance(questions, str | Problem | Mapping) or not isinstance(questions, Iterable):
        hint = "pass a list, or use solve for a single question"
        raise UsageError(f"expected several questions, found {questions!r:.60}", hint, option="questions")


def _jobs(call: Call, questions: Iterable[Question], in_order: InOrder[Solution]) -> Iterator[Job]:
    for number, question in enumerate(questions, start=1):
        try:
            yield call.job(call.problem(question, str(number)))
        except UsageError as error:
            trace = Trace(Problem(str(number), question if isinstance(question, str) else ""), call.limits)
            in_order.expect(trace)
            in_order.put(trace, call.solution(Finished(trace, error)))


@python_errors()
def _solution_or_error(call: Call, finished: Finished) -> Solution:
    if finished.error:
        raise finished.error
    return call.solution(finished)

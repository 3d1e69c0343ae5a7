"""The calls of a pair: their options, problems and solutions."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from reprlib import repr as short
from typing import Any, Literal, TypedDict

from arbitrage_cli.app.asking.needs import (
    needed_models,
    refuse_on_servers,
    refuse_quick_answers,
    refuse_useless,
    with_tau_of_policy,
)
from arbitrage_cli.app.deciding.decide import NO_CHECKS
from arbitrage_cli.app.deciding.thinking import limits_by_role, refuse_thinking, refuse_without_thinking
from arbitrage_cli.app.opening.session import Session
from arbitrage_cli.app.options import Options
from arbitrage_cli.arbitrage import Flow
from arbitrage_cli.errors import ArbitrageError, UsageError
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job
from arbitrage_cli.problems.rows import make_conversation, make_problem
from arbitrage_cli.routing.policies import Policy, find_policy
from arbitrage_cli.routing.route import Route, make_route
from arbitrage_cli.runs.records import NO_COST, RunInfo, tally_of
from arbitrage_cli.runs.rows import SolutionRow
from arbitrage_cli.types import (
    WRITING,
    Check,
    Cost,
    Decision,
    Finished,
    Json,
    Limits,
    ModelRole,
    Phase,
    Problem,
    RoleLimits,
    Thinking,
    Trace,
    TraceStop,
    frozen,
)

Question = str | Problem | Sequence[Mapping[str, str]]
"""A question: a string, a `Problem` with an id, or a list of chat messages such as `{"role": "user", "content": "..."}`."""

NAMES = frozenset(field.name for field in fields(Options))
ROUTING = ("policy", "tau")


class CallOptions(TypedDict, total=False):
    """The options of a call. The pair's defaults apply to options that are missing or None.

    - `policy` decides which model writes each step: `"arbitrage"` (a router), `"target"`, `"draft"`, `"speculative"`, ...
    - `tau` is the threshold: a number, a preset (`"careful"`, `"balanced"`, `"fast"`) or a budget such as `"30%"`.
    - `think` turns thinking on or off, or sets the maximum number of thinking tokens. With `"auto"`, quick answers are
      compared, and the target thinks only if they differ.
    - `max_tokens` limits the whole solution, including thinking.
    - `temperature` (0 is greedy), `top_p` and `seed` control sampling.
    - `system` replaces the task's system prompt.
    """

    policy: str | None
    tau: float | str | None
    think: bool | int | Literal["auto"] | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    system: str | None


def options_of(defaults: Options, options: CallOptions, **more: Any) -> Options:
    """Return the options of a call. Raises TypeError if an option is unknown; UsageError if a value is invalid."""
    for name in options.keys() - CallOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument '{name}'")
    given: Json = {**options, **more}
    values = {name: value.item() if hasattr(value, "item") else value for name, value in given.items()}  # numbers of NumPy
    if type(values.get("tau")) in (int, float):
        values["tau"] = str(values["tau"])
    match values.get("think"):
        case bool(switch):
            values["think"] = "on" if switch else "off"
        case int(limit):
            values["think"] = str(limit)
        case other if other not in (None, "auto"):
            raise UsageError(f"expected a bool, a number of tokens or 'auto', found {other!r}", option="think")
    return defaults.with_values(values)


@contextlib.contextmanager
def python_errors() -> Iterator[None]:
    """In error hints, replace command-line options with the names of Python arguments."""
    try:
        yield
    except ArbitrageError as error:
        in_python(error)
        raise


def in_python(error: ArbitrageError) -> None:
    """In an error's hint, replace command-line options with the names of Python arguments."""
    error.hint = re.sub(
        "--([a-z-]+)", lambda flag: name if (name := flag[1].replace("-", "_")) in NAMES else flag[0], error.hint
    )


@frozen
class Usage:
    """The cost of one solution, in tokens and seconds, including discarded steps.

    `reward` is the cost of rating steps, and `check` that of the checker. `escalated_steps` excludes steps that the target
    writes without a draft.
    """

    draft: Cost
    target: Cost
    reward: Cost
    accepted_steps: int
    escalated_steps: int
    check: Cost = NO_COST

    def __str__(self) -> str:
        draft, target = (cost.decode_tokens + cost.verify_kept for cost in (self.draft, self.target))
        steps = f"{self.accepted_steps} steps accepted, {self.escalated_steps} escalated"
        return f"{steps}; {draft} draft tokens, {target} target tokens"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Solution:
    """A solved problem.

    `answer` is the final answer, or None if the text contains no answer. `text` excludes `thinking`. `steps` contains one
    decision per step. `warnings` says why the models probably cannot solve the problem. `check` is the comparison of answers
    by policy `agree`. `seconds` is model time. `stop` is the reason why the solution ended. `error` is set if the problem failed in `solve_many`; `steps` and `text` then contain the
    unfinished solution.
    """

    problem: Problem
    answer: str | None
    text: str
    thinking: str
    steps: tuple[Decision, ...]
    warnings: tuple[str, ...]
    check: Check | None
    usage: Usage
    seconds: float
    stop: TraceStop | None
    error: ArbitrageError | None
    _row: SolutionRow = field(repr=False)

    @classmethod
    def of(cls, finished: Finished, run: RunInfo) -> "Solution":
        trace, row = finished.trace, SolutionRow.of(finished, run)
        work = tally_of(finished)
        escalated = sum(decision.choice == "escalate" for decision in trace.decisions)
        usage = Usage(
            draft=work.draft_cost,
            target=work.target_cost,
            reward=work.reward_cost,
            accepted_steps=work.accepted_steps,
            escalated_steps=escalated,
            check=work.check_cost,
        )
        return cls(
            problem=trace.problem,
            answer=row.answer,
            text=trace.text,
            thinking=trace.thoughts,
            steps=tuple(trace.decisions),
            warnings=tuple(row.warnings),
            check=trace.check,
            usage=usage,
            seconds=work.seconds,
            stop=trace.stop,
            error=finished.error,
            _row=row,
        )

    def __repr__(self) -> str:
        failed = f", error={type(self.error).__name__}" if self.error else ""
        return (
            f"<Solution {short(self.problem.id)}: answer={short(self.answer)}, {len(self.steps)} steps, "
            f"{self.seconds:.2f} s, stop={self.stop!r}{failed}>"
        )

    def to_dict(self) -> Json:
        """Return the JSON record that `arbitrage solve --json` writes."""
        return self._row.to_dict()


@frozen
class Token:
    """Text that a model has just written. A drafted step's text is discarded if the next `Decision` escalates the step."""

    model: ModelRole
    phase: Phase
    text: str


StreamEvent = Token | Decision | Solution
"""An event of `Pair.stream`: a token, the decision about a step, or the solution at the end."""


@frozen
class PairCall:
    """The resolved options of a call. `run` contains the settings for solution records."""

    route: Route
    limits: RoleLimits
    sampler: Sampler
    system: str | None
    make_flow: Callable[[Trace], Flow]
    run: RunInfo

    @property
    def own_limits(self) -> Limits:
        """The limits of the route's solutions."""
        return self.limits.of(*self.route.policy.models)

    def problem(self, question: Question, identifier: str) -> Problem:
        """Convert a question to a problem. Raises UsageError if the question is invalid."""
        problem = _read_question(question, identifier)
        system = self.system if problem.system is None else problem.system
        return replace(problem, system=system)

    def job(self, problem: Problem) -> Job:
        return Job(problem, self.make_flow, self.own_limits, sampler=self.sampler)

    def solution(self, finished: Finished) -> Solution:
        """Return the solution of a finished problem. Its record contains the problem's system prompt."""
        if finished.error:
            in_python(finished.error)
        system = finished.trace.problem.system
        run = self.run if system is None else replace(self.run, settings={**self.run.settings, "system": system})
        return Solution.of(finished, run)


def resolve_call(session: Session, given: CallOptions, *, in_conversation: bool = False) -> PairCall:
    """Combine a call's options with what is decided. Raises UsageError if an option is invalid or a model is missing."""
    options = _with_policy_for_thinking(session, with_tau_of_policy(options_of(Options(), given)))
    route = _route_of(session, options, in_conversation=in_conversation)
    limits = _limits_of(session, options, route)
    values = {name: getattr(options, name) for name in ("temperature", "top_p", "seed") if name in options.explicit}
    sampler = replace(session.decided.settings.sampler, **values)
    run = session.run_info(num_problems=None, route=route, limits=limits, sampler=sampler)
    make_flow = session.flow(route, sampler=sampler, limits=limits)
    return PairCall(route, limits, sampler, options.system, make_flow, run)


def _with_policy_for_thinking(session: Session, options: Options) -> Options:
    """Return the options with the policy that thinks as a call asks, if the session has quick answers before thinking.

    Raises UsageError if the call asks for quick answers, but the session has none.
    """
    if options.has_quick_answers and not session.limits.has_quick_answers:
        raise UsageError("the pair was opened without quick answers", "pass think='auto' to open_pair", option="think")
    thinking = options.thinking
    if thinking is None or options.has_quick_answers or options.policy or not session.limits.has_quick_answers:
        return options
    return replace(options, policy="target" if thinking.is_on else "draft", explicit=options.explicit | {"policy"})


def _limits_of(session: Session, options: Options, route: Route) -> RoleLimits:
    """Return the limits of a call. Raises UsageError if a model of the route cannot think, or cannot answer without."""
    limits, thinking = session.limits, options.thinking
    if thinking is not None and thinking != limits.target.thinking:  # that of "auto" is the session's
        limits = with_thinking(session, thinking, route.policy.models)
    return limits.with_max_tokens(options.max_tokens) if options.max_tokens else limits


def with_thinking(session: Session, thinking: Thinking, roles: Sequence[ModelRole]) -> RoleLimits:
    """Return the session's limits with thinking turned on or off for models with these roles.

    Raises UsageError if the draft or the target is one of them and cannot think, or cannot answer without thinking.
    """
    prompts = session.models.prompts(roles)
    names = session.decided.names
    writing = {names[role]: prompt for role, prompt in prompts.items() if role in WRITING}
    if thinking.is_off:
        refuse_without_thinking(writing)
    elif not session.limits.target.thinking.is_on:
        refuse_thinking(writing, session.plan.thinking_pair)
    limits = session.limits
    return limits_by_role(limits.target, thinking, prompts, has_checker=limits.check is not None)


def _route_of(session: Session, options: Options, *, in_conversation: bool) -> Route:
    """Return the route of a call. A tau without a policy applies to the policy with which the pair was opened.

    Raises UsageError if an option is invalid, or if a model of the policy is not loaded.
    """
    skips_default = in_conversation and session.route.policy.compares_answers
    if not options.explicit.intersection(ROUTING) and not skips_default:
        return session.route
    policy, tau = session.plan.usual_in_conversation if in_conversation else session.plan.usual
    if skips_default and options.policy is None and policy is not session.route.policy:
        session.display.note(f"policy {session.route.policy.name} is not used: {NO_CHECKS}")
    if options.policy is not None:
        policy, tau = find_policy(options.policy), None
    refuse_useless([policy], options.explicit, session.task)
    if session.limits.has_quick_answers:
        refuse_quick_answers([policy], session.task, in_conversation=False)
    _check_loaded(session, policy)
    return make_route(policy, options.tau or tau, session.router)


def _check_loaded(session: Session, policy: Policy) -> None:
    decided, loaded = session.decided, session.plan.sources
    for role in needed_models([policy], session.plan.named, decided.settings.reward).keys() - loaded.keys():
        hint = f"pass {role}=... to open_pair"
        raise UsageError(f"policy {policy.name} needs the {role} model, which is not loaded", hint, option="policy")
    refuse_on_servers([policy], loaded)
    session.models.check_servers([policy])


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

"""Records shared by all packages: problems, steps, decisions, traces and events.

All records are frozen except `Trace`, to which flows append decisions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

from annotated_types import Ge, Interval

from arbitrage_cli.errors import ArbitrageError

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """Make a class a dataclass whose fields cannot be set again."""
    return dataclass(frozen=True, slots=True)(kind)


Share = Annotated[float, Interval(ge=0, le=1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Temperature = Annotated[float, Interval(ge=0, le=10)]
"""Numbers in a range, which is checked where options and files are read."""

Json = dict[str, Any]
"""A JSON object."""
Fields = Mapping[str, Any]
"""Values by name, which are only read."""

Note = Callable[[str], None]
"""Shows a line to the user."""
ModelRole = Literal["draft", "target", "prm", "check"]
"""The role of a model. `check` is the checker, which solves a problem beside the draft in policy `agree`."""
ROLES: tuple[ModelRole, ...] = get_args(ModelRole)
WRITING = ROLES[:2]
ServerKind = Literal["vllm", "sglang", "llama-server"]
"""A server that continues token ids. Every other server is used as a chat API."""

ByRole = Mapping[ModelRole, T]

Phase = Literal["think", "answer"]

StepStop = Literal["separator", "end", "budget", "context", "loop", "early", "thought", "think_budget"]
"""The reason why a step ended.

- `separator`, `end`: the model finished the step or the sequence.
- `budget`, `context`: the step reached its token limit or filled the context.
- `loop`: the model repeated itself.
- `early`: the step was stopped because it will be escalated.
- `thought`, `think_budget`: the model ended its thinking, or thinking reached its token limit. The answer follows.
"""

WHOLE: Collection[StepStop] = ("separator", "end", "thought")
"""The stops of steps that were not cut off."""

TraceStop = Literal["end", "max_steps", "max_tokens", "context"]

ROUTED_STEPS, ROUTED_THINKING_STEPS = 100, 1000
"""The default step limits of routed solutions, without and with thinking."""
MAX_CONTEXT = 1 << 24  # tokens; above any model, and within llama.cpp's integers
MAX_CONCURRENCY = 1024  # if all models are on servers
ANSWER_TOKENS, THINK_TOKENS = 4096, 16384
"""The default token limits for solutions without and with thinking."""

MessageRole = Literal["user", "assistant"]


@frozen
class Message:
    """A message in a conversation."""

    role: MessageRole
    text: str


@frozen
class Problem:
    """A question with its own settings.

    `turns` contains the earlier messages of a conversation. `system` replaces the default system prompt, unless `system` is
    None. `thinks` is copied from the limits before a model solves the problem, because the prompt depends on it.
    """

    id: str
    question: str
    turns: tuple[Message, ...] = ()
    system: str | None = None
    thinks: bool | None = None


@frozen
class Thinking:
    """Whether a model thinks before it answers.

    `switch` turns thinking on or off. If it is None, the chat template's default applies, which is to answer at once.
    `max_tokens` limits the thinking. If it is None, there is no separate limit.
    """

    switch: bool | None = None
    max_tokens: Positive | None = None

    @property
    def is_on(self) -> bool:
        return self.switch is True

    @property
    def is_off(self) -> bool:
        """Whether thinking is turned off, even if the chat template turns it on."""
        return self.switch is False


@frozen
class Limits:
    """Limits on the kept steps and tokens of one solution, and its thinking.

    If `max_steps` is None, only solutions of policies that choose between two models have a limit on steps. If `max_tokens`
    is None, the limit depends on whether the model thinks.
    """

    max_steps: Positive | None = None
    max_tokens: Positive | None = None
    max_step_tokens: Positive = 512
    thinking: Thinking = Thinking()

    @property
    def token_limit(self) -> int:
        return self.max_tokens or (THINK_TOKENS if self.thinking.is_on else ANSWER_TOKENS)


@frozen
class RoleLimits:
    """The limits of each role's solutions. Everything that depends on whether a model thinks follows from this record.

    `check` is None if there is no checker.
    """

    draft: Limits = Limits()
    target: Limits = Limits()
    check: Limits | None = None

    @property
    def has_quick_answers(self) -> bool:
        """Whether the draft answers without thinking, and the target thinks."""
        return self.draft.thinking.is_off and self.target.thinking.is_on

    def of(self, *roles: ModelRole) -> Limits:
        """Return the limits of a solution to which models with these roles contribute: those of the target if it is one."""
        match roles:
            case ("draft",):
                return self.draft
            case ("check",) if self.check:
                return self.check
        return self.target

    def with_max_tokens(self, max_tokens: int) -> "RoleLimits":
        """Return the limits with another limit on the tokens of a solution."""
        check = self.check and replace(self.check, max_tokens=max_tokens)
        return RoleLimits(replace(self.draft, max_tokens=max_tokens), replace(self.target, max_tokens=max_tokens), check)


@frozen
class TokenStats:
    """Statistics of a step's n tokens, in nats.

    The statistics are computed at temperature 1 regardless of the sampling temperature.

    `log_probabilities`, `entropies` and `margins` have n entries. A margin is the difference between the log-probabilities
    of the top two tokens. `pieces` contains the characters that each token completed. A piece is empty if the token ends the
    sequence or only begins a character.
    """

    log_probabilities: Sequence[float]
    entropies: Sequence[float]
    margins: Sequence[float]
    pieces: Sequence[str] = ()


@frozen
class Cost:
    """The tokens and seconds of a model's work on a step: prefill, decoding (one token at a time) and verification.

    `verify_tokens` counts the draft tokens that were verified in `verify_batches` batches; `verify_kept` counts those that
    became part of the step. `cached_tokens` counts the prompt tokens that a server found in its prefix cache.
    """

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    verify_tokens: int = 0
    verify_seconds: float = 0.0
    verify_kept: int = 0
    cached_tokens: int = 0
    verify_batches: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds + self.verify_seconds

    @property
    def tokens_per_second(self) -> float | None:
        return self.decode_tokens / self.decode_seconds if self.decode_tokens and self.decode_seconds > 0 else None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step as written by one model.

    `text` excludes thinking markers; `num_tokens` includes the end-of-sequence token. `speculation_cost` is the draft's cost
    of proposing tokens for this target step.
    """

    model: ModelRole
    text: str
    num_tokens: int
    cost: Cost
    stop: StepStop
    token_stats: TokenStats | None = field(default=None, repr=False)
    speculation_cost: Cost = field(default=Cost(), repr=False)
    phase: Phase = "answer"

    @property
    def ends_thoughts(self) -> bool:
        return self.stop in ("thought", "think_budget")

    @property
    def is_whole(self) -> bool:
        return self.stop in WHOLE

    @property
    def seconds(self) -> float:
        return self.cost.seconds + self.speculation_cost.seconds

    @property
    def known_token_stats(self) -> TokenStats:
        if self.token_stats is None:
            raise ValueError("the token statistics of the drafted step were not recorded")
        return self.token_stats


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The steps that were written at one position of a solution, and the step that was kept.

    `score` was compared with tau. `advantage` is the target step's reward minus the drafted step's reward, or None unless
    both steps were rated.
    """

    kept: Step
    draft: Step | None = None
    target: Step | None = None
    score: float | None = None
    advantage: float | None = None

    @property
    def discarded(self) -> Step | None:
        return self.target if self.kept is self.draft else self.draft

    @property
    def choice(self) -> Literal["accept", "escalate"] | None:
        if self.draft is None or (self.target is None and self.score is None):
            return None
        return "accept" if self.kept is self.draft else "escalate"


@dataclass(frozen=True, slots=True, eq=False)
class CheckedSolution:
    """A solution of the whole problem, whose answer policy `agree` compares.

    `sample` is 0 for a model's greedy solution. `answer` is None if the solution has no answer or did not end. `has_ended` is
    false if it was stopped because it could no longer change the result. `steps` is empty if the solution was kept: its steps
    are those of the trace.
    """

    model: ModelRole
    answer: str | None
    steps: Sequence[Step]
    sample: int = 0
    has_ended: bool = True

    @property
    def is_further(self) -> bool:
        """Whether the draft wrote it to check its own greedy solution. It is never kept."""
        return self.model == "draft" and self.sample > 0


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """The comparison of answers in policy `agree`: the solutions that were begun, and whether all have the same answer.

    If they have, the draft's greedy solution was kept. Without a checker, the draft's further solutions check it.
    """

    solutions: Sequence[CheckedSolution]
    agrees: bool

    @property
    def answers(self) -> ByRole[str | None]:
        """The answers of the solutions that ended, by model. Of several solutions of a model, the latest counts."""
        return {solution.model: solution.answer for solution in self.solutions if solution.has_ended}

    @property
    def discarded(self) -> Sequence[Step]:
        return [step for solution in self.solutions for step in solution.steps]


@frozen
class Attribution:
    """An explanation of a router's log-odds, as the sum of an average step's log-odds and the contributions of `features`.

    The largest absolute contributions come first.
    """

    log_odds: float
    average_step: float
    features: Sequence[tuple[str, float]]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Trace:
    """The solution of one problem, to which flows append decisions. Only policy `agree` sets `check`.

    `rollouts` contains the steps that the target wrote only to rate other steps.
    """

    problem: Problem
    limits: Limits
    decisions: list[Decision] = field(default_factory=list)
    check: Check | None = None
    rollouts: list[Step] = field(default_factory=list)

    def add(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def followed_by(self, step: Step) -> "Trace":
        return Trace(self.problem, self.limits, [*self.decisions, Decision(kept=step)])

    @property
    def text(self) -> str:
        return self._text_of("answer")

    @property
    def thoughts(self) -> str:
        return self._text_of("think")

    def _text_of(self, phase: Phase) -> str:
        return "".join(decision.kept.text for decision in self.decisions if decision.kept.phase == phase)

    @property
    def written(self) -> str:
        return "\n\n".join(filter(None, (self.thoughts.rstrip(), self.text)))

    @property
    def num_tokens(self) -> int:
        return sum(decision.kept.num_tokens for decision in self.decisions)

    @property
    def is_by_target(self) -> bool:
        """Whether the target wrote every kept step. What it would have written in place of a drafted step is unknown."""
        return all(decision.kept.model == "target" for decision in self.decisions)

    @property
    def phase(self) -> Phase:
        if not self.decisions:
            return "think" if self.problem.thinks else "answer"
        last = self.decisions[-1].kept
        return "think" if last.phase == "think" and not last.ends_thoughts else "answer"

    def next_budget(self, max_step_tokens: int | None = None) -> tuple[int, bool]:
        """Return the token limit of the next step, and whether the remaining thinking budget determines it."""
        budget = min(max_step_tokens or self.limits.max_step_tokens, self.limits.token_limit - self.num_tokens)
        most = self.limits.thinking.max_tokens
        if self.phase == "answer" or most is None:
            return budget, False
        left = most - self.num_tokens  # every step so far is a thinking step
        return (left, True) if left <= budget else (budget, False)

    @property
    def stop(self) -> TraceStop | None:
        """The reason why the solution ended, or None if it is unfinished."""
        if not self.decisions:
            return None
        last = self.decisions[-1].kept.stop
        if last == "end" or last == "context":
            return last
        if self.num_tokens >= self.limits.token_limit:
            return "max_tokens"
        return "max_steps" if len(self.decisions) >= self._max_steps else None

    @property
    def _max_steps(self) -> float:
        if self.limits.max_steps is not None:
            return self.limits.max_steps
        if self.decisions[-1].choice is None:  # written by a single model
            return inf
        return ROUTED_THINKING_STEPS if self.problem.thinks else ROUTED_STEPS

    @property
    def finished(self) -> bool:
        return self.stop is not None


@frozen
class Grade:
    """The grade of a solution, and the answer found in the text.

    The grade is `unscored` if the answer could not be compared.
    """

    value: Literal["correct", "incorrect", "unscored"]
    answer: str | None
    explanation: str


@frozen
class Started:
    """Event: work on a problem begins."""

    trace: Trace


@frozen
class Writing:
    """Event: a model prefills `num_unread` tokens before it writes the next step.

    During a long prefill, the event is repeated. The `phase` is that of the model's own solution, which may be compared with
    others before it belongs to the trace.
    """

    trace: Trace
    model: ModelRole
    num_unread: int
    phase: Phase = "answer"


@frozen
class Rating:
    """Event: steps of a trace are being rated. The event is repeated until all rewards are known."""

    trace: Trace


@frozen
class Wrote:
    """Event: a model generated one token. `text` is empty if the token ends the sequence or only begins a character."""

    trace: Trace
    model: ModelRole
    text: str
    phase: Phase = "answer"


@frozen
class Decided:
    """Event: a step was kept. `prompt_tokens` is counted as in `Finished`."""

    trace: Trace
    decision: Decision
    prompt_tokens: int | None = None

    @property
    def index(self) -> int:
        return self.trace.decisions.index(self.decision)


@frozen
class Checked:
    """Event: the answers of the draft and the checker were compared. The steps of the kept solution follow."""

    trace: Trace
    check: Check


@frozen
class Finished:
    """Event: a problem was solved, or failed with `error` after the steps in its trace.

    `target_alone_seconds` is the estimated time of the target alone, or None if a drafted step was kept, or if the target was
    not loaded, is on a server or solved several problems at once. `prompt_tokens` is the first prompt token count that a model reported.
    `abandoned` contains the steps that were being written when the problem ended, and those that a server wrote ahead.
    """

    trace: Trace
    error: ArbitrageError | None = None
    target_alone_seconds: float | None = None
    reward_cost: Cost = Cost()
    prompt_tokens: int | None = None
    abandoned: Sequence[Step] = ()


Event = Started | Writing | Rating | Wrote | Checked | Decided | Finished


@frozen
class Bill:
    """The price of the work on a problem and, if the target wrote the whole text, the estimated price for it alone, in dollars."""

    spent: float
    target_alone: float | None


@frozen
class RequestEnded:
    """Event: a request ended `seconds` after its arrival.

    `end` is "stop" if the answer contains a stop string, and "cancelled" if the client disconnected.
    """

    model: str
    finished: Finished
    seconds: float
    end: str = ""
    bill: Bill | None = None


ServingEvent = Event | RequestEnded

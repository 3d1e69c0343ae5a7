"""Collects the training states for routers, and computes their features. `training.collected` reads stored states.

A state is a step that both models wrote from the same text, with both rewards. States store token statistics rather than
features, so new features do not require collecting states again.
"""

import base64
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import AllowInfNan, BeforeValidator, Field, PlainSerializer, model_validator

from arbitrage_cli.arbitrage import Flow, RateSteps, WriteStep
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.proposals import Proposal
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.routing.router import is_due
from arbitrage_cli.runs.rows import Count, Record
from arbitrage_cli.training.taus import ADVANTAGE_DIGITS
from arbitrage_cli.types import (
    Cost,
    Decision,
    ModelRole,
    Phase,
    Problem,
    Step,
    StepStop,
    TokenStats,
    Trace,
)

_PIECE = re.compile(r"\d|\s?[^\W\d]+|\s?[^\w\s]|\s+")
STATS = ("log_probabilities", "entropies", "margins")
STATS_TYPE = "<f2"

MAX_UNSOLVED = 2  # states


def _from_base64(value: object) -> object:
    return np.frombuffer(base64.b64decode(value, validate=True), STATS_TYPE).tolist() if isinstance(value, str) else value


Statistic = Annotated[
    Sequence[Annotated[float, AllowInfNan()]],
    BeforeValidator(_from_base64),
    PlainSerializer(lambda numbers: base64.b64encode(np.array(numbers, STATS_TYPE).tobytes()).decode()),
]
"""A number for each token of the drafted step. Stored as a base64 string of little-endian float16 numbers."""


Reward = Annotated[float, Field(ge=0, le=1)]


class State(Record):
    """The drafted step and the target's step at the same `position` of a solution, with both rewards.

    The target prefilled `target_prefill_tokens` tokens and then wrote `target_tokens` tokens. Raises ValidationError, a
    ValueError, if a number is invalid.
    """

    position: Count
    draft_text: str
    draft_stop: StepStop
    pieces: Sequence[str]
    log_probabilities: Statistic
    entropies: Statistic
    margins: Statistic
    target_text: str
    draft_reward: Reward
    target_reward: Reward
    advantage: float
    kept: ModelRole
    target_tokens: Count
    target_prefill_tokens: Count
    phase: Phase = "answer"

    @classmethod
    def of(cls, position: int, draft: Step, target: Step, draft_reward: float, target_reward: float) -> Self:
        """Return the state of a drafted step with known token statistics. The better step is kept, or the draft's."""
        advantage = round(target_reward - draft_reward, ADVANTAGE_DIGITS)  # so that equal differences compare equal
        return cls(
            position=position,
            draft_text=draft.text,
            draft_stop=draft.stop,
            **asdict(draft.known_token_stats),
            target_text=target.text,
            draft_reward=draft_reward,
            target_reward=target_reward,
            advantage=advantage,
            kept="target" if advantage > 0 else "draft",
            target_tokens=target.num_tokens,
            target_prefill_tokens=target.cost.prefill_tokens,
            phase=draft.phase,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = [getattr(self, name) for name in STATS]
        if {len(column) for column in columns} != {self.draft_tokens} or not self.draft_tokens:
            raise ValueError("a state does not have one value per token of the drafted step")
        if np.isnan(columns).any():
            raise ValueError("the token statistics of a state contain NaN")
        if self.advantage != round(self.target_reward - self.draft_reward, ADVANTAGE_DIGITS):
            raise ValueError("the advantage of a state is not the difference of its rewards")
        return self

    @property
    def draft_tokens(self) -> int:
        return len(self.pieces)

    @cached_property
    def draft(self) -> Step:
        token_stats = TokenStats(self.log_probabilities, self.entropies, self.margins, self.pieces)
        return Step("draft", self.draft_text, self.draft_tokens, Cost(), self.draft_stop, token_stats, phase=self.phase)

    @property
    def decision(self) -> Decision:
        target = Step("target", self.target_text, self.target_tokens, Cost(), "separator", phase=self.phase)
        return Decision(target if self.kept == "target" else self.draft, self.draft, target, advantage=self.advantage)

    @property
    def shared_tokens(self) -> int:
        """The estimated number of target tokens that the drafted step, as a proposal, would predict correctly.

        The estimate compares words, symbols and digits instead of tokens, so it does not depend on a vocabulary.
        """
        numbers: dict[str, int] = {}
        drafted, written = (
            [numbers.setdefault(piece, len(numbers)) for piece in _PIECE.findall(text)]
            for text in (self.draft_text, self.target_text)
        )
        lengths = {number: len(piece) for piece, number in numbers.items()}
        proposal = Proposal(drafted)
        shared = sum(lengths[number] for number in written if proposal.follow(number))
        return self.target_tokens * shared // max(1, len(self.target_text))


class Judgement(NamedTuple):
    """The target's step at the position of a drafted step, and the rewards of both steps."""

    target: Step
    draft_reward: float
    target_reward: float


Judge = Callable[[Trace, Step], Generator[WriteStep | RateSteps, Any, Judgement]]
"""Lets the target write its step beside a drafted one, and rates both."""


def by_rating(trace: Trace, draft: Step) -> Generator[WriteStep | RateSteps, Any, Judgement]:
    """Let the target write its step, and request a reward for each step unless both are equal."""
    target: Step = yield WriteStep("target", trace, proposal=draft)
    is_same = (draft.text, draft.ends_thoughts) == (target.text, target.ends_thoughts)
    rewards = yield RateSteps(trace, (draft,) if is_same else (draft, target))
    return Judgement(target, rewards[0], rewards[-1])


def by_continuing(continuations: Continuations) -> Judge:
    """Reward each step with 1 if the target's continuation of it is right.

    The target's step is the first step of its own continuation, so a state takes at most one new continuation.
    """

    def judge(trace: Trace, draft: Step) -> Generator[WriteStep, Any, Judgement]:
        (target, *_), is_right = yield from continuations.after(trace)
        _, stays_right = yield from continuations.after(trace.followed_by(draft))
        return Judgement(target, float(stays_right), float(is_right))

    return judge


def collect(trace: Trace, judge: Judge, observe: Callable[[State], None]) -> Flow:
    """Write every step with both models, keep the better step, and pass each state to `observe`.

    If the rewards are equal, the drafted step is kept. The draft must record token statistics. The flow ends early if all
    rewards of the first `MAX_UNSOLVED` states are 0, because the target hardly ever solves such a problem.
    """
    best = 0.0
    while not trace.finished and (best or len(trace.decisions) < MAX_UNSOLVED):
        draft: Step = yield WriteStep("draft", trace)
        target, draft_reward, target_reward = yield from judge(trace, draft)
        state = State.of(len(trace.decisions), draft, target, draft_reward, target_reward)
        best = max(best, draft_reward, target_reward)
        observe(state)
        trace.add(Decision(target if state.kept == "target" else draft, draft, target, advantage=state.advantage))


def features_of(question: str, states: Sequence[State]) -> Floats:
    """Return the features of one solution's n states, an array of shape (n, n_features)."""
    rows = [features(state.draft) for state, features in _replayed(question, states)]
    return np.array(rows, np.float32).reshape(-1, len(FEATURES))


def prefixes_of(question: str, states: Sequence[State]) -> Iterator[tuple[int, int, Floats]]:
    """For each prefix that a router scores, yield the state index, the token count and the features."""
    for state, features in _replayed(question, states):
        for num_tokens in filter(is_due, range(1, state.draft_tokens)):
            yield state.position, num_tokens, features(prefix_of(state.draft, num_tokens))


def _replayed(question: str, states: Sequence[State]) -> Iterator[tuple[State, Callable[[Step], Floats]]]:
    """Yield each state with the function that computes the features of a step at its position."""
    earlier = EarlierSteps(Problem("", question))
    decisions = [state.decision for state in states]
    for index, state in enumerate(states):
        yield state, partial(earlier.features, decisions[:index])


def prefix_of(draft: Step, num_tokens: int) -> Step:
    token_stats = draft.known_token_stats
    first = TokenStats(**{name: getattr(token_stats, name)[:num_tokens] for name in (*STATS, "pieces")})
    return replace(draft, text="".join(first.pieces), num_tokens=num_tokens, stop="early", token_stats=first)

"""Collects states, on which routers are trained, and converts them to JSON.

A state is a step that both models wrote from the same text, with both rewards. States store token statistics rather than
features, so new features do not require collecting states again.
"""

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from arbitrage_cli.arbitrage import Flow, RateSteps, WriteStep
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.proposals import Proposal
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.routing.router import is_due
from arbitrage_cli.runs.rows import Count, Record
from arbitrage_cli.system.files import reason_of
from arbitrage_cli.training.ranking import ADVANTAGE_DIGITS
from arbitrage_cli.types import Cost, Decision, ModelRole, Phase, Problem, Step, StepStop, TokenStats, Trace

_PIECE = re.compile(r"\d|\s?[^\W\d]+|\s?[^\w\s]|\s+")
STATS = ("log_probabilities", "entropies", "margins")


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The drafted step and the target's step at the same `position` of a solution, with both rewards.

    The target prefilled `target_prefill_tokens` tokens and then wrote `target_tokens` tokens.
    """

    position: int
    draft: Step
    target_text: str
    draft_reward: float
    target_reward: float
    kept: ModelRole
    target_tokens: int
    target_prefill_tokens: int = 0

    @property
    def draft_tokens(self) -> int:
        return self.draft.num_tokens

    @property
    def advantage(self) -> float:
        """The target's reward minus the draft's, rounded so that equal differences compare equal."""
        return round(self.target_reward - self.draft_reward, ADVANTAGE_DIGITS)

    @property
    def decision(self) -> Decision:
        target = Step("target", self.target_text, self.target_tokens, Cost(), "separator", phase=self.draft.phase)
        return Decision(target if self.kept == "target" else self.draft, self.draft, target, advantage=self.advantage)

    @property
    def shared_tokens(self) -> int:
        """The estimated number of target tokens that the drafted step, as a proposal, would predict correctly.

        The estimate compares words, symbols and digits instead of tokens, so it does not depend on a vocabulary.
        """
        numbers: dict[str, int] = {}
        drafted, written = (
            [numbers.setdefault(piece, len(numbers)) for piece in _PIECE.findall(text)]
            for text in (self.draft.text, self.target_text)
        )
        lengths, proposal = {number: len(piece) for piece, number in numbers.items()}, Proposal(drafted)
        shared = sum(lengths[number] for number in written if proposal.follow(number))
        return self.target_tokens * shared // max(1, len(self.target_text))


def collect(trace: Trace, observe: Callable[[State], None]) -> Flow:
    """Write every step with both models, keep the better step, and pass each state to `observe`.

    If the rewards are equal, the drafted step is kept. The draft must record token statistics.
    """
    while not trace.finished:
        draft: Step = yield WriteStep("draft", trace)
        target: Step = yield WriteStep("target", trace, proposal=draft)
        is_same = (draft.text, draft.ends_thoughts) == (target.text, target.ends_thoughts)
        rewards = yield RateSteps(trace, (draft,) if is_same else (draft, target))
        state = State(
            position=len(trace.decisions),
            draft=draft,
            target_text=target.text,
            draft_reward=rewards[0],
            target_reward=rewards[-1],
            kept="draft",
            target_tokens=target.num_tokens,
            target_prefill_tokens=target.cost.prefill_tokens,
        )
        kept = target if state.advantage > 0 else draft
        observe(replace(state, kept=kept.model))
        trace.add(Decision(kept, draft, target, advantage=state.advantage))


def features_of(question: str, states: Sequence[State]) -> Floats:
    """Return the features of one solution's n states, an array of shape (n, n_features)."""
    earlier, decisions = EarlierSteps(Problem("", question)), [state.decision for state in states]
    rows = [earlier.features(decisions[:index], state.draft) for index, state in enumerate(states)]
    return np.array(rows, np.float32).reshape(-1, len(FEATURES))


def prefixes_of(question: str, states: Sequence[State]) -> Iterator[tuple[int, int, Floats]]:
    """For each prefix that a router scores, yield the state index, the token count and the features."""
    earlier, decisions = EarlierSteps(Problem("", question)), [state.decision for state in states]
    for index, state in enumerate(states):
        for num_tokens in filter(is_due, range(1, state.draft_tokens)):
            yield index, num_tokens, earlier.features(decisions[:index], prefix_of(state.draft, num_tokens))


def prefix_of(draft: Step, num_tokens: int) -> Step:
    token_stats = draft.known_token_stats
    first = TokenStats(**{name: getattr(token_stats, name)[:num_tokens] for name in (*STATS, "pieces")})
    return replace(draft, text="".join(first.pieces), num_tokens=num_tokens, stop="early", token_stats=first)


class StateRow(Record):
    """A state in a row of `collect`. The token statistics are base64 strings of little-endian float32 numbers."""

    position: Count
    draft_text: str
    draft_stop: StepStop
    pieces: list[str]
    log_probabilities: str
    entropies: str
    margins: str
    target_text: str
    draft_reward: float
    target_reward: float
    advantage: float
    kept: ModelRole
    target_tokens: Count
    target_prefill_tokens: Count
    phase: Phase = "answer"


def state_to_json(state: State) -> dict[str, Any]:
    """Convert a state to JSON. Raises ValueError if a number in the state is invalid."""
    _check(state)
    draft, token_stats = state.draft, state.draft.known_token_stats
    same = (
        *("position", "target_text", "target_tokens", "target_prefill_tokens"),
        *("draft_reward", "target_reward", "advantage", "kept"),
    )
    found: dict[str, Any] = {name: getattr(state, name) for name in same}
    found |= {"draft_text": draft.text, "draft_stop": draft.stop, "pieces": list(token_stats.pieces)}
    found |= {
        name: base64.b64encode(np.array(getattr(token_stats, name), "<f4").tobytes()).decode("ascii") for name in STATS
    }
    found |= {"phase": draft.phase} if draft.phase == "think" else {}
    return StateRow(**found).to_dict()


def state_from_json(entry: Mapping[str, Any]) -> State:
    """Convert JSON to a state. Raises ValueError if the state is invalid."""
    try:
        row = StateRow.model_validate(entry)
    except ValidationError as error:
        raise ValueError(reason_of(error)) from None
    stats = {name: np.frombuffer(base64.b64decode(getattr(row, name), validate=True), "<f4").tolist() for name in STATS}
    token_stats = TokenStats(**stats, pieces=row.pieces)
    num_tokens = len(token_stats.log_probabilities)
    state = State(
        row.position,
        Step("draft", row.draft_text, num_tokens, Cost(), row.draft_stop, token_stats, phase=row.phase),
        row.target_text,
        row.draft_reward,
        row.target_reward,
        row.kept,
        row.target_tokens,
        row.target_prefill_tokens,
    )
    _check(state)
    return state


def _check(state: State) -> None:
    token_stats = state.draft.known_token_stats
    columns = [getattr(token_stats, name) for name in STATS]
    lengths = {len(column) for column in (*columns, token_stats.pieces)}
    if lengths != {state.draft_tokens} or not state.draft_tokens:
        raise ValueError("a state does not have one value per token of the drafted step")
    if any(math.isnan(number) for column in columns for number in column):
        raise ValueError("the token statistics of a state contain NaN")

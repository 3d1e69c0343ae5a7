"""A state: one step that both models wrote from the same text, with their rewards. What a head is trained on.

Knows how a state stands in a row of a run folder, and no head, no model and no file.
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.inference.acceptance import Proposal
from arbitrage_cli.stats.ranking import ADVANTAGE_DIGITS
from arbitrage_cli.types import ModelRole

_PIECE = re.compile(r"\d|\s?[^\W\d]+|\s?[^\w\s]|\s+")
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """The step at `position` of a solution: what the draft knew, how good both steps are, and what they take.

    `features` (n_features,) float32 are `features.features` of the drafted step; `hidden` (2 * n_embd,) float16 are its
    `hidden_features`, None if they were not kept. There is a reward for each step that the target wrote here. The first of them
    has `target_tokens`; before it the target read `target_prefill_tokens`.
    """

    position: int
    features: NDArray[np.float32]
    hidden: NDArray[np.float16] | None
    draft_text: str
    target_texts: tuple[str, ...]
    draft_reward: float
    target_rewards: tuple[float, ...]
    kept: ModelRole
    draft_tokens: int
    target_tokens: int
    target_prefill_tokens: int = 0

    @property
    def target_reward(self) -> float:
        """The mean over the target's steps."""
        return fmean(self.target_rewards)

    @property
    def advantage(self) -> float:
        """Reward of the target's step minus reward of the drafted one: above 0, escalating is worth something."""
        return advantage_of(self.target_rewards, self.draft_reward)

    @property
    def shared_tokens(self) -> int:
        """How many of the first step's `target_tokens` the drafted step would have told the target, as a proposal.

        An estimate, the same for any vocabulary: words, signs and digits are taken for tokens, and counted by their characters.
        """
        numbers: dict[str, int] = {}
        drafted, written = (
            [numbers.setdefault(piece, len(numbers)) for piece in _PIECE.findall(text)]
            for text in (self.draft_text, self.target_texts[0])
        )
        lengths, proposal = {number: len(piece) for piece, number in numbers.items()}, Proposal(drafted)
        told = sum(lengths[number] for number in written if proposal.follow(number))
        return self.target_tokens * told // max(1, len(self.target_texts[0]))


def advantage_of(target_rewards: Sequence[float], draft_reward: float) -> float:
    """Mean reward of the target's steps minus that of the drafted one, rounded: the same rewards have none."""
    return round(fmean(target_rewards) - draft_reward, ADVANTAGE_DIGITS)


def state_to_json(state: State) -> dict[str, Any]:
    """The state as one entry of a row's `states`. ValueError if one of its numbers is not finite, or it has no reward."""
    _check(state)
    return {
        "position": state.position,
        "features": _pack(state.features.astype("<f4")),
        "hidden": None if state.hidden is None else _pack(state.hidden.astype("<f2")),
        "draft_text": state.draft_text,
        "target_texts": list(state.target_texts),
        "draft_reward": state.draft_reward,
        "target_rewards": list(state.target_rewards),
        "advantage": state.advantage,
        "kept": state.kept,
        "draft_tokens": state.draft_tokens,
        "target_tokens": state.target_tokens,
        "target_prefill_tokens": state.target_prefill_tokens,
    }


def state_from_json(entry: Mapping[str, Any]) -> State:
    """The state that was written so. ValueError, with the reason, if it was not."""
    try:
        state = State(
            position=_count(entry["position"]),
            features=_unpack(entry["features"], "<f4").astype(np.float32),
            hidden=None if entry["hidden"] is None else _unpack(entry["hidden"], "<f2").astype(np.float16),
            draft_text=_text(entry["draft_text"]),
            target_texts=tuple(_text(text) for text in entry["target_texts"]),
            draft_reward=float(entry["draft_reward"]),
            target_rewards=tuple(float(reward) for reward in entry["target_rewards"]),
            kept="target" if entry["kept"] == "target" else "draft",
            draft_tokens=_count(entry["draft_tokens"]),
            target_tokens=_count(entry["target_tokens"]),
            target_prefill_tokens=_count(entry["target_prefill_tokens"]),
        )
    except KeyError as error:
        raise ValueError(f"a state has no {error}") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a state is not as it is written: {error}") from error
    _check(state)
    return state


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The same in half precision; what is too large for it, the largest that is not."""
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)


def _check(state: State) -> None:
    if not state.target_rewards or len(state.target_texts) != len(state.target_rewards):
        raise ValueError("a state needs a step of the target, and a reward for each")
    rewards = (state.draft_reward, *state.target_rewards)
    if not all(map(math.isfinite, rewards)) or not np.isfinite(state.features).all():
        raise ValueError("a state has a number that is not finite")
    if state.hidden is not None and not np.isfinite(state.hidden).all():
        raise ValueError("a state has a hidden state that is not finite")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a step is a text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"a state has {value!r} where a number of tokens or steps is wanted")
    return value


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _unpack(text: Any, dtype: str) -> NDArray[Any]:
    if not isinstance(text, str):
        raise TypeError("numbers are written in base64")
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype)
    except binascii.Error as error:
        raise ValueError(f"a state's numbers are not base64: {error}") from error

"""A state in a row of a run folder: written, read back, and refused where it is not as it was written."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from arbitrage_cli.routing.states import State, half, state_from_json, state_to_json

STATE = State(
    position=2,
    features=np.array([0.1, -3.5, 1e30], np.float32),
    hidden=np.array([1.5, -2.25], np.float16),
    draft_text="1 + 1 = 3\n\n",
    target_texts=("1 + 1 = 2\n\n", "1 + 1 = \ud800"),
    draft_reward=0.25,
    target_rewards=(1.0, 0.5),
    kept="target",
    draft_tokens=10,
    target_tokens=12,
    target_prefill_tokens=7,
)


def test_round_trip_keeps_every_bit() -> None:
    """What is read back is what was written, through a line of JSON."""
    found = state_from_json(json.loads(json.dumps(state_to_json(STATE), allow_nan=False)))
    assert found.features.tobytes() == STATE.features.tobytes()
    assert found.hidden is not None
    assert STATE.hidden is not None
    assert found.hidden.tobytes() == STATE.hidden.tobytes()
    assert state_to_json(found) == state_to_json(STATE)


def test_advantage_is_over_the_mean_of_the_target() -> None:
    """Several steps of the target count by their mean."""
    assert STATE.advantage == 0.5
    assert state_to_json(STATE)["advantage"] == 0.5


@pytest.mark.parametrize(
    ("drafted", "written", "share"),
    [
        ("12 + 7 = 19.\n\n", "12 + 7 = 19.\n\n", 1.0),
        ("12 + 7 = 18.\n\n", "12 + 7 = 19.\n\n", 10 / 14),
        ("He adds 12 and 7.\n\n", "So he adds 12 and 7.\n\n", 11 / 22),
        ("nothing", "alike", 0.0),
        ("", "12", 0.0),
        ("12", "", 0.0),
    ],
    ids=["the same", "parted", "back", "nothing alike", "nothing drafted", "nothing written"],
)
def test_what_a_proposal_would_tell_the_target(drafted: str, written: str, share: float) -> None:
    """Its beginning, and what comes after the text is back: in parts of the target's tokens."""
    state = replace(STATE, draft_text=drafted, target_texts=(written,), target_tokens=1000)
    assert state.shared_tokens == int(1000 * share)


def test_without_hidden_states() -> None:
    """They are optional."""
    assert state_from_json(state_to_json(replace(STATE, hidden=None))).hidden is None


@pytest.mark.parametrize(
    "changes",
    [
        {"features": "!"},
        {"features": "AAA"},
        {"features": [1.0]},
        {"features": "AADAfw=="},  # NaN
        {"hidden": "AHw="},  # infinite
        {"hidden": "AA=="},
        {"draft_reward": float("nan")},
        {"draft_reward": None},
        {"target_rewards": []},
        {"target_rewards": [float("inf")]},
        {"position": -1},
        {"draft_tokens": 1.5},
        {"target_tokens": "7"},
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    """A ValueError that says what is wrong: no number is made up."""
    with pytest.raises(ValueError, match=r"state|base64|buffer"):
        state_from_json(state_to_json(STATE) | changes)


@pytest.mark.parametrize("field", sorted(state_to_json(STATE).keys() - {"advantage"}))
def test_missing_field_is_named(field: str) -> None:
    """The advantage follows from the rewards; everything else must be there."""
    entry = state_to_json(STATE)
    del entry[field]
    with pytest.raises(ValueError, match=field):
        state_from_json(entry)


def test_numbers_that_are_not_finite_are_not_written() -> None:
    """A row with NaN in it would be found out only in training, after hours."""
    with pytest.raises(ValueError, match="finite"):
        state_to_json(replace(STATE, draft_reward=float("nan")))
    with pytest.raises(ValueError, match="finite"):
        state_to_json(replace(STATE, features=np.array([np.inf], np.float32)))


def test_half_precision_has_no_infinity() -> None:
    """A large activation stays large."""
    found = half(np.array([1e6, -1e6, 1.0], np.float32))
    assert found.tolist() == [65504.0, -65504.0, 1.0]

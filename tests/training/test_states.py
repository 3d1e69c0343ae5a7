"""States to train a router on: how they are collected, written and read, and refusals of changed states."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from arbitrage_cli.arbitrage import FlowRequest, RateSteps, WriteStep
from arbitrage_cli.rewards import Continuations
from arbitrage_cli.routing.features import FEATURES, EarlierSteps
from arbitrage_cli.training.states import STATS, Judge, State, by_continuing, by_rating, collect, features_of
from arbitrage_cli.types import (
    Cost,
    Decision,
    Limits,
    ModelRole,
    Problem,
    Step,
    StepStop,
    TokenStats,
    Trace,
)

KEPT: tuple[ModelRole, ...] = ("draft", "target", "draft")

TOKEN_STATS = TokenStats((-0.5, -math.inf), (0.25, 3.5), (2.0, 1.5), pieces=("1 + 1", " = 3\n\n"))
DRAFT = Step("draft", "1 + 1 = 3\n\n", 2, Cost(), "separator", TOKEN_STATS)
TARGET = Step("target", "1 + 1 = \ud800", 12, Cost(prefill_tokens=7), "separator")


def make_state(
    position: int = 2, draft: Step = DRAFT, target: Step = TARGET, rewards: tuple[float, float] = (0.25, 0.75)
) -> State:
    return State.of(position, draft, target, *rewards)


def stored(state: State) -> State:
    return State.model_validate(json.loads(json.dumps(state.to_dict(), allow_nan=False)))


def test_round_trip_keeps_every_bit() -> None:
    state = make_state()
    found = stored(state)
    assert [list(getattr(found.draft.known_token_stats, name)) for name in STATS] == [
        [-0.5, -math.inf],
        [0.25, 3.5],
        [2, 1.5],
    ]
    assert found.draft.known_token_stats.pieces == ["1 + 1", " = 3\n\n"]
    assert json.dumps(found.to_dict()) == json.dumps(state.to_dict())


def test_a_thought_stays_one() -> None:
    """Features of later steps use thoughts as they use steps of the answer."""
    read = stored(make_state(0, replace(DRAFT, phase="think"), rewards=(0.5, 0.5)))
    assert {read.draft.phase, read.decision.kept.phase, read.decision.target and read.decision.target.phase} == {"think"}
    found = features_of("?", [read, make_state()])
    assert found[:, FEATURES.index("is_thought")].tolist() == [1, 0]
    assert found[:, FEATURES.index("unseen_numbers")].tolist() == [3, 0]


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
    state = make_state(draft=replace(DRAFT, text=drafted), target=replace(TARGET, text=written, num_tokens=1000))
    assert state.shared_tokens == int(1000 * share)


@pytest.mark.parametrize(
    "changes",
    [
        {"entropies": "!"},
        {"entropies": "AH4Afg=="},  # NaN
        {"entropies": "ADw="},  # one number of two
        {"margins": "", "log_probabilities": "", "entropies": "", "pieces": []},
        {"pieces": ["1"]},
        {"draft_stop": "tired"},
        {"draft_reward": float("nan")},
        {"position": -1},
        {"target_tokens": 1.5},
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - from many places
        State.model_validate(make_state().to_dict() | changes)


def test_numbers_that_are_not_finite_are_refused() -> None:
    """A row with NaN would otherwise be noticed only in training, hours later."""
    with pytest.raises(ValueError, match="finite"):
        make_state(rewards=(math.nan, 0.5))
    with pytest.raises(ValueError, match="NaN"):
        make_state(draft=replace(DRAFT, token_stats=replace(TOKEN_STATS, margins=(1.0, math.nan))))


def test_features_are_those_of_the_solution_as_it_went_on() -> None:
    draft = replace(DRAFT, token_stats=replace(TOKEN_STATS, log_probabilities=(-0.5, -1.0)))
    rewards = {"draft": (0.5, 0.5), "target": (0.25, 0.75)}
    states = [make_state(position, draft, rewards=rewards[kept]) for position, kept in enumerate(KEPT)]
    trace, rows = Trace(Problem("p", "1 + 1?"), Limits()), []
    for state in states:
        rows.append(EarlierSteps(trace.problem).features(trace.decisions, draft).tolist())
        trace.add(Decision(draft if state.kept == "draft" else TARGET, draft, TARGET))
    assert features_of("1 + 1?", states).tolist() == rows
    assert features_of("1 + 1?", []).shape == (0, len(FEATURES))


def draft_step(text: str, stop: StepStop = "separator") -> Step:
    token_stats = TokenStats((-0.1, -2.0), (0.2, 0.7), (1.0, 0.5), pieces=(text[:1], text[1:]))
    return Step("draft", text, 2, Cost(), stop, token_stats)


def target_step(text: str, stop: StepStop = "separator") -> Step:
    return Step("target", text, 10, Cost(prefill_tokens=7), stop)


def run(
    answers: Sequence[Step | tuple[float, ...]], judge: Judge = by_rating
) -> tuple[Trace, list[State], list[FlowRequest]]:
    trace = Trace(Problem("p", "1 + 2"), Limits())
    states: list[State] = []
    flow = collect(trace, judge, states.append)
    requests = [next(flow)]
    for answer in answers:
        try:
            requests.append(flow.send(answer))
        except StopIteration:
            break
    return trace, states, requests


def test_the_better_step_is_kept() -> None:
    answers: list[Step | tuple[float, ...]] = [
        draft_step("ab"),
        target_step("cd"),
        (0.2, 0.9),
        draft_step("ef", "end"),
        target_step("gh", "end"),
        (0.5, 0.5),
    ]
    trace, states, _ = run(answers)
    assert [decision.kept.model for decision in trace.decisions] == ["target", "draft"]
    assert [state.kept for state in states] == ["target", "draft"]
    assert [state.advantage for state in states] == pytest.approx([0.7, 0.0])
    assert [decision.advantage for decision in trace.decisions] == pytest.approx([0.7, 0.0])


def test_a_state_has_what_a_router_reads_and_what_both_steps_cost() -> None:
    _, (state,), _ = run([draft_step("12 x", "end"), target_step("12 y 34567", "end"), (0.0, 1.0)])
    assert state.draft.known_token_stats == TokenStats((-0.1, -2.0), (0.2, 0.7), (1.0, 0.5), pieces=("1", "2 x"))
    assert (state.position, state.draft_tokens, state.target_tokens, state.target_prefill_tokens) == (0, 2, 10, 7)
    assert state.shared_tokens == 2
    assert (state.draft_reward, state.target_reward) == (0.0, 1.0)
    assert (state.draft.text, state.target_text) == ("12 x", "12 y 34567")


def test_the_same_step_is_rated_once() -> None:
    _, (state,), requests = run([draft_step("12", "end"), target_step("12", "end"), (0.3,)])
    assert [len(request.steps) for request in requests if isinstance(request, RateSteps)] == [1]
    assert (state.draft_reward, state.target_reward, state.kept) == (0.3, 0.3, "draft")


def judge_of(right: str) -> Judge:
    return by_continuing(Continuations(lambda text: text == right))


def test_the_targets_step_is_the_first_step_of_its_continuation() -> None:
    """The target writes one continuation at first, and one after each drafted step that differs from its own."""
    answers = [
        *(draft_step("a"), target_step("a"), target_step("b"), target_step("c", "end")),
        *(draft_step("x"), target_step("y", "end")),
        draft_step("c", "end"),
    ]
    trace, states, requests = run(answers, judge_of("abc"))
    assert [state.target_text for state in states] == ["a", "b", "c"]
    assert [(state.draft_reward, state.target_reward, state.kept) for state in states] == [
        (1.0, 1.0, "draft"),
        (0.0, 1.0, "target"),
        (1.0, 1.0, "draft"),
    ]
    assert (trace.text, len(requests)) == ("abc", len(answers))


def test_the_continuation_of_a_kept_step_is_the_next_step_of_the_target() -> None:
    answers = [
        *(draft_step("x"), target_step("a"), target_step("b", "end"), target_step("y", "end")),
        draft_step("z", "end"),
    ]
    _, states, requests = run(answers, judge_of("xy"))
    assert [(state.draft_reward, state.target_reward, state.kept) for state in states] == [
        (1.0, 0.0, "draft"),
        (0.0, 1.0, "target"),
    ]
    assert [state.target_text for state in states] == ["a", "y"]
    assert [request.model for request in requests if isinstance(request, WriteStep)].count("target") == 3


def test_a_target_that_ends_a_solution_without_text_is_continued_like_any_other() -> None:
    answers = [draft_step("a"), target_step("a"), target_step("", "end"), draft_step("b", "end")]
    _, states, requests = run(answers, judge_of("a"))
    assert [(state.target_text, state.draft_reward, state.target_reward) for state in states] == [("a", 1, 1), ("", 0, 1)]
    assert len(requests) == len(answers)


def test_a_problem_that_the_target_never_solves_ends_early() -> None:
    def steps(number: int) -> list[Step]:
        return [target_step("a"), target_step("b"), target_step("c", "end")][-number:]

    answers = [draft_step("x"), *steps(3), *steps(2), draft_step("z"), *steps(1), draft_step("v")]
    trace, states, _ = run(answers, judge_of("right"))
    assert len(states) == 2
    assert not trace.finished


def test_a_drafted_step_that_is_cut_where_the_target_ends_is_continued() -> None:
    """The texts are equal, but only the target's solution is finished."""
    answers = [
        *(draft_step("a"), target_step("a"), target_step("b", "end")),
        *(draft_step("b", "budget"), target_step("c", "end")),
        draft_step("c", "end"),
    ]
    trace, states, requests = run(answers, judge_of("abc"))
    assert [(state.target_text, state.draft_reward, state.target_reward) for state in states] == [
        ("a", 0.0, 0.0),
        ("b", 1.0, 0.0),
        ("c", 1.0, 1.0),
    ]
    assert (trace.text, len(requests)) == ("abc", len(answers))

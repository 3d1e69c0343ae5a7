"""States to train a router on: their observations, and the step that is kept."""

from collections.abc import Sequence

import pytest

from arbitrage_cli.arbitrage import RateSteps, Request
from arbitrage_cli.training.states import State, collect
from arbitrage_cli.types import (
    Cost,
    Limits,
    Problem,
    Step,
    StepStop,
    TokenStats,
    Trace,
)


def draft_step(text: str, stop: StepStop = "separator") -> Step:
    token_stats = TokenStats((-0.1, -2.0), (0.2, 0.7), (1.0, 0.5), pieces=(text[:1], text[1:]))
    return Step("draft", text, 2, Cost(), stop, token_stats)


def target_step(text: str, stop: StepStop = "separator") -> Step:
    return Step("target", text, 10, Cost(prefill_tokens=7), stop)


def run(answers: Sequence[Step | tuple[float, ...]]) -> tuple[Trace, list[State], list[Request]]:
    trace = Trace(Problem("p", "1 + 2"), Limits())
    states: list[State] = []
    flow = collect(trace, states.append)
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

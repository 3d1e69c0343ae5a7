"""Figures of solved problems: sums over decisions, and ratios with their denominators."""

import pytest
from cli import accept, escalate, make_step
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import costs, decisions

from arbitrage_cli.runs.summary import Tally, tally
from arbitrage_cli.types import Cost, Decision


def test_nothing_has_no_rates() -> None:
    nothing = tally([])
    assert nothing == Tally()
    assert (nothing.acceptance_rate, nothing.token_acceptance_rate, nothing.seconds) == (None, None, 0.0)


def test_one_accepted_and_one_escalated_step() -> None:
    figures = tally([accept(), escalate()])
    assert (figures.drafted_steps, figures.accepted_steps, figures.target_steps) == (2, 1, 1)
    assert (figures.drafted_tokens, figures.accepted_tokens, figures.wasted_tokens, figures.target_tokens) == (10, 5, 5, 7)
    assert figures.acceptance_rate == figures.token_acceptance_rate == 0.5
    assert figures.seconds == pytest.approx(0.5 + 0.5 + 2.0)


def test_target_alone_drafts_nothing() -> None:
    step = make_step("target")
    figures = tally([Decision(step, target=step)])
    assert (figures.target_steps, figures.acceptance_rate, figures.token_acceptance_rate) == (1, None, None)


@given(st.lists(decisions()), st.lists(decisions()))
def test_figures_of_the_whole_are_those_of_its_parts(first: list[Decision], second: list[Decision]) -> None:
    figures = tally(first)
    for decision in second:
        figures = figures.add(decision)
    assert figures == tally(first + second)


@given(st.lists(decisions(), min_size=1))
def test_figures_add_up(made: list[Decision]) -> None:
    figures = tally(made)
    drafts = [decision.draft for decision in made if decision.draft]
    targets = [decision.target for decision in made if decision.target]
    assert (figures.drafted_steps, figures.target_steps) == (len(drafts), len(targets))
    assert figures.accepted_steps == sum(decision.kept is decision.draft for decision in made)
    assert figures.wasted_tokens == sum(d.draft.num_tokens for d in made if d.draft and d.kept is not d.draft)
    for rate in (figures.acceptance_rate, figures.token_acceptance_rate):
        assert (rate is None) == (not drafts)
        assert rate is None or 0 <= rate <= 1
    assert figures.seconds == pytest.approx(sum(step.seconds for step in drafts + targets))
    assert figures.stopped_steps == sum(step.stop == "early" for step in drafts)
    speculated = sum(step.speculation_cost.decode_tokens for step in targets)
    assert figures.draft_cost.decode_tokens == sum(step.cost.decode_tokens for step in drafts) + speculated


@given(costs, costs)
def test_costs_add_field_by_field(first: Cost, second: Cost) -> None:
    total = first + second
    assert total.seconds == pytest.approx(first.seconds + second.seconds)
    assert total.prefill_tokens == first.prefill_tokens + second.prefill_tokens
    if total.decode_tokens and total.decode_seconds:
        assert total.tokens_per_second == total.decode_tokens / total.decode_seconds
    else:
        assert total.tokens_per_second is None

"""The rule that chooses the target's thoughts."""

import numpy as np
import pytest

from arbitrage_cli.arbitrage import uniform_draw
from arbitrage_cli.routing.thoughts import BUDGET, LEAD, departs, lead_probe_stay, probe_tau
from arbitrage_cli.types import Cost, Decision, Limits, ModelRole, Problem, Step, Trace

SAME, OTHER = "So 2 + 3 = 5, which is right.", "No: 2 + 3 = 6 is wrong."


def thought(text: str = SAME, model: ModelRole = "draft", num_tokens: int = LEAD // 2) -> Step:
    return Step(model, text, num_tokens, Cost(), "separator", phase="think")


def accepted() -> Decision:
    return Decision(thought(), thought())


def rewritten(text: str) -> Decision:
    target = thought(text, "target")
    return Decision(target, thought(), target)


def score(*before: Decision, draw: float = 0.4, budget: float = BUDGET) -> float:
    trace = Trace(Problem("p", "?"), Limits(), list(before))
    return lead_probe_stay(budget, lambda trace, draft: draw)(trace, thought())


def test_the_target_leads() -> None:
    assert score() == score(rewritten(SAME)) == 1.0
    assert score(rewritten(SAME), rewritten(SAME)) == 0.4  # the lead is complete


def test_the_target_stays_while_its_thoughts_depart() -> None:
    lead = (rewritten(SAME), rewritten(OTHER))
    assert score(*lead) == 1.0
    assert score(*lead, accepted()) == 0.4


def test_the_budget_bounds_the_share_of_later_thoughts() -> None:
    lead = (rewritten(SAME),) * 2
    assert score(*lead, rewritten(OTHER)) == 0.0
    assert score(*lead, *(accepted(),) * 4, rewritten(OTHER)) == 1.0
    draw, tau = uniform_draw(0), probe_tau(0.3)
    trace = Trace(Problem("p", "?"), Limits(), list(lead))
    for _ in range(200):
        is_called = lead_probe_stay(0.3, draw)(trace, thought()) > tau
        trace.add(rewritten(OTHER) if is_called else accepted())
    assert 0.1 < np.mean([decision.kept.model == "target" for decision in trace.decisions[2:]]) <= 0.3


@pytest.mark.parametrize(
    ("written", "has_departed"),
    [(SAME, False), (SAME.replace("right", "wrong"), False), (SAME.replace("2", "1"), True), (OTHER, True), ("", True)],
)
def test_a_thought_departs_at_the_first_other_word(written: str, *, has_departed: bool) -> None:
    assert departs(rewritten(written)) is has_departed
    assert not departs(accepted())

"""The limits of the solutions that policy `agree` compares."""

import pytest

from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.types import ANSWER_TOKENS, THINK_TOKENS, Limits, Problem, RoleLimits, Thinking, Trace

QUICK, THINKING = Limits(thinking=Thinking(False)), Limits(thinking=Thinking(True))


@pytest.mark.parametrize("limits", [RoleLimits(QUICK, THINKING, QUICK), RoleLimits(THINKING, THINKING, QUICK)])
def test_each_solution_has_the_limits_of_its_role(limits: RoleLimits) -> None:
    trace = Trace(Problem("p", "1 + 1", thinks=True), limits.target)
    with MATH.open_grader() as grader:
        requests = next(Checker(MATH.stated_answer, grader, limits, at_once=True).flow(trace))
    assert isinstance(requests, tuple)
    for request in requests:
        own = limits.of(request.model)
        assert (request.trace.limits, request.trace.problem.thinks) == (own, own.thinking.switch)


def test_thinking_has_a_larger_default_limit() -> None:
    assert [limits.token_limit for limits in (QUICK, THINKING)] == [ANSWER_TOKENS, THINK_TOKENS]
    brief = RoleLimits(QUICK, THINKING, QUICK).with_max_tokens(300)
    assert [brief.of(role).token_limit for role in ("draft", "target", "check")] == [300, 300, 300]

"""The limits of the checker of policy `agree`."""

import pytest

from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.routing.checker import Checker, Thinking
from arbitrage_cli.types import THINK_TOKENS, Limits, Problem, Trace

PLAIN = Limits()
THINKING, BRIEF = Limits(think_tokens=None, max_tokens=9000), Limits(think_tokens=50, is_thinking_chosen=True)


@pytest.mark.parametrize(
    ("thinking", "limits", "expected"),
    [
        ("off", PLAIN, PLAIN),
        ("off", THINKING, Limits(max_tokens=9000)),
        ("on", PLAIN, Limits(think_tokens=None, max_tokens=THINK_TOKENS)),
        ("on", Limits(max_tokens=300), Limits(think_tokens=None, max_tokens=300)),
        ("on", BRIEF, BRIEF),
    ],
)
def test_the_checker_has_its_own_limits(thinking: Thinking, limits: Limits, expected: Limits) -> None:
    trace = Trace(Problem("p", "1 + 1", thinks=limits.thinks), limits)
    with MATH.open_grader() as grader:
        requests = next(Checker(grader, thinking, at_once=True).flow(trace))
    assert isinstance(requests, tuple)
    draft, check = requests
    assert (draft.trace.limits, draft.trace.problem) == (limits, trace.problem)
    assert (check.trace.limits, check.trace.problem.thinks) == (expected, expected.thinks)

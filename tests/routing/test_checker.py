"""The checker of policy `agree`: when it thinks, and that it may be the draft itself."""

from typing import Any

import pytest
from scripted_models import Arithmetic, ScriptedBackend

from arbitrage_cli.app.loaded import LocalModel, WriterOptions
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.chat_template import PromptStyle
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Scheduler
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.routing.policies import Checker, Thinking
from arbitrage_cli.types import THINK_TOKENS, Finished, Limits, Problem, Trace

PLAIN, OFF = Limits(), Limits(is_thinking_chosen=True)
THINKING, BRIEF = Limits(think_tokens=None, max_tokens=9000), Limits(think_tokens=50, is_thinking_chosen=True)


@pytest.mark.parametrize(
    ("thinking", "limits", "expected"),
    [
        ("off", PLAIN, PLAIN),
        ("off", THINKING, Limits(max_tokens=9000)),
        ("on", PLAIN, Limits(think_tokens=None, max_tokens=THINK_TOKENS)),
        ("on", Limits(max_tokens=300), Limits(think_tokens=None, max_tokens=300)),
        ("on", BRIEF, BRIEF),
        ("other", PLAIN, Limits(think_tokens=None, max_tokens=THINK_TOKENS)),
        ("other", BRIEF, Limits(is_thinking_chosen=True)),
        ("other", OFF, Limits(think_tokens=None, max_tokens=THINK_TOKENS, is_thinking_chosen=True)),
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


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_greedy_draft_agrees_with_itself(concurrency: int) -> None:
    """The model is loaded once; draft and checker have their own sequences."""
    backend = ScriptedBackend("scripted", Arithmetic(reliable=False), LoadOptions(num_sequences=2 * concurrency))
    model, writing = LocalModel(backend), WriterOptions(Sampler(), PromptStyle())
    models = {"draft": model, "check": model.twin(concurrency)}
    writers: Any = {role: one.writer(role, writing, keep_token_stats=False) for role, one in models.items()}  # type: ignore[arg-type]
    with MATH.open_grader() as grader:
        problems = [Problem(str(number), f"{number} * 17 - {number}") for number in range(3, 23)]
        jobs = [Job(problem, Checker(grader).flow, Limits()) for problem in problems]
        events = list(Scheduler(writers, concurrency=concurrency).run(jobs))
    finished = [event for event in events if isinstance(event, Finished)]
    assert len(finished) == len(problems)
    assert all(event.trace.check and event.trace.check.agrees for event in finished)

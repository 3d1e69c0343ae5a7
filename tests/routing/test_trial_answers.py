"""Trial answers: when they are written, when they end the thinking, and that nothing else depends on them."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hash_language import ForgetfulEngine, HashBackend, Recurrent, events_of, finished_of, hash_engines, solve
from hypothesis import given, settings
from hypothesis import strategies as st

from arbitrage_cli.arbitrage import Flow, WriteStep, add, arbitrage, by_token_stats, single
from arbitrage_cli.routing.policies import POLICIES, Policy
from arbitrage_cli.routing.route import Route
from arbitrage_cli.routing.trial_answers import AGREEING, FIRST, MAX_TOKENS, OPENING, SPACING, TrialAnswers, agree, is_due
from arbitrage_cli.runs.records import step_record
from arbitrage_cli.runs.results import decisions_of
from arbitrage_cli.runs.summary import tally
from arbitrage_cli.tasks import TASKS
from arbitrage_cli.types import Cost, Decision, Finished, Limits, Problem, Step, StepStop, TokenStats, Trace, Trial, Wrote

LIMITS = Limits(max_steps=60, max_tokens=900, max_step_tokens=300, think_tokens=None, trial_answers=True)
PROBLEMS = [Problem(str(number), f"What is {number} + 1? The answer is \\boxed{{7}}. </think>") for number in range(4)]


class Talkative(HashBackend):
    """Rarely ends its thinking or its answer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._favour[-1] = -4.0


class TalkativeRecurrent(Recurrent, Talkative):
    """Cannot drop a tail."""


def parity(text: str) -> str | None:
    """Find the answers of the toy language, of which every second one repeats the last."""
    written = text.removeprefix(OPENING)
    return str(ord(written[0]) % 2) if written else None


def flow_of(policy: str, tau: float | None, trace: Trace) -> Flow:
    keep = TrialAnswers(POLICIES[policy].models[0], parity).keep if trace.limits.trial_answers else add
    if POLICIES[policy].kind == "single":
        return single(trace, POLICIES[policy].models[0], speculates=POLICIES[policy].speculates, keep=keep)
    make_scorer = POLICIES[policy].make_scorer
    assert make_scorer
    return arbitrage(trace, make_scorer(0), tau or 0.0, keep=keep)


def auto(
    policy: str, tau: float | None = None, *, limits: Limits = LIMITS, concurrency: int = 1, **options: Any
) -> list[Trace]:
    engines = hash_engines(num_sequences=concurrency, **{"make": Talkative} | options)
    make_flow = partial(flow_of, policy, tau)
    found = solve(engines, PROBLEMS, policy, tau, limits=limits, concurrency=concurrency, make_flow=make_flow)
    return [found[name] for name in sorted(found)]


def written(traces: list[Trace]) -> list[list[tuple[object, ...]]]:
    return [
        [
            (one.kept.model, one.kept.phase, one.kept.stop, one.kept.text, one.trial and one.trial.answer)
            for one in trace.decisions
        ]
        for trace in traces
    ]


def thought(num_tokens: int, stop: StepStop = "separator", *, trial: str | None = None, phase: str = "think") -> Decision:
    step = Step("draft", "So it is.\n\n", num_tokens, Cost(), stop, phase="think" if phase == "think" else "answer")
    return Decision(step, step, trial=None if trial is None else Trial(trial, "draft", Cost()))


def trace_of(*decisions: Decision) -> Trace:
    return Trace(Problem("p", "?", thinks=True), LIMITS, list(decisions))


def test_a_trial_is_due_after_some_thinking_and_then_at_growing_distances() -> None:
    assert not is_due(trace_of(), thought(FIRST - 1).kept)
    assert is_due(trace_of(), thought(FIRST).kept)
    tried = trace_of(thought(100, trial="4"))
    assert not is_due(tried, thought(int(100 * SPACING) - 1).kept)
    assert is_due(tried, thought(int(100 * SPACING)).kept)


@pytest.mark.parametrize("stop", ["thought", "think_budget", "budget", "loop", "context"])
def test_no_trial_after_a_thought_that_is_not_whole_or_the_last(stop: StepStop) -> None:
    assert not is_due(trace_of(), thought(FIRST, stop).kept)
    assert not is_due(trace_of(), thought(LIMITS.max_tokens).kept)
    assert not is_due(trace_of(), thought(FIRST, phase="answer").kept)


@pytest.mark.parametrize(
    ("answers", "ends"),
    [
        (["4"], False), (["4", "4"], True), (["4", "5"], False), (["4", "5", "4"], False), (["4", None, "4"], False),
        ([None] * 2, False),
    ],
)  # fmt: skip
def test_two_equal_answers_in_a_row_end_the_thinking(answers: list[str | None], ends: bool) -> None:
    assert agree([Trial(answer, "draft", Cost()) for answer in answers]) is ends


@pytest.mark.parametrize(("policy", "tau"), [("draft", None), ("target", None), ("entropy", 1.5), ("speculative", None)])
def test_thinking_ends_after_the_second_equal_answer(policy: str, tau: float | None) -> None:
    ended = 0
    for trace in auto(policy, tau):
        trials = [decision.trial for decision in trace.decisions if decision.trial]
        last = [decision for decision in trace.decisions if decision.kept.phase == "think"][-1]
        assert [one.kept.stop == "answered" for one in trace.decisions if one.trial] == [
            agree(trials[: index + 1]) for index in range(len(trials))
        ]
        if last.kept.stop == "answered":
            ended += 1
            assert len({trial.answer for trial in trials[-AGREEING:]}) == 1
            assert trace.decisions[trace.decisions.index(last) + 1].kept.phase == "answer"
    assert ended


def test_until_the_first_end_nothing_depends_on_trials() -> None:
    with_trials = auto("entropy", 1.5)
    without = auto("entropy", 1.5, limits=replace(LIMITS, trial_answers=False))
    assert not any(decision.trial for trace in without for decision in trace.decisions)
    for trace, other in zip(with_trials, without, strict=True):
        thoughts = [one.kept.text for one in trace.decisions if one.kept.phase == "think"]
        assert thoughts == [one.kept.text for one in other.decisions][: len(thoughts)]


@settings(max_examples=6)
@given(st.sampled_from([("draft", None), ("target", None), ("entropy", 1.5), ("random", 0.5)]), st.integers(2, 4))
def test_the_laws_hold_with_trials(routing: tuple[str, float | None], concurrency: int) -> None:
    """Laws 1 and 4, also for models that go back to checkpoints."""
    alone = written(auto(*routing))
    assert written(auto(*routing, concurrency=concurrency)) == alone
    assert written(auto(*routing, engine=ForgetfulEngine)) == alone
    assert written(auto(*routing, make=TalkativeRecurrent, proposals="none")) == alone


def test_speculation_ends_the_thinking_where_the_target_does() -> None:
    assert written(auto("speculative")) == written(auto("target"))


def test_a_trial_that_does_not_fit_is_left_out() -> None:
    def finished(context_size: int, limits: Limits) -> list[Finished]:
        engines = hash_engines(make=partial(Talkative, context_size=context_size))
        events = events_of(engines, PROBLEMS, "draft", limits=limits, make_flow=partial(flow_of, "draft", None))
        return finished_of(events)

    num_compared = 0
    for context_size in range(200, 280, 5):
        without = finished(context_size, replace(LIMITS, trial_answers=False))
        for one, other in zip(finished(context_size, LIMITS), without, strict=True):
            steps, others = ([decision.kept for decision in event.trace.decisions] for event in (one, other))
            if not any(step.stop == "answered" for step in steps):
                assert [(step.text, step.stop) for step in steps] == [(step.text, step.stop) for step in others]
                assert type(one.error) is type(other.error)
                num_compared += other.trace.stop == "context"
    assert num_compared


def test_a_trial_is_short_and_its_tokens_are_not_shown() -> None:
    engines = hash_engines(make=Talkative)
    events = events_of(engines, PROBLEMS, "draft", limits=LIMITS, make_flow=partial(flow_of, "draft", None))
    shown = "".join(event.text for event in events if isinstance(event, Wrote))
    kept = [event.trace for event in finished_of(events)]
    assert shown == "".join(decision.kept.text for trace in kept for decision in trace.decisions)
    costs = [decision.trial.cost for trace in kept for decision in trace.decisions if decision.trial]
    assert costs
    assert all(0 < cost.decode_tokens <= MAX_TOKENS for cost in costs)


def test_costs_of_trials_are_counted_and_recorded() -> None:
    decisions = auto("draft")[0].decisions
    trials = [decision.trial for decision in decisions if decision.trial]
    without = tally([replace(decision, trial=None) for decision in decisions])
    total = tally(decisions)
    extra = sum((trial.cost for trial in trials), Cost())
    assert total.draft_cost.decode_tokens == without.draft_cost.decode_tokens + extra.decode_tokens
    assert total.drafted_tokens == without.drafted_tokens
    read = decisions_of({"steps": [step_record(decision) for decision in decisions]})
    assert [one.trial for one in read] == [one.trial for one in decisions]
    assert tally(read) == total


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_asks_for_trials_by_the_limits(policy: Policy) -> None:
    scorer = by_token_stats(lambda trace, draft: 0.5)
    trace = trace_of()
    flow = Route(policy, 0.5 if policy.has_tau else None).flow(trace, 0, scorer)
    request, stats = next(flow), TokenStats([-1.0], [1.0], [1.0])
    while not (isinstance(request, WriteStep) and request.is_trial):
        model = request.model if isinstance(request, WriteStep) else "draft"
        step = Step(model, "So it is.\n\n", FIRST, Cost(), "separator", stats, phase="think")
        request = flow.send(step if isinstance(request, WriteStep) else (0.5,) * len(request.steps))
    assert request.model == ("target" if policy.name in ("target", "speculative") else "draft")
    assert (request.trace.phase, request.trace.text, request.trace.limits.max_step_tokens) == ("answer", OPENING, MAX_TOKENS)
    assert not trace.decisions


def test_tasks_with_boxed_answers_have_trials() -> None:
    assert {name for name, task in TASKS.items() if task.has_boxed_answers} == {"math", "choice"}
    for name in ("math", "choice"):
        assert TASKS[name].find_answer(f"{OPENING}B}}.") == "B"

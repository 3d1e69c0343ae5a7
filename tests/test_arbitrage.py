"""The flows, driven by hand: no model, no engine, only requests and answers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from arbitrage_cli.agreement import agree
from arbitrage_cli.arbitrage import (
    CompareAnswers,
    Flow,
    FlowRequest,
    RateSteps,
    StopWriting,
    WriteStep,
    arbitrage,
    by_reward,
    by_token_stats,
    first_token_entropy,
    max_negative_logprob,
    mean_negative_logprob,
    oracle,
    single,
    uniform_draw,
)
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Cost, Limits, ModelRole, Problem, Step, StepStop, TokenStats, Trace


def step(model: ModelRole, stop: StepStop = "separator", tokens: int = 1, token_stats: TokenStats | None = None) -> Step:
    return Step(model, f"{model}\n\n", tokens, Cost(), stop, token_stats)


def new_trace(limits: Limits | None = None, name: str = "p") -> Trace:
    return Trace(Problem(name, f"question {name}"), limits or Limits())


@pytest.mark.parametrize(("tau", "written_by"), [(9.0, ["draft", "target"]), (math.inf, ["draft"])])
def test_a_draft_that_loops_is_escalated(tau: float, written_by: list[str]) -> None:
    """The score does not matter, but with an infinite tau the draft writes alone."""
    scorer = by_token_stats(lambda trace, draft: 0.5)
    answers = [step("draft", "loop"), step("target", "end")]
    trace = new_trace(Limits(max_steps=1))
    assert models(drive(arbitrage(trace, scorer, tau), answers[: len(written_by)])) == written_by
    assert trace.decisions[0].kept.model == written_by[-1]


def test_a_thought_that_comes_for_the_third_time_is_escalated() -> None:
    thought = replace(step("draft"), phase="think")
    scorer = by_token_stats(lambda trace, draft: 0.5)
    requests = drive(arbitrage(new_trace(), scorer, 9.0), [thought, thought, thought, step("target", "end")])
    assert models(requests) == ["draft", "draft", "draft", "target"]


def drive(flow: Flow, answers: Iterable[Step | tuple[float, ...]]) -> list[FlowRequest]:
    """Send each answer to the flow's next request. Return the requests without comparisons and stops, which are answered at once.

    All answers must be used, and the flow must end.
    """
    requests = [next(flow)]
    waiting = iter(answers)
    for answer in waiting:
        request = requests[-1]
        if isinstance(request, RateSteps):
            assert isinstance(answer, tuple)
            assert len(answer) == len(request.steps)
        else:
            assert isinstance(answer, Step)
            assert answer.model in models([request])[0].split("+")
        try:
            request = flow.send(answer)
            while isinstance(request, CompareAnswers | StopWriting):
                request = flow.send(request.is_same() if isinstance(request, CompareAnswers) else [])
            requests.append(request)
        except StopIteration:
            break
    else:
        pytest.fail("the flow has more requests")
    assert not list(waiting), "the flow ended too soon"
    return requests


def models(requests: Iterable[FlowRequest]) -> list[str]:
    """Return the model of each request, or the models joined by "+" if several write at once."""
    together = [request if isinstance(request, tuple) else (request,) for request in requests]
    return ["+".join(one.model if isinstance(one, WriteStep) else "rater" for one in group) for group in together]


@pytest.mark.parametrize(
    ("number", "tau", "kept"),
    [
        (0.4, 0.5, "draft"), (0.5, 0.5, "draft"), (math.nextafter(0.5, 1), 0.5, "target"), (1e9, math.inf, "draft"),
        (math.inf, math.inf, "draft"), (math.nan, 0.5, "draft"), (0.0, -1.0, "target"), (-1.0, -math.inf, "target"),
    ],
)  # fmt: skip
def test_strictly_more_than_tau_escalates(number: float, tau: float, kept: str) -> None:
    trace, answers = new_trace(), [step("draft", "end"), *([step("target", "end")] if kept == "target" else [])]
    requests = drive(arbitrage(trace, by_token_stats(lambda _trace, _draft: number), tau), answers)
    (decision,) = trace.decisions
    assert decision.score == pytest.approx(number, nan_ok=True)
    if kept == "draft":
        assert requests == [WriteStep("draft", trace)]
        assert (decision.kept, decision.target, decision.discarded, decision.choice) == (
            decision.draft,
            None,
            None,
            "accept",
        )
    else:
        assert requests == [WriteStep("draft", trace), WriteStep("target", trace, proposal=decision.draft)]
        assert (decision.kept, decision.discarded, decision.choice) == (decision.target, decision.draft, "escalate")


def test_the_router_sees_the_kept_steps_only() -> None:
    seen: list[tuple[int, str]] = []

    def scorer(trace: Trace, draft: Step) -> float:
        seen.append((len(trace.decisions), trace.text))
        return float(len(trace.decisions) == 1)

    answers = [step("draft"), step("draft"), step("target"), step("draft", "end")]
    drive(arbitrage(new_trace(), by_token_stats(scorer), 0.5), answers)
    assert seen == [(0, ""), (1, "draft\n\n"), (2, "draft\n\ntarget\n\n")]


def test_a_discarded_end_does_not_finish_the_solution() -> None:
    trace = new_trace()
    numbers = iter([1.0, 0.0])
    drive(
        arbitrage(trace, by_token_stats(lambda *_: next(numbers)), 0.5),
        [step("draft", "end"), step("target"), step("draft", "end")],
    )
    assert (len(trace.decisions), trace.stop) == (2, "end")


@pytest.mark.parametrize(
    ("limits", "last", "stop"),
    [
        (Limits(max_steps=2), "separator", "max_steps"),
        (Limits(max_tokens=6), "budget", "max_tokens"),
        (Limits(max_tokens=5), "separator", "max_tokens"),
        (Limits(), "context", "context"),
        (Limits(max_steps=2, max_tokens=6), "end", "end"),
    ],
)
def test_why_a_solution_ends(limits: Limits, last: StepStop, stop: str) -> None:
    trace = new_trace(limits)
    drive(single(trace, "target"), [step("target", tokens=3), step("target", last, tokens=3)])
    assert (trace.stop, trace.num_tokens) == (stop, 6)


@pytest.mark.parametrize(
    ("policy", "model", "speculates"),
    [("draft", "draft", False), ("target", "target", False), ("speculative", "target", True)],
)
def test_a_single_model_writes_all_steps_without_a_limit(policy: str, model: ModelRole, speculates: bool) -> None:
    trace = new_trace(Limits(max_tokens=1001))
    requests = drive(Route(POLICIES[policy]).flow(trace, 0), [step(model)] * 1001)
    assert requests == [WriteStep(model, trace, speculates=speculates, until_end=True)] * 1001
    assert (len(trace.decisions), trace.stop) == (1001, "max_tokens")
    assert {decision.choice for decision in trace.decisions} == {None}
    assert all((one.draft is None, one.target is None) == (model == "target", model == "draft") for one in trace.decisions)


@pytest.mark.parametrize(("thinks", "most"), [(False, 100), (True, 1000)])
def test_routed_solutions_have_a_step_limit(thinks: bool, most: int) -> None:
    accepted, rated = (Trace(Problem("p", "question", thinks=thinks), Limits(max_tokens=1001)) for _ in range(2))
    drive(arbitrage(accepted, by_token_stats(lambda trace, draft: 0.5), 0.9), [step("draft")] * most)
    drive(oracle(rated, 0.0), [step("draft"), step("target"), (0.5, 0.5)] * most)
    assert [(len(trace.decisions), trace.stop) for trace in (accepted, rated)] == [(most, "max_steps")] * 2


def test_numbers_of_the_token_statistics() -> None:
    token_stats = TokenStats(log_probabilities=(-1.0, -3.0), entropies=(0.7, 5.0), margins=(0.1, 0.1))
    assert first_token_entropy(new_trace(), step("draft", token_stats=token_stats)) == 0.7
    assert mean_negative_logprob(new_trace(), step("draft", token_stats=token_stats)) == 2.0
    assert max_negative_logprob(new_trace(), step("draft", token_stats=token_stats)) == 3.0


def test_random_escalates_at_a_rate_of_one_minus_tau() -> None:
    draw, tau = uniform_draw(3), 0.7
    numbers = [draw(new_trace(name=str(index)), step("draft")) for index in range(4000)]
    assert sum(number > tau for number in numbers) / len(numbers) == pytest.approx(0.3, abs=0.03)
    assert all(0 <= number < 1 for number in numbers)


@pytest.mark.parametrize(("policy", "places"), [("entropy", [1]), ("random", [1]), ("logprob-min", [1, 2, 3])])
def test_a_number_that_is_known_early_stops_the_step_early(policy: str, places: list[int]) -> None:
    """The score is checked at the first or at every token, against tau itself, because it cannot fall again."""
    request = next(Route(POLICIES[policy], 0.5, stops_early=True).flow(new_trace(), 0))
    assert isinstance(request, WriteStep)
    assert request.early_stop is not None
    assert request.early_stop.tau == 0.5
    assert [place for place in (1, 2, 3) if request.early_stop.is_due(place)] == places


@pytest.mark.parametrize("policy", ["entropy", "random", "logprob-min", "logprob", "oracle", "draft", "target"])
def test_steps_are_finished_unless_they_may_be_stopped(policy: str) -> None:
    for stops_early in (False, True) if policy in ("logprob", "oracle", "draft", "target") else (False,):
        request = next(Route(POLICIES[policy], 0.5, stops_early=stops_early).flow(new_trace(), 0))
        assert isinstance(request, WriteStep)
        assert request.early_stop is None


def test_a_step_that_was_stopped_is_never_kept() -> None:
    trace = new_trace()
    flow = arbitrage(trace, by_token_stats(lambda _trace, _draft: 0.1), 0.5)
    drive(flow, [step("draft", "early"), step("target", "end")])
    assert (trace.decisions[0].kept.model, trace.decisions[0].score) == ("target", 0.1)


def test_random_depends_on_seed_problem_and_step() -> None:
    trace, later = new_trace(), new_trace()
    drive(single(later, "draft"), [step("draft", "end")])
    draft = step("draft")
    usual = uniform_draw(1)(trace, draft)
    assert uniform_draw(1)(new_trace(), step("draft")) == usual
    others = [uniform_draw(2)(trace, draft), uniform_draw(1)(new_trace(name="q"), draft), uniform_draw(1)(later, draft)]
    assert len({usual, *others}) == 4


@pytest.mark.parametrize(("reward", "kept"), [(0.71, "draft"), (0.7, "draft"), (0.69, "target")])
def test_a_reward_below_one_minus_tau_escalates(reward: float, kept: str) -> None:
    """RSD: only the drafted step is scored, and "accept a reward of 0.7 or more" is a tau of 0.3."""
    trace, draft = new_trace(), step("draft", "end")
    target = [step("target", "end")] if kept == "target" else []
    requests = drive(arbitrage(trace, by_reward(), 1.0 - 0.7), [draft, (reward,), *target])
    assert models(requests) == ["draft", "rater", *(["target"] if target else [])]
    assert requests[1] == RateSteps(trace, (draft,))
    assert trace.decisions[0].kept.model == kept
    assert trace.decisions[0].score == pytest.approx(1 - reward)


@pytest.mark.parametrize(
    ("rewards", "tau", "kept"),
    [((0.2, 0.9), 0.0, "target"), ((0.9, 0.2), 0.0, "draft"), ((0.5, 0.5), 0.0, "draft"), ((0.2, 0.9), 0.8, "draft")],
)
def test_the_oracle_keeps_the_target_for_its_advantage(rewards: tuple[float, float], tau: float, kept: str) -> None:
    trace, draft, target = new_trace(), step("draft", "end"), step("target", "end")
    requests = drive(oracle(trace, tau), [draft, target, rewards])
    assert requests == [
        WriteStep("draft", trace),
        WriteStep("target", trace, proposal=draft),
        RateSteps(trace, (draft, target)),
    ]
    (decision,) = trace.decisions
    assert (decision.kept.model, decision.score) == (kept, None)
    assert decision.advantage == pytest.approx(rewards[1] - rewards[0])
    assert decision.choice == ("escalate" if kept == "target" else "accept")


def check(
    answers: list[Step], *, at_once: bool = False, same: bool = True, order: Sequence[ModelRole] = ("draft", "check")
) -> tuple[Trace, list[str]]:
    """Drive the flow of `agree`, whose answers are the last characters of the texts. Return the trace and the models."""
    trace = new_trace()
    solutions = [WriteStep(model, new_trace(), until_end=True) for model in order]

    def find(solution: Trace) -> str | None:
        return solution.text.strip()[-1:] or None

    flow = agree(trace, solutions, find, lambda solution, answer: same, at_once=at_once)
    return trace, models(drive(flow, answers))


def ending(model: ModelRole, text: str = "18", stop: StepStop = "end") -> Step:
    return replace(step(model, stop), text=text)


@pytest.mark.parametrize("without", [ending("draft", " "), ending("draft", stop="context"), step("draft", "loop")])
def test_a_solution_without_an_answer_disagrees_and_the_other_model_is_not_asked(without: Step) -> None:
    trace, requests = check([without, ending("target")])
    assert requests == ["draft", "target"]
    assert trace.check is not None
    assert (trace.check.agrees, trace.check.answers) == (False, {"draft": None})


def test_the_checker_may_solve_the_problem_first() -> None:
    _, requests = check([ending("check", ""), ending("target")], order=["check", "draft"])
    assert requests == ["check", "target"]


def test_both_models_may_write_at_once() -> None:
    steps = [step("check"), ending("draft"), ending("check")]
    trace, requests = check(steps, at_once=True)
    assert requests == ["draft+check", "draft+check", "check"]
    assert [decision.kept for decision in trace.decisions] == steps[1:2]


def test_the_target_does_not_wait_for_a_model_whose_answer_is_no_longer_needed() -> None:
    _, requests = check([step("check", "loop"), ending("target")], at_once=True)
    assert requests == ["draft+check", "target"]

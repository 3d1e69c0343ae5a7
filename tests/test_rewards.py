"""Rewards of a process reward model and of rollouts, on toy models whose every token counts."""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hash_language import CONTROLS, LETTERS, SHORT, HashBackend, finished_of, ticking_clock
from scripted_models import TEMPLATE, ByteTokenizer
from writing import PROBLEM, foreign, make_engine, write

from arbitrage_cli.arbitrage import Flow, RateSteps, WriteStep
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, TimedOutError
from arbitrage_cli.inference.backend import Deadline, Floats
from arbitrage_cli.inference.chat_template import ChatPrompt
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Job, Rater, RewardUpdate, Scheduler, Writer
from arbitrage_cli.rewards import Continuations, PrmRater, PrmStyle, ask, with_rollouts
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.types import Cost, Decided, Decision, Event, Finished, Limits, ModelRole, Problem, Step, Trace

STEPS = ("ab cd.\n\n", "ef.\n\n", "gh ij kl.\n\n")
ANSWERS = [ord("+"), ord("-")]
CONFIDENCE = 30.0


class Opinionated(HashBackend):
    """A model whose logits of both signs are a hash of its cache. Other tokens are improbable."""

    def _compute(self, sequence: int) -> Floats:
        logits = super()._compute(sequence)
        opinion = logits[self._written[: len(LETTERS)]]
        for index, token in enumerate(ANSWERS):
            logits[token] = CONFIDENCE + opinion[index % len(opinion)] * (index + 1) / 100
        return logits


class Constant(HashBackend):
    """A model that gives both signs this logit. A logit of -20 is far below those of letters."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def _compute(self, sequence: int) -> Floats:
        logits = super()._compute(sequence)
        logits[ANSWERS] = self.value
        return logits


def trace_of(*texts: str, problem: Problem = PROBLEM) -> Trace:
    return Trace(problem, SHORT, [Decision(kept=foreign(text, "draft")) for text in texts])


@pytest.mark.parametrize("style", ["turns", "steps"])
def test_the_thoughts_before_a_step_are_shown(style: PrmStyle) -> None:
    thought = replace(foreign("first thought\n\n"), phase="think")
    last = replace(foreign("last thought"), phase="think", stop="thought")
    problem = replace(PROBLEM, thinks=True)
    for before, step in ([thought], last), ([thought, last], foreign("the answer")):
        segments, beginning = ask(ChatPrompt(TEMPLATE, []), Trace(problem, SHORT, [*map(Decision, before)]), step, style)
        shown = "".join(segment.text for segment in segments) + beginning
        assert [text in shown for text in ("first thought", "last thought", "the answer")] == [True, True, step is not last]
        assert "thoughtthe" not in shown


def score(rater: Rater, requests: Mapping[int, RateSteps]) -> dict[int, RewardUpdate]:
    found: dict[int, RewardUpdate] = {}
    for slot, request in requests.items():
        rater.start(slot, request)
    while rater.busy:
        for update in rater.tick():
            if update.error:
                raise update.error
            found[update.slot] = update
    return found


def score_one(rater: Rater, trace: Trace, *texts: str) -> tuple[float, ...]:
    return score(rater, {0: RateSteps(trace, tuple(map(foreign, texts)))})[0].rewards


def opened(rater: Any, problem: Problem = PROBLEM) -> Any:
    rater.open(0, problem)
    return rater


# --- process reward model


def conversation(steps: Sequence[str]) -> list[int]:
    """Return the token ids of a conversation in the format of RLHFlow's models."""
    user, assistant, _ = Opinionated().tokenizer.control_tokens.values()
    first, *others = [text.strip() for text in steps]
    ids: list[int] = []
    for turn in [f"{PROBLEM.question} {first}", *others]:
        if ids:
            ids += [user, *b"+"]  # the toy's template shows the assistant's turn as it shows the user's
        ids += [user, *turn.encode()]
    return [*ids, assistant]


def expected_reward(steps: Sequence[str]) -> float:
    backend = Opinionated()
    *read, last = conversation(steps)
    backend.read(0, 0, read)
    logits = backend.decode([0], [len(read)], [last])[0]
    return float(1 / (1 + math.exp(logits[ord("-")] - logits[ord("+")])))


def test_the_reward_is_the_share_of_plus_after_the_step() -> None:
    """The question and the first step are one turn, and each earlier step is answered with a plus, as in RLHFlow's models."""
    rater = opened(PrmRater(Opinionated()))
    for number in range(len(STEPS)):
        (reward,) = score_one(rater, trace_of(*STEPS[:number]), STEPS[number])
        assert reward == pytest.approx(expected_reward(STEPS[: number + 1]))
        assert 0 < reward < 1


def test_style_steps_reads_the_solution_as_it_is() -> None:
    backend = Opinionated()
    rater = opened(PrmRater(backend, "steps"))
    user, assistant, _ = backend.tokenizer.control_tokens.values()
    for last in ("ef.\n\n", "ef.", "ef.\n"):
        score_one(rater, trace_of(STEPS[0]), last)
        text = backend.tokenizer.tokenize("ab cd.\n\nef.\n\n", continues=True)
        assert backend.cells[0] == [user, *PROBLEM.question.encode(), assistant, *text]


def test_what_was_scored_before_does_not_matter() -> None:
    rater = opened(PrmRater(Opinionated()))
    for number, text in [(2, "ab.\n\n"), (0, "cd.\n\n"), (2, "abc.\n\n"), (1, STEPS[1]), (2, "a.\n\n"), (2, STEPS[2])]:
        trace = trace_of(*STEPS[:number])
        assert score_one(rater, trace, text) == score_one(opened(PrmRater(Opinionated())), trace, text)


def test_many_problems_at_once_are_scored_as_one() -> None:
    problems = [Problem(str(index), f"problem {index} {'x' * index**2}") for index in range(3)]
    requests = {
        slot: RateSteps(trace_of("ab.\n\n", problem=problems[slot]), (foreign("c.\n\n"), foreign("d.\n\n")))
        for slot in (2, 0, 1)
    }
    rater = PrmRater(Opinionated(num_sequences=3))
    for slot, problem in enumerate(problems):
        rater.open(slot, problem)
    found = score(rater, requests)
    alone = [score(opened(PrmRater(Opinionated()), problems[slot]), {0: requests[slot]})[0] for slot in range(len(problems))]
    assert [found[slot].rewards for slot in range(3)] == [update.rewards for update in alone]
    assert sum(update.cost.decode_tokens for update in found.values()) == 6
    assert sum(r.cost.prefill_tokens for r in found.values()) == sum(r.cost.prefill_tokens for r in alone)


def test_the_cost_of_scoring_is_counted() -> None:
    rater = opened(PrmRater(Opinionated(), clock=ticking_clock()))
    first, second = (
        score(rater, {0: RateSteps(trace_of(*STEPS[:number]), (foreign(STEPS[number]),))})[0] for number in (0, 1)
    )
    assert first.cost == Cost(len(conversation(STEPS[:1])) - 1, 1.0, 1, 1.0)
    assert second.cost.prefill_tokens < len(conversation(STEPS[:2])) / 2


def test_a_model_without_the_signs_cannot_score() -> None:
    class Doubling(ByteTokenizer):
        def tokenize(self, text: str, *, continues: bool) -> list[int]:
            return super().tokenize(text, continues=continues) * 2

    backend = HashBackend()
    backend.tokenizer = Doubling((), CONTROLS)
    with pytest.raises(ModelUnsupportedError, match=r"'\+'"):
        PrmRater(backend)


@pytest.mark.parametrize("style", ["turns", "steps"])
def test_a_model_that_says_something_else_cannot_score(style: PrmStyle) -> None:
    with pytest.raises(ModelUnsupportedError) as caught:
        PrmRater(Constant(-20.0), style).check()
    assert "--prm" in caught.value.hint
    PrmRater(Constant(8.0), style).check()


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_reward(logit: float) -> None:
    with pytest.raises(ComputeError):
        score_one(opened(PrmRater(Constant(logit))), trace_of(), STEPS[0])


def test_a_step_that_is_surely_wrong_has_no_reward() -> None:
    class Sure(Constant):
        def _compute(self, sequence: int) -> Floats:
            logits = super()._compute(sequence)
            logits[ord("-")] += 1000
            return logits

    (reward,) = score_one(opened(PrmRater(Sure(0.0))), trace_of(), STEPS[0])
    assert reward == pytest.approx(0.0)


# --- in the scheduler


def target(sampler: Sampler | None = None, **more: Any) -> Engine:
    return make_engine("target", HashBackend("t", **more), sampler or Sampler())


def run(
    flow: Callable[[Trace], Flow], problems: Sequence[Problem], rater: Rater | None, concurrency: int = 0
) -> Iterator[Event]:
    concurrency = concurrency or len(problems)
    engines: dict[ModelRole, Writer] = {
        "draft": make_engine("draft", HashBackend(num_sequences=concurrency), Sampler()),
        "target": target(num_sequences=concurrency),
    }
    jobs = (Job(problem, flow, SHORT) for problem in problems)
    return Scheduler(engines, concurrency=concurrency, rater=rater).run(jobs)


rsd = partial(Route(POLICIES["rsd"], 0.0).flow, seed=0)


def finished(events: Iterable[Event]) -> dict[str, Finished]:
    return {event.trace.problem.id: event for event in finished_of(events)}


def test_a_full_context_ends_one_problem_only() -> None:
    rater = PrmRater(Opinionated(num_sequences=2, context_size=256))
    ended = finished(run(rsd, [Problem("long", "x" * 300), PROBLEM], rater))
    assert isinstance(ended["long"].error, ContextFullError)
    assert ended["p"].error is None
    assert ended["p"].reward_cost.decode_tokens == len(ended["p"].trace.decisions)


def test_ratings_before_an_error_are_part_of_the_cost() -> None:
    class FullAtSecond(Opinionated):
        num_rated = 0

        def decode(self, *batch: Any, **options: Any) -> Floats:
            self.num_rated += 1
            if self.num_rated == 2:
                raise ContextFullError("full", "")
            return super().decode(*batch, **options)

    oracle = partial(Route(POLICIES["oracle"], 0.0).flow, seed=0)
    (ended,) = finished(run(oracle, [PROBLEM], PrmRater(FullAtSecond()))).values()
    assert isinstance(ended.error, ContextFullError)
    assert ended.reward_cost.decode_tokens == 1


def test_a_deadline_ends_one_problem_only() -> None:
    class Slow(Opinionated):
        def decode(self, *batch: Any, deadline: Deadline | None = None) -> Any:
            if deadline:
                raise deadline.error
            return super().decode(*batch)

    rater = PrmRater(Slow(num_sequences=2))
    rater.open(0, PROBLEM, Deadline(0.0, 3.0))
    rater.open(1, PROBLEM)
    for slot in (0, 1):
        rater.start(slot, RateSteps(trace_of(), (foreign(STEPS[0]),)))
    late, other = rater.tick()
    assert isinstance(late.error, TimedOutError)
    assert (other.error, len(other.rewards)) == (None, 1)


# --- rollouts


def oracle(problems: Sequence[Problem], is_right: Callable[[str], bool], concurrency: int = 0) -> Iterator[Event]:
    route = Route(POLICIES["oracle"], 0.0)

    def flow(trace: Trace) -> Flow:
        return with_rollouts(route.flow(trace, 0), Continuations(is_right))

    return run(flow, problems, None, concurrency)


def written_alone(trace: Trace, step: Step) -> str:
    """Return the target's complete continuation of a step."""
    engine, whole = target(), trace.followed_by(step)
    engine.open(0, trace.problem)
    while not whole.finished:
        whole.add(Decision(kept=write(engine, whole)))
    return whole.text


def test_a_rollout_goes_on_as_the_target_would() -> None:
    """Both steps are continued, unless they are the same. No text is written again."""
    seen: list[str] = []

    def is_right(text: str) -> bool:
        seen.append(text)
        return len(text) % 2 == 0

    ((name, ended),) = finished(oracle([PROBLEM], is_right)).items()
    assert (name, ended.error) == ("p", None)
    for index, made in enumerate(ended.trace.decisions):
        before = Trace(ended.trace.problem, SHORT, ended.trace.decisions[:index])
        assert made.draft
        assert made.target
        texts = [written_alone(before, step) for step in (made.draft, made.target)]
        assert made.advantage == (len(texts[1]) % 2 == 0) - (len(texts[0]) % 2 == 0)
        assert {*texts} <= {*seen}
    assert len(seen) == len({*seen})


def test_no_rollout_waits_for_those_of_other_problems() -> None:
    problems = [Problem(str(number), "question " * (number + 1)) for number in range(3)]

    def advantages(concurrency: int) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = defaultdict(list)
        for event in oracle(problems, lambda text: len(text) % 2 == 0, concurrency):
            if isinstance(event, Decided):
                found[event.trace.problem.id].append(event.decision.advantage)
        return found

    assert advantages(3) == advantages(1)


def replayed(rollout: Generator[WriteStep, Step, tuple[Sequence[Step], bool]], steps: Iterable[Step]) -> tuple[str, bool]:
    """Return the text of a rollout whose target writes these steps, and whether the solution is right."""
    try:
        next(rollout)
        for step in steps:
            rollout.send(step)
    except StopIteration as ended:
        written, is_right = ended.value
        return "".join(step.text for step in written), is_right
    raise AssertionError("the rollout has no end")


@pytest.mark.parametrize("limits", [Limits(max_tokens=30), Limits(max_steps=3)], ids=["tokens", "steps"])
def test_a_rollout_depends_on_the_tokens_and_steps_that_are_left(limits: Limits) -> None:
    """Both traces have the same text, but only the first leaves room for both steps of the continuation."""

    def trace_with(*texts: str) -> Trace:
        return Trace(PROBLEM, limits, [Decision(kept=Step("draft", text, 10, Cost(), "separator")) for text in texts])

    continuation = [Step("target", "c", 10, Cost(), "separator"), Step("target", "d", 10, Cost(), "end")]
    continuations = Continuations(lambda text: text == "abcd")
    found = [replayed(continuations.after(trace_with(*texts)), continuation) for texts in (("a", "b"), ("ab",))]
    assert found == [("c", False), ("cd", True)]
    known = [replayed(continuations.after(trace_with(*texts)), []) for texts in (("a", "b"), ("ab",))]
    assert known == found


def test_a_finished_solution_needs_no_rollout() -> None:
    ended = trace_of("ab.\n\n").followed_by(Step("draft", "the end", 3, Cost(), "end"))
    rollout = Continuations(lambda text: text.endswith("the end")).after(ended)
    with pytest.raises(StopIteration) as answered:
        next(rollout)
    assert answered.value.value == ([], True)

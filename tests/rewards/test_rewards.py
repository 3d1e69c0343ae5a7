"""Rewards of steps: a process reward model's, the judge's, and those of rollouts, on toy models whose every token counts."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hash_language import SHORT, HashBackend, StaleBackend, ticking_clock

from arbitrage_cli.arbitrage import ScoreSteps, WriteStep
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, TemplateError
from arbitrage_cli.inference.backend import Floats
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Rater, Ratings, Scheduler, Writer
from arbitrage_cli.rewards.prm import ENOUGH_ANSWERS, Judge, PrmStyle, ProcessReward
from arbitrage_cli.rewards.rollouts import Recalling, Rollout
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.types import Cost, Decided, Decision, Finished, Limits, ModelRole, Problem, Step, Trace

PROBLEM = Problem("p", "what is a plus b")
STEPS = ("ab cd.\n\n", "ef.\n\n", "gh ij kl.\n\n")


CONFIDENCE = 30.0


class Opinionated(HashBackend):
    """Has an opinion, a hash of everything in its cache, on signs and digits, and says nothing else."""

    def _compute(self, sequence: int) -> tuple[Floats, Floats]:
        logits, hidden = super()._compute(sequence)
        for index, text in enumerate("+-0123456789"):
            logits[ord(text)] = CONFIDENCE + hidden[index % len(hidden)] * (index + 1) / 100
        return logits, hidden


class StaleOpinion(Opinionated, StaleBackend):
    """Keeps a token too many."""


def step(text: str, model: str = "draft") -> Step:
    return Step("draft" if model == "draft" else "target", text, len(text), Cost(), "separator")


def trace_of(*texts: str, problem: Problem = PROBLEM) -> Trace:
    return Trace(problem, SHORT, [Decision(kept=step(text)) for text in texts])


def conversation(steps: Sequence[str]) -> list[int]:
    """The ids of the conversation of RLHFlow's model, by hand."""
    backend = Opinionated()
    controls = backend.control_tokens
    first, *others = [text.strip() for text in steps]
    ids: list[int] = []
    for turn in [f"{PROBLEM.question} {first}", *others]:
        if ids:
            ids += [controls["<|user|>"], *b"+"]  # the toy's template shows the assistant's turn as it shows the user's
        ids += [controls["<|user|>"], *turn.encode()]
    return [*ids, controls["<|assistant|>"]]


def expected_reward(steps: Sequence[str]) -> float:
    backend = Opinionated()
    *read, last = conversation(steps)
    backend.read(0, 0, read)
    logits = backend.decode([0], [len(read)], [last]).logits[0]
    return float(1 / (1 + math.exp(logits[ord("-")] - logits[ord("+")])))


def rate(rater: Rater, requests: Mapping[int, ScoreSteps]) -> dict[int, Ratings]:
    """The ratings of each slot's wish, all taken up at once. Raises what one of them failed with."""
    found: dict[int, Ratings] = {}
    for slot, request in requests.items():
        rater.start(slot, request)
    while rater.busy:
        for rated in rater.tick():
            if rated.ratings is None:
                assert rated.error
                raise rated.error
            found[rated.slot] = rated.ratings
    return found


def rate_one(rater: Rater, trace: Trace, *texts: str, slot: int = 0) -> tuple[float, ...]:
    return rate(rater, {slot: ScoreSteps(trace, tuple(map(step, texts)))})[slot].rewards


def test_the_reward_is_the_share_of_plus_after_the_step() -> None:
    """The conversation is RLHFlow's: question and first step in one turn, each earlier step answered with a plus."""
    rater = ProcessReward(Opinionated())
    rater.open(0, PROBLEM)
    for number in range(len(STEPS)):
        reward = rate_one(rater, trace_of(*STEPS[:number]), STEPS[number])
        assert reward == pytest.approx((expected_reward(STEPS[: number + 1]),))
        assert 0 < reward[0] < 1


@pytest.mark.parametrize("make", [lambda backend: ProcessReward(backend), lambda backend: Judge(backend, 0)])
def test_what_was_rated_before_does_not_matter(make: type[Rater]) -> None:
    """The cache saves reading, and changes no reward: in any order, and for two steps of one place."""
    asked = [(2, "ab.\n\n"), (0, "cd.\n\n"), (2, "abc.\n\n"), (1, STEPS[1]), (2, "a.\n\n"), (2, STEPS[2])]
    kept = make(Opinionated())  # type: ignore[call-arg]
    kept.open(0, PROBLEM)
    for number, text in asked:
        fresh = make(Opinionated())  # type: ignore[call-arg]
        fresh.open(0, PROBLEM)
        assert rate_one(kept, trace_of(*STEPS[:number]), text) == rate_one(fresh, trace_of(*STEPS[:number]), text)


def test_a_stale_cache_would_be_noticed() -> None:
    """The test above can fail: a backend that keeps a token too many gives other rewards."""
    rater = ProcessReward(StaleOpinion())
    rater.open(0, PROBLEM)
    first, second = rate_one(rater, trace_of(STEPS[0]), "ab.\n\n", "cd.\n\n")
    assert first == pytest.approx(expected_reward([STEPS[0], "ab.\n\n"]))
    assert second != pytest.approx(expected_reward([STEPS[0], "cd.\n\n"]))


def test_many_problems_at_once_are_rated_as_one() -> None:
    """Each slot has its own conversation; rewards come in the order of the wishes, and no token is lost of what they cost."""
    problems = [Problem(str(index), f"problem {index} {'x' * index**2}") for index in range(3)]
    rater = ProcessReward(Opinionated(num_sequences=3))
    alone, num_read = [], 0
    for slot, problem in enumerate(problems):
        rater.open(slot, problem)
        single = ProcessReward(Opinionated())
        single.open(0, problem)
        ratings = rate(single, {0: ScoreSteps(trace_of("ab.\n\n", problem=problem), (step("c.\n\n"), step("d.\n\n")))})[0]
        alone.append(ratings.rewards)
        num_read += ratings.cost.prefill_tokens
    requests = {
        slot: ScoreSteps(trace_of("ab.\n\n", problem=problems[slot]), (step("c.\n\n"), step("d.\n\n"))) for slot in (2, 0, 1)
    }
    found = rate(rater, requests)
    assert [found[slot].rewards for slot in range(3)] == alone
    assert sum(ratings.cost.decode_tokens for ratings in found.values()) == 6
    assert sum(ratings.cost.prefill_tokens for ratings in found.values()) == num_read


def test_the_cost_of_rating_is_counted() -> None:
    """Tokens that were read, and the one that each reward is drawn from; what is in the cache already costs nothing."""
    rater = ProcessReward(Opinionated(), clock=ticking_clock())
    rater.open(0, PROBLEM)
    first = rate(rater, {0: ScoreSteps(trace_of(), (step(STEPS[0]),))})[0]
    again = rate(rater, {0: ScoreSteps(trace_of(STEPS[0]), (step(STEPS[1]),))})[0]
    assert first.cost.prefill_tokens == len(conversation(STEPS[:1])) - 1
    assert first.cost.prefill_tokens + first.cost.decode_tokens + again.cost.prefill_tokens + 1 > len(
        conversation(STEPS[:2])
    )
    assert again.cost.prefill_tokens < len(conversation(STEPS[:2])) / 2
    assert first.cost.seconds == 2


def test_a_model_without_the_signs_cannot_rate() -> None:
    """Its vocabulary must have `+` and `-` as tokens: said at once, not at the first step."""

    class Splitting(HashBackend):
        def tokenize(self, text: str, *, continues: bool) -> list[int]:
            return super().tokenize(text, continues=continues) * 2

    with pytest.raises(ModelUnsupportedError, match=r"'\+' is not one token"):
        ProcessReward(Splitting())


class Thinking(Opinionated):
    """Rather begins with a letter than with a sign or a digit: its opinion is `confidence` below them."""

    confidence = -20.0

    def _compute(self, sequence: int) -> tuple[Floats, Floats]:
        logits, hidden = super()._compute(sequence)
        logits[[ord(text) for text in "+-0123456789"]] = self.confidence
        return logits, hidden


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (lambda backend: ProcessReward(backend), "does not rate steps", "--prm-style steps"),
        (lambda backend: ProcessReward(backend, "steps"), "does not rate steps", "--prm-style turns"),
    ],
)
def test_a_model_that_says_something_else_cannot_rate(make: Callable[[Thinking], Rater], words: str, hint: str) -> None:
    """Signs that have next to no probability are noise, and no reward is made of them."""
    rater = make(Thinking())
    rater.open(0, PROBLEM)
    with pytest.raises(ModelUnsupportedError, match=words) as caught:
        rate_one(rater, trace_of(), *(f"{number}.\n\n" for number in range(ENOUGH_ANSWERS)))
    assert hint in caught.value.hint


@pytest.mark.parametrize("style", ["turns", "steps"])
def test_a_model_that_rates_no_steps_is_known_at_once(style: PrmStyle) -> None:
    """Asked of a right step and a wrong one. What it may mean by little probability is left to how it goes on."""
    backend = Thinking()
    with pytest.raises(ModelUnsupportedError, match="does not rate steps"):
        ProcessReward(backend, style).check()
    backend.confidence = 0.0
    ProcessReward(backend, style).check()


def test_asking_a_model_first_changes_no_reward() -> None:
    """Nothing is left of it. A context that is too small for it is said of the problems."""
    rater = ProcessReward(Opinionated())
    rater.check()
    rater.open(0, PROBLEM)
    assert rate_one(rater, trace_of(), STEPS[0]) == pytest.approx((expected_reward(STEPS[:1]),))
    ProcessReward(Opinionated(context_size=8)).check()


def test_one_odd_step_ends_no_run() -> None:
    """A model that answers as a rule may say something else once."""
    backend = Thinking()
    rater = ProcessReward(backend)
    rater.open(0, PROBLEM)
    for number in range(2 * ENOUGH_ANSWERS):
        backend.confidence = CONFIDENCE if number else -20.0
        assert rate_one(rater, trace_of(), f"{number}.\n\n") == pytest.approx((0.5,))


def test_a_judge_that_thinks_first_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Digits that have next to no probability make noisy marks: the target still judges, and the user is warned once."""
    rater = Judge(Thinking(), 0)
    rater.open(0, PROBLEM)
    with caplog.at_level(logging.WARNING, "arbitrage"):
        for number in range(2 * ENOUGH_ANSWERS):
            assert rate_one(rater, trace_of(), f"{number}.\n\n") == pytest.approx((0.5,))
    (told,) = caplog.messages
    assert "its marks may be noise" in told
    assert "enable_thinking" in told


def test_a_template_without_turns_cannot_rate() -> None:
    """A chat template that refuses an assistant's turn is no template for a process reward model."""

    class OneTurn(Opinionated):
        @property
        def chat_template(self) -> str | None:
            return "{{ messages[0].content }}{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}"

    rater = ProcessReward(OneTurn())
    rater.open(0, PROBLEM)
    with pytest.raises(TemplateError, match="one turn"):
        rate_one(rater, trace_of(), STEPS[0])


def test_a_full_context_ends_one_problem_only() -> None:
    """The others of the batch are rated."""
    long = Problem("long", "x" * 300)
    draft = Engine("draft", HashBackend(num_sequences=2), Sampler())
    target = Engine("target", HashBackend("t", num_sequences=2), Sampler())
    rater = ProcessReward(Opinionated(num_sequences=2, context_size=256))
    policy = POLICIES["rsd"]
    scheduler = Scheduler(
        {"draft": draft, "target": target},
        lambda trace: policy.flow(trace, 0.5, 0),
        SHORT,
        concurrency=2,
        rater=rater,
    )
    finished = {event.trace.problem.id: event for event in scheduler.run([long, PROBLEM]) if isinstance(event, Finished)}
    assert isinstance(finished["long"].error, ContextFullError)
    assert finished["p"].error is None
    assert finished["p"].reward_cost.decode_tokens == len(finished["p"].trace.decisions)


def test_the_judge_gives_the_mean_of_its_marks() -> None:
    """Weighted by their probabilities: between 0 and 1, and not only ninths."""
    rater = Judge(Opinionated(num_sequences=2), 1)
    rater.open(0, PROBLEM)
    rewards = [rate_one(rater, trace_of(*STEPS[:number]), STEPS[number])[0] for number in range(3)]
    assert all(0 <= reward <= 1 for reward in rewards)
    assert all(min(abs(reward * 9 - mark) for mark in range(10)) > 1e-6 for reward in rewards)


def test_the_judge_leaves_other_sequences_alone() -> None:
    """It may use the model of the target, which is in the middle of something."""
    backend = Opinionated(num_sequences=2)
    backend.read(0, 0, [1, 2, 3])
    rater = Judge(backend, 1)
    rater.open(0, PROBLEM)
    rate_one(rater, trace_of(), STEPS[0])
    rater.close(0)
    assert backend.cells == [[1, 2, 3], []]


def alone(text: str, problem: Problem = PROBLEM) -> str:
    """What the target writes after a text."""
    engine = Engine("target", HashBackend("t"), Sampler())
    engine.open(0, problem)
    trace = Trace(problem, SHORT, [Decision(kept=step(text))])
    while not trace.finished:
        engine.start(0, WriteStep("draft", trace))
        while engine.busy:
            for progress in engine.tick():
                if progress.step:
                    trace.add(Decision(kept=progress.step))
    return trace.text


def test_a_rollout_goes_on_as_the_target_would() -> None:
    """The reward is 1 if the whole solution is right, else 0; the text that is judged is the whole one."""
    texts = [alone("ab.\n\n"), alone("cd.\n\n")]
    seen: list[tuple[str, str]] = []

    def is_right(identifier: str, text: str) -> bool:
        seen.append((identifier, text))
        return text == texts[1]

    rater = Rollout([Engine("target", HashBackend("t"), Sampler())], is_right)
    rater.open(0, PROBLEM)
    assert rate_one(rater, trace_of(), "ab.\n\n", "cd.\n\n") == (0.0, 1.0)
    assert seen == [("p", text) for text in texts]
    assert rate_one(rater, trace_of(), "ab.\n\n", "cd.\n\n") == (0.0, 1.0)
    assert len(seen) == 2, "what is known is not asked again"


def test_a_rollout_answers_for_every_text_on_its_way() -> None:
    """The target, come by the same text again, would go on in the same way: nothing is run for it."""
    seen: list[str] = []

    def is_right(identifier: str, text: str) -> bool:
        seen.append(text)
        return True

    rater = Rollout([Engine("target", HashBackend("t"), Sampler())], is_right)
    rater.open(0, PROBLEM)
    rate_one(rater, trace_of(), "ab.\n\n")
    whole = seen[0]
    steps = [part + "\n\n" for part in whole.split("\n\n") if part]
    assert len(steps) > 2
    ratings = rate(rater, {0: ScoreSteps(trace_of(*steps[:1]), (step(steps[1]),))})[0]
    assert (ratings.rewards, ratings.cost, seen) == ((1.0,), Cost(), [whole])


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.8, 1.0, 3)])
def test_what_a_rollout_wrote_is_not_written_again(sampler: Sampler) -> None:
    """The target's steps and their rewards are the same, and it is asked for the first of each solution only."""
    problems = [Problem(str(number), f"question {number}") for number in range(3)]

    def decisions(*, recalls: bool) -> tuple[list[tuple[str, str, float | None]], int]:
        ends, target = (Engine("target", HashBackend("t", num_sequences=2), sampler) for _ in range(2))
        rollout = Rollout([ends], lambda _identifier, text: len(text) % 3 == 0)
        writers: dict[ModelRole, Writer] = {
            "draft": Engine("draft", HashBackend(num_sequences=2), Sampler()),
            "target": Recalling(target, rollout) if recalls else target,
        }
        oracle = POLICIES["oracle"]
        scheduler = Scheduler(writers, lambda trace: oracle.flow(trace, 0.0, 0), SHORT, concurrency=2, rater=rollout)
        told, num_decoded = defaultdict(list), 0
        for event in scheduler.run(problems):
            if isinstance(event, Decided) and event.decision.target:
                told[event.trace.problem.id].append((event.decision.target.text, event.decision.advantage))
                num_decoded += event.decision.target.cost.decode_tokens
        return [(name, *one) for name in sorted(told) for one in told[name]], num_decoded

    (plain, num_plain), (recalled, num_recalled) = decisions(recalls=False), decisions(recalls=True)
    assert recalled == plain
    assert len(plain) > 2 * len(problems)
    assert num_recalled < num_plain / 2


def test_no_rollout_waits_for_those_of_other_problems() -> None:
    """While a long one goes on, other problems have their rewards and go on too; and rewards are those of one at a time."""
    problems = [Problem(str(number), "question " * (number + 1)) for number in range(3)]

    def advantages(concurrency: int) -> tuple[dict[str, list[float | None]], bool]:
        engines: dict[ModelRole, Engine] = {
            "draft": Engine("draft", HashBackend(num_sequences=concurrency), Sampler()),
            "target": Engine("target", HashBackend("t", num_sequences=concurrency), Sampler()),
        }
        ends = Engine("target", HashBackend("t", num_sequences=concurrency), Sampler())
        rater = Rollout([ends], lambda _identifier, text: len(text) % 2 == 0)
        scheduler = Scheduler(
            engines, lambda trace: POLICIES["oracle"].flow(trace, 0.0, 0), SHORT, concurrency=concurrency, rater=rater
        )
        found: dict[str, list[float | None]] = defaultdict(list)
        overlaps = False
        for event in scheduler.run(problems):
            if isinstance(event, Decided):
                found[event.trace.problem.id].append(event.decision.advantage)
                overlaps = overlaps or rater.busy
        return found, overlaps

    alone, _ = advantages(1)
    together, overlaps = advantages(3)
    assert overlaps
    assert together == alone


def test_a_rollout_that_fails_ends_its_problem_only() -> None:
    """The context is too small for how the longest goes on; the other problem has its rewards."""
    long, short = Problem("long", "x" * 251), Problem("short", "x")
    engines: dict[ModelRole, Engine] = {
        "draft": Engine("draft", HashBackend(num_sequences=2), Sampler()),
        "target": Engine("target", HashBackend("t", num_sequences=2), Sampler()),
    }
    ends = Engine("target", HashBackend("t", num_sequences=2, context_size=256), Sampler(), instructions="")
    scheduler = Scheduler(
        engines,
        lambda trace: POLICIES["oracle"].flow(trace, 0.0, 0),
        SHORT,
        concurrency=2,
        rater=Rollout([ends], lambda _identifier, _text: True),
    )
    finished = {event.trace.problem.id: event for event in scheduler.run([long, short]) if isinstance(event, Finished)}
    assert isinstance(finished["long"].error, ContextFullError)
    assert "the solution so far has" in str(finished["long"].error)
    assert finished["short"].error is None
    assert finished["short"].trace.decisions


def test_rollouts_share_what_is_right() -> None:
    """Of several samples, the share that reaches the answer."""
    engines = [Engine("target", HashBackend("t"), Sampler(1.0, 1.0, seed)) for seed in range(4)]
    answers = iter([True, False, True, True])
    rater = Rollout(engines, lambda _identifier, _text: next(answers))
    rater.open(0, PROBLEM)
    assert rate_one(rater, trace_of(), "ab.\n\n") == (0.75,)


def test_a_finished_solution_needs_no_rollout() -> None:
    """Only its own text is judged."""
    end = Step("draft", "the end", 3, Cost(), "end")
    rater = Rollout([Engine("target", HashBackend("t"), Sampler())], lambda _identifier, text: text == "the end")
    rater.open(0, PROBLEM)
    ratings = rate(rater, {0: ScoreSteps(trace_of(), (end,))})[0]
    assert ratings.rewards == (1.0,)
    assert ratings.cost == Cost()


def test_the_oracle_runs_with_any_rewards() -> None:
    """The advantage of every step is recorded, and the better step kept."""
    draft = Engine("draft", HashBackend(), Sampler())
    target = Engine("target", HashBackend("t"), Sampler())
    scheduler = Scheduler(
        {"draft": draft, "target": target},
        lambda trace: POLICIES["oracle"].flow(trace, 0.0, 0),
        Limits(max_steps=4, max_tokens=200, max_step_tokens=40),
        rater=ProcessReward(Opinionated()),
    )
    decisions = [event.decision for event in scheduler.run([PROBLEM]) if isinstance(event, Decided)]
    assert decisions
    for decision in decisions:
        assert decision.advantage is not None
        assert (decision.kept is decision.target) == (decision.advantage > 0)


def test_rewards_without_a_rater_are_a_defect() -> None:
    """Nothing is made up."""
    engines: dict[ModelRole, Engine] = {
        "draft": Engine("draft", HashBackend(), Sampler()),
        "target": Engine("target", HashBackend("t"), Sampler()),
    }
    scheduler = Scheduler(engines, lambda trace: POLICIES["rsd"].flow(trace, 0.5, 0), SHORT)
    with pytest.raises(ValueError, match="nothing gives any"):
        list(scheduler.run([PROBLEM]))


def test_extreme_opinions_are_rewards_too() -> None:
    """A sign that is ruled out is a reward of 0 or 1, not an overflow."""

    class Sure(HashBackend):
        def _compute(self, sequence: int) -> tuple[Floats, Floats]:
            logits, hidden = super()._compute(sequence)
            logits[ord("+")], logits[ord("-")] = np.float32(-3e4), np.float32(3e4)
            return logits, hidden

    rater = ProcessReward(Sure())
    rater.open(0, PROBLEM)
    assert rate_one(rater, trace_of(), STEPS[0]) == pytest.approx((0.0,), abs=1e-12)


class Damaged(HashBackend):
    """Computes no numbers, as a damaged model file does."""

    def _compute(self, sequence: int) -> tuple[Floats, Floats]:
        logits, hidden = super()._compute(sequence)
        logits[:] = np.nan
        return logits, hidden


@pytest.mark.parametrize("rater", [ProcessReward(Damaged()), Judge(Damaged(), 0)], ids=["prm", "judge"])
def test_what_is_no_number_is_no_reward(rater: ProcessReward | Judge) -> None:
    """An error that says whose numbers are damaged, not a reward of 0 that would be believed."""
    rater.open(0, PROBLEM)
    with pytest.raises(ComputeError, match="not numbers"):
        rate_one(rater, trace_of(), STEPS[0])


def test_the_steps_may_be_asked_about_as_they_are() -> None:
    """The built-in style: the solution as the assistant writes it, a blank line behind the step, and the verdict there."""
    backend = Opinionated()
    rater = ProcessReward(backend, "steps")
    rater.open(0, PROBLEM)
    for last in ("ef.\n\n", "ef.", "ef.\n"):
        rate_one(rater, trace_of(STEPS[0]), last)
        controls, held = backend.control_tokens, backend.cells[0]
        assert held[0] == controls["<|user|>"]
        text = backend.tokenize("ab cd.\n\nef.\n\n", continues=True)
        assert held == [controls["<|user|>"], *PROBLEM.question.encode(), controls["<|assistant|>"], *text]

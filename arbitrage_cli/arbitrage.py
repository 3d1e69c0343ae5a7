"""The Arbitrage algorithm and its baselines. Each policy divides the steps of a solution between a draft and a target.

"Arbitrage: Efficient Reasoning via Advantage-Aware Speculation", arXiv 2512.05033:

    x <- problem
    repeat until the end of the sequence:
        z <- the draft writes a step from x
        if router(x, z) > tau:  z <- the target writes a step from x
        x <- x + z

A flow is a generator that yields requests (`WriteStep`, `RateSteps`, ...) and receives their results. If it
yields several requests, their models write at once, and it receives the first finished step. The scheduler drives the flows.
"""

import math
import random
from collections.abc import Callable, Generator
from statistics import fmean
from typing import Any

from arbitrage_cli.types import Decision, ModelRole, Phase, Step, Trace, frozen

ScoreOf = Callable[[Trace, Step], float]  # of a drafted step with token statistics


@frozen
class EarlyStop:
    """A rule that stops a drafted step as soon as the score of a prefix exceeds `tau`.

    `is_due(n)` returns whether to compute the score after n tokens. A stopped step is always escalated, so `tau` must be at
    least the policy's tau.
    """

    score_of: ScoreOf
    tau: float
    is_due: Callable[[int], bool]

    def should_stop(self, trace: Trace, prefix: Step) -> bool:
        return self.score_of(trace, prefix) > self.tau


@frozen
class WriteStep:
    """A request to write the next step of `trace`.

    `model` verifies the tokens of `proposal` in batches. With a proposal, or if `speculates` is true, the draft may also
    propose tokens while the target writes. Proposed tokens do not change the text. If `until_end` is true, `model` also writes
    all later steps, so a server may write them in one response. If `sample` is not 0, `model` is not greedy.
    """

    model: ModelRole
    trace: Trace
    proposal: Step | None = None
    early_stop: EarlyStop | None = None
    speculates: bool = False
    until_end: bool = False
    sample: int = 0


@frozen
class RateSteps:
    """A request to rate each of `steps` as the next step of `trace`. The response is a tuple of rewards from 0 to 1."""

    trace: Trace
    steps: tuple[Step, ...]


@frozen
class CompareAnswers:
    """A request to compare answers. The response is the result of `is_same`, which may take seconds."""

    is_same: Callable[[], bool]


@frozen
class StopWriting:
    """A request to stop all models. The response is a list of the steps that they had written ahead or begun."""


FlowRequest = WriteStep | tuple[WriteStep, ...] | RateSteps | CompareAnswers | StopWriting
Flow = Generator[FlowRequest, Any, None]


@frozen
class Scorer:
    """Scores drafted steps within a flow. A scorer may request rewards.

    `early_stop` returns the early-stop rule for a tau. `early_stop` is None if the scorer needs finished steps.
    `routes_thoughts` is false if the router was not trained on thinking.
    """

    score: Callable[[Trace, Step], Generator[RateSteps, Any, float]]
    early_stop: Callable[[float], EarlyStop] | None = None
    routes_thoughts: bool = True


def arbitrage(trace: Trace, scorer: Scorer, tau: float, phase: Phase | None = None) -> Flow:
    """Let the draft write every step, and the target rewrite each step whose score exceeds tau.

    If `phase` is given, the flow ends when this phase ends. A step whose score equals tau is accepted. An infinite tau
    therefore keeps only the draft's steps, and a tau below every score keeps only the target's steps. The target does no
    work before its first step. A step that was stopped early is always escalated. If tau is finite, a step that ends in a
    loop is also escalated, as is a thinking step that equals the previous two.
    """
    early_stop = scorer.early_stop(tau) if scorer.early_stop else None
    while not trace.finished and phase in (None, trace.phase):
        draft: Step = yield WriteStep("draft", trace, early_stop=early_stop)
        score = yield from scorer.score(trace, draft)
        is_loop = draft.stop == "loop" or _repeats_thoughts(trace, draft)
        if score > tau or draft.stop == "early" or (is_loop and tau < math.inf):  # escalate
            target: Step = yield WriteStep("target", trace, proposal=draft)
            trace.add(Decision(kept=target, draft=draft, target=target, score=score))
        else:  # accept
            trace.add(Decision(kept=draft, draft=draft, score=score))


def _repeats_thoughts(trace: Trace, draft: Step) -> bool:
    """Return whether a thinking step equals the previous two."""
    previous = [decision.kept.text for decision in trace.decisions[-2:]]
    return draft.phase == "think" and previous == [draft.text, draft.text]


def oracle(trace: Trace, tau: float) -> Flow:
    """Let both models write every step, and keep the target's step if its advantage exceeds tau.

    Routers are trained to predict this decision. If tau is 0, the better step is kept. The oracle is slower than the target
    alone.
    """
    while not trace.finished:
        draft: Step = yield WriteStep("draft", trace)
        target: Step = yield WriteStep("target", trace, proposal=draft)
        draft_reward, target_reward = yield RateSteps(trace, (draft, target))
        advantage = target_reward - draft_reward
        kept = target if advantage > tau else draft
        trace.add(Decision(kept=kept, draft=draft, target=target, advantage=advantage))


def single(trace: Trace, model: ModelRole, *, speculates: bool = False) -> Flow:
    """Let one model write every step, optionally with token-level speculative decoding (arXiv 2211.17192)."""
    while not trace.finished:
        step: Step = yield WriteStep(model, trace, speculates=speculates, until_end=True)
        if model == "draft":
            trace.add(Decision(kept=step, draft=step))
        else:
            trace.add(Decision(kept=step, target=step))


def by_token_stats(score_of: ScoreOf, early_stop: Callable[[float], EarlyStop] | None = None) -> Scorer:
    def score(trace: Trace, draft: Step) -> Generator[RateSteps, Any, float]:
        yield from ()
        return score_of(trace, draft)

    return Scorer(score, early_stop)


def by_first_token(score_of: ScoreOf) -> Scorer:
    """Return a scorer whose score depends only on the first token. Steps can be stopped after this token."""
    return by_token_stats(score_of, lambda tau: EarlyStop(score_of, tau, lambda num_tokens: num_tokens == 1))


def by_least_likely_token(score_of: ScoreOf) -> Scorer:
    """Return a scorer whose scores never decrease as a step grows, so steps can be stopped once their score exceeds tau."""
    return by_token_stats(score_of, lambda tau: EarlyStop(score_of, tau, lambda num_tokens: True))


def by_reward() -> Scorer:
    """Return a scorer whose score is 1 minus the reward of the drafted step.

    With rewards from a process reward model, the policy is RSD (arXiv 2501.19324). The paper's method accepts a step if its
    reward is at least a threshold t, which corresponds to tau = 1 - t.
    """

    def score(trace: Trace, draft: Step) -> Generator[RateSteps, Any, float]:
        (reward,) = yield RateSteps(trace, (draft,))
        return 1.0 - float(reward)

    return Scorer(score)


def first_token_entropy(trace: Trace, draft: Step) -> float:
    """Return the entropy of the step's first token in nats, as in GlimpRouter (arXiv 2601.05110)."""
    return draft.known_token_stats.entropies[0]


def mean_negative_logprob(trace: Trace, draft: Step) -> float:
    """Return the mean negative log-probability of the drafted tokens in nats."""
    return -fmean(draft.known_token_stats.log_probabilities)


def max_negative_logprob(trace: Trace, draft: Step) -> float:
    """Return the negative log-probability of the least likely drafted token, in nats."""
    return -min(draft.known_token_stats.log_probabilities)


def uniform_draw(seed: int) -> ScoreOf:
    """Return random scores from 0 to 1, drawn from the seed, the question and the step's index.

    The expected escalation rate is 1 - tau.
    """

    def draw(trace: Trace, draft: Step) -> float:
        key = f"{seed}/{trace.problem.question}/{len(trace.decisions)}"
        return random.Random(key.encode("utf-8", "surrogatepass")).random()

    return draw

"""The paper: how a draft and a target share the steps of a solution, and the baselines it is measured against.

"Arbitrage: Efficient Reasoning via Advantage-Aware Speculation", arXiv 2512.05033. A policy is a generator, a *flow*:
it yields an `WriteStep` (write the next step with this model) or a `ScoreSteps` (how good are these steps?), is sent the finished
`Step` or the rewards, and decides. Knows no model, no cache, no clock and no terminal: the scheduler runs flows, for one
problem or for a thousand.

    x <- problem
    repeat until the end of the sequence:
        z <- the draft writes a step from x
        if router(x, z) > tau:  z <- the target writes a step from x
        x <- x + z
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from arbitrage_cli.types import Decision, ModelRole, Step, Trace

NumberOf = Callable[[Trace, Step], float]
"""Maps the trace so far and the drafted step, with what the draft computed while it wrote it, to a number."""


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When a drafted step is stopped before it is finished: the number of what there is of it exceeds `tau`.

    Looked at after so many tokens as `is_due` says, of a step without a proposal. A step that is stopped is escalated, so `tau` is
    the policy's own or higher.
    """

    number_of: NumberOf
    tau: float
    is_due: Callable[[int], bool]

    def is_bad(self, trace: Trace, beginning: Step) -> bool:
        """Whether to stop the step that begins so."""
        return self.number_of(trace, beginning) > self.tau


@dataclass(frozen=True, slots=True)
class WriteStep:
    """A wish of a flow: `model` shall write the next step of `trace`, or only its beginning if `early_stop` finds that bad.

    `proposal` is a step that it may write as well; with one, or if it `speculates`, the draft may also be asked how the step
    might go on: that changes the time, never the text. Where tokens are drawn at random, `sample` tells several steps from the
    same text apart.
    """

    model: ModelRole
    trace: Trace
    proposal: Step | None = None
    sample: int = 0
    early_stop: EarlyStop | None = None
    speculates: bool = False


@dataclass(frozen=True, slots=True)
class ScoreSteps:
    """A wish of a flow: how good is each of `steps` as the next step of `trace`? A tuple of rewards from 0 to 1 is sent back."""

    trace: Trace
    steps: tuple[Step, ...]


Flow = Generator[WriteStep | ScoreSteps, Any, None]


@dataclass(frozen=True, slots=True)
class Router:
    """What decides who writes a step. `number` is compared with tau; it is a part of a flow, and may ask for rewards on the way.

    `early_stop` is made for a tau; None if a step has to be finished before anything is known of it.
    """

    number: Callable[[Trace, Step], Generator[ScoreSteps, Any, float]]
    early_stop: Callable[[float], EarlyStop] | None = None


def arbitrage(trace: Trace, router: Router, tau: float) -> Flow:
    """The routing loop: the draft writes every step, the target only those whose number exceeds tau.

    Strictly: a tie keeps the draft. So an infinite tau is the draft alone, and a tau below every number the target
    alone. The target is not called, and reads nothing, before the router has asked for it. A step that the router stopped
    early is only the beginning of one, and never kept.
    """
    early_stop = router.early_stop(tau) if router.early_stop else None
    while not trace.finished:
        draft: Step = yield WriteStep("draft", trace, early_stop=early_stop)
        number = yield from router.number(trace, draft)
        if number > tau or draft.stop == "early":  # escalate
            target: Step = yield WriteStep("target", trace, proposal=draft)
            trace.add(Decision(kept=target, draft=draft, target=target, probability=number))
        else:  # accept
            trace.add(Decision(kept=draft, draft=draft, probability=number))


def oracle(trace: Trace, tau: float) -> Flow:
    """Both models write every step, and the target's is kept if its true advantage, in reward, exceeds tau.

    What the router is trained to foretell, and the most that any router gains with as many steps of the target. Slower
    than the target alone.
    """
    while not trace.finished:
        draft: Step = yield WriteStep("draft", trace)
        target: Step = yield WriteStep("target", trace, proposal=draft)
        draft_reward, target_reward = yield ScoreSteps(trace, (draft, target))
        advantage = target_reward - draft_reward
        kept = target if advantage > tau else draft
        trace.add(Decision(kept=kept, draft=draft, target=target, advantage=advantage))


def single(trace: Trace, model: ModelRole, *, speculates: bool = False) -> Flow:
    """One model alone writes every step: the two ends that routing moves between.

    If it `speculates`, this is token-level speculative decoding (arXiv 2211.17192): the same text, sooner.
    """
    while not trace.finished:
        step: Step = yield WriteStep(model, trace, speculates=speculates)
        draft, target = (step, None) if model == "draft" else (None, step)
        trace.add(Decision(kept=step, draft=draft, target=target))


def by_token_stats(number_of: NumberOf, early_stop: Callable[[float], EarlyStop] | None = None) -> Router:
    """The router that goes by the drafted step and its evidence alone: it asks nobody, and costs next to nothing."""

    def number(trace: Trace, draft: Step) -> Generator[ScoreSteps, Any, float]:
        yield from ()
        return number_of(trace, draft)

    return Router(number, early_stop)


def by_first_token(number_of: NumberOf) -> Router:
    """The same, of a number that is known with the step's first token: no more is drafted of a step that is escalated."""
    return by_token_stats(number_of, lambda tau: EarlyStop(number_of, tau, lambda num_tokens: num_tokens == 1))


def by_least_likely_token(number_of: NumberOf) -> Router:
    """The same, of a number that never falls while the step gets longer: no more is drafted once it is above tau."""
    return by_token_stats(number_of, lambda tau: EarlyStop(number_of, tau, lambda num_tokens: True))


def by_reward() -> Router:
    """Goes by 1 - the reward of the drafted step: how bad it is, whatever the target would write instead.

    With a process reward model this is RSD (arXiv 2501.19324), with the target as judge SpecReason (arXiv 2504.07891).
    Their "accept a reward of t or more" is a tau of 1 - t.
    """

    def number(trace: Trace, draft: Step) -> Generator[ScoreSteps, Any, float]:
        (reward,) = yield ScoreSteps(trace, (draft,))
        return 1.0 - float(reward)

    return Router(number)


def first_token_entropy(trace: Trace, draft: Step) -> float:
    """GlimpRouter (arXiv 2601.05110): entropy of the step's first token, in nats. High: the draft did not know how to go on."""
    return draft.known_token_stats.entropies[0]


def mean_negative_logprob(trace: Trace, draft: Step) -> float:
    """Negative mean log-probability of the drafted tokens, in nats per token. High: the draft wrote what it did not believe."""
    return -fmean(draft.known_token_stats.log_probabilities)


def max_negative_logprob(trace: Trace, draft: Step) -> float:
    """Negative log-probability of the least likely of the drafted tokens, in nats. High: somewhere the draft had to guess."""
    return -min(draft.known_token_stats.log_probabilities)


def uniform_draw(seed: int) -> NumberOf:
    """Escalation at random, at a rate of 1 - tau: what any router must beat. The draw depends on seed, question and step."""

    def draw(trace: Trace, draft: Step) -> float:
        key = f"{seed}/{trace.problem.question}/{len(trace.decisions)}"
        return random.Random(key.encode("utf-8", "surrogatepass")).random()

    return draw

"""The paper: how a draft and a target share the steps of a solution, and the baselines it is measured against.

"Arbitrage: Efficient Reasoning via Advantage-Aware Speculation", arXiv 2512.05033. A policy is a generator, a *flow*:
it yields an `Ask` (write the next step with this model) or a `Rate` (how good are these steps?), is sent the finished
`Step` or the rewards, and decides. Knows no model, no cache, no clock and no terminal: the scheduler runs flows, for one
problem or for a thousand.

    x <- problem
    repeat until the end of the sequence:
        z <- the draft writes a step from x
        if router(x, z) > tau:  z <- the target writes a step from x
        x <- x + z
"""

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType
from typing import Any, Literal

from arbitrage_cli.types import Decision, ModelRole, Step, Trace


@dataclass(frozen=True, slots=True)
class Ask:
    """A wish of a flow: `model` shall write the next step of `trace`.

    `proposal` is a step that it may write as well: that changes the time, never the text. Where tokens are drawn at random,
    `sample` tells several steps from the same text apart.
    """

    model: ModelRole
    trace: Trace
    proposal: Step | None = None
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """A wish of a flow: how good is each of `steps` as the next step of `trace`? A tuple of rewards from 0 to 1 is sent back."""

    trace: Trace
    steps: tuple[Step, ...]


Flow = Generator[Ask | Rate, Any, None]

NumberOf = Callable[[Trace, Step], float]
"""Maps the trace so far and the drafted step, with what the draft computed while it wrote it, to a number."""

Router = Callable[[Trace, Step], Generator[Rate, Any, float]]
"""The number that is compared with tau, as a part of a flow: it may ask for rewards on the way."""


def arbitrage(trace: Trace, router: Router, tau: float) -> Flow:
    """The routing loop: the draft writes every step, the target only those whose number exceeds tau.

    Strictly: a tie keeps the draft. So an infinite tau is the draft alone, and a tau below every number the target
    alone. The target is not called, and reads nothing, before the router has asked for it.
    """
    while not trace.finished:
        draft: Step = yield Ask("draft", trace)
        number = yield from router(trace, draft)
        if number > tau:  # escalate
            target: Step = yield Ask("target", trace, proposal=draft)
            trace.add(Decision(kept=target, draft=draft, target=target, probability=number))
        else:  # accept
            trace.add(Decision(kept=draft, draft=draft, probability=number))


def oracle(trace: Trace, tau: float) -> Flow:
    """Both models write every step, and the target's is kept if its true advantage, in reward, exceeds tau.

    What the router is trained to foretell, and the most that any router gains with as many steps of the target. Slower
    than the target alone.
    """
    while not trace.finished:
        draft: Step = yield Ask("draft", trace)
        target: Step = yield Ask("target", trace, proposal=draft)
        draft_reward, target_reward = yield Rate(trace, (draft, target))
        advantage = target_reward - draft_reward
        kept = target if advantage > tau else draft
        trace.add(Decision(kept=kept, draft=draft, target=target, advantage=advantage))


def single(trace: Trace, model: ModelRole) -> Flow:
    """One model alone writes every step: the two ends that routing moves between."""
    while not trace.finished:
        step: Step = yield Ask(model, trace)
        draft, target = (step, None) if model == "draft" else (None, step)
        trace.add(Decision(kept=step, draft=draft, target=target))


def by_evidence(number_of: NumberOf) -> Router:
    """The router that goes by the drafted step and its evidence alone: it asks nobody, and costs next to nothing."""

    def route(trace: Trace, draft: Step) -> Generator[Rate, Any, float]:
        yield from ()
        return number_of(trace, draft)

    return route


def by_reward(trace: Trace, draft: Step) -> Generator[Rate, Any, float]:
    """1 - the reward of the drafted step: how bad it is, whatever the target would write instead.

    With a process reward model this is RSD (arXiv 2501.19324), with the target as judge SpecReason (arXiv 2504.07891).
    Their "accept a reward of t or more" is a tau of 1 - t.
    """
    (reward,) = yield Rate(trace, (draft,))
    return 1.0 - float(reward)


def first_token_entropy(trace: Trace, draft: Step) -> float:
    """GlimpRouter (arXiv 2601.05110): entropy of the step's first token, in nats. High: the draft did not know how to go on."""
    return draft.kept_evidence.entropies[0]


def mean_surprise(trace: Trace, draft: Step) -> float:
    """Negative mean log-probability of the drafted tokens, in nats per token. High: the draft wrote what it did not believe."""
    return -fmean(draft.kept_evidence.log_probabilities)


def worst_surprise(trace: Trace, draft: Step) -> float:
    """Negative log-probability of the least likely of the drafted tokens, in nats. High: somewhere the draft had to guess."""
    return -min(draft.kept_evidence.log_probabilities)


def uniform_draw(seed: int) -> NumberOf:
    """Escalation at random, at a rate of 1 - tau: what any router must beat. The draw depends on seed, question and step."""

    def draw(trace: Trace, draft: Step) -> float:
        key = f"{seed}/{trace.problem.question}/{len(trace.decisions)}"
        return random.Random(key.encode("utf-8", "surrogatepass")).random()

    return draw


RewardKind = Literal["prm", "judge", "any"]
"""Whose rewards a policy wants: a process reward model's, the target's own, or whichever the user chose."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A named way of sharing the steps. Without a router the first of `models` alone writes them all.

    `number` says what is compared with tau, `make_router` takes the seed; a policy that `needs_head` has its router from
    outside. `reads_evidence` tells whether the draft has to keep its evidence.
    """

    name: str
    models: tuple[ModelRole, ...]
    number: str = ""
    default_tau: float | None = None
    make_router: Callable[[int], Router] | None = None
    reads_evidence: bool = False
    needs_head: bool = False
    reward: RewardKind | None = None

    def flow(self, trace: Trace, tau: float | None, seed: int, router: Router | None = None) -> Flow:
        """The flow that solves `trace`. A policy with a number needs a tau, one with a head that head's `router`."""
        if not self.number:
            return single(trace, self.models[0])
        if tau is None:
            raise ValueError(f"policy {self.name} needs a tau")
        if self.name == "oracle":
            return oracle(trace, tau)
        chosen = self.make_router(seed) if self.make_router else router
        if chosen is None:
            raise ValueError(f"policy {self.name} needs a router")
        return arbitrage(trace, chosen, tau)


_BOTH: tuple[ModelRole, ...] = ("draft", "target")
_PROBABILITY, _ENTROPY = "probability that the target's step is better", "entropy of the step's first token (nats)"
_MEAN, _WORST = "negative mean log-probability (nats/token)", "negative lowest log-probability of a token (nats)"
_MARK, _ADVANTAGE = "1 - the target's mark for the drafted step, as a share of 9", "advantage of the target's step"

_ALL = (
    Policy("arbitrage", _BOTH, _PROBABILITY, reads_evidence=True, needs_head=True),
    Policy("entropy", _BOTH, _ENTROPY, 1.0, lambda seed: by_evidence(first_token_entropy), reads_evidence=True),
    Policy("logprob", _BOTH, _MEAN, 0.3, lambda seed: by_evidence(mean_surprise), reads_evidence=True),
    Policy("logprob-min", _BOTH, _WORST, 1.0, lambda seed: by_evidence(worst_surprise), reads_evidence=True),
    Policy("random", _BOTH, "uniform draw", 0.7, lambda seed: by_evidence(uniform_draw(seed))),
    Policy("rsd", _BOTH, "1 - reward of the drafted step", 0.3, lambda seed: by_reward, reward="prm"),
    Policy("judge", _BOTH, _MARK, 0.22, lambda seed: by_reward, reward="judge"),
    Policy("oracle", _BOTH, _ADVANTAGE, 0.0, reward="any"),
    Policy("draft", ("draft",)),
    Policy("target", ("target",)),
)
POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in _ALL})
"""The policies of the command line. The default taus are starting points, not tuned to any pair; a head brings its own."""

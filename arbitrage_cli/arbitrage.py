"""The paper: how a draft and a target share the steps of a solution, and the baselines it is measured against.

"Arbitrage: Efficient Reasoning via Advantage-Aware Speculation", arXiv 2512.05033. A policy is a generator, a *flow*:
it yields an `Ask` (write the next step with this model), is sent the finished `Step`, and decides. Knows no model, no
cache, no clock and no terminal: the scheduler runs flows, for one problem or for a thousand.

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

from arbitrage_cli.types import Decision, Evidence, ModelRole, Step, Trace


@dataclass(frozen=True, slots=True)
class Ask:
    """A wish of a flow: `model` shall write the next step of `trace`."""

    model: ModelRole
    trace: Trace


Flow = Generator[Ask, Step, None]

Router = Callable[[Trace, Step], float]
"""Maps the trace so far and the drafted step to the number that is compared with tau."""


def arbitrage(trace: Trace, router: Router, tau: float) -> Flow:
    """The routing loop: the draft writes every step, the target only those whose number exceeds tau.

    Strictly: a tie keeps the draft. So an infinite tau is the draft alone, and a tau below every number the target
    alone. The target is not called, and reads nothing, before the router has asked for it.
    """
    while not trace.finished:
        draft = yield Ask("draft", trace)
        number = router(trace, draft)
        if number > tau:  # escalate
            target = yield Ask("target", trace)
            trace.add(Decision(kept=target, draft=draft, target=target, probability=number))
        else:  # accept
            trace.add(Decision(kept=draft, draft=draft, probability=number))


def single(trace: Trace, model: ModelRole) -> Flow:
    """One model alone writes every step: the two ends that routing moves between."""
    while not trace.finished:
        step = yield Ask(model, trace)
        draft, target = (step, None) if model == "draft" else (None, step)
        trace.add(Decision(kept=step, draft=draft, target=target))


def first_token_entropy(trace: Trace, draft: Step) -> float:
    """GlimpRouter (arXiv 2601.05110): entropy of the step's first token, in nats. High: the draft did not know how to go on."""
    return _evidence(draft).entropies[0]


def mean_surprise(trace: Trace, draft: Step) -> float:
    """Negative mean log-probability of the drafted tokens, in nats per token. High: the draft wrote what it did not believe."""
    return -fmean(_evidence(draft).log_probabilities)


def uniform_draw(seed: int) -> Router:
    """Escalation at random, at a rate of 1 - tau: what any router must beat. The draw depends on seed, question and step."""

    def draw(trace: Trace, draft: Step) -> float:
        key = f"{seed}/{trace.problem.question}/{len(trace.decisions)}"
        return random.Random(key.encode("utf-8", "surrogatepass")).random()

    return draw


def _evidence(step: Step) -> Evidence:
    if step.evidence is None:
        raise ValueError("this router reads the evidence of the drafted step, and none was kept")
    return step.evidence


@dataclass(frozen=True, slots=True)
class Policy:
    """A named way of sharing the steps. Without a router the first of `models` alone writes them all.

    `number` says what the router compares with tau, `make_router` takes the seed, and `reads_evidence` tells whether the
    draft has to keep its evidence.
    """

    name: str
    models: tuple[ModelRole, ...]
    number: str = ""
    default_tau: float | None = None
    make_router: Callable[[int], Router] | None = None
    reads_evidence: bool = False

    def flow(self, trace: Trace, tau: float | None, seed: int) -> Flow:
        """The flow that solves `trace`. A policy with a router needs a tau; the others do not read it."""
        if self.make_router is None:
            return single(trace, self.models[0])
        if tau is None:
            raise ValueError(f"policy {self.name} needs a tau")
        return arbitrage(trace, self.make_router(seed), tau)


_BOTH: tuple[ModelRole, ...] = ("draft", "target")
_ENTROPY, _SURPRISE = "entropy of the step's first token (nats)", "negative mean log-probability (nats/token)"

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("entropy", _BOTH, _ENTROPY, 1.0, lambda seed: first_token_entropy, reads_evidence=True),
            Policy("logprob", _BOTH, _SURPRISE, 0.3, lambda seed: mean_surprise, reads_evidence=True),
            Policy("random", _BOTH, "uniform draw", 0.7, uniform_draw),
            Policy("draft", ("draft",)),
            Policy("target", ("target",)),
        )
    }
)
"""The policies of the command line. The default taus are starting points, not tuned to any pair."""

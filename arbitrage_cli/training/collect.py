"""Collects what a head is trained on: both models write every step, and rewards say how much better the target's is.

How the solution goes on, the *roll-in*, decides which states are seen: with the better step (as in the paper), the drafted one,
or the one that a given head would keep, to train it again on states that it leads to (DAgger, arXiv 1011.0686). Knows no model,
no file and no terminal.
"""

from collections.abc import Callable

from arbitrage_cli.arbitrage import Flow, RateSteps, ScoreOf, WriteStep
from arbitrage_cli.routing.states import State, advantage_of
from arbitrage_cli.types import Decision, ModelRole, Step, Trace

Keep = Callable[[Trace, Step, float], ModelRole]
"""Maps the trace, the drafted step and the target's advantage to the model whose step is kept."""


def better(trace: Trace, draft: Step, advantage: float) -> ModelRole:
    """The oracle's choice: the target's step if it is better, strictly."""
    return "target" if advantage > 0 else "draft"


def drafted(trace: Trace, draft: Step, advantage: float) -> ModelRole:
    """The drafted step, however bad."""
    return "draft"


def as_routed(score: ScoreOf, tau: float) -> Keep:
    """The step that a head would keep at this tau."""

    def keep(trace: Trace, draft: Step, advantage: float) -> ModelRole:
        return "target" if score(trace, draft) > tau else "draft"

    return keep


def collect(trace: Trace, keep: Keep, observe: Callable[[State], None], target_samples: int = 1) -> Flow:
    """Solve a problem with both models, and call `observe` with each state. The draft must keep token statistics.

    The target writes `target_samples` steps at each state. The advantage is the mean of their rewards minus the draft's; if the
    target's step is kept, it is the first of them. Equal texts are rated once.
    """
    while not trace.finished:
        draft: Step = yield WriteStep("draft", trace)
        targets: list[Step] = []
        for sample in reversed(range(target_samples)):  # the first is written last, so the engine still has its tokens
            targets.insert(0, (yield WriteStep("target", trace, proposal=draft, sample=sample)))
        distinct = {step.text: step for step in (draft, *targets)}
        rewards: tuple[float, ...] = yield RateSteps(trace, tuple(distinct.values()))
        rated = dict(zip(distinct, rewards, strict=True))
        target_rewards = tuple(rated[step.text] for step in targets)
        advantage = advantage_of(target_rewards, rated[draft.text])
        kept = keep(trace, draft, advantage)
        observe(_state(trace, draft, targets, rated[draft.text], target_rewards, kept))
        trace.add(Decision(targets[0] if kept == "target" else draft, draft, targets[0], advantage=advantage))


def _state(
    trace: Trace, draft: Step, targets: list[Step], draft_reward: float, target_rewards: tuple[float, ...], kept: ModelRole
) -> State:
    return State(
        position=len(trace.decisions),
        draft=draft,
        target_texts=tuple(step.text for step in targets),
        draft_reward=draft_reward,
        target_rewards=target_rewards,
        kept=kept,
        target_tokens=targets[0].num_tokens,
        target_prefill_tokens=sum(step.cost.prefill_tokens for step in targets),
    )

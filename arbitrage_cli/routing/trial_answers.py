"""Ends thinking as soon as the answer is known, as in DEER (arXiv 2504.15895).

After some thoughts, a model writes a trial answer: the thinking phase is closed, and the model completes `OPENING` with at
most `MAX_TOKENS` tokens. Thinking ends after two equal trial answers in a row. Otherwise, the model does not see the trial
answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from arbitrage_cli.arbitrage import EarlyStop, Flow, WriteStep
from arbitrage_cli.grading.extract import boxed_answer
from arbitrage_cli.types import Cost, Decision, ModelRole, Step, Trace, Trial

OPENING = "The answer is \\boxed{"
FIRST = 32  # thinking tokens before the first trial
SPACING = 0.25  # thinking tokens between two trials, as a share of the thinking tokens so far
AGREEING = 2  # equal trial answers in a row that end the thinking
MAX_TOKENS = 20  # of a trial answer


@dataclass(frozen=True, slots=True)
class TrialAnswers:
    """Adds decisions to a trace, and ends the thinking when the trial answers of `model` agree.

    `find_answer` returns None while the answer is incomplete.
    """

    model: ModelRole
    find_answer: Callable[[str], str | None] = boxed_answer

    def keep(self, trace: Trace, decision: Decision) -> Flow:
        if is_due(trace, decision.kept):
            trial_step: Step | None = yield self._request(trace.followed_by(decision.kept))
            decision = self._with_trial(trace, decision, trial_step) if trial_step else decision
        trace.add(decision)

    def _with_trial(self, trace: Trace, decision: Decision, step: Step) -> Decision:
        trial = Trial(self.find_answer(OPENING + step.text), self.model, step.cost)
        decision = replace(decision, trial=trial)
        return _closed(decision) if agree([*trials_of(trace), trial]) else decision

    def _request(self, trace: Trace) -> WriteStep:
        closed = trace.followed_by(Step(self.model, "", 0, Cost(), "answered", phase="think"))
        opened = closed.followed_by(Step(self.model, OPENING, 0, Cost(), "separator"))
        limits = replace(trace.limits, max_step_tokens=MAX_TOKENS)
        trial = Trace(opened.problem, limits, opened.decisions)
        return WriteStep(self.model, trial, early_stop=EarlyStop(self._is_complete, 0.0, lambda num: True), is_trial=True)

    def _is_complete(self, trace: Trace, prefix: Step) -> float:
        return self.find_answer(OPENING + prefix.text) is not None


def is_due(trace: Trace, kept: Step) -> bool:
    """Return whether to try an answer after this step. `trace` does not contain the step yet."""
    if kept.phase != "think" or kept.stop != "separator" or trace.followed_by(kept).finished:
        return False
    tried_at = [tokens for tokens, decision in zip(_tokens_until(trace), trace.decisions, strict=True) if decision.trial]
    num_tokens = trace.num_tokens + kept.num_tokens
    return num_tokens >= (tried_at[-1] * (1 + SPACING) if tried_at else FIRST)


def agree(trials: Sequence[Trial]) -> bool:
    answers = [trial.answer for trial in trials[-AGREEING:]]
    return len(answers) == AGREEING and None not in answers and len(set(answers)) == 1


def trials_of(trace: Trace) -> list[Trial]:
    return [decision.trial for decision in trace.decisions if decision.trial]


def _tokens_until(trace: Trace) -> list[int]:
    return list(accumulate(decision.kept.num_tokens for decision in trace.decisions))


def _closed(decision: Decision) -> Decision:
    kept = replace(decision.kept, stop="answered")
    named: dict[str, Any] = {kept.model: kept}
    return replace(decision, kept=kept, **named)

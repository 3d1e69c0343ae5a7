"""Rewards by the target as judge, as in SpecReason (arXiv 2504.07891): it marks a drafted step with a digit from 0 to 9."""

import logging
import math
import time
from collections.abc import Sequence

from arbitrage_cli.inference.backend import Backend, Floats
from arbitrage_cli.inference.kv_cache import chat_prompt, prompt_ids
from arbitrage_cli.rewards.batched import MIN_SHARE, AnswerShare, BatchRater, Clock, single_token
from arbitrage_cli.types import Problem, Step, Trace

log = logging.getLogger("arbitrage.rewards")

SCALE = "0123456789"

INSTRUCTIONS = (
    "You check one step of a solution. Reply with a single digit from 0 to 9: 0 if the step is wrong or does not help, "
    "9 if it is right and takes the solution further."
)


class Judge(BatchRater):
    """The reward is the mean of the digits, weighted by their probabilities, over 9.

    The judge uses the target's model, with sequences of its own.
    """

    def __init__(self, backend: Backend, first_sequence: int, *, clock: Clock = time.perf_counter) -> None:
        super().__init__(backend, first_sequence, clock)
        self._prompt = chat_prompt(backend, INSTRUCTIONS)
        self._digits = [single_token(backend, digit) for digit in SCALE]
        self._share = AnswerShare(self._digits, MIN_SHARE)
        self._has_warned = False

    def _ids(self, slot: int, trace: Trace, step: Step) -> list[int]:
        """The step comes last, so that the text before it is read only once."""
        return prompt_ids(self._backend, self._prompt.segments(question_for_judge(self._problems[slot], trace, step)))

    def _rewards(self, logits: Floats) -> list[float]:
        self._share.add(logits)
        if self._share.is_too_low and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s seldom answers with a digit (probability %.2g), so its rewards may be noise; if it is a model that thinks "
                "first, try chat_template_kwargs = { enable_thinking = false } in its pair",
                self._backend.card.name,
                self._share.mean,
            )
        digits = logits[:, self._digits].astype(float)
        weights = [[math.exp(digit - max(row)) for digit in row] for row in digits.tolist()]
        return [mark(row) for row in weights]


def question_for_judge(problem: Problem, trace: Trace, step: Step) -> str:
    """What the judge is asked about a step."""
    question, solution = problem.question.strip(), trace.text.strip()
    return f"Problem: {question}\n\nSolution so far:\n\n{solution}\n\nNext step:\n\n{step.text.strip()}"


def mark(weights: Sequence[float]) -> float:
    """The mean digit, as a share of 9, from the weight of each digit."""
    return sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights) / (len(SCALE) - 1)

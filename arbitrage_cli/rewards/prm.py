"""Rewards by a process reward model: a causal language model trained to say `+` or `-` after each step."""

import math
import time
from contextlib import suppress
from itertools import chain
from typing import Literal

from arbitrage_cli.errors import ContextFullError, ModelUnsupportedError
from arbitrage_cli.inference.backend import Backend, Floats
from arbitrage_cli.inference.kv_cache import chat_prompt, prompt_ids
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.rewards.batched import MIN_SHARE, AnswerShare, BatchRater, Clock, single_token
from arbitrage_cli.types import Cost, Limits, Problem, Step, Trace

PrmStyle = Literal["turns", "steps"]

MIN_SHARE_IN_STEPS = 0.001
"""`MIN_SHARE` of a model in style `steps`, which may have learned only the odds of `+` and `-`: the built-in one, when it is
unsure, gives each no more probability than any other of its 512 tokens."""

NOT_A_PRM = 0.001
"""Below this mean probability of the two first answers, in either style, a model is no process reward model."""

SIGNS = ("+", "-")

FIRST_QUESTION = Problem("", "What is 2 + 3?")
FIRST_STEPS = ("2 + 3 = 5.", "2 + 3 = 7.")
"""Steps that any process reward model can rate."""


class ProcessReward(BatchRater):
    """A causal process reward model: after each step it says `+` or `-`, and the reward is the share of `+` of the two.

    The `style` is that of its training. In `turns`, the style of RLHFlow/Llama3.1-8B-PRM-Deepseek-Data, the question and the
    first step are one turn of the user and every further step is another one; the assistant has answered each earlier one with
    `+`. In `steps`, the style of the built-in model, the solution is as the assistant writes it, and the verdict stands where the
    next step would begin.
    """

    def __init__(self, backend: Backend, style: PrmStyle = "turns", *, clock: Clock = time.perf_counter) -> None:
        super().__init__(backend, 0, clock)
        self._style = style
        self._prompt = chat_prompt(backend, "")
        self._signs = [single_token(backend, sign) for sign in SIGNS]
        self._share = AnswerShare(self._signs, MIN_SHARE_IN_STEPS if style == "steps" else MIN_SHARE)

    def check(self) -> None:
        """Rate a right and a wrong step, before any reward is used. ModelUnsupportedError if the model does not rate steps.

        A context too small even for these is reported with the problems.
        """
        share = AnswerShare(self._signs, NOT_A_PRM)
        trace = Trace(FIRST_QUESTION, Limits())
        self.open(0, FIRST_QUESTION)
        with suppress(ContextFullError):
            for text in FIRST_STEPS:
                step = Step("draft", text, 1, Cost(), "separator")
                share.add(self._logits({0: self._ids(0, trace, step)})[0])
            if share.mean < NOT_A_PRM:
                raise self._refusal(share.mean)
        self.close(0)

    def _ids(self, slot: int, trace: Trace, step: Step) -> list[int]:
        if self._style == "steps":
            solution = solution_for_prm(trace, step)
            prompt = prompt_ids(self._backend, self._prompt.segments(self._problems[slot].question))
            tokenize = self._backend.tokenizer.tokenize
            parts = (tokenize(part, continues=True) for part in self._prompt.fragments(solution))
            return [*prompt, *chain.from_iterable(parts)]
        turns = turns_for_prm(self._problems[slot], trace, step)
        return prompt_ids(self._backend, self._prompt.conversation(turns, SIGNS[0]))

    def _rewards(self, logits: Floats) -> list[float]:
        self._share.add(logits)
        if self._share.is_too_low:
            raise self._refusal(self._share.mean)
        good, bad = self._signs
        return [1.0 / (1.0 + math.exp(min(700.0, float(row[bad] - row[good])))) for row in logits]

    def _refusal(self, share: float) -> ModelUnsupportedError:
        other = "turns" if self._style == "steps" else "steps"
        return ModelUnsupportedError(
            f"{self._backend.card.name} does not rate steps: it says + or - with a probability of {share:.2g}",
            f'give a process reward model: --prm MODEL; or, if it is one, give its pair the other style: prm_style = "{other}"',
        )


def turns_for_prm(problem: Problem, trace: Trace, step: Step) -> list[str]:
    """The user's turns in style `turns`."""
    texts = [*(decision.kept.text.strip() for decision in trace.decisions), step.text.strip()]
    texts[0] = f"{problem.question.strip()} {texts[0]}"
    return texts


def solution_for_prm(trace: Trace, step: Step) -> str:
    """The solution up to the verdict on the step, in style `steps`."""
    return (trace.text + step.text).rstrip() + BLANK_LINE.separator

"""What raters ask a model about a step. The first token of its answer is the reward."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.chat_template import ChatPrompt, Segment
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import Step, Trace

PrmStyle = Literal["turns", "steps"]

log = logging.getLogger("arbitrage.rewards")


class Question(ABC):
    """A question about a step, whose possible `answers` are one token each.

    If the mean probability of all of them together is below `min_share`, a model does not answer. `hint` then says what to do.
    """

    answers: Sequence[str]
    instructions = ""
    min_share = 0.1
    hint: str

    @abstractmethod
    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        """The prompt, and the text of the reply up to the answer."""

    @abstractmethod
    def reward(self, weights: Sequence[float]) -> float:
        """The reward, from 0 to 1, from the weight of each answer."""

    @abstractmethod
    def report_silence(self, model: str, share: float) -> None:
        """A model gives all answers together too little probability."""


class Judge(Question):
    """The target marks a drafted step with a digit from 0 to 9, as in SpecReason (arXiv 2504.07891); the reward is the mean digit over 9."""

    answers = tuple("0123456789")
    instructions = (
        "You check one step of a solution. Reply with a single digit from 0 to 9: 0 if the step is wrong or does not help, "
        "9 if it is right and takes the solution further."
    )
    hint = "if it thinks first: chat_template_kwargs = { enable_thinking = false } in its pair; or use another policy"

    def __init__(self) -> None:
        self._has_warned = False

    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        """The step comes last, so that the text before it is read only once."""
        question, solution = trace.problem.question.strip(), trace.written.strip()
        text = f"Problem: {question}\n\nSolution so far:\n\n{solution}\n\nNext step:\n\n{step.text.strip()}"
        return prompt.segments(text, explicit=True), ""

    def reward(self, weights: Sequence[float]) -> float:
        return sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights) / (len(self.answers) - 1)

    def report_silence(self, model: str, share: float) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s seldom answers with a digit (probability %.2g), so its rewards may be noise; %s", model, share, self.hint
            )


class ProcessReward(Question):
    """A causal process reward model: after each step it says `+` or `-`, and the reward is the share of `+` of the two.

    The `style` is that of its training. In `turns`, the style of RLHFlow/Llama3.1-8B-PRM-Deepseek-Data, the question and the
    first step are one turn of the user and every further step is another one; the assistant has answered each earlier one with
    `+`. In `steps`, the style of the built-in model, the solution is as the assistant writes it, and the verdict stands where the
    next step would begin.
    """

    answers = ("+", "-")

    def __init__(self, style: PrmStyle = "turns") -> None:
        self._style = style
        other = "turns" if style == "steps" else "steps"
        self.hint = f'give a process reward model: --prm MODEL; or, if it is one, give its pair the other style: prm_style = "{other}"'
        if (
            style == "steps"
        ):  # some learned only the odds of both: the built-in one, when it is unsure, prefers neither to any other token
            self.min_share = 0.001

    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        if self._style == "steps":
            return prompt.segments(trace.problem.question), trace.followed_by(step).written.rstrip() + BLANK_LINE.separator
        first, *others = [*(decision.kept.text.strip() for decision in trace.decisions), step.text.strip()]
        return prompt.conversation([f"{trace.problem.question.strip()} {first}", *others], self.answers[0]), ""

    def reward(self, weights: Sequence[float]) -> float:
        plus, minus = weights
        return plus / (plus + minus)

    def report_silence(self, model: str, share: float) -> None:
        message = f"{model} does not rate steps: it says + or - with a probability of {share:.2g}"
        raise ModelUnsupportedError(message, self.hint)

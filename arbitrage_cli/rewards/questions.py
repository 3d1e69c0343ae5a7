"""The questions that raters ask a model about a step. Rewards are computed from the probabilities of the answers."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from arbitrage_cli.errors import ModelUnsupportedError
from arbitrage_cli.inference.chat_template import ChatPrompt, Segment
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import Problem, Step, Trace

PrmStyle = Literal["turns", "steps"]

log = logging.getLogger("arbitrage.rewards")


class Question(ABC):
    """A question about a step. Each possible answer is a single token.

    If the mean total probability of the possible answers is below `min_probability`, a warning or error with the hint `hint`
    reports the model.
    """

    answers: Sequence[str]
    instructions = ""
    min_probability = 0.1
    hint: str

    @abstractmethod
    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        """Return the prompt, and the part of the reply that precedes the answer."""

    @abstractmethod
    def reward(self, weights: Sequence[float]) -> float:
        """Return a reward from 0 to 1, given the unnormalized probabilities of the answers."""

    @abstractmethod
    def report_no_answer(self, model: str, probability: float) -> None:
        """Warn that the total probability of the answers is only `probability`, or raise ModelUnsupportedError."""


class Judge(Question):
    """Asks the target for a grade from 0 to 9 (SpecReason, arXiv 2504.07891). The reward is the mean grade divided by 9."""

    answers = tuple("0123456789")
    instructions = (
        "You check one step of a solution. Reply with a single digit from 0 to 9: 0 if the step is wrong or does not help, "
        "9 if it is right and takes the solution further."
    )
    hint = "if the model thinks first, set chat_template_kwargs = { enable_thinking = false } in its pair, or use another policy"

    def __init__(self) -> None:
        self._has_warned = False

    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        question, solution = trace.problem.question.strip(), trace.written.strip()
        # The step is last, so that prompts for the same solution share a prefix.
        text = f"Problem: {question}\n\nSolution so far:\n\n{solution}\n\nNext step:\n\n{step.text.strip()}"
        return prompt.segments(Problem("", text, explicit=True)), ""

    def reward(self, weights: Sequence[float]) -> float:
        return sum(digit * weight for digit, weight in enumerate(weights)) / sum(weights) / (len(self.answers) - 1)

    def report_no_answer(self, model: str, probability: float) -> None:
        if not self._has_warned:
            self._has_warned = True
            answer = f"rarely answers with a digit (probability {probability:.2g})"
            log.warning("%s %s, so its rewards may be noise; %s", model, answer, self.hint)


class ProcessReward(Question):
    """Asks a process reward model for the answer `+` or `-` after a step, and returns the probability of `+`.

    In style `turns` (RLHFlow/Llama3.1-8B-PRM-Deepseek-Data), each step is a user turn, and the assistant has answered `+` to
    all earlier steps. In style `steps` (the built-in model), the solution is one assistant turn, and the answer takes the
    place of the next step.
    """

    answers = ("+", "-")
    hint = "use --prm with a process reward model"

    def __init__(self, style: PrmStyle = "turns") -> None:
        self._style = style
        if style == "steps":
            self.min_probability = 0.001  # where the built-in model is unsure, other tokens are as likely as both answers

    def ask(self, prompt: ChatPrompt, trace: Trace, step: Step) -> tuple[list[Segment], str]:
        if self._style == "steps":
            solution = trace.followed_by(step).written.rstrip()
            return prompt.segments(Problem("", trace.problem.question)), solution + BLANK_LINE.separator
        first, *others = [*(decision.kept.text.strip() for decision in trace.decisions), step.text.strip()]
        return prompt.conversation([f"{trace.problem.question.strip()} {first}", *others], self.answers[0]), ""

    def reward(self, weights: Sequence[float]) -> float:
        plus, minus = weights
        return plus / (plus + minus)

    def report_no_answer(self, model: str, probability: float) -> None:
        message = f"{model} does not rate steps: it answers + or - with a probability of only {probability:.2g}"
        raise ModelUnsupportedError(message, self.hint)

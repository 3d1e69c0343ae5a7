"""Rewards by a process reward model or a judge on a server: the log-probabilities of its possible answers' first tokens.

A server sends only the likeliest tokens. An answer that is not among them counts as impossible, which changes a reward by less than
`MAX_UNKNOWN`; otherwise there is an error.
"""

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.errors import ModelUnsupportedError, ProblemError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import Plain, Segment
from arbitrage_cli.inference.scheduler import RewardUpdate, StepRewards
from arbitrage_cli.inference.servers.connection import raise_failure
from arbitrage_cli.inference.servers.dialects import TextRequest, Token, Usage
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.rewards.judge import INSTRUCTIONS, SCALE, mark, question_for_judge
from arbitrage_cli.rewards.prm import SIGNS, PrmStyle, solution_for_prm, turns_for_prm
from arbitrage_cli.types import Cost, Problem, Step, Trace

MAX_UNKNOWN = 0.01
"""Of the weight of all answers, the part of those that may have been left out."""


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """A problem in a slot. Its requests carry the topic."""

    problem: Problem
    topic: str = field(default_factory=lambda: secrets.token_hex(8))


class ServedRater(ABC):
    """A `Rater` that asks a server about the steps of all requests at once."""

    waits_for_many = False
    hint = ""
    """What to do if the model does not answer."""

    def __init__(self, model: ServedModel, answers: Sequence[str], clock: Callable[[], float] = time.perf_counter) -> None:
        """ModelUnsupportedError if the server sends no log-probabilities."""
        if not model.num_alternatives:
            raise ModelUnsupportedError(
                f"{model.host.name} sends no log-probabilities, which rate steps",
                "switch them on there, or use another server",
            )
        self._model = model
        self._answers = answers
        self._clock = clock
        self._opened: dict[int, _Opened] = {}
        self._futures: dict[int, Future[None]] = {}
        self._arrived: deque[tuple[_Opened, RewardUpdate]] = deque()
        self.wait: Callable[[], None] | None = model.connection.wait

    @property
    def busy(self) -> bool:
        return bool(self._futures)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        self._opened[slot] = _Opened(problem)

    def close(self, slot: int) -> None:
        self._opened.pop(slot, None)
        if future := self._futures.pop(slot, None):
            future.cancel()

    def start(self, slot: int, request: RateSteps) -> None:
        opened = self._opened[slot]
        texts = [self._segments(opened.problem, request.trace, step) for step in request.steps]  # the server may render them
        self._futures[slot] = self._model.connection.begin(self._answer(slot, opened, texts))

    def tick(self) -> list[RewardUpdate]:
        updates = []
        while self._arrived:
            opened, arrived = self._arrived.popleft()
            if self._opened.get(arrived.slot) is opened:  # else it was closed meanwhile
                del self._futures[arrived.slot]
                updates.append(arrived)
        raise_failure(self._futures.values())
        return updates

    @abstractmethod
    def _segments(self, problem: Problem, trace: Trace, step: Step) -> list[Segment]:
        """What the model reads; its answer follows."""

    @abstractmethod
    def _reward(self, weights: Sequence[float]) -> float:
        """The reward of a step, from the probabilities of the answers."""

    async def _answer(self, slot: int, opened: "_Opened", texts: Sequence[list[Segment]]) -> None:
        began = self._clock()
        try:
            rated = [await self._rate(text, opened.topic) for text in texts]  # they share their beginning
            cost = sum((cost for _, cost in rated), Cost(prefill_seconds=self._clock() - began))
            arrived = RewardUpdate(slot, StepRewards(tuple(reward for reward, _ in rated), cost))
        except ProblemError as error:
            arrived = RewardUpdate(slot, error=error)
        self._arrived.append((opened, arrived))
        self._model.connection.notify()

    async def _rate(self, segments: Sequence[Segment], topic: str) -> tuple[float, Cost]:
        """One step's reward, and its tokens."""
        model = self._model
        prompt = await model.prompt_of(segments)
        wanted = TextRequest(model.name, prompt, 1, num_alternatives=model.num_alternatives, is_streamed=True)
        pieces = [piece async for piece in model.write(wanted, topic=topic)]
        tokens = [token for piece in pieces for token in piece.tokens]
        if not tokens or not tokens[0].alternatives:
            raise ServerRequestError(f"{model.host.name} sends no log-probabilities this time")
        usage = next((piece.usage for piece in reversed(pieces) if piece.usage), Usage(0))
        cost = Cost(prefill_tokens=usage.prompt - usage.cached, decode_tokens=1, cached_tokens=usage.cached)
        return self._reward(self._weights(tokens[0])), cost

    def _weights(self, token: Token) -> list[float]:
        """The probability of each answer. ServerRequestError if too much of them may have been left out."""
        given = {text.strip(): math.exp(value) for text, value in reversed(token.alternatives)}
        weights = [given.get(answer, 0.0) for answer in self._answers]
        unknown = weights.count(0.0) * min(given.values())
        if not sum(weights) or unknown > MAX_UNKNOWN * sum(weights):
            raise ServerRequestError(
                f"{self._model.name} does not rate this step: {', '.join(self._answers)} have a probability of {sum(weights):.2g} together",
                self.hint,
            )
        return weights


class ServedJudge(ServedRater):
    """The target as judge, as `Judge` here."""

    hint = "if it thinks first: chat_template_kwargs = { enable_thinking = false } in its pair; or use another policy"

    def __init__(self, model: ServedModel) -> None:
        super().__init__(model, SCALE)
        self._prompt = model.prompt(INSTRUCTIONS)

    def _segments(self, problem: Problem, trace: Trace, step: Step) -> list[Segment]:
        return self._prompt.segments(question_for_judge(problem, trace, step))

    def _reward(self, weights: Sequence[float]) -> float:
        return mark(weights)


class ServedProcessReward(ServedRater):
    """A causal process reward model, as `ProcessReward` here."""

    hint = "is it a process reward model? the other prm_style of its pair"

    def __init__(self, model: ServedModel, style: PrmStyle) -> None:
        super().__init__(model, SIGNS)
        self._style = style
        self._prompt = model.prompt("")

    def _segments(self, problem: Problem, trace: Trace, step: Step) -> list[Segment]:
        if self._style == "turns":
            return self._prompt.conversation(turns_for_prm(problem, trace, step), SIGNS[0])
        return [*self._prompt.segments(problem.question), Plain(solution_for_prm(trace, step))]

    def _reward(self, weights: Sequence[float]) -> float:
        plus, minus = weights
        return plus / (plus + minus)

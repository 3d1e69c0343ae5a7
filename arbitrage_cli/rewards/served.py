"""Computes rewards from the log-probabilities of a process reward model or a judge on a server.

A server sends log-probabilities only for the top tokens. An answer outside the top tokens is treated as impossible if this
changes the reward by less than `MAX_UNKNOWN`; otherwise, rating fails.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from time import perf_counter

from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.errors import ModelUnsupportedError, ProblemError, ServerRequestError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.chat_template import Plain, PromptStyle, Segment
from arbitrage_cli.inference.scheduler import RewardUpdate
from arbitrage_cli.inference.servers.chat import Chat
from arbitrage_cli.inference.servers.connection import Pending
from arbitrage_cli.inference.servers.dialects import Piece, TextRequest, Token, Usage
from arbitrage_cli.inference.servers.model import ServedModel
from arbitrage_cli.rewards.questions import Question
from arbitrage_cli.types import Cost, Problem, Step, Trace

MAX_UNKNOWN = 0.01  # maximum share of the missing answers in the total weight


class ServedRater:
    """A `Rater` that sends all requests to a server concurrently."""

    waits_for_many = False

    def __init__(self, model: ServedModel, question: Question) -> None:
        if not model.num_alternatives or isinstance(model.dialect, Chat):
            message = f"{model.host.name} cannot rate steps, which requires log-probabilities and /completions"
            raise ModelUnsupportedError(message, "enable them on the server, or use another server")
        self._model = model
        self._question = question
        self._prompt = model.prompt(PromptStyle(question.instructions))
        self._topics: dict[int, str] = {}  # by slot
        self._pending: Pending[RewardUpdate] = Pending(model.connection)
        self.wait: Callable[[], None] | None = model.connection.wait

    @property
    def busy(self) -> bool:
        return bool(self._pending)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        self._topics[slot] = secrets.token_hex(8)

    def close(self, slot: int) -> None:
        self._topics.pop(slot, None)
        self._pending.cancel(slot)

    def start(self, slot: int, request: RateSteps) -> None:
        texts = [self._segments(request.trace, step) for step in request.steps]  # may send requests to the server
        self._pending.begin(slot, self._answer(slot, texts))

    def tick(self) -> list[RewardUpdate]:
        return self._pending.results()

    def _segments(self, trace: Trace, step: Step) -> list[Segment]:
        segments, reply = self._question.ask(self._prompt, trace, step)
        return [*segments, Plain(reply)] if reply else segments

    async def _answer(self, slot: int, texts: Sequence[list[Segment]]) -> RewardUpdate:
        began = perf_counter()
        try:
            rated = [await self._rate(text, self._topics[slot]) for text in texts]  # in order, for the prefix cache
        except ProblemError as error:
            return RewardUpdate(slot, error=error)
        cost = sum((cost for _, cost in rated), Cost(prefill_seconds=perf_counter() - began))
        return RewardUpdate(slot, tuple(reward for reward, _ in rated), cost)

    async def _rate(self, segments: Sequence[Segment], topic: str) -> tuple[float, Cost]:
        model = self._model
        prompt = await model.prompt_of(segments, topic)
        request = TextRequest(model.name, prompt, 1, num_alternatives=model.num_alternatives, is_streamed=True)
        pieces: list[Piece] = []
        await model.write(request, pieces.append, pieces.clear, topic=topic)
        tokens = [token for piece in pieces for token in piece.tokens]
        if not tokens or not tokens[0].alternatives:
            raise ServerRequestError(f"{model.host.name} sent no log-probabilities in a response")
        usage = next((piece.usage for piece in reversed(pieces) if piece.usage), Usage(prompt=0))
        cached = usage.cached or 0
        cost = Cost(prefill_tokens=usage.prompt - cached, decode_tokens=1, cached_tokens=cached)
        return self._question.reward(self._weights(tokens[0])), cost

    def _weights(self, token: Token) -> list[float]:
        known = {text.strip(): math.exp(value) for text, value in reversed(token.alternatives)}
        weights = [known.get(answer, 0.0) for answer in self._question.answers]
        unknown = weights.count(0.0) * min(known.values())
        if not sum(weights) or unknown > MAX_UNKNOWN * sum(weights):
            answers = f"the total probability of {', '.join(self._question.answers)} is {sum(weights):.2g}"
            raise ServerRequestError(f"{self._model.name} does not rate this step: {answers}", self._question.hint)
        return weights

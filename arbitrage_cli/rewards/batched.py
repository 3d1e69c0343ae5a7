"""What process reward model and judge share: a model reads steps, and the first token of its answer is the reward.

The steps of all waiting problems are read in one batch. There are no default rewards: without an answer there is an error. Knows
no policy and no terminal.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np

from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, ProblemError
from arbitrage_cli.inference.backend import Backend, Deadline, Floats, earlier
from arbitrage_cli.inference.checkpoints import Checkpoints
from arbitrage_cli.inference.scheduler import RewardUpdate, StepRewards
from arbitrage_cli.types import Cost, Problem, Step, Trace

Clock = Callable[[], float]

MIN_SHARE = 0.1
"""Mean probability of all possible answers together; below it a model does not answer the question."""

ENOUGH_ANSWERS = 8  # from which the mean is trusted


class AnswerShare:
    """The mean probability that a model gives to all possible answers together: whether it answers the question at all."""

    def __init__(self, answers: Sequence[int], least: float) -> None:
        self._answers = answers
        self._least = least
        self._sum, self._count = 0.0, 0

    def add(self, logits: Floats) -> None:
        """Count n answers, by their logits (n, n_vocab)."""
        wide = logits.astype(np.float64)
        weights = np.exp(wide - wide.max(axis=1, keepdims=True))
        self._sum += float((weights[:, self._answers].sum(axis=1) / weights.sum(axis=1)).sum())
        self._count += len(logits)

    @property
    def mean(self) -> float:
        return self._sum / self._count

    @property
    def is_too_low(self) -> bool:
        """Never after a few answers only: one odd step does not decide."""
        return self._count >= ENOUGH_ANSWERS and self.mean < self._least


class BatchRater(ABC):
    """A `Rater` that rates the steps of all waiting problems in one batch.

    It keeps in its cache, from `first_sequence` on, what the next text of a slot may have in common with the last one.
    """

    waits_for_many = True
    wait = None

    def __init__(self, backend: Backend, first_sequence: int, clock: Clock) -> None:
        self._backend = backend
        self._memory = Checkpoints(backend)
        self._first = first_sequence
        self._clock = clock
        self._problems: dict[int, Problem] = {}
        self._deadlines: dict[int, Deadline | None] = {}
        self._requests: dict[int, RateSteps] = {}
        self._held: dict[int, list[int]] = {}  # by slot: the token ids in its cache

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        self._problems[slot], self._deadlines[slot] = problem, deadline

    def close(self, slot: int) -> None:
        if slot in self._held:
            self._memory.cut(self._first + slot, self._held.pop(slot), 0)
        for by_slot in (self._problems, self._deadlines, self._requests):
            by_slot.pop(slot, None)

    def start(self, slot: int, request: RateSteps) -> None:
        self._requests[slot] = request

    def tick(self) -> list[RewardUpdate]:
        requests = list(self._requests.items())
        self._requests.clear()
        return self._try(requests)

    @abstractmethod
    def _ids(self, slot: int, trace: Trace, step: Step) -> list[int]:
        """The text that the model reads, as token ids."""

    @abstractmethod
    def _rewards(self, logits: Floats) -> list[float]:
        """The rewards of n steps, from the logits (n, n_vocab) of the model's answers."""

    def _try(self, requests: Sequence[tuple[int, RateSteps]]) -> list[RewardUpdate]:
        """Answer all requests at once. If a problem among them fails, each alone, so that only that one ends."""
        try:
            found = self._rate(requests)
        except ProblemError as error:
            if len(requests) > 1:
                return [update for request in requests for update in self._try([request])]
            return [RewardUpdate(requests[0][0], error=error)]
        return [RewardUpdate(slot, rewards) for (slot, _), rewards in zip(requests, found, strict=True)]

    def _rate(self, requests: Sequence[tuple[int, RateSteps]]) -> list[StepRewards]:
        """Grade the first step of every request in one batch, then the second: the steps of a problem share one sequence."""
        values: list[list[float]] = [[] for _ in requests]
        costs = [Cost() for _ in requests]
        for number in range(max(len(request.steps) for _, request in requests)):
            chosen = [index for index, (_, request) in enumerate(requests) if number < len(request.steps)]
            texts = {slot: self._ids(slot, r.trace, r.steps[number]) for slot, r in (requests[index] for index in chosen)}
            logits, cost = self._logits(texts)
            for index, reward, share in zip(chosen, self._rewards(logits), _shares(cost, len(chosen)), strict=True):
                values[index].append(reward)
                costs[index] += share
        return [StepRewards(tuple(rewards), cost) for rewards, cost in zip(values, costs, strict=True)]

    def _logits(self, texts: Mapping[int, list[int]]) -> tuple[Floats, Cost]:
        """Logits (n, n_vocab) of the token after each of n texts, token ids by slot. Their last tokens are one batch.

        Errors: ContextFullError, TimedOutError, ComputeError.
        """
        began = self._clock()
        num_read = sum(self._read(slot, ids) for slot, ids in texts.items())
        read = self._clock()
        logits = self._backend.decode(
            [self._first + slot for slot in texts],
            [len(ids) - 1 for ids in texts.values()],
            [ids[-1] for ids in texts.values()],
            deadline=reduce(earlier, map(self._deadlines.get, texts)),
        )
        self._held |= texts
        if np.isnan(logits).any():
            raise ComputeError(
                f"{self._backend.card.name} computed values that are not numbers", "the model file may be damaged"
            )
        return logits, Cost(num_read, read - began, len(texts), self._clock() - read)

    def _read(self, slot: int, ids: list[int]) -> int:
        """Read all but the last token, unless the cache holds them. Returns how many had to be read."""
        card = self._backend.card
        if len(ids) > card.context_size:
            raise ContextFullError(
                f"the solution with the step to rate has {len(ids)} tokens; the context of {card.name} holds {card.context_size}",
                "give a larger --ctx",
            )
        held, sequence = self._held.setdefault(slot, []), self._first + slot
        most = min(len(held), len(ids) - 1)
        common = next((index for index in range(most) if held[index] != ids[index]), most)
        if common < len(held):
            self._memory.cut(sequence, held, common)
        num_held = len(held)
        for end in (common, len(ids) - 1):  # the next text will have at least as much in common
            if missing := ids[len(held) : end]:
                self._memory.read(sequence, held, missing, self._deadlines[slot])
            if end == common:
                self._memory.save(sequence, common)
        return len(ids) - 1 - num_held


def single_token(backend: Backend, text: str) -> int:
    """The id of a text that must be one token. ModelUnsupportedError if it is not."""
    ids = backend.tokenizer.tokenize(text, continues=True)
    if len(ids) != 1:
        raise ModelUnsupportedError(
            f"{backend.card.name} cannot rate steps: its vocabulary does not have '{text}' as one token",
            "use another model",
        )
    return ids[0]


def _shares(cost: Cost, num_steps: int) -> list[Cost]:
    """The cost of a batch, divided equally among its steps; the first gets the remaining tokens."""
    each = Cost(
        cost.prefill_tokens // num_steps,
        cost.prefill_seconds / num_steps,
        cost.decode_tokens // num_steps,
        cost.decode_seconds / num_steps,
    )
    remainder = Cost(prefill_tokens=cost.prefill_tokens % num_steps, decode_tokens=cost.decode_tokens % num_steps)
    return [each + remainder, *[each] * (num_steps - 1)]

"""How good a step is, as a number from 0 to 1, by whoever reads it: a process reward model, or the target as judge.

Raters for the problems of a scheduler. Neither has a default value: a reward that cannot be had is an error. Steps are read for
all problems that wait, in one batch. Knows no policy and no terminal.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Literal

import numpy as np

from arbitrage_cli.arbitrage import ScoreSteps
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, ProblemError
from arbitrage_cli.inference.backend import Backend, Floats, Output
from arbitrage_cli.inference.kv_cache import chat_prompt, prompt_ids
from arbitrage_cli.inference.scheduler import Rated, Ratings
from arbitrage_cli.inference.step_text import SEPARATOR
from arbitrage_cli.types import Cost, Limits, Problem, Step, Trace

PrmStyle = Literal["turns", "steps"]

log = logging.getLogger("arbitrage.rewards")

JUDGE_SCALE = "0123456789"

LEAST_SHARE = 0.1
"""Of the probability of all tokens, on average: a model that gives less to those it may answer with says something else."""

ENOUGH_ANSWERS = 8  # to know what a model answers

LEAST_SHARE_OF_STEPS = 0.001
"""Of a process reward model in style `steps`, which may have learned the odds of the two only: the built-in one, where it cannot
tell, gives both no more than any other of its 512 tokens."""

SURELY_NONE = 0.001
"""The same of the two first answers, however a model is asked: those that rate no steps give less, to anything."""

FIRST_QUESTION = Problem("", "What is 2 + 3?")
FIRST_STEPS = ("2 + 3 = 5.", "2 + 3 = 7.")
"""Of which a process reward model thinks something, whatever it was trained on."""

JUDGE_INSTRUCTIONS = (
    "You check one step of a solution. Reply with a single digit from 0 to 9: 0 if the step is wrong or does not help, "
    "9 if it is right and takes the solution further."
)


class _Reader:
    """What a model says after a text, with as much of the text kept in its cache from one time to the next as it can be."""

    def __init__(self, backend: Backend, first_sequence: int, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._first = first_sequence
        self._clock = clock
        self._held: dict[int, list[int]] = {}

    def forget(self, slot: int) -> None:
        if self._held.pop(slot, None) is not None:
            self._backend.drop(self._first + slot, 0)

    def logits(self, texts: Sequence[tuple[int, list[int]]]) -> tuple[Floats, Cost]:
        """Logits (n, n_vocab) of the token after each of n texts, one a slot, as token ids; all last tokens in one batch.

        Errors: ContextFullError, ComputeError.
        """
        began = self._clock()
        num_read = sum(self._read(slot, wanted) for slot, wanted in texts)
        read = self._clock()
        output: Output = self._backend.decode(
            [self._first + slot for slot, _ in texts],
            [len(wanted) - 1 for _, wanted in texts],
            [wanted[-1] for _, wanted in texts],
        )
        for slot, wanted in texts:
            self._held[slot] = wanted
        if np.isnan(output.logits).any():
            raise ComputeError(
                f"{self._backend.card.name} computed values that are not numbers", "the model file may be damaged"
            )
        return output.logits, Cost(num_read, read - began, len(texts), self._clock() - read)

    def _read(self, slot: int, wanted: list[int]) -> int:
        """Have all but the last token in the cache; returns how many had to be read."""
        if len(wanted) > self._backend.card.context_size:
            raise ContextFullError(
                f"the step to be rated stands after {len(wanted)} tokens; the context of {self._backend.card.name} holds "
                f"{self._backend.card.context_size}",
                "give a larger --ctx",
            )
        held = self._held.get(slot, [])
        most = min(len(held), len(wanted) - 1)
        common = next((index for index in range(most) if held[index] != wanted[index]), most)
        if common < len(held):
            self._backend.drop(self._first + slot, common)
        missing = wanted[common:-1]
        if missing:
            self._backend.read(self._first + slot, common, missing)
        self._held[slot] = wanted[:-1]
        return len(missing)


class _Answers:
    """Whether a model answers with one of some tokens at all, by its logits; how likely each is among them is another matter."""

    def __init__(self, tokens: Sequence[int], least: float) -> None:
        self._tokens = tokens
        self._least = least
        self._sum, self._count = 0.0, 0

    def add(self, logits: Floats) -> None:
        """Count the answers of which these are the logits (n, n_vocab)."""
        all_of_them = logits.astype(np.float64)
        likely = np.exp(all_of_them - all_of_them.max(axis=1, keepdims=True))
        self._sum += float((likely[:, self._tokens].sum(axis=1) / likely.sum(axis=1)).sum())
        self._count += len(logits)

    @property
    def share(self) -> float:
        """Their mean probability so far."""
        return self._sum / self._count

    @property
    def are_rare(self) -> bool:
        """Known after a few: whichever comes first, one odd step ends no run."""
        return self._count >= ENOUGH_ANSWERS and self.share < self._least


class _StepReader(ABC):
    """A rater that reads the step, for many problems in one batch: it waits for them."""

    waits_for_many = True

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._problems: dict[int, Problem] = {}
        self._wishes: dict[int, ScoreSteps] = {}

    @property
    def busy(self) -> bool:
        return bool(self._wishes)

    def open(self, slot: int, problem: Problem) -> None:
        self._problems[slot] = problem

    def close(self, slot: int) -> None:
        self._reader.forget(slot)
        self._problems.pop(slot, None)
        self._wishes.pop(slot, None)

    def start(self, slot: int, request: ScoreSteps) -> None:
        self._wishes[slot] = request

    def tick(self) -> list[Rated]:
        requests = list(self._wishes.items())
        self._wishes.clear()
        return self._try(requests)

    def _try(self, requests: Sequence[tuple[int, ScoreSteps]]) -> list[Rated]:
        """Rate all wishes at once. If a problem among them fails, each alone, so that only that one ends."""
        try:
            found = self._rate(requests)
        except ProblemError as error:
            if len(requests) > 1:
                return [rated for request in requests for rated in self._try([request])]
            return [Rated(requests[0][0], error=error)]
        return [Rated(slot, ratings) for (slot, _), ratings in zip(requests, found, strict=True)]

    def _rate(self, requests: Sequence[tuple[int, ScoreSteps]]) -> list[Ratings]:
        """The first step of every wish at once, then the second: two steps of a problem share one sequence."""
        rewards: list[list[float]] = [[] for _ in requests]
        costs = [Cost() for _ in requests]
        for number in range(max(len(request.steps) for _, request in requests)):
            chosen = [index for index, (_, request) in enumerate(requests) if number < len(request.steps)]
            steps = [(requests[index][0], requests[index][1].trace, requests[index][1].steps[number]) for index in chosen]
            values, cost = self._rate_round(steps)
            for index, value, share in zip(chosen, values, _shares(cost, len(chosen)), strict=True):
                rewards[index].append(value)
                costs[index] += share
        return [Ratings(tuple(values), cost) for values, cost in zip(rewards, costs, strict=True)]

    @abstractmethod
    def _rate_round(self, steps: Sequence[tuple[int, Trace, Step]]) -> tuple[list[float], Cost]:
        """The rewards of one step a slot, and what they cost together."""


class ProcessReward(_StepReader):
    """A causal process reward model: after each step it says `+` or `-`; the reward is the share of `+` of the two.

    How it is asked is a matter of how it was trained, its `style`. `turns` is that of RLHFlow/Llama3.1-8B-PRM-Deepseek-Data:
    the question and the first step are one turn of the user, every further step is another, and the assistant answered each
    earlier one with `+`. `steps` is that of the built-in model: the solution as the assistant writes it, and the verdict where
    the next step would begin.
    """

    def __init__(
        self, backend: Backend, style: PrmStyle = "turns", *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(_Reader(backend, 0, clock))
        self._backend = backend
        self._style = style
        self._prompt = chat_prompt(backend, "")
        self._verdicts = [_single_token(backend, sign) for sign in "+-"]
        self._answers = _Answers(self._verdicts, LEAST_SHARE_OF_STEPS if style == "steps" else LEAST_SHARE)

    def check(self) -> None:
        """Ask it of a right step and a wrong one, before anything is made of its rewards. ModelUnsupportedError if it rates none.

        A context that does not even hold those is left to the problems.
        """
        answers = _Answers(self._verdicts, SURELY_NONE)
        trace = Trace(FIRST_QUESTION, Limits())
        self.open(0, FIRST_QUESTION)
        with suppress(ContextFullError):
            for text in FIRST_STEPS:
                step = Step("draft", text, 1, Cost(), "separator")
                answers.add(self._reader.logits([(0, self._ids(0, trace, step))])[0])
            if answers.share < SURELY_NONE:
                raise self._refusal(answers.share)
        self.close(0)

    def _rate_round(self, steps: Sequence[tuple[int, Trace, Step]]) -> tuple[list[float], Cost]:
        texts = [(slot, self._ids(slot, trace, step)) for slot, trace, step in steps]
        logits, cost = self._reader.logits(texts)
        self._answers.add(logits)
        if self._answers.are_rare:
            raise self._refusal(self._answers.share)
        good, bad = self._verdicts
        return [1.0 / (1.0 + math.exp(min(700.0, float(row[bad] - row[good])))) for row in logits], cost

    def _refusal(self, share: float) -> ModelUnsupportedError:
        other = "turns" if self._style == "steps" else "steps"
        return ModelUnsupportedError(
            f"{self._backend.card.name} does not rate steps: it says + or - with a probability of {share:.2g}",
            f"give a process reward model: --prm MODEL; or, if it is one, ask it in the other way: --prm-style {other}",
        )

    def _ids(self, slot: int, trace: Trace, step: Step) -> list[int]:
        if self._style == "steps":
            written = (trace.text + step.text).rstrip() + SEPARATOR
            asked = prompt_ids(self._backend, self._prompt.segments(self._problems[slot].question))
            parts = (self._backend.tokenize(part, continues=True) for part in self._prompt.fragments(written))
            return [*asked, *chain.from_iterable(parts)]
        texts = [*(decision.kept.text.strip() for decision in trace.decisions), step.text.strip()]
        texts[0] = f"{self._problems[slot].question.strip()} {texts[0]}"
        return prompt_ids(self._backend, self._prompt.conversation(texts, "+"))


class Judge(_StepReader):
    """The target's own mark for a step, as in SpecReason (arXiv 2504.07891): a digit from 0 to 9, weighted by its probability.

    It uses the target's model with sequences of its own, from `first_sequence` on.
    """

    def __init__(self, backend: Backend, first_sequence: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(_Reader(backend, first_sequence, clock))
        self._backend = backend
        self._prompt = chat_prompt(backend, JUDGE_INSTRUCTIONS)
        self._digits = [_single_token(backend, digit) for digit in JUDGE_SCALE]
        self._answers = _Answers(self._digits, LEAST_SHARE)
        self._has_warned = False

    def _rate_round(self, steps: Sequence[tuple[int, Trace, Step]]) -> tuple[list[float], Cost]:
        texts = [
            (slot, prompt_ids(self._backend, self._prompt.segments(_sheet(self._problems[slot], trace, step))))
            for slot, trace, step in steps
        ]
        logits, cost = self._reader.logits(texts)
        self._answers.add(logits)
        if self._answers.are_rare and not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s seldom answers with a mark (its digits have a probability of %.2g), so its marks may be noise; one that thinks "
                "first may be told not to: --chat-template-kwargs '{\"enable_thinking\": false}'",
                self._backend.card.name,
                self._answers.share,
            )
        marks = logits[:, self._digits].astype(float)
        weights = [[math.exp(mark - max(row)) for mark in row] for row in marks.tolist()]
        means = [sum(index * weight for index, weight in enumerate(row)) / sum(row) for row in weights]
        return [mean / (len(JUDGE_SCALE) - 1) for mean in means], cost


def _shares(cost: Cost, among: int) -> list[Cost]:
    """What was read and decoded in a batch, divided equally; tokens that are left over are the first one's."""
    each = Cost(
        cost.prefill_tokens // among, cost.prefill_seconds / among, cost.decode_tokens // among, cost.decode_seconds / among
    )
    left_over = Cost(prefill_tokens=cost.prefill_tokens % among, decode_tokens=cost.decode_tokens % among)
    return [each + left_over, *[each] * (among - 1)]


def _sheet(problem: Problem, trace: Trace, step: Step) -> str:
    """What the judge reads: the step last, so that what stands before it is read once."""
    return f"Problem: {problem.question.strip()}\n\nSolution so far:\n\n{trace.text.strip()}\n\nNext step:\n\n{step.text.strip()}"


def _single_token(backend: Backend, text: str) -> int:
    """The id of a text that must be one token. ModelUnsupportedError if it is not."""
    ids = backend.tokenize(text, continues=True)
    if len(ids) != 1:
        raise ModelUnsupportedError(
            f"{backend.card.name} cannot rate steps: '{text}' is not one token of its vocabulary", "use another model for it"
        )
    return ids[0]

"""Computes rewards with a process reward model, in one batch for the steps of all waiting problems."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from statistics import fmean
from typing import Literal

import numpy as np

from arbitrage_cli.arbitrage import RateSteps, WriteStep
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, ProblemError
from arbitrage_cli.inference.backend import Backend, Clock, Deadline, Floats
from arbitrage_cli.inference.cached_sequence import CachedSequence, decode
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle, Segment
from arbitrage_cli.inference.kv_cache import chat_prompt, prompt_ids
from arbitrage_cli.inference.scheduler import RewardUpdate
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import Cost, Limits, Message, Problem, Step, Trace

TEST_QUESTION, TEST_STEPS = Problem("", "What is 2 + 3?"), ("2 + 3 = 5.", "2 + 3 = 7.")


PrmStyle = Literal["turns", "steps"]
"""The prompt of a process reward model, which answers `+` or `-` after a step.

In style `turns` (RLHFlow/Llama3.1-8B-PRM-Deepseek-Data), each step is a user turn, and the assistant has answered `+` to all
earlier steps. In style `steps` (the built-in model), the solution is one assistant turn, and the answer takes the place of
the next step.
"""
ANSWERS = ("+", "-")
MIN_PROBABILITY: Mapping[PrmStyle, float] = {"turns": 0.1, "steps": 0.001}
"""The minimum mean probability of both answers about `TEST_STEPS`. The built-in model may find other tokens as likely."""


class PrmRater:
    """A `Rater` that asks a process reward model about the steps of all waiting problems in one batch.

    The reward is the probability of `+` relative to `-`. Slot n uses sequence n of the backend and keeps its prefix for reuse.
    """

    waits_for_many = True
    wait = None

    def __init__(self, backend: Backend, style: PrmStyle = "turns", *, clock: Clock = time.perf_counter) -> None:
        self._backend = backend
        self._style: PrmStyle = style
        self._answers = [_single_token(backend, answer) for answer in ANSWERS]
        self._prompt = chat_prompt(backend, PromptStyle(""))
        self._clock = clock
        self._requests: dict[int, RateSteps] = {}
        self._sequences: dict[int, CachedSequence] = {}  # by slot

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        self._sequences[slot] = CachedSequence(self._backend, slot)
        self._sequences[slot].deadline = deadline

    def close(self, slot: int) -> None:
        if sequence := self._sequences.pop(slot, None):
            sequence.cut(0)
        self._requests.pop(slot, None)

    def start(self, slot: int, request: RateSteps) -> None:
        self._requests[slot] = request

    def recall(self, slot: int, request: WriteStep) -> Step | None:
        return None

    def tick(self) -> list[RewardUpdate]:
        requests = list(self._requests.items())
        self._requests.clear()
        return self._try(requests)

    def check(self) -> None:
        """Rate a correct and a wrong step as a test.

        Raises ModelUnsupportedError if the model does not answer.
        """
        trace = Trace(TEST_QUESTION, Limits())
        self.open(0, TEST_QUESTION)
        with suppress(ContextFullError):
            steps = [Step("draft", text, 1, Cost(), "separator") for text in TEST_STEPS]
            probability = fmean(self._answer_probability(self._logits({0: self._ids(trace, step)})[0][0]) for step in steps)
            if probability < MIN_PROBABILITY[self._style]:
                name = self._backend.card.name
                message = f"{name} does not rate steps: it answers + or - with a probability of only {probability:.2g}"
                raise ModelUnsupportedError(message, "use --prm with a process reward model")
        self.close(0)

    def _ids(self, trace: Trace, step: Step) -> list[int]:
        segments, reply = ask(self._prompt, trace, step, self._style)
        tokenize = self._backend.tokenizer.tokenize
        parts = (tokenize(part, continues=True) for part in self._prompt.fragments(reply))
        return [*prompt_ids(self._backend, segments), *chain.from_iterable(parts)]

    def _answer_probability(self, logits: Floats) -> float:
        """Return the total probability of both answers, given logits (n_vocab,)."""
        weights = np.exp(logits.astype(np.float64) - logits.max())
        return float(weights[self._answers].sum() / weights.sum())

    def _rewards(self, logits: Floats) -> list[float]:
        return [1 / (1 + math.exp(minus - plus)) for plus, minus in logits[:, self._answers].astype(float).tolist()]

    def _try(self, requests: Sequence[tuple[int, RateSteps]]) -> list[RewardUpdate]:
        """Answer all requests in one batch. If one problem makes the batch fail, answer each request separately."""
        try:
            return self._rate(requests)
        except ProblemError as error:
            if len(requests) > 1:
                return [update for request in requests for update in self._try([request])]
            return [RewardUpdate(requests[0][0], error=error)]

    def _rate(self, requests: Sequence[tuple[int, RateSteps]]) -> list[RewardUpdate]:
        """Rate the first steps of all requests in one batch, then the second steps.

        Both steps of a request share a sequence.
        """
        rewards: list[list[float]] = [[] for _ in requests]
        costs = [Cost() for _ in requests]
        for number in range(max(len(request.steps) for _, request in requests)):
            chosen = [index for index, (_, request) in enumerate(requests) if number < len(request.steps)]
            texts = {slot: self._ids(r.trace, r.steps[number]) for slot, r in (requests[index] for index in chosen)}
            logits, spent = self._logits(texts)
            for index, reward, cost in zip(chosen, self._rewards(logits), spent, strict=True):
                rewards[index].append(reward)
                costs[index] += cost
        rated = zip(requests, rewards, costs, strict=True)
        return [RewardUpdate(slot, tuple(found), cost) for (slot, _), found, cost in rated]

    def _logits(self, texts: Mapping[int, list[int]]) -> tuple[Floats, list[Cost]]:
        """Return the next-token logits, of shape (n, n_vocab), for n texts, and their costs. They share the time equally.

        `texts` maps slots to token ids.
        """
        began = self._clock()
        counts = [self._read(slot, ids) for slot, ids in texts.items()]
        read = self._clock()
        logits = decode([(self._sequences[slot], ids[-1:]) for slot, ids in texts.items()])
        for slot, ids in texts.items():
            self._sequences[slot].held.append(ids[-1])
        if np.isnan(logits).any():
            message = f"{self._backend.card.name} computed invalid logits (NaN)"
            raise ComputeError(message, "the model file may be damaged")
        reading, decoding = (read - began) / len(texts), (self._clock() - read) / len(texts)
        return logits, [Cost(count, reading, 1, decoding) for count in counts]

    def _read(self, slot: int, ids: list[int]) -> int:
        """Prefill all uncached tokens except the last. Return the number of prefilled tokens."""
        card = self._backend.card
        if len(ids) > card.context_size:
            sizes = f"{len(ids)} tokens; the context of {card.name} has {card.context_size}"
            raise ContextFullError(f"the solution and the step to rate have {sizes}", "use a larger --ctx")
        sequence = self._sequences[slot]
        common = sequence.keep_common(ids)
        num_held = len(sequence.held)
        for end in (common, len(ids) - 1):  # the next text shares at least this prefix
            if missing := ids[len(sequence.held) : end]:
                sequence.read(missing)
            if end == common:
                sequence.save()
        return len(ids) - 1 - num_held


def ask(prompt: ChatPrompt, trace: Trace, step: Step, style: PrmStyle) -> tuple[list[Segment], str]:
    """Return the prompt for a step, and the part of the reply that precedes the answer."""
    if style == "steps":
        solution = trace.followed_by(step).written.rstrip()
        return prompt.segments(Problem("", trace.problem.question)), solution + BLANK_LINE.separator
    first, *others = [*(decision.kept.text.strip() for decision in trace.decisions), step.text.strip()]
    *rated, last = f"{trace.problem.question.strip()} {first}", *others
    turns = [turn for text in rated for turn in (Message("user", text), Message("assistant", ANSWERS[0]))]
    return prompt.segments(Problem("", last, tuple(turns))), ""


def _single_token(backend: Backend, text: str) -> int:
    ids = backend.tokenizer.tokenize(text, continues=True)
    if len(ids) != 1:
        message = f"{backend.card.name} cannot rate steps: '{text}' is not a single token of its vocabulary"
        raise ModelUnsupportedError(message, "use another model")
    return ids[0]

"""Computes rewards with a process reward model, or from rollouts.

In a rollout, the target completes the solution after a rated step, and the answer is graded.
"""

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import chain
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

from arbitrage_cli.arbitrage import Flow, RateSteps, WriteStep
from arbitrage_cli.errors import ComputeError, ContextFullError, ModelUnsupportedError, ProblemError
from arbitrage_cli.inference.backend import Backend, Clock, Deadline, Floats
from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle, Segment
from arbitrage_cli.inference.kv_cache import CachedSequence, chat_prompt, decode, prompt_ids
from arbitrage_cli.inference.scheduler import RewardUpdate
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.types import Cost, Decision, Limits, Message, Phase, Problem, Step, Trace

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

MAX_LOG_ODDS = 700.0  # of a step being wrong; `math.exp` fails above


class PrmRater:
    """A `Rater` that asks a process reward model about one step after another.

    The reward is the probability of `+` relative to `-`. Slot n uses sequence n of the backend and keeps its prefix for reuse.
    """

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

    def tick(self) -> list[RewardUpdate]:
        requests = self._requests
        self._requests = {}
        return [self._rate(slot, request) for slot, request in requests.items()]

    def _rate(self, slot: int, request: RateSteps) -> RewardUpdate:
        rewards = []
        total = Cost()
        try:
            for step in request.steps:
                logits, cost = self._logits(slot, request.trace, step)
                rewards.append(self._reward(logits))
                total += cost
        except ProblemError as error:
            return RewardUpdate(slot, cost=total, error=error)
        return RewardUpdate(slot, tuple(rewards), total)

    def check(self) -> None:
        """Rate a correct and a wrong step as a test.

        Raises ModelUnsupportedError if the model does not answer.
        """
        trace = Trace(TEST_QUESTION, Limits())
        self.open(0, TEST_QUESTION)
        with suppress(ContextFullError):
            steps = [Step("draft", text, 1, Cost(), "separator") for text in TEST_STEPS]
            probability = fmean(self._answer_probability(self._logits(0, trace, step)[0]) for step in steps)
            if probability < MIN_PROBABILITY[self._style]:
                name = self._backend.card.name
                message = f"{name} does not rate steps: it answers + or - with a probability of only {probability:.2g}"
                raise ModelUnsupportedError(message, "use --prm with a process reward model")
        self.close(0)

    def _answer_probability(self, logits: Floats) -> float:
        """Return the total probability of both answers, given logits (n_vocab,)."""
        weights = np.exp(logits.astype(np.float64) - logits.max())
        return float(weights[self._answers].sum() / weights.sum())

    def _reward(self, logits: Floats) -> float:
        plus, minus = logits[self._answers].astype(float).tolist()
        return 1 / (1 + math.exp(min(minus - plus, MAX_LOG_ODDS)))

    def _logits(self, slot: int, trace: Trace, step: Step) -> tuple[Floats, Cost]:
        """Return the logits (n_vocab,) of the token that judges a step, and the cost of computing them."""
        sequence = self._sequences[slot]
        ids = self._ids(trace, step)
        began = self._clock()
        num_read = self._read(sequence, ids)
        read = self._clock()
        (logits,) = decode([(sequence, ids[-1:])])
        sequence.held.append(ids[-1])
        if np.isnan(logits).any() or not np.isfinite(logits[self._answers]).all():
            message = f"{self._backend.card.name} computed non-finite logits"
            raise ComputeError(message, "the model file may be damaged")
        return logits, Cost(num_read, read - began, 1, self._clock() - read)

    def _ids(self, trace: Trace, step: Step) -> list[int]:
        segments, reply = ask(self._prompt, trace, step, self._style)
        tokenize = self._backend.tokenizer.tokenize
        parts = (tokenize(part, continues=True) for part in self._prompt.fragments(reply))
        return [*prompt_ids(self._backend, segments), *chain.from_iterable(parts)]

    def _read(self, sequence: CachedSequence, ids: list[int]) -> int:
        """Prefill all uncached tokens except the last. Return the number of prefilled tokens."""
        card = self._backend.card
        if len(ids) > card.context_size:
            sizes = f"{len(ids)} tokens; the context of {card.name} has {card.context_size}"
            raise ContextFullError(f"the solution and the step to rate have {sizes}", "use a larger --ctx")
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


# --- rollouts


class Prefix(NamedTuple):
    """All that the target's next step depends on, except its token limit."""

    digest: bytes  # of the text so far
    phase: Phase  # of the next step
    is_forced: bool  # whether thinking reached its budget


def _prefix(trace: Trace) -> Prefix:
    is_forced = any(decision.kept.stop == "think_budget" for decision in trace.decisions)
    text = f"{trace.thoughts}\0{trace.text}".encode("utf-8", "surrogatepass")
    return Prefix(hashlib.sha256(text).digest(), trace.phase, is_forced)


class Continuation(NamedTuple):
    """The target's n steps until a solution ended, and the n limits returned by `Trace.next_budget`."""

    steps: Sequence[Step]
    budgets: Sequence[tuple[int, bool]]
    is_right: bool

    def follows(self, trace: Trace) -> bool:
        """Return whether the target would write the same steps after this trace, which has the same prefix.

        Equal texts may differ in their numbers of tokens and steps. A step would be the same if its token limit is the same,
        or if the step ended before it reached a limit.
        """
        whole = Trace(trace.problem, trace.limits, list(trace.decisions))
        for step, budget in zip(self.steps, self.budgets, strict=True):
            limit = whole.next_budget()
            ends_itself = step.stop not in ("budget", "think_budget") and step.num_tokens < limit[0]
            if whole.finished or not (limit == budget or ends_itself):
                return False
            whole.add(Decision(kept=step))
        return whole.finished


class Continuations:
    """The target's continuations of one problem's traces, greedy in `collect`, and whether they reach the right answer.

    A continuation is written once. It is known for every prefix on its path, unless a limit would end it elsewhere.
    """

    def __init__(self, is_right: Callable[[str], bool]) -> None:
        self._is_right = is_right
        self._known: dict[Prefix, list[Continuation]] = defaultdict(list)

    def after(self, trace: Trace) -> Generator[WriteStep, Any, tuple[Sequence[Step], bool]]:
        """Return the target's steps until the solution ends, and whether the solution is right."""
        for known in self._known[_prefix(trace)]:
            if known.follows(trace):
                return known.steps, known.is_right
        whole = Trace(trace.problem, trace.limits, list(trace.decisions))
        steps: list[Step] = []
        budgets: list[tuple[int, bool]] = []
        prefixes = [_prefix(whole)]
        while not whole.finished:
            budgets.append(whole.next_budget())
            step: Step = yield WriteStep("target", whole)
            whole.add(Decision(kept=step))
            steps.append(step)
            prefixes.append(_prefix(whole))
        is_right = self._is_right(whole.text)
        for index, prefix in enumerate(prefixes):
            self._known[prefix].append(Continuation(steps[index:], budgets[index:], is_right))
        return steps, is_right


def with_rollouts(flow: Flow, continuations: Continuations) -> Flow:
    """Yield a flow's requests. A step's reward is 1 if the target's continuation of the step is right, as in Math-Shepherd.

    The steps of the continuations are added to the trace's rollouts.
    """
    answer: Any = None
    with closing(flow):
        while True:
            try:
                request = flow.send(answer)
            except StopIteration:
                return
            if not isinstance(request, RateSteps):
                answer = yield request
                continue
            answer = []
            for step in request.steps:
                rollout = continuations.after(request.trace.followed_by(step))
                _, is_right = yield from _noted(rollout, request.trace.rollouts)
                answer.append(float(is_right))


def _noted(
    rollout: Generator[WriteStep, Step, tuple[Sequence[Step], bool]], written: list[Step]
) -> Generator[WriteStep, Step, tuple[Sequence[Step], bool]]:
    """Yield a rollout's requests, and add each step that is written to `written`."""
    step: Any = None
    while True:
        try:
            request = rollout.send(step)
        except StopIteration as ended:
            continued: tuple[Sequence[Step], bool] = ended.value
            return continued
        step = yield request
        written.append(step)

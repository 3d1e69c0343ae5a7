"""Computes rewards from rollouts: the target completes the solution after a rated step, and the answer is graded."""

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from arbitrage_cli.arbitrage import RateSteps, WriteStep
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.backend import Deadline
from arbitrage_cli.inference.scheduler import RewardUpdate, Writer
from arbitrage_cli.types import Cost, Decision, Phase, Problem, Step, Trace

Prefix = tuple[str, str, Phase, bool]
"""Everything that a continuation depends on: the text so far, the next phase, and whether thinking reached its budget."""


@dataclass(slots=True)
class _Request:
    request: RateSteps
    prefixes: list[Prefix]
    cost: Cost = field(default_factory=Cost)


def _prefix(trace: Trace) -> Prefix:
    is_forced = any(decision.kept.stop == "think_budget" for decision in trace.decisions)
    return trace.thoughts, trace.text, trace.phase, is_forced


class RolloutRater:
    """A `Rater` whose reward is the share of the target's continuations that reach the known answer, as in Math-Shepherd.

    `writers` contains the target's writers: either one greedy writer or several sampling writers. A continuation depends
    only on its prefix, so one rollout determines the outcome of every prefix on its path. If `recalls` is true, the target
    samples like the first writer, whose steps need not be written again.
    """

    waits_for_many = False

    def __init__(self, writers: Sequence[Writer], is_right: Callable[[str, str], bool], *, recalls: bool = False) -> None:
        self._writers = writers
        self._is_right, self._recalls = is_right, recalls
        self._outcomes: dict[tuple[int, int], dict[Prefix, bool]] = {}  # by slot and writer: whether the solution is right
        self._rollouts: dict[tuple[int, int], Generator[WriteStep, Any, None]] = {}  # by slot and writer
        self._requests: dict[int, _Request] = {}  # by slot
        self._steps: dict[int, dict[Prefix, Step]] = {}  # by slot and prefix: the first writer's next step

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    @property
    def wait(self) -> Callable[[], None] | None:
        return None if any(writer.busy and not writer.wait for writer in self._writers) else self._writers[0].wait

    def open(self, slot: int, problem: Problem, deadline: Deadline | None = None) -> None:
        self._steps[slot] = {}
        for index, writer in enumerate(self._writers):
            writer.open(slot, problem, deadline)
            self._outcomes[slot, index] = {}

    def close(self, slot: int) -> None:
        self._requests.pop(slot, None)
        self._steps.pop(slot, None)
        for index, writer in enumerate(self._writers):
            writer.close(slot)
            self._outcomes.pop((slot, index), None)
            self._rollouts.pop((slot, index), None)

    def start(self, slot: int, request: RateSteps) -> None:
        self._requests[slot] = _Request(request, [_prefix(request.trace.followed_by(step)) for step in request.steps])
        for index in range(len(self._writers)):
            self._rollouts[slot, index] = self._rollout(slot, index)
            self._resume(slot, index, None)

    def recall(self, slot: int, request: WriteStep) -> Step | None:
        step = self._steps[slot].get(_prefix(request.trace)) if self._recalls and request.model == "target" else None
        return step and replace(step, cost=Cost())

    def tick(self) -> list[RewardUpdate]:
        failed: dict[int, ProblemError] = {}
        for index, writer in enumerate(self._writers):
            for update in writer.tick() if writer.busy else ():
                try:
                    if update.error:
                        raise update.error
                    if update.step:
                        self._resume(update.slot, index, update.step)
                except ProblemError as error:
                    failed[update.slot] = error
        answers = [RewardUpdate(slot, error=error) for slot, error in failed.items()]
        answers += filter(None, (self._rewards(slot) for slot in self._requests if slot not in failed))
        for answer in answers:
            self._requests.pop(answer.slot, None)
        return answers

    def _resume(self, slot: int, index: int, written: Step | None) -> None:
        with suppress(StopIteration):
            self._writers[index].start(slot, self._rollouts[slot, index].send(written))

    def _rollout(self, slot: int, index: int) -> Generator[WriteStep, Any, None]:
        """Complete the solution after each rated step whose outcome is unknown."""
        rated, outcomes = self._requests[slot], self._outcomes[slot, index]
        for step, prefix in zip(rated.request.steps, rated.prefixes, strict=True):
            if prefix in outcomes:
                continue
            trace, prefixes = rated.request.trace.followed_by(step), [prefix]
            while not trace.finished:
                written = yield WriteStep("target", trace)
                if index == 0:
                    self._steps[slot][prefixes[-1]] = written
                rated.cost += written.cost
                trace.add(Decision(kept=written))
                prefixes.append(_prefix(trace))
            outcomes.update(dict.fromkeys(prefixes, self._is_right(trace.problem.id, trace.text)))

    def _rewards(self, slot: int) -> RewardUpdate | None:
        request, indices = self._requests[slot], range(len(self._writers))
        outcomes = [[self._outcomes[slot, index].get(prefix) for index in indices] for prefix in request.prefixes]
        if any(None in of_step for of_step in outcomes):
            return None
        return RewardUpdate(slot, tuple(sum(map(bool, of_step)) / len(of_step) for of_step in outcomes), request.cost)

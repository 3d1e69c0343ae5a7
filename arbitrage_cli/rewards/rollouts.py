"""How good a step is, as a number from 0 to 1, by the answers that it leads to: rollouts.

A rater for the problems of a scheduler. Rollouts go on beside the engines, each problem's at its own pace, so that none waits
for the longest. Knows no policy and no terminal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from arbitrage_cli.arbitrage import ScoreSteps, WriteStep
from arbitrage_cli.errors import ProblemError
from arbitrage_cli.inference.engine import Engine, Progress, Speculator
from arbitrage_cli.inference.scheduler import Rated, Ratings
from arbitrage_cli.types import Cost, Decision, Problem, Step, Trace


@dataclass(slots=True)
class _Asked:
    """A wish under way: the text of the solution with each of its steps, and the cost so far."""

    request: ScoreSteps
    texts: list[str]
    cost: Cost = field(default_factory=Cost)


@dataclass(slots=True)
class _Way:
    """A solution that an engine is ending: the trace, and every text on the way."""

    trace: Trace
    texts: list[str]


class Rollout:
    """The share of solutions, gone on from a step by the target, that reach the known answer (Math-Shepherd's estimate).

    `engines` are the target with one sampler each (one greedy engine, or several that sample), whose slots are not those
    of the problems being solved. `is_right` tells whether a whole solution reaches the answer of a problem's id.

    An engine that comes by the same text again goes on in the same way: its draws depend on nothing else. So one rollout
    answers for all the texts on its way, and tells the target's next step after each of them.
    """

    waits_for_many = False

    def __init__(self, engines: Sequence[Engine], is_right: Callable[[str, str], bool]) -> None:
        self._engines = engines
        self._is_right = is_right
        self._known: dict[tuple[int, int], dict[str, bool]] = {}  # by slot and engine: texts, and what became of them
        self._ways: dict[tuple[int, int], _Way] = {}
        self._asked: dict[int, _Asked] = {}
        self._steps: dict[int, dict[str, Step]] = {}  # by slot: those of the first engine, by the text before them

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def open(self, slot: int, problem: Problem) -> None:
        self._steps[slot] = {}
        for index, engine in enumerate(self._engines):
            engine.open(slot, problem)
            self._known[slot, index] = {}

    def close(self, slot: int) -> None:
        self._asked.pop(slot, None)
        self._steps.pop(slot, None)
        for index, engine in enumerate(self._engines):
            engine.close(slot)
            self._known.pop((slot, index), None)
            self._ways.pop((slot, index), None)

    def start(self, slot: int, request: ScoreSteps) -> None:
        self._asked[slot] = _Asked(request, [request.trace.text + step.text for step in request.steps])
        for index in range(len(self._engines)):
            self._begin(slot, index)

    def next_step(self, slot: int, text: str) -> Step | None:
        """The step that the first engine wrote after this text of the slot's problem, if it came by it."""
        return self._steps[slot].get(text)

    def tick(self) -> list[Rated]:
        failed: dict[int, ProblemError] = {}
        for index, engine in enumerate(self._engines):
            for progress in engine.tick() if engine.busy else ():
                try:
                    self._follow(progress, index)
                except ProblemError as error:
                    failed[progress.slot] = error
        met = [slot for slot in self._asked if slot not in failed and self._is_met(slot)]
        found = [Rated(slot, error=error) for slot, error in failed.items()]
        found += [Rated(slot, self._ratings(slot)) for slot in met]
        for rated in found:
            self._asked.pop(rated.slot, None)
        return found

    def _begin(self, slot: int, index: int) -> None:
        """Let an engine end the first solution of a slot's wish that it does not know the end of."""
        asked, known = self._asked[slot], self._known[slot, index]
        for step, text in zip(asked.request.steps, asked.texts, strict=True):
            if text in known:
                continue
            before = asked.request.trace
            trace = Trace(before.problem, before.limits, [*before.decisions, Decision(kept=step)])
            if not trace.finished:
                self._ways[slot, index] = _Way(trace, [text])
                self._engines[index].start(slot, WriteStep("target", trace))
                return
            known[text] = self._is_right(trace.problem.id, text)

    def _follow(self, progress: Progress, index: int) -> None:
        """Note a step that an engine wrote, and have it go on. ProblemError if it cannot."""
        if progress.error is not None:
            raise progress.error
        if progress.step is None:
            return
        slot, way = progress.slot, self._ways[progress.slot, index]
        if index == 0:
            self._steps[slot][way.texts[-1]] = progress.step
        way.trace.add(Decision(kept=progress.step))
        way.texts.append(way.trace.text)
        self._asked[slot].cost += progress.step.cost
        if not way.trace.finished:
            self._engines[index].start(slot, WriteStep("target", way.trace))
            return
        reached = self._is_right(way.trace.problem.id, way.trace.text)
        self._known[slot, index] |= dict.fromkeys(way.texts, reached)
        del self._ways[slot, index]
        self._begin(slot, index)

    def _is_met(self, slot: int) -> bool:
        texts = self._asked[slot].texts
        return all(text in self._known[slot, index] for index in range(len(self._engines)) for text in texts)

    def _ratings(self, slot: int) -> Ratings:
        asked, count = self._asked[slot], len(self._engines)
        right = [sum(self._known[slot, index][text] for index in range(count)) for text in asked.texts]
        return Ratings(tuple(number / count for number in right), asked.cost)


class Recalling:
    """The target's engine where the same target ends solutions for a `Rollout`: what it wrote there is not written again.

    To be used only if the rollout's first engine draws as this one does. Steps that are recalled cost nothing more.
    """

    def __init__(self, engine: Engine, rollout: Rollout) -> None:
        self._engine = engine
        self._rollout = rollout
        self._recalled: dict[int, Step] = {}

    @property
    def busy(self) -> bool:
        return bool(self._recalled) or self._engine.busy

    def open(self, slot: int, problem: Problem) -> None:
        self._engine.open(slot, problem)

    def close(self, slot: int) -> None:
        self._recalled.pop(slot, None)
        self._engine.close(slot)

    def start(self, slot: int, ask: WriteStep, speculator: Speculator | None = None) -> int:
        step = None if ask.sample else self._rollout.next_step(slot, ask.trace.text)
        if step is None:
            return self._engine.start(slot, ask, speculator)
        self._recalled[slot] = replace(step, cost=Cost())
        return 0

    def tick(self) -> list[Progress]:
        told = [Progress(slot, step.text, step=step) for slot, step in self._recalled.items()]
        self._recalled.clear()
        return told + (self._engine.tick() if self._engine.busy else [])

    def seconds_alone(self, slot: int, trace: Trace) -> float | None:
        return self._engine.seconds_alone(slot, trace)

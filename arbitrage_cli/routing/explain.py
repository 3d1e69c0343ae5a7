"""Why each step was accepted or escalated: what each feature added, and, if rewards are known, what the oracle would have done.

Knows heads, states and finished solutions; no model, no file and no terminal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from arbitrage_cli.routing.head import Head
from arbitrage_cli.routing.states import State, features_of
from arbitrage_cli.types import Trace

Judgement = Literal["improved", "missed", "wasted", "spared"]
"""Escalated with an advantage, accepted with one, escalated without one, accepted without one."""

JUDGEMENTS: tuple[Judgement, ...] = ("improved", "missed", "wasted", "spared")


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision. `parts` are features and what each adds to the log-odds, the strongest first.

    `text` is the drafted step; only its beginning if it `is_stopped`. `advantage` is None if rewards are not known.
    """

    position: int
    score: float
    tau: float
    parts: tuple[tuple[str, float], ...]
    text: str | None = None
    advantage: float | None = None
    is_stopped: bool = False

    @property
    def is_escalated(self) -> bool:
        return self.score > self.tau

    @property
    def judgement(self) -> Judgement | None:
        """None if rewards are not known."""
        if self.advantage is None:
            return None
        if self.is_escalated:
            return "improved" if self.advantage > 0 else "wasted"
        return "missed" if self.advantage > 0 else "spared"

    @property
    def regret(self) -> float | None:
        """The reward that the oracle's choice would have gained over this one; None if rewards are not known."""
        if self.advantage is None:
            return None
        return max(self.advantage, 0.0) - (self.advantage if self.is_escalated else 0.0)


@dataclass(frozen=True, slots=True)
class Group:
    """All decisions of one judgement: how many, the sum of their regret, and what each feature added on average."""

    judgement: Judgement
    count: int
    regret: float
    parts: tuple[tuple[str, float], ...]


def explain_solution(head: Head, trace: Trace, tau: float) -> list[Explanation]:
    """Every step of a solution that was drafted. ValueError without token statistics."""
    found = []
    for position, decision in enumerate(trace.decisions):
        if decision.draft is None:
            continue
        before = Trace(trace.problem, trace.limits, trace.decisions[:position])
        score = head.probability(before, decision.draft) if decision.score is None else decision.score
        parts = tuple(head.contributions(before, decision.draft))
        draft, is_stopped = decision.draft, decision.draft.stop == "early"
        found.append(Explanation(position, score, tau, parts, draft.text, decision.advantage, is_stopped))
    return found


def explain_states(head: Head, question: str, states: Sequence[State], tau: float) -> list[Explanation]:
    """The recorded states of a solution."""
    rows = features_of(question, states)
    inputs, scores = head.inputs(rows), head.probabilities(rows).tolist()
    return [
        Explanation(state.position, score, tau, tuple(head.contributions_of(row)), state.draft.text, state.advantage)
        for state, score, row in zip(states, scores, inputs, strict=True)
    ]


def group(explanations: Iterable[Explanation]) -> list[Group]:
    """The decisions with known rewards, by judgement."""
    found: dict[Judgement, list[Explanation]] = {name: [] for name in JUDGEMENTS}
    for one in explanations:
        if one.judgement is not None:
            found[one.judgement].append(one)
    return [
        Group(name, len(ones), sum(one.regret or 0.0 for one in ones), _mean_parts(ones)) for name, ones in found.items()
    ]


def _mean_parts(explanations: Sequence[Explanation]) -> tuple[tuple[str, float], ...]:
    sums: dict[str, float] = {}
    for one in explanations:
        for name, part in one.parts:
            sums[name] = sums.get(name, 0.0) + part
    means = [(name, total / len(explanations)) for name, total in sums.items()]
    return tuple(sorted(means, key=lambda part: -abs(part[1])))

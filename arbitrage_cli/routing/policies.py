"""The table of policies, with the score, default tau, models and rewards of each policy.

To add a policy, write its score function in `arbitrage.py`, add it to the table, and describe it in the guide `routing`. A
mark and a colour for charts are optional (`report.html` and `report.css` in `display/templates`).

Below the table are the rule that chooses the target's thoughts and the checker of policy `agree`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from arbitrage_cli.agreement import agree
from arbitrage_cli.arbitrage import (
    Flow,
    ScoreOf,
    Scorer,
    WriteStep,
    by_first_token,
    by_least_likely_token,
    by_reward,
    by_token_stats,
    first_token_entropy,
    max_negative_logprob,
    mean_negative_logprob,
    uniform_draw,
)
from arbitrage_cli.errors import unknown
from arbitrage_cli.routing.equations import check_equations
from arbitrage_cli.types import THINK_TOKENS, WRITING, Decision, Limits, ModelRole, Step, Trace, frozen

if TYPE_CHECKING:
    from arbitrage_cli.problems.tasks import Grader

PolicyKind = Literal["single", "routed", "oracle", "checked"]
"""`single`: one model writes every step. `routed`: the score of a drafted step is compared with tau. `oracle`: both models
write every step, and the advantage is compared with tau. `checked`: the draft's answer is compared with the checker's."""

RewardKind = Literal["prm", "any"]
"""The source of a policy's rewards: a process reward model, or any source that the user chooses."""


@frozen
class Policy:
    """An entry in the table of policies.

    If `kind` is `single`, the first model writes every step, and an optional second model proposes tokens. `score_is`
    describes the score in a noun phrase without an article. `make_scorer` takes a seed. If `needs_router` is true, the
    router provides the scorer instead.
    """

    name: str
    kind: PolicyKind
    models: tuple[ModelRole, ...]
    score_is: str = ""
    default_tau: float | None = None
    make_scorer: Callable[[int], Scorer] | None = None
    reads_token_stats: bool = False
    needs_router: bool = False
    reward: RewardKind | None = None
    max_score: float = math.inf

    @property
    def has_tau(self) -> bool:
        return self.kind in ("routed", "oracle")

    @property
    def speculates(self) -> bool:
        return self.kind == "single" and len(self.models) > 1

    @property
    def can_stop_early(self) -> bool:
        """Whether a drafted step can be escalated before its end."""
        return self.needs_router or (self.make_scorer is not None and self.make_scorer(0).early_stop is not None)


WRONG_EQUATION = 100.0  # the score added for a wrong equation; it exceeds any mean negative log-probability


def negative_logprob_or_wrong_equation(trace: Trace, draft: Step) -> float:
    equations = check_equations(draft.text, is_whole=draft.is_whole)
    wrong = any(not equation.is_right for equation in equations)
    return mean_negative_logprob(trace, draft) + WRONG_EQUATION * wrong


_MEAN, _WORST = "negative mean log-probability (nats/token)", "negative log-probability of the least likely token (nats)"
_EQUATIONS = f"{_MEAN} plus {WRONG_EQUATION:g} for a wrong equation"
_PROBABILITY, _DRAW = "probability that the target's step is better", "number drawn at random from 0 to 1"
_REWARD = "penalty of the drafted step (1 minus its reward)"


def _on_token_stats(name: str, score_is: str, default_tau: float, scorer: Scorer) -> Policy:
    return Policy(name, "routed", WRITING, score_is, default_tau, lambda seed: scorer, reads_token_stats=True)


_TABLE = (
    Policy("arbitrage", "routed", WRITING, _PROBABILITY, reads_token_stats=True, needs_router=True, max_score=1.0),
    _on_token_stats("entropy", "entropy of the step's first token (nats)", 1.0, by_first_token(first_token_entropy)),
    _on_token_stats("logprob", _MEAN, 0.3, by_token_stats(mean_negative_logprob)),
    _on_token_stats("logprob-min", _WORST, 1.0, by_least_likely_token(max_negative_logprob)),
    _on_token_stats("equations", _EQUATIONS, 0.3, by_token_stats(negative_logprob_or_wrong_equation)),
    Policy("random", "routed", WRITING, _DRAW, 0.7, lambda seed: by_first_token(uniform_draw(seed)), max_score=1.0),
    Policy("rsd", "routed", WRITING, _REWARD, 0.3, lambda seed: by_reward(), reward="prm", max_score=1.0),
    Policy("oracle", "oracle", WRITING, "advantage of the target's step", 0.0, reward="any"),
    Policy("agree", "checked", ("draft", "check", "target")),
    Policy("draft", "single", ("draft",)),
    Policy("target", "single", ("target",)),
    Policy("speculative", "single", ("target", "draft")),
)
POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in _TABLE})
"""The policies by name. Default taus are not tuned to any pair. Policy `arbitrage` uses a router's presets instead."""


def find_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES, option="policy")
    return POLICIES[name]


# --- thoughts, if the router was not trained on thinking: lead, probe, stay

LEAD = 200  # thinking tokens at the beginning that the target writes, or more to complete a thought
BUDGET = 0.3  # default maximum share of the later thoughts that the target writes
PROBED = 1 / 3  # share of the budget that is spent on random probes
DEPARTED = 0.5  # a thought departs if the target keeps a smaller share of the drafted words

_WORD = re.compile(r"\d|[^\W\d]+|[^\w\s]")


def probe_tau(budget: float) -> float:
    """Return the tau for `lead_probe_stay`."""
    return 1 - budget * PROBED


def lead_probe_stay(budget: float, draw: ScoreOf) -> ScoreOf:
    """Return a scoring function for drafted thoughts.

    The target leads: it writes the beginning of the thinking. Later thoughts are probed at random. After a probe, the target
    stays as long as its thoughts differ from the drafted thoughts. A budget limits the target's share of the later thoughts.
    The score is 1 if the target leads or stays, 0 if the budget is spent, and random otherwise. `tests/benchmarks/README.md`
    compares this rule with others.
    """

    def score(trace: Trace, draft: Step) -> float:
        if trace.num_tokens < LEAD:
            return 1.0
        later = [decision.kept.model for decision in _after_lead(trace)]
        if later.count("target") >= budget * (len(later) + 1):
            return 0.0
        return 1.0 if departs(trace.decisions[-1]) else draw(trace, draft)

    return score


def departs(decision: Decision) -> bool:
    """Return whether the target wrote this step, and kept few of the drafted words before the first different word."""
    if decision.draft is None or decision.target is None:
        return False
    drafted, written = (_WORD.findall(step.text) for step in (decision.draft, decision.target))
    kept = takewhile(lambda pair: pair[0] == pair[1], zip(drafted, written, strict=False))
    return len([*kept]) < DEPARTED * max(1, len(drafted))


def _after_lead(trace: Trace) -> list[Decision]:
    tokens_before = accumulate((decision.kept.num_tokens for decision in trace.decisions), initial=0)
    return [decision for tokens, decision in zip(tokens_before, trace.decisions, strict=False) if tokens >= LEAD]


# --- the checker of policy `agree`

Thinking = Literal["on", "off"]
"""Whether the checker thinks."""


@frozen
class Checker:
    """The settings of the checks. Each model of `order` solves the problem, in this order unless two models write at once.

    A model's further solutions are drawn at random.
    """

    grader: "Grader"
    thinking: Thinking = "off"
    order: Sequence[ModelRole] = ("draft", "check")
    at_once: bool = False

    def flow(self, trace: Trace) -> Flow:
        solutions = [
            WriteStep(model, self._own_trace(trace, model), until_end=True, sample=self.order[:index].count(model))
            for index, model in enumerate(self.order)
        ]
        return agree(
            trace,
            solutions,
            lambda solution: self.grader.grade(solution.text, {}).answer,
            lambda solution, answer: self.grader.grade(solution.text, {"answer": answer}).value == "correct",
            at_once=self.at_once,
        )

    def _own_trace(self, trace: Trace, model: ModelRole) -> Trace:
        limits = self._own_limits(trace.limits) if model == "check" else trace.limits
        return Trace(replace(trace.problem, thinks=limits.thinks), limits)

    def _own_limits(self, limits: Limits) -> Limits:
        """Return the checker's limits. If only the checker thinks, the default limit is that of solutions with thinking."""
        thinks = self.thinking == "on"
        if thinks == bool(limits.thinks):
            return limits
        if not thinks:
            return replace(limits, think_tokens=0, is_thinking_chosen=False)
        is_default = limits.max_tokens == Limits().max_tokens
        return replace(limits, think_tokens=None, max_tokens=THINK_TOKENS if is_default else limits.max_tokens)

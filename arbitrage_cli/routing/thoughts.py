"""The rule that chooses the target's thoughts if the router was not trained on thinking: lead, probe, stay."""

import re
from itertools import accumulate, takewhile

from arbitrage_cli.arbitrage import ScoreOf
from arbitrage_cli.types import Decision, Step, Trace

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

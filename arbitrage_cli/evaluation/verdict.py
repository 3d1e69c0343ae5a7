"""Decides from a run's figures whether a pair is worth using, and with which policy.

A policy is worth using if its speed-up interval lies above 1 and reaches MIN_SPEEDUP, and if it loses almost no correct
answers. A few problems are enough to measure a speed-up but not an accuracy, so lost answers are counted instead.
`app.sentences` turns the verdict into text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import SAME
from arbitrage_cli.runs.records import route_name

Figures = Mapping[str, Any]
Decision = Literal["pays", "does not pay", "not decided"]

MIN_TO_REFUSE = 5  # minimum problems to decide that no policy pays
MIN_PROBLEMS = 8  # minimum problems to decide that a policy pays
MIN_FOR_ANSWERS = 20  # minimum compared answers for a policy whose answers may differ from the target's
MIN_SPEEDUP = 1.1  # minimum speed-up of a policy worth using
SIMILAR = 1.2  # maximum ratio of two speed-ups that count as similar
MAX_LOST = 0.05  # maximum share of lost answers
MAX_POINTS = 1.0  # maximum loss of a preset, in percentage points of the target's reward


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy considered as a replacement for the target alone."""

    route: str
    policy: str
    speedup: float
    interval: tuple[float, float] | None
    num_attempts: int
    num_compared: int  # attempts with comparable answers
    num_lost: int  # compared attempts that lost the target's answer
    num_graded: int  # compared attempts with a known right answer
    draft_share: float  # the draft's share of the policy's time
    samples: int = 1  # attempts per problem

    @property
    def is_too_slow(self) -> bool:
        """Whether the speed-up interval lies below MIN_SPEEDUP."""
        return self.interval is not None and self.interval[1] < MIN_SPEEDUP

    @property
    def is_faster(self) -> bool:
        """Whether the speed-up interval lies above 1 and reaches MIN_SPEEDUP."""
        return self.interval is not None and self.interval[0] > 1 and not self.is_too_slow

    @property
    def has_targets_text(self) -> bool:
        """Whether the policy writes the same text as the target, so that answers need not be compared."""
        return POLICIES[self.policy].speculates

    @property
    def is_comparable(self) -> bool:
        return self.has_targets_text or self.num_compared > 0

    @property
    def is_known(self) -> bool:
        if self.has_targets_text:
            return self.num_attempts >= MIN_PROBLEMS * self.samples
        return self.num_compared >= MIN_FOR_ANSWERS * self.samples

    @property
    def keeps_answers(self) -> bool:
        """Whether the policy loses at most MAX_LOST of the answers.

        The policy `draft` must not lose any answers, because the target does not check its steps.
        """
        allowed = 0.0 if self.policy == "draft" else MAX_LOST * self.num_compared
        return self.has_targets_text or (self.is_comparable and self.num_lost <= allowed)

    @property
    def may_keep_answers(self) -> bool:
        """Whether more problems could show that the policy keeps the answers."""
        by_chance = self.num_lost <= 1 and self.num_compared < MIN_FOR_ANSWERS * self.samples and self.policy != "draft"
        return self.keeps_answers or by_chance or not self.is_comparable


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the figures behind it."""

    decision: Decision
    best: Candidate  # the candidate that decided
    num_problems: int
    route: str | None = None  # policy and tau to use; None stands for the target alone
    final: bool = True  # more problems are not expected to change the decision
    needs_answers: bool = False  # the best candidate's answers cannot be compared
    out_of_time: bool = False
    faster: Candidate | None = None  # a faster candidate with too few problems to recommend it
    loses_answers: bool = False  # the pair is fast but loses answers
    token_ratio: float | None = None  # the cost of a target token in draft tokens
    ratio_needed: float | None = None  # the minimum token ratio at which the pair would pay
    is_idle: bool = False  # speculation drafted no tokens at these costs


def verdict(figures: Figures, *, out_of_time: bool = False) -> Verdict | None:
    """Return the verdict on a run; None if the run has no policy to compare with the target alone."""
    candidates = candidates_of(figures)
    if not candidates:
        return None
    count = min(candidate.num_attempts // candidate.samples for candidate in candidates)
    promising = [candidate for candidate in candidates if candidate.is_faster and candidate.keeps_answers]
    paying = [candidate for candidate in promising if candidate.is_known]
    if paying:
        best = _best(paying)
        fastest = max([best, *promising], key=lambda candidate: candidate.speedup)
        faster = None if fastest.is_known else fastest
        return Verdict("pays", best, count, best.route, final=faster is None, faster=faster)
    undecided = [candidate for candidate in candidates if not candidate.is_too_slow and candidate.may_keep_answers]
    if undecided or count < MIN_TO_REFUSE:
        return _not_decided(undecided or candidates, count, out_of_time=out_of_time)
    return _does_not_pay(candidates, count, token_ratio(figures))


def best_preset(named: Mapping[str, float], rows: Sequence[Figures]) -> tuple[str, Figures] | None:
    """Return the best preset in a router's table of taus, with its row.

    Return None if no preset has a speed-up of at least MIN_SPEEDUP and loses at most MAX_POINTS.
    """
    found = [(name, row) for name, tau in named.items() for row in rows if row["tau"] == tau and row["time"] is not None]
    good = [(name, row) for name, row in found if row["change"] >= -MAX_POINTS and row["time"] * MIN_SPEEDUP < 1]
    if not good:
        return None
    least = min(row["time"] for _, row in good)
    near = [(name, row) for name, row in good if row["time"] <= SIMILAR * least]
    return max(near, key=lambda preset: (min(0.0, preset[1]["change"]), -preset[1]["time"]))


def candidates_of(figures: Figures) -> list[Candidate]:
    """Return the policies considered as replacements for the target alone. The oracle is excluded."""
    return [
        candidate
        for policy in figures["policies"]
        if policy["policy"] != "target"
        and POLICIES[policy["policy"]].kind != "oracle"
        and (candidate := _candidate(policy, figures["samples"])) is not None
    ]


def token_ratio(figures: Figures) -> float | None:
    """Return the target's time per token divided by the draft's; None unless the run has both policies."""
    alone = {policy["policy"]: policy for policy in figures["policies"] if policy["policy"] in ("draft", "target")}
    draft, target = (alone.get(role, {}).get(f"{role}_tokens_per_second") for role in ("draft", "target"))
    return draft / target if draft and target else None


def _candidate(policy: Figures, samples: int) -> Candidate | None:
    speedup = policy["speedup"] or policy["throughput_ratio"]
    if not speedup or policy["accuracy_difference"] is None:
        return None
    interval = policy["speedup_interval"] or policy["throughput_ratio_interval"]
    name = None if policy["tau_name"] == SAME else policy["tau_name"]
    lost, time = policy["ratios"]["answers_lost"], policy["time"]
    return Candidate(
        route_name(policy["policy"], policy["tau"], name),
        policy["policy"],
        speedup,
        interval and tuple(interval),
        num_attempts=policy["ratios"]["accuracy_difference"]["denominator"],
        num_compared=lost["denominator"],
        num_lost=lost["numerator"],
        num_graded=policy["answers_graded"],
        draft_share=sum(time[f"draft_{kind}"] for kind in ("decode", "prefill", "verify")) / (time["wall"] or 1.0),
        samples=samples,
    )


def _best(paying: Sequence[Candidate]) -> Candidate:
    fastest = max(candidate.speedup for candidate in paying)
    near = [candidate for candidate in paying if candidate.speedup * SIMILAR >= fastest]
    return min(near, key=lambda candidate: (0 if candidate.has_targets_text else candidate.num_lost, -candidate.speedup))


def _not_decided(candidates: Sequence[Candidate], count: int, *, out_of_time: bool) -> Verdict:
    others = [candidate for candidate in candidates if candidate.policy != "draft"] or candidates
    best = max(others, key=lambda candidate: (candidate.keeps_answers or not candidate.is_comparable, candidate.speedup))
    needs_answers = count >= MIN_PROBLEMS and not best.is_comparable
    final = needs_answers and not any(candidate.is_comparable for candidate in candidates)
    return Verdict("not decided", best, count, final=final, needs_answers=needs_answers, out_of_time=out_of_time)


def _does_not_pay(candidates: Sequence[Candidate], count: int, ratio: float | None) -> Verdict:
    others = [candidate for candidate in candidates if candidate.policy != "draft"] or candidates
    if fast := [candidate for candidate in others if not candidate.is_too_slow]:
        return Verdict("does not pay", min(fast, key=lambda candidate: candidate.num_lost), count, loses_answers=True)
    best = max(others, key=lambda candidate: candidate.speedup)
    needed = [
        found for candidate in others if ratio and candidate.keeps_answers and (found := _ratio_needed(candidate, ratio))
    ]
    is_idle = any(candidate.has_targets_text and not candidate.draft_share for candidate in others)
    ratio_needed = min(needed, default=None)
    return Verdict("does not pay", best, count, token_ratio=ratio, ratio_needed=ratio_needed, is_idle=is_idle)


def _ratio_needed(candidate: Candidate, ratio: float) -> float | None:
    """Return the token ratio at which a faster draft would raise the speed-up to MIN_SPEEDUP; None if no draft could."""
    left = candidate.speedup / MIN_SPEEDUP - 1 + candidate.draft_share
    return ratio * candidate.draft_share / left if left > 0 else None

"""Check how often the verdicts of `arbitrage advise` are true, by replaying published answers of real models.

Usage: python tests/benchmarks/claims.py [--without-answers] [--sessions N] [--seed N] FILE.jsonl ...

Each line of a file is a problem: {"id": ..., "models": {"gemma-2-9b-it": {"answer": "18", "right": true, "chars": 382}, ...}}.
The results of WildEval/ZeroEval (Apache-2.0, https://github.com/WildEval/ZeroEval) can be converted to this format.

A session draws a draft, a stronger target, a policy, and up to 40 problems in random order. The policies are the draft alone;
the draft's answer if a second small model agrees, otherwise the target's; and the target's answer to a random share of the
problems. The time of an answer is its characters times the parameters of its model. After each problem, the program's own
statistics judge the policy. A session ends after 40 problems, or earlier if the verdict is final. For each session, a second
verdict is read at a random earlier moment, as if the time had run out. A verdict is true if it holds on all problems.
"""

import argparse
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.evaluation.expected import MAX_LOSS, MAX_LOST, MIN_SPEEDUP, effects_of
from arbitrage_cli.evaluation.figures import PolicyFigures
from arbitrage_cli.evaluation.metrics import with_comparison
from arbitrage_cli.evaluation.speed import with_times
from arbitrage_cli.evaluation.verdict import LIKELY, Verdict, verdict
from arbitrage_cli.inference.unit_costs import COST_ERROR, UnitCosts
from arbitrage_cli.numbers.intervals import Interval, Ratio
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import Tally
from arbitrage_cli.runs.results import Outcome, PolicyResults, Result
from arbitrage_cli.types import ModelRole

NUM_PROBLEMS = 40
SHARES = (0.25, 0.5, 0.75)  # of the problems that the target solves, drawn at random
UNNAMED_SIZES = {"Phi-3.5-mini-instruct": 3.8}  # billions of parameters of models whose names do not contain them
CLASSES = ((0.985, "99 in 100"), (0.9, "9 in 10"), (0.8, "8 in 10"), (0.7, "7 in 10"), (LIKELY, "6 in 10"))
KINDS = ("draft", "agree", "random")  # policies of the sessions


@dataclass(frozen=True)
class Answer:
    """The answer of a model or a policy to a problem. `seconds` contains the time of each role."""

    text: str | None
    is_right: bool
    seconds: Mapping[ModelRole, float]


Answers = Sequence[Answer]


@dataclass(frozen=True)
class Contest:
    """A policy and the target on all problems of a file. `costs` contains the relative time per token of each role.

    If `is_ungraded` is true, the program does not know the right answers.
    """

    kind: str
    policy: Answers
    target: Answers
    costs: Mapping[ModelRole, float]
    is_ungraded: bool

    @cached_property
    def true_speedup(self) -> float:
        target, policy = (sum(sum(one.seconds.values()) for one in answers) for answers in (self.target, self.policy))
        return target / policy

    @cached_property
    def true_change(self) -> float:
        return accuracy(self.policy) - accuracy(self.target)

    @cached_property
    def is_worth_it(self) -> bool:
        limit = min(MAX_LOSS, MAX_LOST * accuracy(self.target))
        return self.true_speedup >= MIN_SPEEDUP and self.true_change >= -limit


@dataclass(frozen=True)
class Claim:
    """A verdict after some problems, with the interval of the speed-up. It ended the session if `is_sure` is true."""

    contest: Contest
    verdict: Verdict
    interval: Interval | None
    is_sure: bool

    @property
    def confidence(self) -> float:
        """The claimed probability, or 0 if there is no claim."""
        return self.verdict.confidence or 0.0

    @property
    def is_positive(self) -> bool:
        return self.verdict.is_worth_it

    @property
    def is_true(self) -> bool:
        return self.is_positive == self.contest.is_worth_it


class Records:
    """The answers of all models in a file, from which contests are drawn."""

    def __init__(self, path: Path) -> None:
        self._rows = [json.loads(line)["models"] for line in path.read_text(encoding="utf-8").splitlines()]
        self._sizes = {name: size_of(name) for name in self._rows[0]}

    def draw(self, dice: random.Random, *, is_ungraded: bool) -> Contest:
        sizes = self._sizes
        draft, target = dice.choice([(one, two) for one in sizes for two in sizes if sizes[one] < sizes[two]])
        others = [name for name in sizes if name not in (draft, target) and sizes[name] < sizes[target]]
        kind = dice.choice([kind for kind in KINDS if kind != "agree" or others])
        answers, alone = self._answers(draft, "draft"), self._answers(target, "target")
        if kind == "agree":
            second = self._answers(dice.choice(others), "draft")
            differs = [one.text != other.text for one, other in zip(answers, second, strict=True)]
            answers = escalated([with_time_of(*pair) for pair in zip(answers, second, strict=True)], alone, differs)
        elif kind == "random":
            share = dice.choice(SHARES)
            answers = escalated(answers, alone, [dice.random() < share for _ in answers])
        return Contest(kind, answers, alone, {"draft": sizes[draft], "target": sizes[target]}, is_ungraded)

    def _answers(self, name: str, role: ModelRole) -> Answers:
        found, size = [row[name] for row in self._rows], self._sizes[name]
        return [Answer(one["answer"], one["right"], {role: size * max(1, one["chars"])}) for one in found]


def size_of(name: str) -> float:
    found = re.search(r"(\d+(?:\.\d+)?)b\b", name, re.IGNORECASE)
    return float(found[1]) if found else UNNAMED_SIZES[name]


def escalated(draft: Answers, target: Answers, escalates: Sequence[bool]) -> Answers:
    """Return the draft's answers, or the target's where a problem is escalated. Both models' time is counted then."""
    triples = zip(draft, target, escalates, strict=True)
    return [with_time_of(other, one) if is_escalated else one for one, other, is_escalated in triples]


def with_time_of(answer: Answer, other: Answer) -> Answer:
    roles: set[ModelRole] = {*answer.seconds, *other.seconds}
    return replace(answer, seconds={role: answer.seconds.get(role, 0.0) + other.seconds.get(role, 0.0) for role in roles})


def accuracy(answers: Answers) -> float:
    return sum(one.is_right for one in answers) / len(answers)


def result_of(contest: Contest, answers: Answers, index: int, factors: Mapping[ModelRole, float]) -> Result:
    """Return the result of a problem. Its answer has a grade or is compared with the target's answer."""
    answer, other = answers[index], contest.target[index].text
    outcome: Outcome = "unscored" if contest.is_ungraded else "correct" if answer.is_right else "incorrect"
    same = answer.text == other if contest.is_ungraded and other is not None else None
    computed: dict[str, float] = {role: factors[role] * seconds for role, seconds in answer.seconds.items()}
    return Result(
        route=Route(POLICIES["target"]), key=(str(index), 0), outcome=outcome, stop="end",
        seconds=sum(computed.values()), tally=Tally(), question=index, same_as_target=same, computed=computed,
    )  # fmt: skip


def judge(contest: Contest, problems: Sequence[int], factors: Mapping[ModelRole, float]) -> Claim:
    """Return the program's verdict after these problems, given the errors of the unit costs."""
    policy, target = (
        PolicyResults(
            Route(POLICIES[one]), {(str(index), 0): result_of(contest, answers, index, factors) for index in problems}
        )
        for one, answers in ((contest.kind, contest.policy), ("target", contest.target))
    )
    units: dict[ModelRole, UnitCosts] = {role: UnitCosts((cost,) * 5, cost / 10) for role, cost in contest.costs.items()}
    compared = with_comparison(PolicyFigures(policy.route), policy, target)
    entry = replace(with_times(compared, policy, target, units, has_clock=True), draft_tokens_per_second=Ratio(1, 1))
    effects = effects_of([Route(POLICIES[contest.kind])], PairCosts.of(units))
    decided = verdict([entry], effects)
    assert decided is not None
    return Claim(contest, decided, entry.speedup.interval, decided.is_final)


def session(contest: Contest, dice: random.Random) -> tuple[Claim, Claim]:
    """Return the claim at the end of a session, and the claim at a random moment before its end."""
    roles: tuple[ModelRole, ...] = ("draft", "target")
    factors = {role: dice.lognormvariate(0, COST_ERROR) for role in roles}
    problems, claims = dice.sample(range(len(contest.target)), NUM_PROBLEMS), list[Claim]()
    while len(claims) < NUM_PROBLEMS and not (claims and claims[-1].is_sure):
        claims.append(judge(contest, problems[: len(claims) + 1], factors))
    return claims[-1], claims[min(len(claims), dice.randint(1, NUM_PROBLEMS)) - 1]


def share(claims: Sequence[Claim]) -> str:
    return f"{np.mean([one.is_true for one in claims]):.0%} of {len(claims):,}" if claims else "-"


def sides(claims: Sequence[Claim]) -> list[str]:
    return [share([one for one in claims if one.is_positive == is_positive]) for is_positive in (True, False)]


def write_claims(ended: Sequence[Claim], stopped: Sequence[Claim]) -> None:
    """Print how many claims of each confidence are true."""
    heading = "all | worth it | not worth it"
    print(f"| confidence | at the end: {heading} | stopped at a random moment: {heading} |\n|{'---|' * 7}")
    above = 1.01
    for low, name in CLASSES:
        groups = [[one for one in claims if low <= one.confidence < above] for claims in (ended, stopped)]
        print(f"| {name} | {' | '.join(cell for group in groups for cell in (share(group), *sides(group)))} |")
        above = low
    undecided = [sum(one.confidence < LIKELY for one in claims) for claims in (ended, stopped)]
    print(f"| undecided | {undecided[0]:,} of {len(ended):,} | | | {undecided[1]:,} of {len(stopped):,} | | |")
    print(
        f"\nClaims that ended a session before all problems were solved: {share([one for one in ended if one.is_sure])} true."
    )


def write_kinds(claims: Sequence[Claim]) -> None:
    """Print how many claims of at least 9 in 10 are true, for each policy."""
    print("\n| policy | truly worth it | claims of 9 in 10 and more: worth it | not worth it |\n|---|---|---|---|")
    for kind in KINDS:
        members = [one for one in claims if one.contest.kind == kind]
        sure = [one for one in members if one.confidence >= 0.9]
        print(f"| {kind} | {np.mean([one.contest.is_worth_it for one in members]):.0%} | {' | '.join(sides(sure))} |")


def write_changes(claims: Sequence[Claim]) -> None:
    """Print the claimed and the true net change, and how often their intervals and those of the speed-up cover the truth."""
    print(
        "\n| net change claimed, points | sessions | mean claimed | mean true | inside the 95% interval |\n|---|---|---|---|---|"
    )
    for low, high in pairwise((-1.0, -0.1, -0.05, -0.02, 0.0, 0.02, 1.0)):
        members = [one for one in claims if low <= one.verdict.best.change < high]
        if not members:
            continue
        claimed, true = (
            f"{100 * np.mean(changes):+.1f}"
            for changes in ([one.verdict.best.change for one in members], [one.contest.true_change for one in members])
        )
        covered = np.mean([is_inside(one.contest.true_change, one.verdict.best.change_interval) for one in members])
        print(f"| {100 * low:+.0f} to {100 * high:+.0f} | {len(members):,} | {claimed} | {true} | {covered:.0%} |")
    intervals = [(one.contest.true_speedup, one.interval) for one in claims]
    speeds = [is_inside(true, interval) for true, interval in intervals if interval]
    print(f"\nThe true speed-up lies inside the interval in {np.mean(speeds):.0%} of {len(speeds):,} sessions.")


def is_inside(value: float, interval: tuple[float, float]) -> bool:
    return interval[0] <= value <= interval[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--without-answers", action="store_true", help="compare answers with the target's only")
    parser.add_argument("--sessions", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice, records = random.Random(arguments.seed), [Records(path) for path in arguments.files]
    ended, stopped = zip(
        *(
            session(dice.choice(records).draw(dice, is_ungraded=arguments.without_answers), dice)
            for _ in range(arguments.sessions)
        ),
        strict=True,
    )
    write_claims(ended, stopped)
    write_kinds([*ended, *stopped])
    write_changes(ended)


if __name__ == "__main__":
    main()

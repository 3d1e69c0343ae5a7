"""Whether a pair pays: one verdict from the figures of a run, in one sentence, with the policy to use.

A way pays if the interval of its speed-up lies above 1 and it loses hardly any right answer. Few problems decide a speed-up, and
do not decide an accuracy: what is lost is counted, and said. Figures in, words out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from arbitrage_cli.routing.thresholds import SAME
from arbitrage_cli.runs.records import route_name

Figures = Mapping[str, Any]
Decision = Literal["pays", "does not pay", "not decided"]

MIN_TO_REFUSE = 5  # problems from which no way may be advised, if all are surely slow
MIN_PROBLEMS = 8  # problems from which one may be
MIN_FOR_ANSWERS = 20  # the same for a way with other answers than the target's
WORTH = 1.1  # times as fast: a way that is surely slower is not worth its trouble
ABOUT = 1.2  # times as fast: less is not worth an answer
MAX_LOST = 0.05  # of the problems: right answers that the target has and a way has not


@dataclass(frozen=True, slots=True)
class Way:
    """A policy beside the target alone: how many times as fast, with its interval, and the right answers that it loses.

    Without known answers (`is_graded`), those of the target count as right.
    """

    route: str
    policy: str
    speedup: float
    interval: tuple[float, float] | None
    num_lost: int
    num_problems: int
    is_graded: bool = True

    @property
    def is_faster(self) -> bool:
        """Surely, on problems like these."""
        return self.interval is not None and self.interval[0] > 1

    @property
    def is_not_worth_it(self) -> bool:
        """Surely, on problems like these."""
        return self.interval is not None and self.interval[1] < WORTH

    @property
    def is_known(self) -> bool:
        """Whether there are enough problems to advise it: more if its answers are not the target's."""
        return self.num_problems >= (MIN_PROBLEMS if self.policy == "speculative" else MIN_FOR_ANSWERS)

    @property
    def keeps_answers(self) -> bool:
        """The draft alone must lose none: it has no target to rely on."""
        allowed = 0.0 if self.policy == "draft" else MAX_LOST * self.num_problems
        return self.policy == "speculative" or self.num_lost <= allowed

    @property
    def may_keep_answers(self) -> bool:
        """The same, but for one answer that may be lost by chance as long as there are few problems."""
        by_chance = self.num_lost <= 1 and self.num_problems < MIN_FOR_ANSWERS and self.policy != "draft"
        return self.keeps_answers or by_chance

    @property
    def speed(self) -> str:
        """`1.50 [1.41-1.60] times as fast`, with the digits of the tables."""
        low_and_high = "-".join(map(_digits, self.interval or ()))
        return f"{_digits(self.speedup)}{f' [{low_and_high}]' if low_and_high else ''} times as fast"

    @property
    def answers(self) -> str:
        """What it does to the answers, in words."""
        if self.policy == "speculative":
            return "the target's own answers but for near-ties"
        what = "right answer" if self.is_graded else "answer of the target"
        lost = _count(self.num_lost, what) if self.num_lost > 0 else f"no {what}"
        return f"{lost} lost in {self.num_problems} problems"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, in a sentence, and the route to use as a command takes it; None for the target alone.

    It is `final` if more problems are not expected to find a better way.
    """

    decision: Decision
    text: str
    route: str | None = None
    final: bool = True


def verdict(figures: Figures, *, out_of_time: bool = False) -> Verdict | None:
    """The verdict on a run; None if it has nothing beside the target alone to compare with that."""
    ways = ways_of(figures)
    if not ways:
        return None
    promising = [way for way in ways if way.is_faster and way.keeps_answers]
    paying = [way for way in promising if way.is_known]
    if paying:
        best = _best(paying)
        faster = max([best, *promising], key=lambda way: way.speedup)
        more = f" {faster.route} is {faster.speed} so far; more problems would decide it." if not faster.is_known else ""
        return Verdict("pays", _pays(best) + more, best.route, final=not more)
    count = min(way.num_problems for way in ways)
    if count < MIN_TO_REFUSE or promising or any(not way.is_not_worth_it and way.may_keep_answers for way in ways):
        return Verdict("not decided", _not_decided(ways, count, out_of_time=out_of_time), final=False)
    return Verdict("does not pay", " ".join(_does_not_pay(ways, figures)))


def _best(paying: Sequence[Way]) -> Way:
    """The fastest, or one that is about as fast and loses fewer answers."""
    fastest = max(way.speedup for way in paying)
    near = [way for way in paying if way.speedup * ABOUT >= fastest]
    return min(near, key=lambda way: (max(0, way.num_lost), -way.speedup))


def advice_of_taus(named: Mapping[str, float], rows: Sequence[Figures]) -> str:
    """What a head's table of taus advises: the named tau that takes the least time and hardly loses a point; else none."""
    found = [(name, row) for name, tau in named.items() for row in rows if row["tau"] == tau]
    if any(row["time"] is None for _, row in found):
        return "What tokens cost is not known, so the head's table advises nothing: arbitrage advise measures it."
    good = [(name, row) for name, row in found if row["change"] >= -100 * MAX_LOST and row["time"] * WORTH < 1]
    if not good:
        return "By the head's table no named tau saves time and keeps the target's rewards."
    name, row = min(good, key=lambda one: one[1]["time"])
    return f"By the head's table use --tau {name}: {row['time']:.0%} of the target's time, {row['change']:+.1f} points of its reward."


def ways_of(figures: Figures) -> list[Way]:
    """The policies that could be used in the target's place, in the order of the run. The oracle could not."""
    return [
        way for one in figures["policies"] if one["policy"] not in ("target", "oracle") and (way := _way(one)) is not None
    ]


def token_ratio(figures: Figures) -> float | None:
    """What a token of the target costs, in tokens of the draft, by the two models alone; None without both."""
    alone = {one["policy"]: one for one in figures["policies"] if one["policy"] in ("draft", "target")}
    draft, target = (alone.get(role, {}).get(f"{role}_tokens_per_second") for role in ("draft", "target"))
    return draft / target if draft and target else None


def _way(policy: Figures) -> Way | None:
    speedup = policy["speedup"] or policy["throughput_ratio"]
    difference = policy["ratios"].get("accuracy_difference")
    if not speedup or not difference:
        return None
    interval = policy["speedup_interval"] or policy["throughput_ratio_interval"]
    name = None if policy["tau_name"] == SAME else policy["tau_name"]
    route = route_name(policy["policy"], policy["tau"], name)
    is_graded, same = policy["unscored"] < difference["denominator"], policy["ratios"].get("same_answers")
    lost = -difference["numerator"] if is_graded or not same else same["denominator"] - same["numerator"]
    count = round(difference["denominator"])
    return Way(route, policy["policy"], speedup, interval and tuple(interval), round(lost), count, is_graded)


def _pays(way: Way) -> str:
    if way.policy == "draft":
        return f"The draft alone is enough for these problems: {way.speed}, {way.answers}."
    name = "Speculation" if way.policy == "speculative" else f"Routing by {way.route}"
    return f"{name} pays here: {way.speed}, {way.answers}."


def _not_decided(ways: Sequence[Way], count: int, *, out_of_time: bool) -> str:
    best = max(ways, key=lambda way: (way.policy != "draft", way.keeps_answers, way.speedup))
    so_far = f"{best.route} is {best.speed} so far, {best.answers}"
    reason = f"Out of time after {_count(count, 'problem')}" if out_of_time else f"Not decided by {_count(count, 'problem')}"
    return f"{reason}: {so_far}. More problems would decide it."


def _does_not_pay(ways: Sequence[Way], figures: Figures) -> list[str]:
    others = [way for way in ways if way.policy != "draft"] or ways
    if fast := [way for way in others if way.is_faster]:
        best = min(fast, key=lambda way: way.num_lost)
        return [f"No way here keeps the target's answers and is faster: {best.route} is {best.speed}, {best.answers}."]
    ratio, needed = token_ratio(figures), _ratio_needed(figures)
    why = f": a token of the target costs {ratio:.2g} of the draft's" if ratio else ""
    would = f"; from about {needed:.2g} on they would" if needed and ratio and needed > ratio else ""
    best = max(others, key=lambda way: way.speedup)
    return [f"These two do not pay on this machine{why}{would}.", f"The fastest way, {best.route}, is {best.speed}."]


def _ratio_needed(figures: Figures) -> float | None:
    """From which ratio on routing would be `WORTH` it, if the draft writes every step and the target the escalated ones."""
    routed = [one for one in figures["policies"] if one["tau"] is not None and one["acceptance_rate"] is not None]
    shares = [1 - one["acceptance_rate"] for one in routed if (way := _way(one)) and way.keeps_answers]
    left = 1 / WORTH - min(shares, default=1.0)
    return 1 / left if left > 0 else None


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _count(number: int, noun: str) -> str:
    first, space, rest = noun.partition(" of ")
    return f"{number} {first}{'s' * (number != 1)}{space}{rest}"

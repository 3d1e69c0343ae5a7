"""Sentences about verdicts and token costs for `advise`, `bench`, `report` and the HTML report."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from arbitrage_cli.evaluation.bounds import GOOD_RATIO, Bound
from arbitrage_cli.evaluation.figures import PolicyFigures
from arbitrage_cli.evaluation.metrics import RunFigures
from arbitrage_cli.evaluation.verdict import LIKELY, MIN_PROBLEMS, TARGET, Basis, Candidate, Verdict
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.routing.policies import DRAFT_ALONE
from arbitrage_cli.routing.route import Route

if TYPE_CHECKING:
    from arbitrage_cli.app.commands.advise import Advice

CERTAIN = 0.985  # the confidence from which a verdict is almost certain
FEW = 4  # a target that solves at most one problem in FEW is weak
NAMED = 3  # the number of candidates in a sentence


def sentence(figures: RunFigures) -> str:
    """Return sentences with the verdict, its confidence and the figures behind it, or "" without a verdict."""
    verdict = figures.verdict
    if verdict is None:
        return ""
    if verdict.is_by_bounds and not verdict.num_problems:
        return _by_bounds(figures, verdict)
    reason = _reason(figures, verdict)
    if verdict.is_worth_it:
        adverb, chance = confidence(verdict.confidence or 0.0)
        return " ".join((f"{adverb} worth it ({chance}): {_effect(verdict.best, figures, 'reaches')}.", *reason))
    return " ".join((_opening(verdict), *_known(figures, verdict), *reason, _ending(verdict)))


def alone(figures: RunFigures) -> str:
    """Return a sentence on the problems that the draft and the target solve alone, or "" if no problem was compared."""
    draft = figures.of(Route(DRAFT_ALONE))
    if not draft or not draft.target_right or not draft.answers_same:
        return ""
    right, same = draft.target_right, draft.answers_same
    if right.value is None:
        return "" if same.value is None else f"The draft alone gives the same answer as the target to {_of(same)}."
    change = _numerator(draft.answers_gained) - _numerator(draft.answers_lost)
    solved, count = round(right.numerator), round(right.denominator)
    is_weak = FEW * solved <= count >= FEW
    only, advice = ("only ", "; consider a stronger target") if is_weak else ("", "")
    problems = formatting.count(count, "problem")
    return f"Of {problems}, the draft alone solves {solved + change}, the target {only}{solved}{advice}."


def more_time(advice: "Advice") -> str:
    """Return how a verdict can be reached, or "" if there is one or more time does not help."""
    if advice.minutes is None:
        return ""
    problems = formatting.count(advice.finished, "problem")
    return f"Each remaining policy finished {problems} in the time limit; use --minutes {advice.minutes:g}."


def confidence(probability: float) -> tuple[str, str]:
    """Return the first word of a verdict, such as `Probably`, and the probability in words, which is never rounded up."""
    if probability >= CERTAIN:
        return "Almost certainly", "99 in 100"
    return "Undecided" if probability < LIKELY else "Probably", f"{max(5, min(9, int(10 * probability + 1e-9)))} in 10"


def token_ratio_words(ratio: float, interval: formatting.Bounds = None) -> str:
    return f"a target token costs {formatting.number(ratio)} draft tokens {formatting.number_range(interval)}".rstrip()


def _reason(figures: RunFigures, verdict: Verdict) -> Iterator[str]:
    """Yield the reason if a pair with prices is judged by its times."""
    if figures.is_priced and verdict.basis == "time":
        target = figures.of(TARGET)
        is_free = target is not None and target.price is not None and target.price.value == 0
        yield f"The pair is judged by time, because {'the target is free' if is_free else 'prices are unavailable'}."


def _by_bounds(figures: RunFigures, verdict: Verdict) -> str:
    """Return sentences on a verdict that follows from the costs or prices of tokens alone."""
    bounds = [one.bound for one in verdict.candidates if one.bound]
    opening = "Not worth it" if all(bound.is_certain for bound in bounds) else _opening(verdict).removesuffix(".")
    known = "; ".join(f"{_name(bound.route)} {_bound(bound, verdict.basis)}" for bound in bounds)
    beside = f"Compared with the target alone, {known}."
    if verdict.basis == "price":
        return f"{opening} at these prices. {beside} No problem was solved. Use the target alone."
    ratio = figures.token_ratio.value
    reason = f", because {token_ratio_words(ratio)}" if ratio else ""
    return (
        f"{opening} on this machine{reason}. {beside} This follows from the token costs; no problem was solved. A pair is "
        f"usually worth using if a target token costs at least about {GOOD_RATIO:g} draft tokens, for example with a draft of "
        "0.5 and a target of 7 billion parameters (which pairs: arbitrage guide models). Use the target alone, or a smaller "
        "draft. If the target can think, try `--think auto`."
    )


def _bound(bound: Bound, basis: Basis) -> str:
    if bound.escalates_all:
        return "escalates every step"
    if basis == "price":
        at_least = f"costs at least {formatting.percent(1 / bound.at_most)}"
        return at_least if bound.is_certain else f"{at_least}, and probably at least {formatting.percent(1 / bound.likely)}"
    at_most = f"is at most {formatting.number(bound.at_most)}x as fast"
    return at_most if bound.is_certain else f"{at_most}, and probably at most {formatting.number(bound.likely)}x"


def _opening(verdict: Verdict) -> str:
    if verdict.confidence is None:
        return "No verdict yet."
    adverb, chance = confidence(verdict.confidence)
    return f"{adverb} ({chance})." if adverb == "Undecided" else f"{adverb} not worth it ({chance})."


def _known(figures: RunFigures, verdict: Verdict) -> Iterator[str]:
    """Yield sentences about the policies that were measured, tried without a result, excluded by costs, or only expected."""
    named = sorted(verdict.candidates[:NAMED], key=lambda one: one.route.policy is DRAFT_ALONE)
    if measured := [one for one in named if one.num_problems]:
        counts = {one.num_problems for one in measured}
        count = formatting.count(max(counts), "problem")
        effects = [_effect(one, figures, "has", with_count=len(counts) > 1) for one in measured]
        yield f"Measured on {'up to ' if len(counts) > 1 else ''}{count}: {'; '.join(effects)}."
    if unfinished := [_name(one.route) for one in named if one.was_run and not one.num_problems]:
        yield f"Tried, but finished no problem that the target finished: {', '.join(unfinished)}."
    if excluded := [one.bound for one in verdict.candidates if one.bound]:
        words = "; ".join(f"{_name(bound.route)} {_bound(bound, verdict.basis)}" for bound in excluded)
        yield f"Not tried, because of the {'prices' if verdict.basis == 'price' else 'costs'} of tokens: {words}."
    if expected := [one for one in named if not one.was_run and not one.is_excluded]:
        yield f"Expected, not measured: {'; '.join(_expected(one, verdict.basis) for one in expected)}."
    if verdict.confidence is None and verdict.basis == "time" and figures.token_ratio.value:
        yield f"{token_ratio_words(figures.token_ratio.value).capitalize()}."


def _ending(verdict: Verdict) -> str:
    if verdict.confidence is None:
        if any(not one.is_measured and one.num_problems >= MIN_PROBLEMS for one in verdict.candidates):
            return "Answers cannot be compared; use questions with answers, or programs with tests."
        return f"A verdict needs at least {MIN_PROBLEMS} problems that each remaining policy and the target finish."
    return "Solve more problems, or use the target alone." if verdict.confidence < LIKELY else "Use the target alone."


def _name(route: Route) -> str:
    if route.policy.phrase:
        return route.policy.phrase
    return f"{'routing with' if route.policy.routes_steps else 'policy'} {route.name}"


def _effect(candidate: Candidate, figures: RunFigures, verb: str, *, with_count: bool = False) -> str:
    """Return the measured price, speed and answers of a candidate. The price comes first if the pair is judged by it."""
    made = figures.of(candidate.route)
    if made is None:
        raise ValueError(f"{candidate.route.name} was not measured")
    speed = f"{formatting.number(made.speedup.value)}x the target's speed {formatting.number_range(made.speedup.interval)}"
    effect = f"{verb} {speed}"
    if figures.verdict and figures.verdict.basis == "price" and made.saving.value is not None:
        effect = f"{_price(made.saving.value, made.saving.interval)}, at {speed}"
    count = f" on {formatting.count(candidate.num_problems, 'problem')}" if with_count else ""
    return f"{_name(candidate.route)} {effect.rstrip()}{count}, {_answers(made)}"


def _price(saving: float, interval: formatting.Bounds = None) -> str:
    """Return the saved share of the target's price. If nothing is saved, return the price as a share of the target's."""
    if saving < 0:
        prices = (1 - interval[1], 1 - interval[0]) if interval else None
        words, beside = f"costs {formatting.percent(1 - saving)}", formatting.percent_range(prices)
    else:
        words, beside = f"saves {formatting.percent(saving)}", formatting.percent_range(interval)
    return f"{words} of the target's price {beside}".rstrip()


def _expected(candidate: Candidate, basis: Basis) -> str:
    if basis == "price":
        return f"{_name(candidate.route)} {_price(1 - 1 / candidate.ratio)}"
    return f"{_name(candidate.route)} has {formatting.number(candidate.ratio)}x the target's speed"


def _answers(made: PolicyFigures) -> str:
    if made.route.policy.is_lossless:
        return "with the same output, except where two tokens are almost equally likely"
    graded, ungraded = _denominator(made.answers_lost), _denominator(made.answers_same)
    gained, lost, same = map(_numerator, (made.answers_gained, made.answers_lost, made.answers_same))
    parts = []
    if graded:
        parts.append(f"{formatting.count(gained, 'answer')} gained and {lost:,} lost of {graded:,}")
    if ungraded:
        parts.append(f"{same:,} of {formatting.count(ungraded, 'answer')} equal to the target's")
    if rest := (made.both_finished or 0) - graded - ungraded:
        parts.append(f"{formatting.count(rest, 'answer')} that cannot be compared")
    return f"with {' and '.join(parts)}"


def _numerator(figure: Ratio | None) -> int:
    """Return the numerator of a share of the answers."""
    return round(figure.numerator) if figure else 0


def _denominator(figure: Ratio | None) -> int:
    return round(figure.denominator) if figure else 0


def _of(figure: Ratio) -> str:
    return f"{round(figure.numerator)} of {formatting.count(round(figure.denominator), 'problem')}"

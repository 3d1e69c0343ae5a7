"""Sentences about verdicts and token costs for `advise`, `bench`, `report` and the HTML report."""

from collections.abc import Mapping, Sequence
from typing import Any

from arbitrage_cli.evaluation.verdict import LIKELY
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import POLICIES

Json = Mapping[str, Any]  # a verdict or a candidate from `figures`

CERTAIN = 0.985  # the confidence from which a verdict is almost certain
FEW = 4  # a target that solves at most one problem in FEW is weak
SIMILAR = 4.0  # token ratio below which the models have similar speeds
REACHABLE = 3.0  # the largest speed-up of the draft that is mentioned
NAMED = 3  # the number of candidates in a sentence
SMALL = 0.1  # difference of speed that is shown as a percentage


def sentence(verdict: Json) -> str:
    """Return sentences with the verdict, its confidence and the figures behind it."""
    adverb, chance = confidence(verdict["confidence"])
    if verdict["route"] != "target":
        best = next(one for one in verdict["candidates"] if one["route"] == verdict["route"])
        speed = f"{formatting.number(best['speedup'])}x the target's speed {formatting.number_range(best['interval'])}"
        about = f"{_roughly(best)}{speed}{_saving(best, ' and saves')}"
        return f"{adverb} worth it ({chance}): {_name(best)} reaches {about}, {_answers(best)}."
    likeliest = verdict["candidates"][:NAMED]
    measured = [one for one in likeliest if one["num_problems"]]
    source = f"Measured on {formatting.count(verdict['num_problems'], 'problem')}"
    figures = [_about(source, measured), _about("Estimated", [one for one in likeliest if not one["num_problems"]])]
    if verdict["confidence"] < LIKELY:
        opening, ending = f"{adverb} ({chance}).", ["Solve more problems, or use the target alone."]
    else:
        opening, ending = f"{adverb} not worth it ({chance}).", ["Use the target alone.", _outlook(verdict)]
    return " ".join(filter(None, (opening, *figures, *ending)))


def alone(figures: Json) -> str:
    """Return a sentence on the problems that the draft and the target solve alone, or "" if none were compared."""
    draft = next((policy for policy in figures["policies"] if policy["policy"] == "draft"), None)
    if not draft or draft["target_right"] is None:
        return ""
    names = ("target_right", "answers_gained", "answers_lost")
    right, gained, lost = (draft["ratios"][name]["numerator"] for name in names)
    count = draft["ratios"]["target_right"]["denominator"]
    problems = formatting.count(count, "problem")
    if not draft["answers_graded"]:
        return f"The draft alone gives the target's answer to {right - lost} of {problems}."
    only, advice = ("only ", "; consider a stronger target") if FEW * right <= count >= FEW else ("", "")
    return f"Of {problems}, the draft alone solves {right + gained - lost}, the target {only}{right}{advice}."


def confidence(probability: float) -> tuple[str, str]:
    """Return the first word of a verdict, such as `Probably`, and the probability in words, which is never rounded up."""
    if probability >= CERTAIN:
        return "Almost certainly", "99 in 100"
    return "Undecided" if probability < LIKELY else "Probably", f"{max(5, min(9, int(10 * probability + 1e-9)))} in 10"


def token_ratio_words(ratio: float, interval: formatting.Bounds = None) -> str:
    return f"the target is {formatting.number(ratio)}x slower per token than the draft {formatting.number_range(interval)}".rstrip()


def _about(source: str, candidates: Sequence[Json]) -> str:
    """Return the speeds and the drawbacks of candidates that are not recommended, the draft last."""
    ordered = sorted(candidates, key=lambda one: one["policy"] == "draft")
    texts = [f"{_name(one)} is {_roughly(one)}{_pace(one['speedup'])}{_drawback(one)}" for one in ordered]
    return f"{source}: {'; '.join(texts)}." if texts else ""


def _roughly(candidate: Json) -> str:
    """Return a word for a speed that follows from few problems and the expected speed."""
    return "about " if candidate["is_expected"] and candidate["num_problems"] else ""


def _name(candidate: Json) -> str:
    if candidate["policy"] == "draft":
        return "the draft alone"
    policy = POLICIES[candidate["policy"]]
    return (
        "speculation"
        if policy.speculates
        else f"{'policy' if policy.kind == 'checked' else 'routing with'} {candidate['route']}"
    )


def _pace(speedup: float) -> str:
    """Describe a speed in comparison with the target's."""
    if abs(change := 1 / speedup - 1) <= SMALL:
        return f"{abs(change):.0%} {'slower' if change > 0 else 'faster'}"
    return f"{formatting.number(speedup)}x as fast" if speedup > 1 else f"{formatting.number(1 / speedup)}x slower"


def _saving(candidate: Json, words: str) -> str:
    saving = candidate["saving"]
    if not saving or saving < 0:
        return ""
    return f"{words} {formatting.percent(saving)} of its price {formatting.percent_range(candidate['saving_interval'])}".rstrip()


def _drawback(candidate: Json) -> str:
    """Return a candidate's savings or, if the candidate is fast enough, the reason why it is not recommended."""
    if candidate["is_fast"] < candidate["is_safe"]:
        return _saving(candidate, ", but it saves")
    if not candidate["num_compared"]:
        return ", accuracy not measured"
    is_changed = candidate["num_gained"] or candidate["num_lost"]
    return f", {_answers(candidate)}" if is_changed else ", but it may lose answers"


def _outlook(verdict: Json) -> str:
    """Say which token ratio would be enough, or that the models have similar speeds."""
    ratio, needed = verdict["token_ratio"], verdict["ratio_needed"]
    if not ratio or all(one["is_safe"] < 1 - LIKELY for one in verdict["candidates"]):  # a faster draft would not help
        return ""
    if needed and needed <= REACHABLE * ratio:
        return (
            f"{token_ratio_words(ratio).capitalize()}; from about {float(f'{needed:.2g}'):g}x, the pair would be worth it."
        )
    if ratio < SIMILAR:
        return f"{token_ratio_words(ratio).capitalize()}, and routing pays for both."
    return ""


def _answers(candidate: Json) -> str:
    if POLICIES[candidate["policy"]].speculates:
        return "with the same output, except where two tokens are almost equally likely"
    compared, graded, attempts = (candidate[name] for name in ("num_compared", "num_graded", "num_attempts"))
    if not compared:
        return f"but {'its answers cannot be' if candidate['num_problems'] else 'no answers were'} compared"
    changed = f"{formatting.count(candidate['num_gained'], 'answer')} gained and {candidate['num_lost']:,} lost"
    notes = [
        *([f"{attempts - compared:,} others cannot be compared"] if compared < attempts else []),
        *(["answers that cannot be graded count as lost if they differ from the target's"] if graded < compared else []),
    ]
    return f"with {changed} of {compared:,}" + (f" ({'; '.join(notes)})" if notes else "")

"""Sentences about verdicts and token costs for `advise`, `bench`, `report` and the HTML report."""

from collections.abc import Iterator

from arbitrage_cli.evaluation.verdict import LIKELY, MIN_PROBLEMS
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.policies import DRAFT_ALONE, POLICIES, TARGET_ALONE
from arbitrage_cli.types import Json

CERTAIN = 0.985  # the confidence from which a verdict is almost certain
FEW = 4  # a target that solves at most one problem in FEW is weak
NAMED = 3  # the number of candidates in a sentence


def sentence(figures: Json) -> str:
    """Return sentences with the verdict, its confidence and the figures behind it."""
    verdict = figures["verdict"]
    if verdict["route"] != TARGET_ALONE.name:
        adverb, chance = confidence(verdict["confidence"])
        best = next(one for one in verdict["candidates"] if one["route"] == verdict["route"])
        return f"{adverb} worth it ({chance}): {_effect(best, figures, 'reaches')}."
    return " ".join((_opening(verdict), *_known(figures), _ending(verdict)))


def alone(figures: Json) -> str:
    """Return a sentence on the problems that the draft and the target solve alone, or "" if none were compared."""
    draft = next((policy for policy in figures["policies"] if policy["policy"] == DRAFT_ALONE.name), None)
    if not draft or draft["answers_same"] is draft["target_right"] is None:
        return ""
    if draft["target_right"] is None:
        return f"The draft alone gives the target's answer to {_of(draft['ratios']['answers_same'])}."
    names = ("target_right", "answers_gained", "answers_lost")
    right, gained, lost = (draft["ratios"][name]["numerator"] for name in names)
    count = draft["ratios"]["target_right"]["denominator"]
    only, advice = ("only ", "; consider a stronger target") if FEW * right <= count >= FEW else ("", "")
    problems = formatting.count(count, "problem")
    return f"Of {problems}, the draft alone solves {right + gained - lost}, the target {only}{right}{advice}."


def confidence(probability: float) -> tuple[str, str]:
    """Return the first word of a verdict, such as `Probably`, and the probability in words, which is never rounded up."""
    if probability >= CERTAIN:
        return "Almost certainly", "99 in 100"
    return "Undecided" if probability < LIKELY else "Probably", f"{max(5, min(9, int(10 * probability + 1e-9)))} in 10"


def token_ratio_words(ratio: float, interval: formatting.Bounds = None) -> str:
    return f"the target is {formatting.number(ratio)}x slower per token than the draft {formatting.number_range(interval)}".rstrip()


def _opening(verdict: Json) -> str:
    if verdict["confidence"] is None:
        return "No verdict yet."
    adverb, chance = confidence(verdict["confidence"])
    return f"{adverb} ({chance})." if adverb == "Undecided" else f"{adverb} not worth it ({chance})."


def _known(figures: Json) -> Iterator[str]:
    """Yield sentences on what was measured and what is expected, the draft last."""
    verdict = figures["verdict"]
    ordered = sorted(verdict["candidates"][:NAMED], key=lambda one: one["policy"] == DRAFT_ALONE.name)
    measured, expected = ([one for one in ordered if bool(one["num_problems"]) == is_run] for is_run in (True, False))
    if measured:
        effects = "; ".join(_effect(one, figures, "has") for one in measured)
        yield f"Measured on {formatting.count(verdict['num_problems'], 'problem')}: {effects}."
    if expected:
        yield f"Expected, not measured: {'; '.join(_expected(one, figures) for one in expected)}."
    if verdict["confidence"] is None and figures["token_ratio"]:
        yield f"{token_ratio_words(figures['token_ratio']).capitalize()}."


def _ending(verdict: Json) -> str:
    if verdict["confidence"] is None:
        if any(not one["is_measured"] and one["num_problems"] >= MIN_PROBLEMS for one in verdict["candidates"]):
            return "Answers cannot be compared; use questions with answers, or programs with tests."
        return f"A verdict needs at least {MIN_PROBLEMS} problems that each policy and the target finish."
    return "Solve more problems, or use the target alone." if verdict["confidence"] < LIKELY else "Use the target alone."


def _name(candidate: Json) -> str:
    policy = POLICIES[candidate["policy"]]
    if policy.phrase:
        return policy.phrase
    return f"{'routing with' if policy.routes_steps else 'policy'} {candidate['route']}"


def _effect(candidate: Json, figures: Json, verb: str) -> str:
    """Return the measured price, speed and answers of a candidate. The price comes first if the pair has prices."""
    made = next(one for one in figures["policies"] if one["route"] == candidate["route"])
    speed = f"{formatting.number(made['speedup'])}x the target's speed {formatting.number_range(made['speedup_interval'])}"
    effect = f"{verb} {speed}"
    if figures["is_priced"]:
        beside = formatting.percent_range(made["saving_interval"])
        effect = f"{_price(made['saving'])} {beside}".rstrip() + f", at {speed}"
    return f"{_name(candidate)} {effect.rstrip()}, {_answers(made)}"


def _price(saving: float) -> str:
    if saving < 0:
        return f"costs {formatting.percent(1 - saving)} of the target's price"
    return f"saves {formatting.percent(saving)} of the target's price"


def _expected(candidate: Json, figures: Json) -> str:
    ratio = candidate["ratio"]
    effect = _price(1 - 1 / ratio) if figures["is_priced"] else f"has {formatting.number(ratio)}x the target's speed"
    return f"{_name(candidate)} {effect}"


def _answers(made: Json) -> str:
    if POLICIES[made["policy"]].is_lossless:
        return "with the same output, except where two tokens are almost equally likely"
    gained, lost, same = (made["ratios"][f"answers_{name}"] for name in ("gained", "lost", "same"))
    parts = []
    if graded := lost["denominator"]:
        parts.append(
            f"{formatting.count(gained['numerator'], 'answer')} gained and {lost['numerator']:,} lost of {graded:,}"
        )
    if ungraded := same["denominator"]:
        parts.append(f"{same['numerator']:,} of {formatting.count(ungraded, 'answer')} equal to the target's")
    if rest := made["both_finished"] - graded - ungraded:
        parts.append(f"{formatting.count(rest, 'answer')} that cannot be compared")
    return f"with {' and '.join(parts)}"


def _of(ratio: Json) -> str:
    return f"{ratio['numerator']} of {formatting.count(ratio['denominator'], 'problem')}"

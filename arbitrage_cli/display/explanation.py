"""Explains decisions with the most important features and the cost of each step."""

from collections.abc import Iterator

from arbitrage_cli.numbers import formatting
from arbitrage_cli.runs.records import RunInfo
from arbitrage_cli.types import Attribution, Cost, Decision, Trace

TOP = 5  # features named in an explanation

_MEASURES = {"logprob": "probability", "entropy": "entropy", "margin": "margin"}
_ENDS = {"min": "lowest", "max": "highest", "sum": "joint"}
_KINDS = {"digit_": "of digits", "operator_": "of operators", "problem_": "of the problem"}
_EARLIER = {"previous_draft_": "in the previous step", "drafts_": "in all previous steps"}
_OWN = {  # other names are split into words and parts
    "least_likely_position": "position of the least likely token",
    "has_box": "boxed answer",
    "is_thought": "thinking phase",
    "longest_number": "digits of the longest number",
    "unseen_numbers": "new numbers",
    "last_equation_wrong": "wrong last equation",
    "equation_error": "largest equation error",
    "unknown_operands": "operands neither given nor computed",
    "position": "earlier steps",
    "limit": "limit of log-odds",
    "previous_tokens": "tokens of the previous step",
}


def step_lines(trace: Trace, position: int, run: RunInfo) -> Iterator[str]:
    """Yield the log-odds of the router's score, and the cost of each model, if the run explains decisions."""
    if run.explain is None:
        return
    if attribution := run.explain(trace, position):
        yield log_odds(attribution)
    yield costs(trace.decisions[position])


def log_odds(attribution: Attribution) -> str:
    shown = [("an average step", attribution.average_step)]
    shown += [(feature_words(name), value) for name, value in attribution.features[:TOP]]
    # The rest is computed from rounded terms, so that the shown terms add up.
    rest = round(attribution.log_odds, 2) - sum(round(value, 2) for _, value in shown)
    if len(attribution.features) > TOP:
        shown.append(("all other features", rest))
    return f"log-odds {attribution.log_odds:+.2f}: " + "; ".join(f"{value:+.2f} {words}" for words, value in shown)


def costs(decision: Decision) -> str:
    draft, target = decision.draft, decision.target
    spent = {
        "draft": draft.cost if draft else Cost(),
        "target": target.cost if target else Cost(),
        "draft for speculation": target.speculation_cost if target else Cost(),
    }
    return "; ".join(f"{who}: {words}" for who, cost in spent.items() if (words := _spent(cost)))


def _spent(cost: Cost) -> str:
    return ", ".join(
        f"{kind} {formatting.count(tokens, 'token')} {formatting.number(1000 * getattr(cost, f'{kind}_seconds'))} ms"
        for kind in ("prefill", "verify", "decode")
        if (tokens := getattr(cost, f"{kind}_tokens"))
    )


def feature_words(name: str) -> str:
    """Return a feature's description, such as `lowest probability of digits`."""
    if name in _OWN:
        return _OWN[name]
    for prefix, of in (_KINDS | _EARLIER).items():
        if name.startswith(prefix):
            return f"{feature_words(name.removeprefix(prefix))} {of}"
    measure, _, place = name.partition("_")
    return _at(place, _MEASURES[measure]) if measure in _MEASURES else name.replace("_", " ")


def _at(place: str, measure: str) -> str:
    if place.startswith("2nd_"):
        return f"second {_at(place.removeprefix('2nd_'), measure)}"
    if place in ("first", "last"):
        return f"{measure} of the {place} token"
    return f"{place[1:]}% quantile of {measure}" if place.startswith("q") else f"{_ENDS.get(place, place)} {measure}"

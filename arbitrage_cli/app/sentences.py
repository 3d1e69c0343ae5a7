"""Describes verdicts and token costs for `advise`, `bench`, `report` and the HTML report."""

from collections.abc import Mapping
from typing import Any

from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.stats import rounding

Json = Mapping[str, Any]  # a verdict or a candidate from `figures`

BETTER_DRAFT = "a draft that agrees with the target more often"


def sentence(verdict: Json) -> str:
    words = {"pays": _pays, "not decided": _not_decided}
    return words.get(verdict["decision"], _does_not_pay)(verdict)


def costs_sentence(ratio: float) -> str:
    return f"a target token costs {rounding.number(ratio)} draft tokens"


def _pays(verdict: Json) -> str:
    best, faster = verdict["best"], verdict["faster"]
    if best["policy"] == "draft":
        result = "The draft alone is enough for these problems"
    else:
        name = "Speculation" if POLICIES[best["policy"]].speculates else f"Routing with {best['route']}"
        result = f"{name} is worth it on this machine"
    more = f" {faster['route']} runs at {_speed(faster)} so far; more problems are needed to decide." if faster else ""
    return f"{result}: {_speed(best)}, {_answers(best)}.{more}"


def _not_decided(verdict: Json) -> str:
    best, after = verdict["best"], rounding.count(verdict["num_problems"], "problem")
    reason = "Out of time" if verdict["out_of_time"] else "Not decided"
    needed = "Comparable answers" if verdict["needs_answers"] else "More problems"
    so_far = f"{best['route']} runs at {_speed(best)} so far, {_answers(best)}"
    return f"{reason} after {after}: {so_far}. {needed} are needed to decide."


def _does_not_pay(verdict: Json) -> str:
    best, ratio = verdict["best"], verdict["token_ratio"]
    if verdict["loses_answers"]:
        runs = f"{best['route']} runs at {_speed(best)}, {_answers(best)}"
        lost = f"No policy is faster while keeping the target's answers: {runs}."
        return f"{lost} {BETTER_DRAFT.capitalize()} might change that."
    why = f": {costs_sentence(ratio)}{_outlook(verdict)}" if ratio else "."
    return f"This pair is not worth using on this machine{why} The fastest policy, {best['route']}, runs at {_speed(best)}."


def _outlook(verdict: Json) -> str:
    if verdict["ratio_needed"]:
        needed = float(f"{verdict['ratio_needed']:.2g}")
        return f"; it would be worth using from about {needed:g}."
    if verdict["is_idle"]:
        return ", too few for speculation to draft tokens. A faster draft might change that."
    return f". A faster draft would not change that; {BETTER_DRAFT} might."


def _speed(candidate: Json) -> str:
    interval = rounding.number_range(candidate["interval"])
    return f"{rounding.number(candidate['speedup'])}x the target's speed{f' {interval}' if interval else ''}"


def _answers(candidate: Json) -> str:
    if POLICIES[candidate["policy"]].speculates:
        return "with the same output, except where two tokens are almost equally likely"
    compared, attempts = candidate["num_compared"], candidate["num_attempts"]
    if not compared:
        return "but its answers cannot be compared"
    graded = candidate["num_graded"]
    kind = {compared: "right answer", 0: "target answer"}.get(graded, "answer")
    lost = rounding.count(candidate["num_lost"], kind) if candidate["num_lost"] else f"no {kind}"
    unit = "problem" if candidate["samples"] == 1 else "attempt"
    if compared == attempts:
        return f"with {lost} lost in {rounding.count(attempts, unit)}"
    return f"with {lost} lost ({compared} of {attempts} {unit}s have comparable answers)"

"""Why steps were accepted or escalated, in words and as JSON."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arbitrage_cli.display.feature_words import feature_words
from arbitrage_cli.display.text import WIDTH, one_line
from arbitrage_cli.routing.explain import Explanation
from arbitrage_cli.runs.records import tau_in_json
from arbitrage_cli.stats import rounding

MEANING = {
    "improved": "escalated, and the target's step is better",
    "missed": "accepted, though the target's step is better",
    "wasted": "escalated for nothing",
    "spared": "accepted, and nothing was lost",
}


def solution_lines(explanations: Sequence[Explanation], top: int) -> Iterator[str]:
    """Each step with its `top` features; in the end what the oracle would have done, if that is known."""
    for one in explanations:
        yield from step_lines(one, top)
    known = [one for one in explanations if one.judgement]
    if known:
        yield from ("", oracle_line(known))


def step_lines(one: Explanation, top: int) -> Iterator[str]:
    """One step: the decision, its features, and what the oracle would have done."""
    verdict, sign = ("escalated", " > ") if one.is_escalated else ("accepted", " <= ")
    text = "" if one.text is None else f"  {one_line(one.text)}" + (" (stopped early)" if one.is_stopped else "")
    yield f"{one.position + 1:3}  {verdict:<9}  P {sign.join(rounding.compared(one.score, one.tau))}{text}"
    yield from _feature_lines(one.parts, top)
    if one.judgement is not None:
        regret = f", regret {one.regret:.2f}" if one.regret else ""
        yield f"     oracle: advantage {one.advantage:+.2f}, {one.judgement}: {MEANING[one.judgement]}{regret}"


def oracle_line(explanations: Sequence[Explanation]) -> str:
    """Calls, those wasted, improvements missed, and regret per step."""
    calls = sum(one.is_escalated for one in explanations)
    counts = {name: sum(one.judgement == name for one in explanations) for name in MEANING}
    regret = sum(one.regret or 0.0 for one in explanations) / max(1, len(explanations))
    return (
        f"{rounding.count(len(explanations), 'step')}: {calls} escalated, {counts['wasted']} of them for nothing; "
        f"{counts['missed']} of {counts['missed'] + counts['improved']} improvements missed; regret {regret:.4f} a step"
    )


def explanation_records(explanations: Sequence[Explanation], about: Mapping[str, Any]) -> Iterator[str]:
    """One line of JSON for each step."""
    for one in explanations:
        record = {
            **about,
            "position": one.position,
            "decision": "escalate" if one.is_escalated else "accept",
            "score": one.score,
            "tau": tau_in_json(one.tau),
            "parts": dict(one.parts),
            "text": one.text,
            "stopped_early": one.is_stopped,
            "advantage": one.advantage,
            "judgement": one.judgement,
            "regret": one.regret,
        }
        yield json.dumps(record, ensure_ascii=True, allow_nan=False)


def _feature_lines(parts: Sequence[tuple[str, float]], top: int) -> Iterator[str]:
    words = "; ".join(f"{part:+.2f} {feature_words(name)}" for name, part in parts[:top])
    yield from textwrap.wrap(words, WIDTH, initial_indent="     ", subsequent_indent="     ")

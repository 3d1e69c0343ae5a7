"""Writes the output of `arbitrage advise`: a table, the verdict and the next command, or the token costs of a pair."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, TextIO

from arbitrage_cli.app.advise import Advice
from arbitrage_cli.app.sentences import costs_sentence
from arbitrage_cli.display.table import write_table
from arbitrage_cli.display.text import aligned, is_drawable, one_line, write
from arbitrage_cli.stats import rounding
from arbitrage_cli.tuning.measure import ModelCosts
from arbitrage_cli.tuning.placement import costs_of, tuned_file
from arbitrage_cli.types import ModelRole

Json = Mapping[str, Any]


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    figures = advice.figures
    write_table({**figures, "verdict": None}, findings(figures), stream, styled=is_drawable(stream))
    write(stream, f"\n{one_line(advice.sentence)}\n  {advice.command}\n")


def findings(figures: Json) -> list[tuple[str, str]]:
    """Return facts about the token costs, and about how often the draft and the target agree on an answer."""
    ratio, interval = figures["token_ratio"], figures["token_ratio_interval"]
    facts = [("costs", costs_sentence(ratio, interval))] if ratio else []
    draft = next((entry for entry in figures["policies"] if entry["policy"] == "draft"), None)
    if draft and draft["same_answers"] is not None:
        same = draft["ratios"]["same_answers"]
        counts = f"{same['numerator']:.0f} of {same['denominator']:.0f} answers"
        facts.append(("answers", f"the draft and the target agree on {counts}"))
    return facts


def write_costs(found: Mapping[ModelRole, ModelCosts], stream: TextIO) -> None:
    """Write the speeds of each model, and the cost of a target token. Raises the same errors as `write`."""
    lines: list[str] = []
    for role, model in found.items():
        lines += [f"{role}: {one_line(model.tuned.name)}", *_table(model)]
    kept = {role: model.tuned for role, model in found.items() if model.is_steady}
    if costs := costs_of(kept):
        lines.append(costs_sentence(costs.target_seconds_per_token / costs.draft_seconds_per_token))
    lines.append(f"kept in {tuned_file()}" if len(kept) == len(found) else "not all costs were kept")
    write(stream, "".join(f"{line}\n" for line in lines))


def costs_record(found: Mapping[ModelRole, ModelCosts]) -> dict[str, Any]:
    return {
        role: {
            **asdict(model.tuned),
            "is_steady": model.is_steady,
            "tried": {key: asdict(speeds) for key, speeds in model.speeds.items()},
        }
        for role, model in found.items()
    }


def _table(model: ModelCosts) -> Iterator[str]:
    rows = [
        [
            str(count),
            *(rounding.number(1 / seconds) for seconds in (speeds.decode, speeds.read, speeds.verify)),
            "chosen" if count == model.tuned.threads else "",
        ]
        for count, speeds in model.speeds.items()
    ]
    yield from (f"  {line}" for line in aligned(["threads", "decode/s", "prefill/s", "verify/s", ""], rows, left=[4]))

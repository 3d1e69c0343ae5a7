"""Writes the output of `arbitrage advise`: a table, the verdict and the next command, or the token costs of a pair."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from arbitrage_cli.app.advise import Advice
from arbitrage_cli.app.sentences import costs_sentence
from arbitrage_cli.costs.measure import Measurement
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.display.table import write_table
from arbitrage_cli.display.text import aligned, one_line, width_of, wrapped, write
from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import ModelRole

Json = Mapping[str, Any]
PROPOSALS = "Models on this machine that suit each other, best pair first. To find out whether a pair is worth using:"
BUILT_IN_PAIR = "For the built-in pair, use arbitrage advise --pair builtin."
UNSOLVED = "No problem was solved in time, so these are expected values. To measure, use a larger --minutes."


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    figures = advice.figures
    if figures["n"]:
        ratio, interval = figures["token_ratio"], figures["token_ratio_interval"]
        costs = [("costs", costs_sentence(ratio, interval))] if ratio else []
        write_table({**figures, "verdict": None}, costs, stream)
    texts = [advice.sentence, *([] if figures["n"] else [UNSOLVED])]
    lines = [line for text in texts for line in wrapped(one_line(text), width_of(stream))]
    write(stream, "".join(f"{line}\n" for line in ("", *lines, "", f"  {advice.command}")))


def write_proposals(commands: Sequence[str], stream: TextIO) -> None:
    """Write commands that test pairs of the models on this machine. Raises the same errors as `write`."""
    lines = [PROPOSALS, "", *(f"  {one_line(command)}" for command in commands), "", BUILT_IN_PAIR]
    write(stream, "".join(f"{line}\n" for line in lines))


def write_costs(found: Measurement, stream: TextIO) -> None:
    """Write the unit costs of each model and the token ratio. Raises the same errors as `write`."""
    rows = [
        [role, *(formatting.number(1000 * seconds) for seconds in (model.costs.prefill, *model.costs.batches))]
        for role, model in found.models.items()
    ]
    lines = [f"{role}: {one_line(model.name)}, {_threads(role, found)}" for role, model in found.models.items()]
    lines += ["", *aligned(["ms", "prefill", "token", *(f"{size} tokens" for size in ROWS[1:])], rows), ""]
    if pair := found.pair:
        lines.append(costs_sentence(pair.token_ratio, pair.token_ratio_interval))
    if found.faults.keys() < found.models.keys():
        lines.append(f"kept in {tuned_file()}")
    write(stream, "".join(f"{line}\n" for line in lines))


def costs_record(found: Measurement) -> dict[str, Any]:
    ratio, interval = (pair.token_ratio, pair.token_ratio_interval) if (pair := found.pair) else (None, None)
    models: dict[str, Any] = {
        role: {**asdict(model), "tokens_per_second": dict(found.speeds[role])} for role, model in found.models.items()
    }
    return {**models, "token_ratio": ratio, "token_ratio_interval": interval}


def _threads(role: ModelRole, found: Measurement) -> str:
    chosen, speeds = found.models[role].threads, found.speeds[role]
    others = [f"{formatting.number(speed)} with {count}" for count, speed in speeds.items() if count != chosen]
    tried = f" ({formatting.number(speeds[chosen])} tokens/s; {', '.join(others)})" if others else ""
    return formatting.count(chosen, "thread") + tried

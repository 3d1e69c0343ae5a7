"""Writes the output of `arbitrage advise`: a table, the verdict and the next command, or the token costs of a pair."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from arbitrage_cli.app.advise import Advice
from arbitrage_cli.costs.measure import Measurement
from arbitrage_cli.costs.store import tuned_file
from arbitrage_cli.display.table import pairs, paragraph, print_to, table_of, write_table
from arbitrage_cli.display.text import one_line, write
from arbitrage_cli.display.verdict import alone, sentence, token_ratio_words
from arbitrage_cli.inference.unit_costs import ROWS
from arbitrage_cli.numbers import formatting

PROPOSALS = "Compatible models on this machine, best pair first. To find out whether a pair is worth using:"
BUILT_IN_PAIR = "For the built-in pair, use arbitrage advise --pair builtin."
MORE = "To get one, use a larger --minutes, --max-tokens 300 for short answers, or --threads 1 on a busy machine."


def write_advice(advice: Advice, stream: TextIO) -> None:
    """Write the table, the verdict and the next command. Raises the same errors as `write`."""
    figures = advice.figures
    if figures["n"]:
        ratio, interval = figures["token_ratio"], figures["token_ratio_interval"]
        write_table({**figures, "verdict": None}, [("costs", token_ratio_words(ratio, interval))] if ratio else [], stream)
    texts = [alone(figures), sentence(figures), MORE if advice.confidence is None else ""]
    print_to(stream, "", paragraph(" ".join(filter(None, texts))), "")
    write(stream, f"  {advice.command}\n")


def write_proposals(commands: Sequence[str], stream: TextIO) -> None:
    """Write commands that test pairs of the models on this machine. Raises the same errors as `write`."""
    lines = [PROPOSALS, "", *(f"  {one_line(command)}" for command in commands), "", BUILT_IN_PAIR]
    write(stream, "".join(f"{line}\n" for line in lines))


def write_costs(found: Measurement, stream: TextIO) -> None:
    """Write the unit costs of each model as speeds, and the token ratio. Raises the same errors as `write`."""
    rows = []
    for role, model in found.models.items():
        sizes = zip((1, *ROWS), (model.costs.prefill, *model.costs.batches), strict=True)
        rows.append([role, *(formatting.number(size / seconds) for size, seconds in sizes)])
    headings = ["tokens/s", "prefill", "decode", *(f"batch of {size}" for size in ROWS[1:])]
    ratio = [paragraph(token_ratio_words(pair.token_ratio, pair.token_ratio_interval))] if (pair := found.pair) else []
    models = [(role, f"{model.name}, {formatting.count(model.threads, 'thread')}") for role, model in found.models.items()]
    print_to(stream, pairs(models), "", table_of(headings, rows), "", *ratio)
    write(stream, f"kept in {tuned_file()}\n")


def costs_record(found: Measurement) -> dict[str, Any]:
    ratio, interval = (pair.token_ratio, pair.token_ratio_interval) if (pair := found.pair) else (None, None)
    models: dict[str, Any] = {
        role: {**asdict(model), "tokens_per_second": dict(found.speeds[role])} for role, model in found.models.items()
    }
    return {**models, "token_ratio": ratio, "token_ratio_interval": interval}

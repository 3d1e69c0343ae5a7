"""What attempts would take on another machine, from the tokens of each model and that machine's speeds. Measures nothing.

A model there reads and writes so many tokens a second. Two things are not known: how much a machine loses when it reads only a few
tokens at once, and what it takes to verify a proposal. So there are two estimates. The low one reads at full speed, and verifies a
batch in the time of a token that is written, or of its tokens that are read if that is longer. The high one waits for one more
token at each change of model, and saves nothing by verifying.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arbitrage_cli.errors import UsageError
from arbitrage_cli.evaluation.speed import Pairs, speedup
from arbitrage_cli.runs.results import Result
from arbitrage_cli.stats.intervals import Ratio
from arbitrage_cli.types import Cost, ModelRole

EXAMPLE = "tokens a second read and written, or what llama-bench -o json wrote: draft=5000/180,target=target.json"
ROLES: tuple[ModelRole, ...] = ("draft", "target", "prm")
FIGURES = ("elsewhere_seconds", "elsewhere_seconds_interval", "elsewhere_speedup", "elsewhere_speedup_interval")


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second that a model reads and writes on a machine."""

    read: float
    written: float

    def seconds(self, cost: Cost, num_changes: int) -> tuple[float, float]:
        """The low and the high estimate for these tokens, in so many turns after another model's."""
        read_and_written = cost.prefill_tokens / self.read + cost.decode_tokens / self.written
        verified = max(cost.verify_batches / self.written, cost.verify_tokens / self.read)
        nothing_saved = max(verified, cost.verify_kept / self.written)
        return read_and_written + verified, read_and_written + nothing_saved + num_changes / self.written


Speeds = Mapping[ModelRole, Speed]


def parse_speeds(text: str) -> Speeds:
    """`draft=READ/WRITTEN,target=FILE`, both models at least. UsageError."""
    speeds: dict[ModelRole, Speed] = {}
    for part in text.split(","):
        role, _, value = part.strip().partition("=")
        known = next((one for one in ROLES if one == role), None)
        if known is None or known in speeds or not value:
            raise UsageError(f"invalid speeds '{part.strip()}'", EXAMPLE, option="project")
        speeds[known] = _parse_speed(value)
    if not speeds.keys() >= {"draft", "target"}:
        raise UsageError("speeds of both draft and target are needed", EXAMPLE, option="project")
    return speeds


def _parse_speed(value: str) -> Speed:
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?/\d{1,9}(\.\d{1,9})?", value):
        read, written = map(float, value.split("/"))
    else:
        read, written = _of_llama_bench(Path(value))
    if not (0 < read < math.inf and 0 < written < math.inf):
        raise UsageError(f"invalid speeds '{value}'", "give numbers above 0", option="project")
    return Speed(read, written)


def _of_llama_bench(path: Path) -> tuple[float, float]:
    """The first speeds of reading alone and of writing alone in a file. UsageError."""
    try:
        tests = json.loads(path.read_text("utf-8"))
        reading = [test for test in tests if test["n_prompt"] and not test["n_gen"]]
        writing = [test for test in tests if test["n_gen"] and not test["n_prompt"]]
        return float(reading[0]["avg_ts"]), float(writing[0]["avg_ts"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        reason = f"{path}: this is no output of llama-bench -o json, with a test of reading and one of writing ({error})"
        raise UsageError(reason, EXAMPLE, option="project") from error


def projection_figures(done: Sequence[Result], pairs: Pairs, speeds: Speeds) -> dict[str, Any]:
    """Mean seconds of an attempt and the speed-up over the target alone: in the middle of both estimates, and the range of both.

    All are None if a model read or wrote tokens whose speed was not given.
    """
    known = {id(one): _seconds(one, speeds) for group in (done, *pairs) for one in group}
    if None in known.values():
        return dict.fromkeys(FIGURES)

    def seconds(result: Result, share: float = 0.5) -> float:
        low, high = known[id(result)] or (0.0, 0.0)
        return low + share * (high - low)

    totals = [math.fsum(seconds(one, share) for one in done) for share in (0.0, 0.5, 1.0)]
    ratio, _ = speedup(pairs, seconds)
    found = [speedup(pairs, partial(seconds, share=share)) for share in (0.0, 1.0)]
    ends = {end for value, interval in found if value for end in interval or (value.value,) if end is not None}
    return {
        "elsewhere_seconds": Ratio(totals[1], len(done)),
        "elsewhere_seconds_interval": [totals[0] / len(done), totals[2] / len(done)] if done else None,
        "elsewhere_speedup": ratio,
        "elsewhere_speedup_interval": [min(ends), max(ends)] if len(ends) > 1 else None,
    }


def _seconds(result: Result, speeds: Speeds) -> tuple[float, float] | None:
    """Both estimates of an attempt, with the router's time as it was here."""
    tally = result.tally
    turns = tally.target_steps if tally.drafted_steps else 1
    costs: dict[ModelRole, tuple[Cost, int]] = {
        "draft": (tally.draft_cost, turns + 1),
        "target": (tally.target_cost, turns),
        "prm": (tally.reward_cost, tally.drafted_steps + tally.target_steps),
    }
    worked = {role: entry for role, entry in costs.items() if entry[0].prefill_tokens + entry[0].decode_tokens}
    if not worked.keys() <= speeds.keys():
        return None
    estimates = [speeds[role].seconds(cost, num_changes) for role, (cost, num_changes) in worked.items()]
    low, high = (
        math.fsum(column) + result.router_seconds for column in (zip(*estimates, strict=True) if estimates else ((), ()))
    )
    return low, high

"""How many problems are missing, at least, if there are too few states to train on, and the command that adds them."""

import math
import shlex
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from arbitrage_cli.training.examples import SHARES, Collected

MIN_CLASS = 10  # states of each class in each part


def collect_more(collected: Collected, chosen: NDArray[np.bool_]) -> str:
    """What to do about too few states of the pair of the chosen ones (n,)."""
    pair = collected.pair[chosen][0] if chosen.any() else 0
    number, facts = _num_missing(collected, collected.pair == pair), collected.facts[pair]
    total, command = len(facts["ids"]) + number, facts["command"]
    given = dict(pairwise(word for part in command for word in part.split("=", 1)))
    first, _, last = given.get("--limit", "").rpartition("-")
    changes = {"--limit": f"{first}-{int(last) + number}" if first else f"{total}"}
    if total > facts["dataset"]["count"] or "--ids" in given:
        changes = {"--dataset": "OTHERS.jsonl", "-o": "runs/others", "--output": "", "--limit": "", "--ids": ""}
    kept, parts = [], iter(command)
    for part in parts:
        name, equals, _ = part.partition("=")
        if name not in changes:
            kept += [part] * (part != "--fresh")
        elif not equals:
            next(parts, None)
    command = [*kept, *(word for name, value in changes.items() if value for word in (name, value))]
    return f"collect at least {number} more problems: {shlex.join(command)}"


def _num_missing(collected: Collected, chosen: NDArray[np.bool_]) -> int:
    """Problems until each class has enough states in each part, if the others are like the chosen ones."""
    is_better, part = collected.outcomes.advantage[chosen] > 0, collected.part[chosen]
    num_problems, most = len(np.unique(collected.outcomes.problem[chosen])), 1.0
    for members in (is_better, ~is_better):
        each = max(1, members.sum()) / num_problems
        for index, share in enumerate((*SHARES, 1 - sum(SHARES))):
            most = max(most, (MIN_CLASS - members[part == index].sum()) / (each * share))
    return math.ceil(most)

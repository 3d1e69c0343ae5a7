"""Show what policy `relaxed` loses and saves in a run of bench with the policies target, speculative and relaxed.

Usage: python tests/benchmarks/relaxed_table.py RUN

The table covers the problems that all policies finished. It contains the answers gained and lost compared with the target
alone, the texts that equal the target's, the mean number of kept differences, and the target's tokens per batch. The last
column is the speed-up if a batch of the target costs as much as one token, as on a GPU; prefill is not counted.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.numbers.intervals import paired_difference
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.rows import AttemptRow

HEADING = (
    "| policy | correct | change, points [95%] | gained, lost | equal texts | differences kept | tokens per batch | if batches "
    "are free |"
)


def is_right(row: AttemptRow) -> bool:
    return row.grade is not None and row.grade.value == "correct"


def batches_of(rows: Sequence[AttemptRow]) -> int:
    costs = [step.cost for row in rows for step in row.steps]
    return sum(cost.decode_tokens + cost.verify_batches for cost in costs)


def drafted_by(rows: Sequence[AttemptRow]) -> int:
    return sum(step.speculation_cost.decode_tokens for row in rows for step in row.steps if step.speculation_cost)


def cells_of(rows: Sequence[AttemptRow], alone: Sequence[AttemptRow], token_ratio: float) -> list[str]:
    """Return the cells of a policy's row. `alone` contains the target's attempts at the same problems."""
    gained = sum(is_right(row) and not is_right(other) for row, other in zip(rows, alone, strict=True))
    lost = sum(is_right(other) and not is_right(row) for row, other in zip(rows, alone, strict=True))
    both = sum(map(is_right, alone)) - lost
    low, high = paired_difference(both, gained, lost, len(rows) - both - gained - lost) or (0.0, 0.0)
    change = f"{100 * (gained - lost) / len(rows):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    kept = sum(len(step.differences or ()) for row in rows for step in row.steps) / len(rows)
    batches = batches_of(rows)
    tokens = sum(step.tokens for row in rows for step in row.steps)
    speed_up = batches_of(alone) / (batches + drafted_by(rows) / token_ratio)
    equal = sum(row.text == other.text for row, other in zip(rows, alone, strict=True))
    right = str(sum(map(is_right, rows)))
    return [right, change, f"{gained}, {lost}", str(equal), f"{kept:.1f}", f"{tokens / batches:.1f}", f"{speed_up:.2f}x"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    contents = read_run_folder(parser.parse_args().run)
    if (costs := PairCosts.of(contents.run.decided.unit_costs)) is None:
        parser.error("the run has no token costs")
    attempts: dict[str, dict[str, AttemptRow]] = {route.name: {} for route in contents.run.routes}
    for row in contents.rows:
        if row.status == "done":
            attempts[row.route.name][row.id] = row
    shared = sorted(set.intersection(*(set(rows) for rows in attempts.values())))
    print(f"{len(shared)} problems; a target token costs {costs.token_ratio:.2f} draft tokens")
    print(HEADING)
    print("|---" * (HEADING.count("|") - 1) + "|")
    for name, rows in attempts.items():
        print(
            f"| {name} | {' | '.join(cells_of(select(rows, shared), select(attempts['target'], shared), costs.token_ratio))} |"
        )


def select(rows: Mapping[str, AttemptRow], names: Sequence[str]) -> list[AttemptRow]:
    return [rows[name] for name in names]


if __name__ == "__main__":
    main()

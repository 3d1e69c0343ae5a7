"""Compute how much faster `speculative` could be with several problems at once, if they shared the draft's batches, too.

Usage: python tests/benchmarks/shared_drafts.py DRAFT TARGET [--threads 1] [--prompt 75] [--tokens 120]

Prints the target's time without speculation divided by its time with it, from the token costs that this machine has stored
for the models. The figures are upper limits: all problems are assumed to draft equally many tokens, so that each batch of the
draft is full, and the target alone is assumed to have no prompt lookup.
"""

import argparse

from arbitrage_cli.costs.store import find_measurements
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.speculation import speculative_pace
from arbitrage_cli.inference.unit_costs import UnitCosts

CONTEXT = 2048
AT_ONCE = (1, 2, 4, 8)
MATCH_RATES = (0.8, 0.9, 0.94, 0.97, 0.99)


def speedup(draft: UnitCosts, target: UnitCosts, at_once: int, match_rate: float, prompt: int, tokens: int) -> float:
    """Return the speed-up for a solution with this many tokens. A draft whose batches are dear drafts for one problem at a time."""
    shared, drafting = target.at(at_once), draft.at(at_once)
    if draft.decode < drafting.decode:
        drafting = draft
    alone = prompt * target.prefill + tokens * shared.decode
    pace = speculative_pace(shared, drafting, match_rate)
    return alone / (prompt * (target.prefill + draft.prefill) + tokens * pace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draft")
    parser.add_argument("target")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=75)
    parser.add_argument("--tokens", type=int, default=120)
    options = parser.parse_args()
    loading = LoadOptions(CONTEXT, threads=options.threads)
    found = find_measurements({"draft": options.draft, "target": options.target}, loading)
    if len(found) < 2:
        parser.error("no token costs are stored; solve a problem with --policy speculative and the same --threads first")
    draft, target = (found[role].costs for role in ("draft", "target"))
    print(f"| problems at once | {' | '.join(f'{rate:.0%} kept' for rate in MATCH_RATES)} |")
    print("|---" * (1 + len(MATCH_RATES)) + "|")
    for at_once in AT_ONCE:
        cells = (speedup(draft, target, at_once, rate, options.prompt, options.tokens) for rate in MATCH_RATES)
        print(f"| {at_once} | {' | '.join(f'{cell:.2f}x' for cell in cells)} |")


if __name__ == "__main__":
    main()

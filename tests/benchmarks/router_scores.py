"""Measure how long a router takes to score the unfinished steps of long solutions.

Usage: python tests/benchmarks/router_scores.py [ROUTER.safetensors] [--lengths 2000 8000 16000 64000]

The steps are made up and have 40 tokens. The table shows the milliseconds of processor time per drafted token, if each score
reads only the new steps of the solution, and if each score reads all steps again.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from arbitrage_cli.routing.equations import check_equations
from arbitrage_cli.routing.router import Router, is_due, load
from arbitrage_cli.training.states import prefix_of
from arbitrage_cli.types import Cost, Decision, Limits, Problem, Step, TokenStats, Trace

ROUTER = Path(__file__).parents[2] / "models" / "builtin.safetensors"
LENGTHS = [2_000, 8_000, 16_000, 64_000]
NUM_TOKENS, ROUNDS = 40, 5
PIECES = (" the", " so", " 12", "3", " =", " +", " wait", " check", ".", " x")


def make_step(rng: random.Random, number: int) -> Step:
    end = (f" {number}", " +", f" {number}", " =", f" {2 * number}", ".\n\n")
    pieces = (*rng.choices(PIECES, k=NUM_TOKENS - len(end)), *end)
    log_probabilities, entropies, margins = ([scale * rng.random() for _ in pieces] for scale in (-1, 1, 5))
    token_stats = TokenStats(log_probabilities, entropies, margins, pieces)
    return Step("draft", "".join(pieces), NUM_TOKENS, Cost(), "separator", token_stats)


def measure(router: Router, trace: Trace, drafts: Sequence[Step], *, is_whole_read: bool) -> tuple[float, list[float]]:
    """Return the median milliseconds per token of a draft, and the scores of all prefixes of the drafts."""
    seconds, scores = [], list[float]()
    for draft in drafts:
        prefixes = [prefix_of(draft, count) for count in filter(is_due, range(1, NUM_TOKENS))]
        check_equations.cache_clear()
        began = time.process_time()
        scores += [router.probability(replace(trace) if is_whole_read else trace, prefix) for prefix in prefixes]
        seconds.append(time.process_time() - began)
    return 1e3 * median(seconds) / NUM_TOKENS, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("router", type=Path, nargs="?", default=ROUTER)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args()
    router = load(options.router)
    rng, trace = random.Random(0), Trace(Problem("", "Ann has 12 apples and 7 pears. How many?"), Limits())
    print("| tokens before the step | read once | read again for each score |")
    print("|---|---|---|")
    for length in options.lengths:
        while trace.num_tokens < length:
            step = make_step(rng, len(trace.decisions))
            trace.add(Decision(step, step))
        drafts = [make_step(rng, len(trace.decisions)) for _ in range(ROUNDS)]
        (new, scores), (whole, expected) = (
            measure(router, trace, drafts, is_whole_read=is_whole_read) for is_whole_read in (False, True)
        )
        assert scores == expected
        print(f"| {length:,} | {new:.2f} | {whole:.2f} |")


if __name__ == "__main__":
    main()

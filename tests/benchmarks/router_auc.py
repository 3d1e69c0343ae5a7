"""Print how well a router, and scores without a router, rank the states of a pair.

Usage: python tests/benchmarks/router_auc.py ROUTER STATES...

The router may know the problems: the first line says how many of them.
"""

import sys
from pathlib import Path

from arbitrage_cli.learning.quality import measure
from arbitrage_cli.routing.router import load
from arbitrage_cli.training.collected import read_states
from arbitrage_cli.training.train import scores


def main(source: str, *states: str) -> None:
    router = load(Path(source))
    collected = read_states([Path(path) for path in states])
    known = sum(router.card.known(collected.questions))
    print(
        f"{len(collected.features)} states of {len(collected.questions)} problems; the router knows {known} of the problems"
    )
    for name, score in scores(router.probabilities(collected.features), collected).items():
        for what, figure in measure(score, collected.examples.truth, is_probability=name == "arbitrage").items():
            print(f"{name}: {what} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])

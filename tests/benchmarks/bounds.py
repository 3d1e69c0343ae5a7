"""Print how fast each policy can be at most, and probably, by the ratio of the token costs alone.

Usage: python tests/benchmarks/bounds.py

A prompt token costs as much as a token in the largest batch. A checker costs as much as the draft. "Cheap batches" are those of
a GPU, which verifies 16 tokens in about the time of one; "expensive batches" are those of a few CPU cores. The universal router
routes with the preset `careful`, and the share of the steps that it escalates is that of its card.
"""

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.evaluation.bounds import Bound, bounds_of
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.presets import TauTable
from arbitrage_cli.routing.route import AvailableRouter, Route, make_route
from arbitrage_cli.routing.router import load

RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)
CHEAP, EXPENSIVE = 1.1, 6.0  # the time of a batch of 16 tokens, in decoded tokens
ROUTER = "builtin:universal"


def units(decode: float, many: float) -> UnitCosts:
    """Return costs with batches whose time is linear in their size, up to `many` decoded tokens for the largest."""
    largest = ROWS[-1]
    batches = tuple(decode * (1 + (many - 1) * (rows - 1) / (largest - 1)) for rows in ROWS)
    return UnitCosts(batches, batches[-1] / largest)


def bound(policy: str, ratio: float, many: float, *, has_checker: bool = False) -> Bound:
    """Return the bound of a policy for a pair whose target token costs `ratio` draft tokens."""
    costs = PairCosts(units(1.0 / ratio, many), units(1.0, many))
    router = load(router_file(ROUTER))
    available = AvailableRouter(router, ROUTER, costs)
    route = make_route(POLICIES[policy], "careful", available) if policy == "arbitrage" else Route(POLICIES[policy])
    table = TauTable.from_json(router.card.taus)
    (found,) = bounds_of([route], costs, table, costs.draft if has_checker else None)
    return found


def words(found: Bound) -> str:
    return "escalates every step" if found.escalates_all else f"{found.at_most:.2f}x, {found.likely:.2f}x"


def main() -> None:
    print("| a target token costs | batches | routing | speculation | `agree` with a checker | `agree` without |")
    print(f"|{'---|' * 6}")
    for ratio in RATIOS:
        for name, many in (("cheap", CHEAP), ("expensive", EXPENSIVE)):
            cells = [
                bound("arbitrage", ratio, many),
                bound("speculative", ratio, many),
                bound("agree", ratio, many, has_checker=True),
                bound("agree", ratio, many),
            ]
            print(f"| {ratio:g} draft tokens | {name} | {' | '.join(map(words, cells))} |")


if __name__ == "__main__":
    main()

"""Made-up measurements of models, as `arbitrage advise` keeps them."""

from datetime import UTC, datetime

from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.tuning.store import Loading, Machine, Tuned

HERE = Machine("a fast one", 8, "0.3.36")


def unit_costs(decode: float, few: float = 1.0, many: float = 1.0, prefill: float = 0.0) -> UnitCosts:
    """Costs of a decoded token, of batches of 4 and 16 tokens in decoded tokens, and of a prefilled token."""
    rows = (1.0, 1 + (few - 1) / 3, few, few + (many - few) / 3, many)
    return UnitCosts(tuple(decode * cost for cost in rows), prefill)


COSTS = unit_costs(0.1, few=1.6, many=3.2, prefill=0.01)


def make_tuned(
    machine: Machine = HERE,
    sha256: str = "a" * 64,
    threads: int = 3,
    costs: UnitCosts = COSTS,
) -> Tuned:
    return Tuned(machine, sha256, Loading(), "tiny", threads, costs, datetime.now(UTC).isoformat())

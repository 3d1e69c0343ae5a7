"""Made-up measurements of models, as `arbitrage advise` keeps them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.store import Loading, Machine, Tuned, keep_tuned, machine_here, tuned_file
from arbitrage_cli.inference.unit_costs import ROWS, UnitCosts
from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.model_files.pairs import find_files

HERE = Machine("a fast one", 8, "0.3.36")


def unit_costs(decode: float, few: float = 1.0, many: float = 1.0, prefill: float = 0.0) -> UnitCosts:
    """Costs of a decoded token, of batches of 4 and 16 tokens in decoded tokens, and of a prefilled token."""
    rows = (1.0, 1 + (few - 1) / 3, few, few + (many - few) / 3, many)
    return UnitCosts(tuple(decode * cost for cost in rows), prefill)


def pair_costs(
    draft: float, target: float, prefill: float, draft_prefill: float = 0.0, verify: float | None = None
) -> PairCosts:
    """Costs of decoded and prefilled tokens, and of each of 16 target tokens in a batch (by default, between the two)."""
    many = max(target, 16 * ((prefill + target) / 2 if verify is None else verify))
    batches = tuple(target + (many - target) * (rows - 1) / 15 for rows in ROWS)
    return PairCosts(UnitCosts((draft,) * len(ROWS), draft_prefill), UnitCosts(batches, prefill))


COSTS = unit_costs(0.1, few=1.6, many=3.2, prefill=0.01)
FAST_READER = {"draft": unit_costs(0.1, prefill=0.01), "target": unit_costs(1.0, prefill=0.01)}
SLOW_VERIFIER = {**FAST_READER, "target": unit_costs(1.0, 8.0, 32.0, prefill=0.01)}
NO_GAIN = {"draft": unit_costs(1.5, prefill=0.01), "target": unit_costs(1.0, 2.0, 8.0, prefill=0.5)}  # a slow draft


def make_tuned(
    machine: Machine = HERE,
    sha256: str = "a" * 64,
    threads: int = 3,
    costs: UnitCosts = COSTS,
    loading: Loading = Loading(),  # noqa: B008 - frozen
) -> Tuned:
    return Tuned(machine, sha256, loading, "tiny", threads, costs, datetime.now(UTC).isoformat())


def pretend(file: Path, costs: Mapping[str, UnitCosts]) -> None:
    """Keep costs of the built-in draft and target; the checker has those of the draft. More threads would wait for each other."""
    roles, machine = {"draft": "draft", "target": "target", "thinking-draft": "draft"}, machine_here()
    shas = {name: sha256_of(find_files(f"builtin:{name}")) for name in roles}
    keep_tuned(file, [make_tuned(machine, shas[name], 1, costs[role]) for name, role in roles.items()])


def keep_built_in() -> None:
    """Keep made-up costs of the built-in models, so that commands need not measure them, and plan alike on any machine."""
    machine = machine_here()
    made = [
        make_tuned(machine, sha256_of(find_files(f"builtin:{role}")), 1, unit_costs(decode, 2.9, 8.2, decode / 3))
        for role, decode in (("draft", 1.4e-5), ("target", 1.9e-4), ("thinking-draft", 1.4e-5))
    ]
    chosen = [replace(one, loading=Loading(threads=count), threads=count) for one in made for count in (1, 2)]
    keep_tuned(tuned_file(), [*made, *chosen])

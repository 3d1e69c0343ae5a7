"""Creates routers from collected runs: trains a new router, or recomputes the presets of an existing router."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from arbitrage_cli.app.options import LoadingOptions
from arbitrage_cli.app.request import arguments_of_run
from arbitrage_cli.costs.pair import PairCosts
from arbitrage_cli.costs.placement import machine_here
from arbitrage_cli.costs.store import Loading, read_cache, tuned_file
from arbitrage_cli.errors import OutputError, UsageError
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.routing.router import Router, load
from arbitrage_cli.runs.folder import read_run_folder
from arbitrage_cli.runs.records import COLLECT
from arbitrage_cli.training.examples import read_states
from arbitrage_cli.training.train import Progress, train, with_taus
from arbitrage_cli.types import ModelRole

SUFFIX = ".safetensors"
ROLES: tuple[ModelRole, ...] = ("draft", "target")


def check_destination(output: Path, *, force: bool) -> None:
    """Raise UsageError if the suffix is wrong or the file exists without `force`; OutputError if it is not writable."""
    if output.suffix != SUFFIX:
        hint = f"for example -o {output.stem or 'router'}{SUFFIX}"
        raise UsageError(f"{output}: the name of a router file must end in {SUFFIX}", hint, option="output_file")
    if output.exists() and not force:
        raise UsageError(f"{output} exists", "overwrite it with --force, or use another file (--output)")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: the folder does not exist or is not writable", "use another path (--output)")


def train_router(
    runs: Sequence[Path], test: Sequence[Path], *, name: str, command: Sequence[str], seed: int, on_progress: Progress
) -> Router:
    """Train a router on `runs` and test it on `test`. Raises the same errors as `read_states` and `train`."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    states = read_states(runs, test)
    return train(states, name=name, command=tuple(command), created=created, seed=seed, on_progress=on_progress)


def with_new_presets(
    source: str, runs: Sequence[Path], machine: LoadingOptions, *, name: str, on_progress: Progress
) -> Router:
    """Return the router with presets recomputed from `runs`. Problems on which the router was trained are excluded.

    Raises UsageError if the runs use different pairs, and the same errors as `with_taus`.
    """
    old, states = load(router_file(source)), read_states(runs)
    if len(states.pairs) > 1:
        raise UsageError("the runs use different pairs", "presets depend on the pair, so use runs of a single pair")
    if known := sum(old.card.known(states.questions)):
        on_progress(f"excluded {known} of {len(states.questions)} problems, because the router was trained on them")
    return with_taus(old, states, _costs_on_this_machine(runs[0], machine), name=name)


def _costs_on_this_machine(folder: Path, machine: LoadingOptions) -> PairCosts | None:
    models = read_run_folder(folder, COLLECT).run["models"]
    known = {tuned.key: tuned.costs for tuned in read_cache(tuned_file()).tuned}
    loading = Loading(machine.gpu_layers, machine.flash_attention, machine.kv_type)
    found = {role: known.get((machine_here(), models[role]["sha256"], loading)) for role in ROLES if known}
    return PairCosts.of({role: costs for role, costs in found.items() if costs})


def bench_command(run: Path, router: Path) -> list[str]:
    return ["arbitrage", "bench", *arguments_of_run(run), "--dataset", "OTHERS.jsonl", "--router", str(router)]

"""Creates routers: trains one on collected states, or recomputes the presets of an existing one."""

import os
from collections.abc import Sequence
from pathlib import Path

from arbitrage_cli.errors import OutputError, UsageError
from arbitrage_cli.learning.learn import Announce
from arbitrage_cli.model_files.pairs import router_file
from arbitrage_cli.numbers import formatting
from arbitrage_cli.routing.router import Router, load
from arbitrage_cli.training.collected import read_states
from arbitrage_cli.training.train import train, with_taus

SUFFIX = ".safetensors"


def check_destination(output: Path, *, force: bool) -> None:
    """Raise UsageError if the suffix is wrong or the file exists without `force`; OutputError if it is not writable."""
    if output.suffix != SUFFIX:
        hint = f"for example -o {output.stem or 'router'}{SUFFIX}"
        raise UsageError(f"{output}: the name of a router file must end in {SUFFIX}", hint, option="output_file")
    if output.exists() and not force:
        raise UsageError(f"{output} exists", "overwrite it with --force, or use another --output")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: the folder does not exist or is not writable", "use another --output")


def train_router(runs: Sequence[Path], *, name: str, command: Sequence[str], seed: int, on_progress: Announce) -> Router:
    """Raises the same errors as `read_states` and `train`."""
    created = formatting.timestamp()
    return train(read_states(runs), name=name, command=tuple(command), created=created, seed=seed, on_progress=on_progress)


def with_new_presets(source: str, runs: Sequence[Path], *, name: str, on_progress: Announce) -> Router:
    """Return the router with presets recomputed from `runs`. Problems on which the router was trained are excluded.

    Raises UsageError if the runs use different pairs, and the same errors as `with_taus`.
    """
    old, states = load(router_file(source)), read_states(runs)
    if len(states.pairs) > 1:
        raise UsageError("the runs use different pairs", "presets depend on the pair, so use runs of a single pair")
    if known := sum(old.card.known(states.questions)):
        on_progress(f"excluded {known} of {len(states.questions)} problems, because the router was trained on them")
    return with_taus(old, states, name=name)

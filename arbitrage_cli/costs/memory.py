"""Checks whether models, and the problems to solve at once, fit in memory.

Before a model is loaded, the headers of its files are used to estimate its memory: the weights and, for each sequence, the
KV cache, the recurrent states and their checkpoints. The machine's memory and a GPU's own memory are checked separately. The
estimate does not include compute buffers of a few hundred megabytes.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.errors import ModelMemoryError, UsageError
from arbitrage_cli.inference.backend import MAX_SEQUENCES, LoadOptions
from arbitrage_cli.inference.open import load_llama, rolls_back
from arbitrage_cli.inference.speculation import most_verified
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.gguf import KV_BYTES, FileFacts, num_snapshots, read_facts
from arbitrage_cli.model_files.pairs import first_with_same_file, is_gguf, is_served, local_files
from arbitrage_cli.numbers.formatting import size_words
from arbitrage_cli.system.machine import available_memory, gpu_shares_memory, total_memory
from arbitrage_cli.types import ByRole, frozen

MOST = 1024  # if a model is on a server
MOST_HERE = 64  # more gain nothing, and each needs sequences of every model
SMALLER = "use a smaller --ctx, a smaller --kv-type, or smaller models"
FEWER_LAYERS = f"lower --gpu-layers, or {SMALLER}"

log = logging.getLogger("arbitrage.memory")


@frozen
class Part:
    """The bytes that one memory must hold: for the weights of all models, and for each concurrent problem (`each`)."""

    weights: int = 0
    each: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(self.weights + other.weights, self.each + other.each)


@frozen
class Need:
    """The need for the machine's memory (`host`) and for a GPU's own memory.

    `most` is the largest useful number of concurrent problems, limited by the number of sequences that the models support.
    """

    host: Part
    gpu: Part = Part()
    most: int = MOST_HERE

    def rooms(self) -> Iterator[tuple[Part, str, int | None, int | None, str]]:
        """Yield each part, and the memory that must hold it: name, total and free bytes if known, and a hint on using less."""
        yield self.host, "memory", total_memory(), available_memory(), SMALLER
        if self.gpu != Part():
            yield self.gpu, "GPU memory", *load_llama().own_gpu_memory(), FEWER_LAYERS


def rollback_of(source: str, costs: UnitCosts | None) -> int:
    """Return how many rejected draft tokens a model should be able to remove from its recurrent state.

    Returns 0 if the model has no such state, if no tokens are proposed, or if the model failed the trial (`rolls_back`).
    """
    if costs is None or not is_gguf(source):
        return 0
    files = local_files(source) or (Path(source),)
    state_bytes = read_facts(files).state_bytes
    return num_snapshots(state_bytes, most_verified(costs)) if state_bytes and rolls_back(files) is not False else 0


def memory_needed(
    found: ByRole[str],
    load: LoadOptions,
    rollback: ByRole[int] = MappingProxyType({}),
    contexts: ByRole[int | None] = MappingProxyType({}),
) -> Need:
    """Return the required memory. Raises ModelFileError if a file is invalid.

    `contexts` contains the context sizes that differ from that of `load`. Models with the same files share their weights.
    """
    host, gpu = Part(), Part()
    most = MOST if any(map(is_served, found.values())) else MOST_HERE
    first = first_with_same_file(found)
    for role, source in found.items():
        if not is_gguf(source):
            continue
        context = contexts.get(role, load.context_size)
        facts = read_facts(local_files(source) or (Path(source),), context)
        states = (1 + rollback.get(role, 0)) * facts.state_bytes
        kv_cache = (facts.kv_bytes or 0) * KV_BYTES[load.kv_type] / KV_BYTES["f16"] + states
        share = _share_on_gpu(facts, load)
        weights = facts.file_bytes if first[role] == role else 0
        offloaded = Part(int(share * weights), int(share * load.num_sequences * kv_cache))
        whole = Part(weights, int(load.num_sequences * (kv_cache + facts.checkpoint_bytes)))
        host += Part(whole.weights - offloaded.weights, whole.each - offloaded.each)
        gpu += offloaded
        most = min(most, MAX_SEQUENCES // load.num_sequences)
    return Need(host, gpu, most)


def check_concurrency(count: int, most: int = MOST_HERE) -> None:
    """Raise UsageError if more than `most` problems are to be solved at once by models on this machine."""
    if count > most:
        raise UsageError(
            f"{count} concurrent problems exceed the limit of {most} for models on this machine",
            f"use --concurrency {most} or less",
            option="concurrency",
        )


def check_memory(need: Need, count: int = 1, num_spare: int = 0) -> None:
    """Raise ModelMemoryError if `count` problems at once do not fit in the memory of the machine or the GPU.

    `num_spare` more problems have sequences, so that they can begin while others wait for a server.

    A single problem must fit in the whole memory, with a warning if it needs more than the free memory. Several problems must
    fit in the free memory. Without this check, the system might grant the memory and kill the process later.

    Raises UsageError if llama.cpp has too few sequences for the problems.
    """
    check_concurrency(count, need.most - num_spare)
    for part, name, total, free, hint in need.rooms():
        needed = part.weights + (count + num_spare) * part.each
        problems = f"{count} problems at once{f', and {num_spare} in reserve,' if num_spare else ''}"
        message = (
            f"{problems if count > 1 else 'the models'} need {size_words(needed)} of {name} "
            f"({size_words(part.weights)} for the weights, {size_words(part.each)} for each problem's KV caches)"
        )
        is_tight = free is not None and needed > free
        if is_tight and count > 1:
            fits = max(1, int(((free or 0) - part.weights) / max(1, part.each)) - num_spare)
            raise ModelMemoryError(f"{message}, more than is free", f"use --concurrency {fits}, or {hint}")
        if total is not None and needed > total:
            raise ModelMemoryError(f"{message}, but this machine has {size_words(total)}", hint)
        if is_tight:
            log.warning("%s, more than is free, so the run may be slow or fail; %s", message, hint)


def _share_on_gpu(facts: FileFacts, load: LoadOptions) -> float:
    if load.gpu_layers == 0 or gpu_shares_memory() or load_llama().own_gpu_memory() is None:
        return 0.0
    if load.gpu_layers is None or load.gpu_layers < 0:
        return 1.0
    return min(1.0, load.gpu_layers / (facts.num_layers + 1)) if facts.num_layers else 0.0

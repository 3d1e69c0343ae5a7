"""Chooses how many problems to solve at once, based on the memory that the models need.

Before a model is loaded, the headers of its files are used to estimate its memory: the weights and, for each sequence, the
KV cache, the recurrent states and their checkpoints. The estimate does not include compute buffers of a few hundred
megabytes. A GPU's own memory is checked by llama.cpp.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from arbitrage_cli.errors import ModelMemoryError, UsageError
from arbitrage_cli.inference.backend import MAX_SEQUENCES, Options
from arbitrage_cli.inference.open import load_llama, rolls_back
from arbitrage_cli.inference.speculation import most_verified
from arbitrage_cli.inference.unit_costs import UnitCosts
from arbitrage_cli.model_files.facts import KV_BYTES, Facts, num_snapshots, read_facts
from arbitrage_cli.model_files.pairs import is_file, is_served, local_files
from arbitrage_cli.system.machine import CACHED_BYTES, available_memory, gpu_shares_memory, total_memory
from arbitrage_cli.types import ModelRole

AUTO = "auto"
MOST = 1024  # if all models are on servers
MOST_HERE = 64  # more gain nothing, and each needs sequences of every model
MOST_AUTO = 16  # on a processor more gain little, and each problem takes longer
MOST_AUTO_SMALL = 4  # models in the processor's cache gain less from sharing a pass over the weights
MOST_AUTO_SERVED = 64
SHARE_AUTO = 0.5  # of the free memory, since other programs need some
GIB = 2**30
SMALLER = "use a smaller --ctx, a smaller kv-type in a settings file, or smaller models"

log = logging.getLogger("arbitrage.capacity")


@dataclass(frozen=True, slots=True)
class Need:
    """The memory in bytes for the weights of all models, and for each concurrent problem (`each`).

    `gpu_weights` and `gpu_each` are the shares of `weights` and `each` that a GPU's own memory holds. `sequences` is the
    maximum number of sequences per problem in any model, or 0 if all models are on servers. `is_known` is false if a file
    does not contain the size of its KV cache. `cap` is the largest useful number of concurrent problems.
    """

    weights: int
    each: int
    gpu_weights: int = 0
    gpu_each: int = 0
    sequences: int = 1
    is_known: bool = True
    cap: int = MOST_HERE

    @property
    def most(self) -> int:
        return min(self.cap, MAX_SEQUENCES // self.sequences) if self.sequences else self.cap

    @property
    def host_weights(self) -> int:
        return self.weights - self.gpu_weights

    @property
    def host_each(self) -> int:
        return self.each - self.gpu_each

    def of(self, concurrency: int) -> int:
        return self.host_weights + concurrency * self.host_each

    def largest_within(self, room: float) -> int:
        """Return how many problems, at most `most`, fit in `room` bytes.

        Return at most 1 if the size of the KV cache is unknown.
        """
        left, most = room - self.host_weights, self.most if self.is_known else 1
        if not self.host_each:
            return most if left >= 0 else 0
        return max(0, min(most, int(left / self.host_each)))


def rollback_of(source: str, costs: UnitCosts | None) -> int:
    """Return how many rejected draft tokens a model should be able to remove from its recurrent state.

    Returns 0 if the model has no such state, if no tokens are proposed, or if the model failed the trial (`rolls_back`).
    """
    if costs is None or not is_file(source):
        return 0
    files = local_files(source) or (Path(source),)
    state_bytes = read_facts(files).state_bytes
    return num_snapshots(state_bytes, most_verified(costs)) if state_bytes and rolls_back(files) is not False else 0


def memory_needed(
    found: Mapping[ModelRole, str],
    load: Options,
    num_sequences: Mapping[ModelRole, int],
    rollback: Mapping[ModelRole, int] = MappingProxyType({}),
) -> Need:
    """Return the required memory, given the sequences per problem of each model. Raises ModelFileError if a file is invalid."""
    need = Need(0, 0, sequences=0, cap=MOST if any(map(is_served, found.values())) else MOST_HERE)
    for role, source in found.items():
        if not is_file(source):
            continue
        facts = read_facts(local_files(source) or (Path(source),), load.context_size)
        states = (1 + rollback.get(role, 0)) * facts.state_bytes
        kv_cache = (facts.kv_bytes or 0) * KV_BYTES[load.kv_type] / KV_BYTES["f16"] + states
        each, on_gpu = (num_sequences[role] * size for size in (kv_cache + facts.checkpoint_bytes, kv_cache))
        share = _share_on_gpu(facts, load)
        need = Need(
            need.weights + facts.file_bytes,
            need.each + int(each),
            need.gpu_weights + int(share * facts.file_bytes),
            need.gpu_each + int(share * on_gpu),
            max(need.sequences, num_sequences[role]),
            need.is_known and facts.kv_bytes is not None,
            need.cap,
        )
    return need


def check_memory(need: Need) -> None:
    """Raise ModelMemoryError if one problem needs more than the machine's memory.

    Warn if one problem needs more than the free memory.

    Without this check, the system might grant the memory and kill the process later.
    """
    total, free = total_memory(), available_memory()
    message = (
        f"the models need {need.of(1) / GIB:.1f} GiB of memory ({need.host_weights / GIB:.1f} for their weights, "
        f"{need.host_each / GIB:.1f} for their KV caches)"
    )
    if total is not None and need.of(1) > total:
        raise ModelMemoryError(f"{message}, but this machine has {total / GIB:.1f}", SMALLER)
    if free is not None and need.of(1) > free:
        log.warning("%s, but only %.1f are free, so the run may be slow; %s", message, free / GIB, SMALLER)


def choose_concurrency(text: str, needed: Callable[[], Need], *, most: int, earlier: int | None = None) -> int:
    """Convert a value of --concurrency to the number of problems to solve at once, at most `most`.

    In a resumed run, the value `auto` means `earlier`. In a new run, `auto` means the largest useful number that fits in
    half of the free memory. If the result is 1, `needed` is not called. Raises UsageError if the value is invalid or
    llama.cpp has too few sequences; ModelMemoryError if the problems do not fit in memory.
    """
    is_auto = text == AUTO
    count = earlier if is_auto and earlier else min(most, MOST_AUTO_SERVED if is_auto else _number(text))
    if count == 1:
        return 1
    need, memory = needed(), available_memory()
    if is_auto and not earlier:
        local = MOST_AUTO_SMALL if need.weights <= CACHED_BYTES else MOST_AUTO
        useful = local if need.sequences else MOST_AUTO_SERVED
        on_host = replace(need, gpu_weights=0, gpu_each=0)  # a GPU seldom has more memory than its machine
        return max(1, min(count, useful, on_host.largest_within(SHARE_AUTO * (memory or 0))))
    if count > need.most:
        raise UsageError(
            f"{count} concurrent problems exceed the limit of {need.most} for models on this machine",
            f"use --concurrency {need.most} or less, or fewer --rollouts",
            option="concurrency",
        )
    if memory is not None and need.of(count) > memory:
        raise ModelMemoryError(
            f"{count} problems at once need {need.of(count) / GIB:.1f} GiB of memory ({need.host_weights / GIB:.1f} for the "
            f"models, {need.host_each / GIB:.2f} for each problem's KV cache), but {memory / GIB:.1f} are available",
            _what_fits(need, memory),
        )
    return count


def _what_fits(need: Need, memory: int) -> str:
    fits = need.largest_within(memory)
    if fits:
        return f"use --concurrency {fits} or less, a smaller --ctx, or a smaller kv-type in a settings file"
    total = total_memory()
    if total is None or need.of(1) <= total:
        return f"use --concurrency 1, although it may be slow; or {SMALLER}"
    return f"even a single problem does not fit in memory: {SMALLER}"


def _share_on_gpu(facts: Facts, load: Options) -> float:
    if load.gpu_layers == 0 or gpu_shares_memory() or not load_llama().has_own_gpu():
        return 0.0
    if load.gpu_layers is None or load.gpu_layers < 0:
        return 1.0
    return min(1.0, load.gpu_layers / (facts.num_layers + 1)) if facts.num_layers else 0.0


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= MOST:
        raise UsageError(
            f"invalid number of problems '{text}'", f"use a number from 1 to {MOST}, or auto", option="concurrency"
        )
    return number

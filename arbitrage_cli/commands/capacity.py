"""How many problems are solved at once: as many as were asked for, if what they need fits in this machine's memory.

Known from the headers of the models' files, before any of them is loaded: weights, and a KV cache for each sequence of each
model. Not in it is what a computation needs on top, some hundred megabytes (more for long contexts without flash attention);
nor is a GPU's own memory known here: llama.cpp refuses what does not fit there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.backends import CACHED_BYTES, KV_BYTES, Options
from arbitrage_cli.errors import ModelMemoryError, UsageError
from arbitrage_cli.gguf_facts import read_facts
from arbitrage_cli.machine import available_memory
from arbitrage_cli.pairs import is_toy, local_files
from arbitrage_cli.types import ModelRole

AUTO = "auto"
MOST = 64  # sequences of a model are bounded in llama.cpp, and some policies need several of them for a problem
MOST_AUTO = 16  # on a processor more at once gain little, and each takes longer;
MOST_AUTO_SMALL = 4  # of models that stay in its cache, where reading the weights once for all gains less
SHARE_AUTO = 0.5  # of the memory that can be had now: other programs want some too
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of memory: for the weights of all models, and for each problem in flight; None where a file does not say."""

    weights: int
    each: int | None

    def of(self, concurrency: int) -> int:
        """What so many problems need; only the weights where nothing else is known."""
        return self.weights + concurrency * (self.each or 0)

    def largest_within(self, room: float) -> int:
        """How many problems fit in `room`, at least one, at most MOST."""
        if self.each is None:
            return 1
        return max(1, min(MOST, int((room - self.weights) / self.each))) if self.each else MOST


def memory_needed(found: Mapping[ModelRole, str], load: Options, num_sequences: Mapping[ModelRole, int]) -> Need:
    """What these models need, with so many sequences for each problem in flight. ModelFileError."""
    weights, each = 0, 0.0
    is_known = True
    for role, source in found.items():
        if is_toy(source):
            continue
        facts = read_facts(local_files(source) or (Path(source),), load.context_size)
        weights += facts.file_bytes
        is_known = is_known and facts.kv_bytes is not None
        each += num_sequences[role] * (facts.kv_bytes or 0) * KV_BYTES[load.kv_type] / KV_BYTES["f16"]
    return Need(weights, int(each) if is_known else None)


def choose_concurrency(wanted: str, needed: Callable[[], Need], *, most: int, earlier: int | None = None) -> int:
    """The number that is meant: `auto`, or a number from 1 to MOST. UsageError; ModelMemoryError if so many do not fit.

    `auto` is `earlier`, that of a run that goes on, or else as many as are worth it and fit in a share of the memory. Anything
    else is never above `most`. `needed` is only asked where there is more than one.
    """
    asked = earlier if wanted == AUTO and earlier else min(most, MOST_AUTO if wanted == AUTO else _number(wanted))
    if asked == 1:
        return 1
    need, memory = needed(), available_memory()
    if wanted == AUTO and not earlier:
        worth_it = MOST_AUTO_SMALL if need.weights <= CACHED_BYTES else MOST_AUTO
        return min(asked, worth_it, need.largest_within(SHARE_AUTO * (memory or 0)))
    if memory is not None and need.of(asked) > memory:
        raise ModelMemoryError(
            f"{asked} problems at once need {need.of(asked) / GIB:.1f} GiB of memory ({need.weights / GIB:.1f} for the models, "
            f"{(need.each or 0) / GIB:.2f} for each problem's KV cache), and {memory / GIB:.1f} are available",
            f"up to {need.largest_within(memory)} will do: --concurrency auto; or give a smaller --ctx or --kv-type",
        )
    return asked


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= MOST:
        raise UsageError(f"'{text}' is no number of problems", f"a number from 1 to {MOST}, or auto: --concurrency auto")
    return number

"""What a batch costs with flash attention on and off, and with different number formats of the KV cache.

Usage: python tests/benchmarks/attention.py MODEL.gguf [MODEL.gguf ...] [--threads 1] [--depths 40 120 220] [--rows 1 2 12 32 64]
       [--apart]

Prints milliseconds for one batch of --rows tokens after a context of --depths tokens: the median of --repeats. The tokens of a
batch follow each other in one sequence; with --apart each belongs to a sequence of its own, as when several problems are solved
at once. The variants take turns at each depth, so that drift of the machine affects all of them. `auto` is the program's default.
"""

import argparse
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from arbitrage_cli.errors import ModelMemoryError
from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.llama.backend import LlamaBackend

VARIANTS = {
    "auto": Options(),
    "f16, flash": Options(kv_type="f16", flash_attention=True),
    "f16, no flash": Options(kv_type="f16", flash_attention=False),
    "q8_0, flash": Options(kv_type="q8_0", flash_attention=True),
}
FIRST_TOKEN, MANY_TOKENS = 20, 400


def milliseconds(backend: LlamaBackend, depth: int, num_rows: int, repeats: int, *, apart: bool) -> float:
    """Median time of a batch of `num_rows` tokens, after `depth` tokens in each sequence."""
    sequences = list(range(num_rows)) if apart else [0] * num_rows
    positions = [depth] * num_rows if apart else list(range(depth, depth + num_rows))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        backend.decode(sequences, positions, [FIRST_TOKEN] * num_rows)
        taken.append(time.perf_counter() - began)
        for sequence in set(sequences):
            backend.drop(sequence, depth)
    return statistics.median(taken) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depths", type=int, nargs="+", default=[40, 120, 220])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 12, 32, 64])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--apart", action="store_true")
    arguments = parser.parse_args()
    num_sequences = max(arguments.rows) if arguments.apart else 1
    context_size = max(arguments.depths) + max(arguments.rows) + 1
    for model in arguments.models:
        with ExitStack() as stack:
            loaded = {}
            for name, variant in VARIANTS.items():
                options = Options(
                    context_size, arguments.threads, 0, variant.flash_attention, variant.kv_type, num_sequences=num_sequences
                )
                try:
                    loaded[name] = stack.enter_context(LlamaBackend(model, options))
                except ModelMemoryError as error:  # for example, the width of a head is no multiple of a block
                    sys.stdout.write(f"{model.name}: {name}: {error}\n")
            sys.stdout.write(f"{model.name}, {arguments.threads} threads; ms for a batch of {arguments.rows} tokens\n")
            for depth in arguments.depths:
                for name, backend in loaded.items():
                    for sequence in range(num_sequences):
                        backend.drop(sequence, 0)
                        backend.read(sequence, 0, [FIRST_TOKEN + position % MANY_TOKENS for position in range(depth)])
                    cells = [
                        milliseconds(backend, depth, rows, arguments.repeats, apart=arguments.apart)
                        for rows in arguments.rows
                    ]
                    cells_text = "  ".join(f"{cell:8.3f}" for cell in cells)
                    sys.stdout.write(f"  after {depth:4} tokens  {name:14} ({backend.card.kv_cache:8}) {cells_text}\n")


if __name__ == "__main__":
    main()

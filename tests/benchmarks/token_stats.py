"""Measure the time that the statistics of a token take, and compare it with the method that was used before.

Usage: python tests/benchmarks/token_stats.py [VOCABULARY_SIZE ...]

The logits are random, with a standard deviation of 2.5 and a top logit of 24, as in real models. Both methods choose a token
greedily and compute its statistics, and take turns. The table shows the median microseconds per token, the ratio, and the
largest difference between the statistics of the two methods.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.token_stats import RowMeter

SIZES = (261, 49_152, 151_936, 262_144)
NUM_ROWS, ROUNDS = 24, 9

Row = npt.NDArray[np.float32]
Measure = Callable[[Row], tuple[float, float, float]]


def before(size: int) -> Measure:
    shifted, scratch = (np.empty((1, size), np.float32) for _ in range(2))

    def measure(logits: Row) -> tuple[float, float, float]:
        token = Sampler().choose(logits, "", 0)
        top = int(logits.argmax())
        np.subtract(logits, logits[top], out=shifted[0])
        total = np.exp(shifted, out=scratch).sum(axis=1)
        means = np.vecdot(scratch, shifted) / total
        log_probability = shifted[0, token] - np.log(total)
        shifted[0, top] = -np.inf
        return float(log_probability[0]), float((np.log(total) - means)[0]), -float(shifted.max(axis=1)[0])

    return measure


def after(size: int) -> Measure:
    meter = RowMeter(size)

    def measure(logits: Row) -> tuple[float, float, float]:
        return meter.measure(logits, Sampler().choose(logits, "", 0), is_top=True)

    return measure


def main() -> None:
    print("| vocabulary | before, us | after, us | ratio | largest difference |")
    print("|---|---|---|---|---|")
    for size in map(int, sys.argv[1:] or SIZES):
        rows = np.random.default_rng(0).normal(0, 2.5, (NUM_ROWS, size)).astype(np.float32)
        rows[:, size // 2] = 24
        seconds: list[list[float]] = [[], []]
        stats: list[list[tuple[float, float, float]]] = [[], []]
        logits = np.empty(size, np.float32)
        current = after(size)
        for _ in range(ROUNDS):
            for index, measure in enumerate((before(size), current)):
                for row in rows:
                    logits[:] = row  # like llama.cpp, which writes all logits to the same place
                    began = time.perf_counter()
                    found = measure(logits)
                    seconds[index].append(time.perf_counter() - began)
                    stats[index].append(found)
        old, new = (1e6 * float(np.median(times)) for times in seconds)
        difference = np.abs(np.array(stats[0]) - np.array(stats[1])).max()
        print(f"| {size:,} | {old:.1f} | {new:.1f} | {new / old:.2f} | {difference:.1e} |")


if __name__ == "__main__":
    main()

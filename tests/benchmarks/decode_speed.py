"""Decoding speed of this program beside llama.cpp's own `llama-bench`: same file, threads and depth of context.

Usage: python tests/benchmarks/decode_speed.py LLAMA_BENCH MODEL.gguf [MODEL.gguf ...] [--repeats 9] [--tokens 128]

The two take turns, so that drift of the machine affects both. The last line of each model has the medians, and the median of
the ratios of neighbouring measurements. LLAMA_BENCH is the path of the binary; its folder is put on LD_LIBRARY_PATH. The figure
of this program is what `--policy target` reports: decoding with sampling and text, without reading the prompt.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from arbitrage_cli.inference.backend import Options
from arbitrage_cli.inference.engine import Engine
from arbitrage_cli.inference.kv_cache import Cache
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.sampling import Sampler
from arbitrage_cli.inference.scheduler import Scheduler
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.summary import tally
from arbitrage_cli.types import Cost, Decided, Finished, Limits, Problem

PROBLEM = "Write the numbers from one to one thousand in words, each on a line of its own, and explain each of them."


def write_alone(engine: Engine, num_tokens: int) -> Cost:
    """Cost of a solution of at most `num_tokens` tokens by the target alone."""
    limits = Limits(max_tokens=num_tokens, max_step_tokens=num_tokens)
    problem = Problem("benchmark", PROBLEM)
    events = list(
        Scheduler({"target": engine}, lambda trace: POLICIES["target"].flow(trace, None, 0), limits).run([problem])
    )
    assert isinstance(events[-1], Finished)
    return tally(event.decision for event in events if isinstance(event, Decided)).target_cost


def llama_bench(binary: Path, model: Path, threads: int, num_tokens: int, depth: int) -> float:
    """Tokens a second by llama-bench, for `num_tokens` tokens after `depth` tokens of context."""
    command = [str(binary), "-m", str(model), "-t", str(threads), "-p", "0", "-n", str(num_tokens)]
    command += ["-d", str(depth), "-r", "1", "-o", "json"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
    done = subprocess.run(command, check=True, capture_output=True, env=environment)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_bench", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    for model in arguments.models:
        ours, theirs = [], []
        with LlamaBackend(model, Options()) as backend:
            engine = Engine("target", Cache(backend), Sampler())
            for _ in range(arguments.repeats):
                cost = write_alone(engine, arguments.tokens)
                ours.append(cost.tokens_per_second or 0.0)
                theirs.append(
                    llama_bench(arguments.llama_bench, model, backend.card.threads, cost.decode_tokens, cost.prefill_tokens)
                )
                sys.stdout.write(f"  {ours[-1]:.2f} here, {theirs[-1]:.2f} llama-bench (depth {cost.prefill_tokens})\n")
        ratio = statistics.median(own / other for own, other in zip(ours, theirs, strict=True))
        medians = f"{statistics.median(ours):.2f} here, {statistics.median(theirs):.2f} llama-bench"
        sys.stdout.write(f"{model.name}: tokens/s, medians of {arguments.repeats}: {medians}, ratio {ratio:.3f}\n")


if __name__ == "__main__":
    main()

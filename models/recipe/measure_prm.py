"""Measure a process reward model in llama.cpp: `python measure_prm.py prm.gguf steps-test.jsonl`.

`arbitrage_cli.rewards.PrmRater` rates every step that `wrong_steps.py` labelled. The script prints AUC, accuracy and
calibration error, overall and by the source of the steps. `--rewards` writes the rewards to a file.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from quality import by_group

from arbitrage_cli.arbitrage import RateSteps
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.llama.backend import LlamaBackend
from arbitrage_cli.inference.step_text import BLANK_LINE
from arbitrage_cli.rewards import PrmRater
from arbitrage_cli.types import Cost, Decision, Limits, Problem, Step, Trace

CONTEXT_SIZE = 512
SEQUENCES = 16


def rated(rater: PrmRater, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], list[float]]]:
    """Yield each row with the rewards of its steps. SEQUENCES rows are rated at a time."""
    waiting = iter(rows)
    while group := list(islice(waiting, SEQUENCES)):
        traces = [Trace(Problem(str(slot), row["question"]), Limits()) for slot, row in enumerate(group)]
        found: list[list[float]] = [[] for _ in group]
        for slot, trace in enumerate(traces):
            rater.open(slot, trace.problem)
        for number in range(max(len(row["steps"]) for row in group)):
            slots = [slot for slot, row in enumerate(group) if number < len(row["steps"])]
            steps = {
                slot: Step("draft", group[slot]["steps"][number] + BLANK_LINE.separator, 0, Cost(), "separator")
                for slot in slots
            }
            for slot in slots:
                rater.start(slot, RateSteps(traces[slot], (steps[slot],)))
            for result in rater.tick():
                if result.error is not None:
                    raise RuntimeError(f"a step of problem {group[result.slot]} cannot be rated") from result.error
                found[result.slot] += result.rewards
                traces[result.slot].add(Decision(steps[result.slot]))
        for slot in range(len(group)):
            rater.close(slot)
        yield from zip(group, found, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prm", type=Path, help="GGUF of the process reward model")
    parser.add_argument("steps", type=Path, help="labelled steps")
    parser.add_argument("--rewards", type=Path, help="output file for the rows with their rewards")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.steps.read_text(encoding="utf-8").splitlines()]
    load = LoadOptions(context_size=CONTEXT_SIZE, threads=options.threads, num_sequences=SEQUENCES)
    with LlamaBackend(options.prm, load) as backend:
        found = list(rated(PrmRater(backend, "steps"), rows))
    if options.rewards:
        options.rewards.write_text("".join(json.dumps({**row, "rewards": some}) + "\n" for row, some in found))
    groups = by_group((row["source"], np.array(some), np.array(row["labels"])) for row, some in found)
    for name, measured in groups.items():
        print(f"{name}: {measured}")


if __name__ == "__main__":
    main()

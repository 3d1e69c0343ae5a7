"""Replay rules that choose which thoughts the target writes, over recorded thoughts with a mark by the target.

Usage: python tests/benchmarks/thinking_replay.py STEPS.jsonl [--draws N] [--false-departures SHARE]

Each line of STEPS.jsonl is a solution: {"id": ..., "steps": [{"draft": text, "draft_tokens": n, "mark": 0 to 9, "target": text
or null, ...}]}. A thought gains if its mark is below 7, because the target then rewrote it (SpecReason, arXiv 2504.07891).

The table shows the target's calls as a share of all thoughts, the caught gains, and the gains per call relative to random calls.
Rules with "stay" call the target again after a gain (labels). Rules with "departs" call it again if it kept few of the drafted
words. For thoughts that were not rewritten, `--false-departures` is the probability that the target's thought departs.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arbitrage_cli.routing.thoughts import BUDGET, DEPARTED, LEAD, PROBED, share_kept

GAIN = 7  # marks below this count as a gain


@dataclass(frozen=True, slots=True)
class Rule:
    """The target writes the first `lead` thoughts or tokens, probes later thoughts, and may stay. A budget bounds later calls."""

    probes: float
    lead: int = 0
    unit: Literal["thoughts", "tokens"] = "thoughts"
    stays: Literal["", "gain", "departs"] = ""
    budget: float = 1.0

    @property
    def name(self) -> str:
        parts = [
            f"first {self.lead} {self.unit}" if self.lead else "",
            f"{self.probes:.0%} at random" if self.probes else "",
        ]
        stays = {"": "", "gain": "stay after a gain", "departs": "stay if it departs"}[self.stays]
        return ", ".join(filter(None, [*parts, stays, f"budget {self.budget:.0%}" if self.budget < 1 else ""]))

    def calls(self, steps: Sequence[Any], draw: random.Random, false_departures: float) -> list[bool]:
        calls: list[bool] = []
        num_later = num_tokens = later_calls = 0
        stays = False
        for index, step in enumerate(steps):
            leads = (index if self.unit == "thoughts" else num_tokens) < self.lead
            is_wanted = leads or stays or draw.random() < self.probes
            is_called = is_wanted and (leads or later_calls < self.budget * (num_later + 1))
            num_later, later_calls = num_later + (not leads), later_calls + (is_called and not leads)
            calls.append(is_called)
            num_tokens += step["draft_tokens"]
            departs = (
                share_kept(step["draft"], step["target"]) < DEPARTED if step["target"] else draw.random() < false_departures
            )
            stays = is_called and {"": False, "gain": step["mark"] < GAIN, "departs": departs}[self.stays]
        return calls


RULES = (
    Rule(0.3),
    Rule(0.2, stays="gain"),
    *(Rule(probes, lead, stays="gain") for lead in (5, 10) for probes in (0.1, 0.2)),
    *(Rule(0.1, lead) for lead in (1, 5, 10)),
    *(Rule(0.1, lead, stays="departs", budget=0.3) for lead in (0, 1, 5, 10)),
    *(Rule(BUDGET * PROBED, lead, "tokens", "departs", BUDGET) for lead in (100, LEAD, 300)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--false-departures", type=float, default=0.05)
    arguments = parser.parse_args()
    solutions = [json.loads(line)["steps"] for line in arguments.steps.read_text(encoding="utf-8").splitlines()]
    gains = [[step["mark"] < GAIN for step in steps] for steps in solutions]
    num_thoughts, num_gains = sum(map(len, gains)), sum(map(sum, gains))
    print(f"{len(solutions)} solutions, {num_thoughts} thoughts, {num_gains} gains\n")
    print("| rule | calls | gains caught | gains per call, relative to random |\n|---|---|---|---|")
    for rule in dict.fromkeys(RULES):
        called = caught = 0
        for seed in range(arguments.draws):
            draw = random.Random(seed)
            for steps, is_gain in zip(solutions, gains, strict=True):
                calls = rule.calls(steps, draw, arguments.false_departures)
                called += sum(calls)
                caught += sum(call and gain for call, gain in zip(calls, is_gain, strict=True))
        share, recall = called / num_thoughts / arguments.draws, caught / num_gains / arguments.draws
        print(f"| {rule.name} | {share:.2f} | {recall:.2f} | {recall / share:.1f} |")


if __name__ == "__main__":
    main()

"""Replay rules that choose which thoughts the target writes, over recorded thoughts with a mark by the target.

Usage: python tests/benchmarks/thinking_replay.py STEPS.jsonl [--draws N]

Each line of STEPS.jsonl is a solution: {"id": ..., "steps": [{"draft": text, "mark": 0 to 9, "target": text or null, ...}]}. A
thought gains if its mark is below 7, because the target then rewrote it (SpecReason, arXiv 2504.07891).

The table shows the target's calls as a share of all thoughts, the gains that it caught, and the gains per call relative to
random calls. The rules `stay` know whether the last call was a gain. The rules `stay, cut C` only know the share of the draft's
words that the target kept, and stay if it is below C. Without a recorded rewrite, the target is assumed to keep all words.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arbitrage_cli.routing.lead_probe_stay import share_kept

GAIN = 7  # marks below this count as a gain


@dataclass(frozen=True, slots=True)
class Thought:
    """A recorded thought: whether the target improved it, and the share of its words that the target kept."""

    gains: bool
    kept: float


Departs = Callable[[Thought], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """The target writes the first `lead` thoughts, a share of the others, and the thought after each that `departs`."""

    name: str
    lead: int
    probes: float
    departs: Departs = lambda thought: False
    budget: float = 1.0

    def calls(self, thoughts: Sequence[Thought], draw: random.Random) -> list[bool]:
        calls: list[bool] = []
        for index in range(len(thoughts)):
            stays = index > 0 and calls[-1] and self.departs(thoughts[index - 1])
            wanted = index < self.lead or stays or draw.random() < self.probes
            calls.append(wanted and sum(calls) < self.lead + self.budget * index)
        return calls


def read(path: Path) -> list[list[Thought]]:
    solutions = [json.loads(line)["steps"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        [Thought(step["mark"] < GAIN, share_kept(step["draft"], step["target"]) if step["target"] else 1.0) for step in steps]
        for steps in solutions
    ]


def rules() -> list[Rule]:
    found = [Rule("at random, 30%", 0, 0.3)]
    for lead, probes in ((0, 0.2), (1, 0.1), (1, 0.2), (5, 0.1), (5, 0.2), (10, 0.1), (10, 0.2)):
        name = f"first {lead}, {probes:.0%} at random"
        found.append(Rule(f"{name}", lead, probes))
        found.append(Rule(f"{name}, stay", lead, probes, lambda thought: thought.gains))
        found += [
            Rule(f"{name}, stay, cut {cut}", lead, probes, lambda thought, cut=cut: thought.kept < cut)  # type: ignore[misc]
            for cut in (0.5, 0.8)
        ]
        found.append(Rule(f"{name}, stay, cut 0.8, budget 10%", lead, probes, lambda thought: thought.kept < 0.8, 0.1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=Path)
    parser.add_argument("--draws", type=int, default=400)
    arguments = parser.parse_args()
    solutions = read(arguments.steps)
    num_thoughts = sum(map(len, solutions))
    num_gains = sum(thought.gains for thoughts in solutions for thought in thoughts)
    print(f"{len(solutions)} solutions, {num_thoughts} thoughts, {num_gains} gains\n")
    print("| rule | calls | gains caught | gains per call, relative to random |\n|---|---|---|---|")
    for rule in rules():
        called = caught = 0
        for seed in range(arguments.draws):
            draw = random.Random(seed)
            for thoughts in solutions:
                calls = rule.calls(thoughts, draw)
                called += sum(calls)
                caught += sum(call and thought.gains for call, thought in zip(calls, thoughts, strict=True))
        share, recall = called / num_thoughts / arguments.draws, caught / num_gains / arguments.draws
        print(f"| {rule.name} | {share:.2f} | {recall:.2f} | {recall / share:.1f} |")


if __name__ == "__main__":
    main()

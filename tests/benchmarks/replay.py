"""Replay published answers of real models through policy `agree`, and judge it with the program's own statistics.

Usage: python tests/benchmarks/replay.py FILE.jsonl --draft A --check B --target C

Each line of the file is a problem: {"id": ..., "models": {"gemma-2-9b-it": {"answer": "18", "right": true, "chars": 382}, ...}}.
The results of WildEval/ZeroEval (Apache-2.0, https://github.com/WildEval/ZeroEval) can be converted to this format.

The program's own flow decides which models are asked, and its grader compares the answers. The time and the price of an answer
are its characters times the parameters of its model, one model after the other, without prefill.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claims import size_of

from arbitrage_cli.arbitrage import Flow, WriteStep
from arbitrage_cli.costs.pair import Price
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.numbers import formatting
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.routing.policies import POLICIES, Checker
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import tally_of
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.types import Cost, Finished, Grade, Limits, ModelRole, Problem, Step, Trace

CHARS_PER_SECOND = 1e4  # of a model with a billion parameters

Json = dict[str, Any]
Names = Mapping[ModelRole, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    for role in ("draft", "check", "target"):
        parser.add_argument(f"--{role}", required=True)
    arguments = parser.parse_args()
    names: Names = {"draft": arguments.draft, "check": arguments.check, "target": arguments.target}
    rows = [json.loads(line) for line in arguments.file.read_text(encoding="utf-8").splitlines()]
    with MATH.open_grader() as grader:
        results = [
            attempt(row, route, Checker(grader) if route.policy.kind == "checked" else None, names)
            for route in map(Route, map(POLICIES.__getitem__, ("target", "agree")))
            for row in rows
        ]
    prices = {role: Price(0.0, 0.0, 1.0 * size_of(name)) for role, name in names.items()}
    found = figures(run_of(rows), results, prices=prices)
    target, agree = found["policies"]
    ratios = agree["ratios"]
    change, (low, high) = 100 * agree["accuracy_difference"], agree["accuracy_difference_interval"]
    print(f"{names['draft']} + {names['check']} -> {names['target']}, {len(rows)} problems")
    print(
        f"target {100 * target['accuracy']:.1f}, change {change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points", end="; "
    )
    print(f"target called for {agree['called_rate']:.0%}", end="; ")
    print(f"{ratios['answers_lost']['numerator']} lost, {ratios['answers_gained']['numerator']} gained", end="; ")
    print(f"{agree['speedup']:.2f}x {formatting.number_range(agree['speedup_interval'])}")
    print(sentence(found["verdict"]))


def attempt(row: Json, route: Route, checker: Checker | None, names: Names) -> Result:
    """Return the result of a policy on a problem."""
    trace = Trace(Problem(row["id"], row["id"]), Limits(max_tokens=10**9))
    drive(route.flow(trace, 0, checker), row, names)
    finished, kept = Finished(trace), trace.decisions[-1].kept.model
    answer = row["models"][names[kept]]
    grade = Grade("correct" if answer["right"] else "incorrect", answer["answer"], "as published")
    facts = {"sample": 0, "level": None, "gold": {}, "grade": grade, "answer": answer["answer"]}
    return Result.of(AttemptRow.of(finished, route, {}, **facts, wall_seconds=tally_of(finished).seconds))


def drive(flow: Flow, row: Json, names: Names) -> None:
    step = None
    while True:
        try:
            request = flow.send(step)
        except StopIteration:
            return
        (one,) = request if isinstance(request, tuple) else (request,)
        assert isinstance(one, WriteStep)
        step = published(row["models"][names[one.model]], one.model, size_of(names[one.model]))


def published(answer: Json, model: ModelRole, size: float) -> Step:
    text = "" if answer["answer"] is None else f"\\boxed{{{answer['answer']}}}"
    cost = Cost(decode_tokens=answer["chars"], decode_seconds=answer["chars"] * size / CHARS_PER_SECOND)
    return Step(model, text, answer["chars"], cost, "end")


def run_of(rows: list[Json]) -> Json:
    """Return the parts of run.json that the figures need."""
    policies = [{"policy": name, "tau": None, "tau_name": None} for name in ("target", "agree")]
    return {
        "dataset": {"name": "published answers", "sha256": "", "count": len(rows)},
        "levels": {row["id"]: None for row in rows},
        "samples": 1,
        "policies": policies,
        "models": {},
        "router": None,
        "warnings": [],
    }


if __name__ == "__main__":
    main()

"""Replay published answers of real models through policy `agree`, and judge it with the program's own statistics.

Usage: PYTHONPATH=tests/support python tests/benchmarks/replay.py FILE.jsonl --draft A --check B --target C

Each line of the file is a problem: {"id": ..., "models": {"gemma-2-9b-it": {"answer": "18", "right": true, "chars": 382}, ...}}.
The results of WildEval/ZeroEval (Apache-2.0, https://github.com/WildEval/ZeroEval) can be converted to this format.

The program's own flow decides which models are asked, and its grader compares the answers. The time and the price of an answer
are its characters times the parameters of its model, one model after the other, without prefill.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from claims import size_of
from made_up_runs import as_run, make_run

from arbitrage_cli.arbitrage import CompareAnswers, Flow, StopWriting, WriteStep
from arbitrage_cli.costs.pair import Price
from arbitrage_cli.display.verdict import sentence
from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.numbers import formatting
from arbitrage_cli.numbers.intervals import Ratio
from arbitrage_cli.problems.tasks import MATH
from arbitrage_cli.routing.checker import Checker
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.routing.route import Route
from arbitrage_cli.runs.records import tally_of
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import AttemptRow
from arbitrage_cli.runs.run import Run
from arbitrage_cli.types import Cost, Finished, Grade, Json, Limits, ModelRole, Problem, RoleLimits, Step, Trace

CHARS_PER_SECOND = 1e4  # of a model with a billion parameters

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
            attempt(
                row,
                route,
                Checker(MATH.stated_answer, grader, RoleLimits()) if route.policy.compares_answers else None,
                names,
            )
            for route in map(Route, map(POLICIES.__getitem__, ("target", "agree")))
            for row in rows
        ]
    prices = {role: Price(0.0, 0.0, 1.0 * size_of(name)) for role, name in names.items()}
    found = figures(run_of(rows), results, prices=prices)
    target, agree = found.policies
    change = agree.accuracy_difference
    called = agree.called_rate
    speedup = agree.speedup
    interval = " to ".join(formatting.points(end) for end in change.interval or ())
    print(f"{names['draft']} + {names['check']} -> {names['target']}, {len(rows)} problems")
    print(
        f"target {formatting.percent(target.accuracy.value)}, change {formatting.points(change.value)} points "
        f"[{interval}]; target called for "
        f"{formatting.whole_percent(called.value if called else None)}; {counted(agree.answers_lost)} lost, "
        f"{counted(agree.answers_gained)} gained; {formatting.number(speedup.value)}x {formatting.number_range(speedup.interval)}"
    )
    print(sentence(found))


def counted(ratio: Ratio | None) -> float:
    return ratio.numerator if ratio else 0


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
    answer: Step | bool | list[Step] | None = None
    while True:
        try:
            request = flow.send(answer)
        except StopIteration:
            return
        if isinstance(request, CompareAnswers):
            answer = request.is_same()
            continue
        if isinstance(request, StopWriting):
            answer = []  # no model writes ahead
            continue
        one = request[0] if isinstance(request, tuple) else request
        assert isinstance(one, WriteStep)
        answer = published(row["models"][names[one.model]], one.model, size_of(names[one.model]))


def published(answer: Json, model: ModelRole, size: float) -> Step:
    text = "" if answer["answer"] is None else f"\\boxed{{{answer['answer']}}}"
    cost = Cost(decode_tokens=answer["chars"], decode_seconds=answer["chars"] * size / CHARS_PER_SECOND)
    return Step(model, text, answer["chars"], cost, "end")


def run_of(rows: list[Json]) -> Run:
    """Return a run of both policies on these problems, without token costs: the times of the answers count."""
    run = make_run(0, columns=[("target", None), ("agree", None)]).run
    models = {role: {**model, "costs": None} for role, model in run["decided"]["models"].items()}
    decided = {**run["decided"], "models": models}
    dataset = {"name": "published answers", "revision": None, "sha256": "0" * 64, "count": len(rows)}
    return as_run({**run, "decided": decided, "loaded": {}, "dataset": dataset, "levels": {row["id"]: None for row in rows}})


if __name__ == "__main__":
    main()

"""`bench`, `collect` and `solve` in this process, without their command line, and a display that keeps what it is told."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arbitrage_cli.app.asking.request import ask, ask_to_collect, ask_to_compare, ask_to_solve
from arbitrage_cli.app.attempts.problem_source import Source
from arbitrage_cli.app.commands.bench import BenchRun, run_bench
from arbitrage_cli.app.commands.collect import Collection
from arbitrage_cli.app.commands.solve import Destination, Solutions, solve_problems
from arbitrage_cli.app.entries.ask_run import AskedRun, ask_for_run
from arbitrage_cli.app.entries.start import open_session, session_of
from arbitrage_cli.app.options import BenchOptions, CollectOptions, InputOptions, Options, ProblemOptions
from arbitrage_cli.app.protocol import Display, LogDisplay
from arbitrage_cli.errors import ArbitrageError
from arbitrage_cli.problems.tasks import find_task
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.records import BENCH, COLLECT
from arbitrage_cli.runs.run import Setup

MATH = find_task(None)
SCRIPTED: dict[str, Any] = {"draft": "scripted:draft", "target": "scripted:target"}


class Shown(LogDisplay):
    """Keeps notes and results."""

    def __init__(self) -> None:
        self.notes, self.results = list[str](), list[str]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    tell = note

    def result(self, text: str) -> None:
        self.results.append(text)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.results]


def typed(**values: Any) -> Options:
    """The options of a command line with these values."""
    return Options(**values, explicit=frozenset(values))


def refused(call: Callable[..., object], *arguments: Any, **options: Any) -> Any:
    """The error that a call raises."""
    with pytest.raises(ArbitrageError) as raised:
        call(*arguments, **options)
    return raised.value


def decided(options: Options) -> Setup:
    with open_session(ask(options, MATH), Shown()) as session:
        return session.decided


def asked_to_bench(
    folder: Path, options: Options, limit: str | None = None, ids: str | None = None, **chosen: Any
) -> tuple[AskedRun, BenchOptions]:
    """What `bench` is asked for: to compare policies on problems.jsonl of a folder, with a run in `run`."""
    problems = ProblemOptions(dataset=str(folder / "problems.jsonl"), limit=limit, ids=ids)
    given = BenchOptions(**{"output_folder": folder / "run"} | chosen)
    also = {"dataset", *(["limit"] if limit else []), *(["ids"] if ids else []), *chosen}
    options = replace(options, explicit=options.explicit | also)
    return ask_for_run(ask_to_compare, options, problems, given, BENCH), given


def bench(folder: Path, options: Options, *, display: Display | None = None, **chosen: Any) -> BenchRun:
    asked, given = asked_to_bench(folder, options, **chosen)
    return run_bench(session_of(asked.request), asked.selected, asked.path, given, asked.samples, display or Shown())


def solve(
    folder: Path,
    options: Options,
    *arguments: str,
    output: str | None = "out.jsonl",
    display: Display | None = None,
    **given: Any,
) -> Solutions:
    """Solve these problems, or those of problems.jsonl of a folder."""
    path = folder / output if output else None
    request = ask_to_solve(options, path)
    given = given if arguments else {"input_file": str(folder / "problems.jsonl")} | given
    source = Source(arguments, InputOptions(**given), MATH.forms)
    return solve_problems(
        session_of(request), source, Destination(path, json.dumps), display or Shown(), request.concurrency
    )


def collect(folder: Path, options: Options, *, display: Display | None = None, **chosen: Any) -> Collection:
    """Collect states of the problems of a file, with rewards by rollouts. The run is in its folder `run`."""
    given = CollectOptions("rollout", folder / "run", **chosen)
    problems = ProblemOptions(dataset=str(folder / "problems.jsonl"))
    asked = ask_for_run(ask_to_collect, options, problems, given, COLLECT)
    with (
        RunFolder(asked.path, kind=COLLECT) as opened,
        open_session(asked.request, display or Shown(), max_concurrency=len(asked.selected.items)) as session,
    ):
        collection = Collection(session, asked.selected, opened)
        collection.collect()
    return collection

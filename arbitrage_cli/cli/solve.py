"""`arbitrage solve`: one problem, or many, shared between a draft and a target."""

import contextlib
from collections.abc import Iterable
from typing import Annotated

import typer

from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.invocation import Invocation
from arbitrage_cli.cli.options import (
    SOME_FAILED,
    GenerationOptions,
    JsonRecords,
    MachineOptions,
    ModelOptions,
    OutputOptions,
    RoutingOptions,
)
from arbitrage_cli.cli.output import InOrder, command_display
from arbitrage_cli.cli.problem_source import Problems
from arbitrage_cli.display.protocol import Display
from arbitrage_cli.display.text import safe
from arbitrage_cli.runs.records import RunInfo, answer, problem_error, to_json
from arbitrage_cli.types import Event, Finished, Started


@command
def solve(
    invocation: Invocation,
    problem: Annotated[str | None, typer.Argument(help="The problem, or - to read problems from standard input.")] = None,
    *,
    input_file: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE", help="Problems: one a line, or JSONL. - is standard input."),
    ] = None,
    models: ModelOptions,
    routing: RoutingOptions,
    generation: GenerationOptions,
    machine: MachineOptions,
    output: OutputOptions,
    json_lines: JsonRecords = False,
) -> int:
    """Solve a problem step by step with two models.

    The answer goes to standard output, the view of every step to standard error. Problems from a pipe or a file give one JSON
    object a line, in their order, each as soon as it and all before it are finished.

    \b
    Examples:
      arbitrage solve "What is 23 * 47 - 88?"
      arbitrage solve --draft small.gguf --target large.gguf "..."
      cat problems.txt | arbitrage solve --pair qwen2.5-coder > solutions.jsonl
    """
    from arbitrage_cli.cli.session import Session
    from arbitrage_cli.cli.setup import RunOptions, solve_setup
    from arbitrage_cli.tuning.memory import MOST

    setup = solve_setup(RunOptions(invocation, models, generation, machine), routing)
    with contextlib.ExitStack() as stack:
        problems = Problems(problem, input_file, stack)
        display = stack.enter_context(command_display(output))
        # Read ahead before models are loaded: there may be no problem.
        num_known = problems.look_ahead(display, 1 if setup.concurrency == "1" else MOST)
        if not num_known:
            return SOME_FAILED
        session = stack.enter_context(Session(setup, display))
        session.choose_concurrency(most=1 if problems.is_typed else num_known if problems.ended else MOST)
        session.load()
        run = session.run_info(num_problems=1 if problems.is_single else None)
        display.begin(run)
        # Closed before the models are: an interrupted run still holds problems in their caches.
        events = stack.enter_context(contextlib.closing(session.scheduler().run(problems, problems.is_ready)))
        num_failed = _follow(events, run, display, as_json=json_lines or not problems.is_single)
    return SOME_FAILED if num_failed or problems.num_unusable else 0


def _follow(events: Iterable[Event], run: RunInfo, display: Display, *, as_json: bool) -> int:
    """Show everything that happens, and write each result when it is its turn. Returns how many problems failed."""
    num_failed = 0
    with InOrder(display.result) as results:
        for event in events:
            display.handle(event)
            if isinstance(event, Started):
                results.started(event.trace)
            elif isinstance(event, Finished):
                num_failed += problem_error(event) is not None
                results.finished(event.trace, _result(event, run, as_json=as_json))
    display.end()
    return num_failed


def _result(finished: Finished, run: RunInfo, *, as_json: bool) -> str | None:
    """What standard output gets of a problem; None if no step was written."""
    if as_json:
        return to_json(finished, run)
    return safe(answer(finished.trace) or finished.trace.text.strip()) if finished.trace.decisions else None

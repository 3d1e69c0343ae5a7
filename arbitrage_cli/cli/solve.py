"""`arbitrage solve`: solves problems with a draft and a target."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.app import options
from arbitrage_cli.cli.command import Invocation, command
from arbitrage_cli.cli.output import command_display, say
from arbitrage_cli.display import wording
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting

if TYPE_CHECKING:
    from arbitrage_cli.app.request import Request
    from arbitrage_cli.runs.records import RunInfo


@command
def solve(
    invocation: Invocation,
    problem: Annotated[
        str | None, typer.Argument(help="Problem to solve, or - to read problems from standard input.")
    ] = None,
    *,
    source: options.InputOptions,
    models: options.ModelOptions,
    routing: options.RoutingOptions,
    generation: options.SamplingOptions,
    machine: options.MachineOptions,
    output: options.OutputOptions,
    results: options.ResultOptions,
) -> int:
    """Solve problems step by step with two models.

    Prints the answer to standard output, and shows every step on standard error. For problems from a pipe or a file, prints
    one JSON object per line, in input order. With -o FILE.jsonl, writes the objects to the file; the same command resumes an
    interrupted run.

    \b
    Examples:
      arbitrage solve "What is 23 * 47 - 88?"
      arbitrage solve --draft small.gguf --target large.gguf "..."
      arbitrage solve --pair qwen2.5-coder --input problems.txt -o solutions.jsonl
      cat problems.txt | arbitrage solve --format text > answers.txt
    """
    from arbitrage_cli.app.request import RunOptions, ask
    from arbitrage_cli.app.solve_run import solve_problems
    from arbitrage_cli.problems.tasks import find_task

    is_single = problem not in (None, "-")
    form = _format(results, invocation, is_single=is_single)
    task = find_task(generation.task)
    run_options = RunOptions(models, generation, machine, task, explicit=invocation.flags, command=invocation.command)
    request = ask(run_options, routing)
    if results.explain:
        _check_explained(request, is_shown=form == "json" or results.output_file is not None or not output.quiet)
    with command_display(output) as display:

        def line_of(record: "Mapping[str, Any]") -> str | None:
            return wording.result(record, form, is_single=is_single) if form else None

        describe = partial(_describe, request, results, form)
        solved = solve_problems(request, problem, source, results.output_file, display, line_of, describe)
    if results.output_file:
        status, retry = ("", " (repeat the command to retry)") if solved.num_new else ("nothing to do: ", "")
        errors = f", {formatting.count(solved.num_failed, 'error')}{retry}" if solved.num_failed else ""
        how = "" if form else "; to print the answers, add --format text to the same command"
        say(f"{status}{results.output_file} has {formatting.count(solved.num_done, 'result')}{errors}{how}", output)
    return options.SOME_FAILED if solved.num_failed else 0


def _describe(
    request: "Request", results: options.ResultOptions, form: options.ResultFormat | None, run: "RunInfo"
) -> "RunInfo":
    explain = request.named.router.explain if results.explain and request.named.router else None
    follow = form == "text" and sys.stdout.isatty()
    return replace(run, answers_follow=follow, shows_thoughts=not results.hide_thoughts, explain=explain)


def _check_explained(request: "Request", *, is_shown: bool) -> None:
    policy = request.asked[0]
    if not policy.needs_router:
        hint = "use --policy arbitrage --router FILE"
        raise UsageError(f"policy {policy.name} has no router to explain", hint, option="explain")
    if not is_shown:
        raise UsageError("--quiet hides the explanations", "add --json, or omit -q", option="explain")


def _format(results: options.ResultOptions, invocation: Invocation, *, is_single: bool) -> options.ResultFormat | None:
    """Return the format of standard output, or None if results are written only to a file."""
    if results.json_lines and results.form not in (None, "json") and {"json_lines", "form"} <= invocation.flags:
        raise UsageError("--json and another --format exclude each other", "use one of them")
    if results.json_lines and "form" not in invocation.flags:
        return "json"
    if results.form:
        return results.form
    if results.output_file:
        return None
    return "text" if is_single or sys.stdout.isatty() else "json"

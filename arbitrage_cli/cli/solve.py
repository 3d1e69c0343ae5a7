"""`arbitrage solve`: solves problems with a draft and a target."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbitrage_cli.app.options import SOME_FAILED, InputOptions, Options, ResultFormat
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say
from arbitrage_cli.display import wording
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting

if TYPE_CHECKING:
    from arbitrage_cli.app.request import Request


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """The destination and the format of results."""

    output_file: Path | None = None
    form: ResultFormat | None = None
    json_lines: bool = False
    explain: bool = False
    hide_thoughts: bool = False


@command(
    input_file=Option(
        "File with one problem per line, or in JSONL, CSV or parquet format. Use - for standard input.",
        "FILE",
        names=("--input", "-i"),
        is_setting=False,
    ),
    mapping=Option("Field names in the file, such as question=prompt.", "FIELD=NAME,...", ("--map",), is_setting=False),
    limit=Option("Solve only the first N problems, or a range such as 10-20.", "N|FIRST-LAST", is_setting=False),
    output_file=Option(
        "Write one JSON record per input line to this file. To resume, run the same command again.",
        "FILE",
        names=("--output", "-o"),
        is_setting=False,
    ),
    form=Option(
        "Format of standard output: text (answers) or json (records). Default: nothing with --output; otherwise text for "
        "one problem or on a terminal, and json in other cases.",
        names=("--format",),
    ),
    json_lines=Option("Same as --format json.", names=("--json",)),
    explain=Option("Explain each router decision with its main features and the step's cost per model.", is_setting=False),
    hide_thoughts=Option("Hide the thinking phase."),
)
def solve(
    problem: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROBLEM", help="Problem to solve, or - to read problems from standard input."),
    ] = None,
    *,
    source: InputOptions,
    results: ResultOptions,
    options: Options,
    output: OutputOptions,
) -> int:
    """Solve problems step by step with two models.

    Prints the answer to standard output, and shows every step on standard error. For problems from a pipe or a file, prints
    one JSON object per line, in input order. With -o FILE.jsonl, writes the objects to the file; the same command resumes an
    interrupted run.

    \b
    Examples:
      arbitrage solve "What is 23 * 47 - 88?"
      arbitrage solve --draft small.gguf --target large.gguf "..."
      arbitrage solve --pair llama3 --input problems.txt -o solutions.jsonl
      cat problems.txt | arbitrage solve --format text > answers.txt
    """
    from arbitrage_cli.app.request import ask
    from arbitrage_cli.app.resume import begun_options
    from arbitrage_cli.app.solve import begun_file, solve_problems
    from arbitrage_cli.problems.tasks import find_task

    question = " ".join(problem) if problem else None
    is_single = question not in (None, "-")
    form = _format(results, options.explicit, is_single=is_single)
    options = begun_options(options, begun_file(results.output_file) if results.output_file else None)
    request = ask(options, find_task(options.task))
    request = replace(request, concurrency=1) if is_single else request
    if results.explain:
        _check_explained(request, is_shown=form == "json" or results.output_file is not None or not output.quiet)
    num_unanswered = 0
    with command_display(output) as display:

        def line_of(record: "Mapping[str, Any]") -> str | None:
            nonlocal num_unanswered
            line = wording.result(record, form, is_single=is_single) if form else None
            num_unanswered += line == ""
            return line

        shown = _shown(request, results, form)
        solved = solve_problems(request, question, source, results.output_file, display, line_of, shown)
    if results.output_file:
        status, retry = ("", " (repeat the command to retry)") if solved.num_new else ("nothing to do: ", "")
        errors = f", {formatting.count(solved.num_failed, 'error')}{retry}" if solved.num_failed else ""
        how = "" if form else "; to print the answers, add --format text to the same command"
        say(f"{status}{results.output_file} has {formatting.count(solved.num_done, 'result')}{errors}{how}", output)
    return SOME_FAILED if solved.num_failed or num_unanswered else 0


def _shown(request: "Request", results: ResultOptions, form: ResultFormat | None) -> Mapping[str, Any]:
    """Return the fields of `RunInfo` that decide what the display shows."""
    router = request.named.router if request.asked[0].needs_router else None
    explain = router.explain if router else lambda trace, index: None  # without a router, only the costs
    return {
        "answers_follow": form == "text" and sys.stdout.isatty(),
        "shows_thoughts": not results.hide_thoughts,
        "explain": explain if results.explain else None,
    }


def _check_explained(request: "Request", *, is_shown: bool) -> None:
    policy = request.asked[0]
    if not policy.needs_router and policy.kind != "checked":
        hint = "use --policy arbitrage --router FILE"
        raise UsageError(f"policy {policy.name} has no router to explain", hint, option="explain")
    if not is_shown:
        raise UsageError("--quiet hides the explanations", "add --json, or omit -q", option="explain")


def _format(results: ResultOptions, explicit: frozenset[str], *, is_single: bool) -> ResultFormat | None:
    """Return the format of standard output, or None if results are written only to a file."""
    if results.json_lines and results.form not in (None, "json") and {"json_lines", "form"} <= explicit:
        raise UsageError("--json and another --format exclude each other", "use one of them")
    if results.json_lines and "form" not in explicit:
        return "json"
    if results.form:
        return results.form
    if results.output_file:
        return None
    return "text" if is_single or sys.stdout.isatty() else "json"

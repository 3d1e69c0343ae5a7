"""`arbitrage solve`: solves problems with a draft and a target."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arbitrage_cli.app.options import SOME_FAILED, InputOptions, Options, ResultFormat
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say
from arbitrage_cli.display import wording
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import frozen

if TYPE_CHECKING:
    from arbitrage_cli.app.commands.solve import Solutions


@frozen
class ResultOptions:
    """The destination and the format of results."""

    output_file: Path | None = None
    form: ResultFormat | None = None
    json_lines: bool = False
    explain: bool = False


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
        "Format of standard output: text (answers) or json (records). Default: text for problems on the command line or "
        "in a terminal; otherwise json. With --output, nothing is printed by default.",
        names=("--format",),
    ),
    json_lines=Option("Same as --format json.", names=("--json",)),
    explain=Option("Explain each router decision with its main features.", is_setting=False),
)
def solve(
    problem: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROBLEM", help="Problems to solve, or - to read problems from standard input."),
    ] = None,
    *,
    source: InputOptions,
    results: ResultOptions,
    options: Options,
    output: OutputOptions,
) -> int:
    """Solve problems step by step with two models.

    Prints the answer to standard output, and shows every step on standard error. For problems from a pipe or a file, prints
    one JSON object per line, in input order, unless standard output is a terminal. With -o FILE.jsonl, writes the objects to
    the file. To resume an interrupted run, repeat the command.

    \b
    Examples:
      arbitrage solve "What is 23 * 47 - 88?"
      arbitrage solve --draft small.gguf --target large.gguf "..."
      arbitrage solve --pair llama3 --input problems.txt -o solutions.jsonl
      cat problems.txt | arbitrage solve --format text > answers.txt
    """
    from arbitrage_cli.app.asking.request import ask_to_solve
    from arbitrage_cli.app.attempts.problem_source import Source
    from arbitrage_cli.app.commands.solve import Destination, solve_problems
    from arbitrage_cli.app.entries.start import session_of

    problems = problem or []
    _check_quotes(problems)
    is_given = bool(problems) and problems != ["-"]
    is_single = is_given and len(problems) == 1
    form = _format(results, is_given=is_given)
    path = results.output_file
    with command_display(output) as display:
        request = ask_to_solve(options, path, display)
        request = replace(request, concurrency=1) if is_single else request
        solved = solve_problems(
            session_of(request),
            Source(problems, source, request.task.forms),
            Destination(
                path,
                lambda record: wording.result(record, form, is_single=is_single) if form else None,
                answers_follow=form == "text" and sys.stdout.isatty(),
                explains=results.explain,
                notes_unanswered=output.quiet,  # otherwise the view says it
            ),
            display,
            request.concurrency,
        )
    if path:
        say(_conclusion(solved, path), output)
    return SOME_FAILED if solved.num_failed or solved.num_unanswered else 0


def _check_quotes(problems: Sequence[str]) -> None:
    """Raise UsageError if the arguments look like the words of one problem."""
    if len(problems) > 1 and not any(" " in one for one in problems):
        quoted = " ".join(problems)
        raise UsageError(f"found {len(problems)} problems", f'put a problem of several words in quotes: "{quoted}"')


def _conclusion(solved: "Solutions", path: Path) -> str:
    status = "" if solved.num_new else "nothing to do: "
    retry = " (repeat the command to retry)" if solved.num_new else ""
    errors = f", {formatting.count(solved.num_failed, 'error')}{retry}" if solved.num_failed else ""
    return f"{status}{path} has {formatting.count(solved.num_done, 'result')}{errors}"


def _format(results: ResultOptions, *, is_given: bool) -> ResultFormat | None:
    """Return the format of standard output, or None if results are written only to a file."""
    if results.form or results.json_lines:
        return results.form or "json"
    if results.output_file:
        return None
    return "text" if is_given or sys.stdout.isatty() else "json"

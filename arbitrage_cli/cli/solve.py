"""`arbitrage solve`: solves problems with a draft and a target."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from arbitrage_cli.app.options import SOME_FAILED, InputOptions, Options, ResultFormat
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.options import Option
from arbitrage_cli.cli.output import OutputOptions, command_display, say
from arbitrage_cli.display import wording
from arbitrage_cli.errors import UsageError
from arbitrage_cli.numbers import formatting
from arbitrage_cli.types import Fields, frozen


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
        "output to a terminal; otherwise json. With --output, nothing is printed by default.",
        names=("--format",),
    ),
    json_lines=Option("Same as --format json.", names=("--json",)),
    explain=Option("Explain each router decision with its main features.", is_setting=False),
)
def solve(
    problem: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROBLEM...", help="Problems to solve, or - to read problems from standard input."),
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
    from arbitrage_cli.app.request import Begun, ask, fetching
    from arbitrage_cli.app.resume import restored_options
    from arbitrage_cli.app.solve import ViewOptions, begun_file, solve_problems
    from arbitrage_cli.app.start import session_of
    from arbitrage_cli.problems.tasks import find_task

    problems = problem or []
    if len(problems) > 1 and not any(" " in one for one in problems):
        quoted = " ".join(problems)
        raise UsageError(f"found {len(problems)} problems", f'a problem of several words needs quotes: "{quoted}"')
    is_given = bool(problems) and problems != ["-"]
    is_single = is_given and len(problems) == 1
    form = _format(results, is_given=is_given)
    path = results.output_file
    num_unanswered = 0
    with command_display(output) as display:

        def line_of(record: "Fields") -> str | None:
            nonlocal num_unanswered
            line = wording.result(record, form, is_single=is_single) if form else None
            if line == "":
                num_unanswered += 1
                if output.quiet and not record["error"]:  # otherwise the view or the error says it
                    display.note(f"problem {record['id']}: the solution has no answer")
            return line

        earlier = begun_file(path) if path else None
        began = Begun(earlier, path, fetching(options, display)) if path and earlier else None
        request = ask(options, find_task(restored_options(options, earlier).task), began)
        request = replace(request, concurrency=1) if is_single else request
        view = ViewOptions(answers_follow=form == "text" and sys.stdout.isatty(), explains=results.explain)
        solved = solve_problems(
            session_of(request),
            request.task.forms,
            request.concurrency,
            problems,
            source,
            path,
            display,
            line_of,
            view,
        )
    if results.output_file:
        status, retry = ("", " (repeat the command to retry)") if solved.num_new else ("nothing to do: ", "")
        errors = f", {formatting.count(solved.num_failed, 'error')}{retry}" if solved.num_failed else ""
        say(f"{status}{results.output_file} has {formatting.count(solved.num_done, 'result')}{errors}", output)
    return SOME_FAILED if solved.num_failed or num_unanswered else 0


def _format(results: ResultOptions, *, is_given: bool) -> ResultFormat | None:
    """Return the format of standard output, or None if results are written only to a file."""
    if results.form or results.json_lines:
        return results.form or "json"
    if results.output_file:
        return None
    return "text" if is_given or sys.stdout.isatty() else "json"

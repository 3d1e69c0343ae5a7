"""`arbitrage grade`: the answers of a run graded again, without a model."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from arbitrage_cli.app.options import SOME_FAILED, FigureOptions, OutputOptions, RunCode
from arbitrage_cli.cli.command import command
from arbitrage_cli.cli.output import command_display, open_folder, permitted, show_figures
from arbitrage_cli.errors import UsageError
from arbitrage_cli.runs.folder import RUN, latest
from arbitrage_cli.runs.records import label


@command
def grade(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    *,
    figures: FigureOptions,
    run_code: RunCode = None,
    output: OutputOptions,
) -> int:
    """Grade the answers of a benchmark again, without a model: after the grader has changed.

    Grades that change are shown, then the figures. The rows are replaced all at once, or not at all.

    \b
    Examples:
      arbitrage grade runs/builtin--builtin
    """
    from arbitrage_cli.app.manifest import with_grader
    from arbitrage_cli.tasks.registry import find_task

    if not (run / RUN).exists():
        raise UsageError(f"{run}: this folder has no run", "arbitrage bench makes runs, below runs/")
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(command_display(output))
        folder = stack.enter_context(open_folder(run, display))
        task = permitted(find_task((folder.run or {}).get("task")), run_code)
        grader = stack.enter_context(task.open_grader())

        def graded_again(row: Mapping[str, Any]) -> dict[str, Any]:
            if row["status"] != "done":
                return dict(row)
            return {**row, "grade": asdict(grader.grade(row["text"], row["gold"]))}

        graded = [graded_again(row) for row in folder.rows]
        for before, now in zip(folder.rows, graded, strict=True):
            if before["grade"] != now["grade"] and not output.quiet:
                display.note(_change(before, now))
        folder.rewrite(graded)
        folder.save_run(with_grader(folder.run or {}, task.grader_version()))
        rows = latest(folder.rows)
        display.close()
        show_figures(folder.run or {}, folder.rows, figures)
    return SOME_FAILED if any(row["status"] == "error" for row in rows) else 0


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    policy = label(before["policy"], before["tau"], before["tau_name"])
    what = f"{before['id']}, {policy}: was {before['grade']['value']}, is {now['grade']['value']}"
    return f"{what}: {now['grade']['explanation']}"

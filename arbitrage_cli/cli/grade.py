"""`arbitrage grade`: the answers of a run compared with the right ones once more, without any model."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from arbitrage_cli.cli import options as shared
from arbitrage_cli.cli.output import choose_display, show_figures
from arbitrage_cli.errors import UsageError
from arbitrage_cli.runs.folder import RUN, RunFolder, latest
from arbitrage_cli.runs.records import label


def grade(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    cost_ratio: shared.CostRatio = None,
    json_line: shared.JsonFigures = False,
    quiet: shared.Quiet = False,
    debug: shared.Debug = False,
) -> None:
    """Grade the answers of a benchmark anew, without any model: for when the grader has changed.

    Grades that change are told, then the figures are shown. The rows are replaced all at once, or not at all.
    """
    from arbitrage_cli.cli.run_facts import with_grader
    from arbitrage_cli.grading.grader import Grader, grader_version

    if not (run / RUN).exists():
        raise UsageError(f"{run}: there is no run in this folder", "arbitrage bench makes them, below runs/")
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(contextlib.closing(choose_display(quiet=quiet)))
        folder = stack.enter_context(RunFolder(run))
        for note in folder.notes:
            display.note(note)
        grader = stack.enter_context(Grader())

        def anew(row: Mapping[str, Any]) -> dict[str, Any]:
            if row["status"] != "done":
                return dict(row)
            return {**row, "score": asdict(grader.grade(row["text"], row["gold"]))}

        graded = [anew(row) for row in folder.rows]
        for before, now in zip(folder.rows, graded, strict=True):
            if before["score"] != now["score"] and not quiet:
                display.note(_change(before, now))
        folder.rewrite(graded)
        folder.save_run(with_grader(folder.run or {}, grader_version()))
        rows = latest(folder.rows)
        display.close()
        show_figures(folder.run or {}, folder.rows, cost_ratio=cost_ratio, as_json=json_line)
    if any(row["status"] == "error" for row in rows):
        raise typer.Exit(shared.SOME_FAILED)


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    policy = label(before["policy"], before["tau"])
    what = f"{before['id']}, {policy}: was {before['score']['value']}, is {now['score']['value']}"
    return f"{what}: {now['score']['explanation']}"

"""Opens run folders and regrades answers, without loading models."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from arbitrage_cli.app.manifest import with_grader
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.runs.folder import Row, RunFolder
from arbitrage_cli.runs.records import BENCH
from arbitrage_cli.tasks.task import Task


@contextlib.contextmanager
def open_run(
    path: Path, display: Display, *, kind: str = BENCH, fresh: bool = False, results: Path | None = None
) -> Iterator[RunFolder]:
    """Open and lock a run folder and show its notes. Raises the same errors as `RunFolder`."""
    with RunFolder(path, kind=kind, fresh=fresh, results=results) as folder:
        for note in folder.notes:
            display.note(note)
        yield folder


def regrade(folder: RunFolder, task: Task) -> list[tuple[Row, Row]]:
    """Regrade all finished answers and return each changed row as (before, after). All rows are replaced at once."""
    with task.open_grader() as grader:
        graded: list[Row] = [
            {**row, "grade": asdict(grader.grade(row["text"], row["gold"]))} if row["status"] == "done" else row
            for row in folder.rows
        ]
    changed: list[tuple[Row, Row]] = [
        (before, now) for before, now in zip(folder.rows, graded, strict=True) if before["grade"] != now["grade"]
    ]
    folder.rewrite(graded)
    folder.save_run(with_grader(folder.run or {}, task.grader_version()))
    return changed

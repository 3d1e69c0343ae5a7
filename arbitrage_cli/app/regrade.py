"""Grades the answers of a benchmark again, without loading models."""

from arbitrage_cli.app.manifest import with_grader
from arbitrage_cli.problems.task import Grader, Task
from arbitrage_cli.runs.folder import RunFolder
from arbitrage_cli.runs.rows import AttemptRow


def regrade(folder: RunFolder, task: Task) -> list[tuple[AttemptRow, AttemptRow]]:
    """Regrade all finished answers and return each changed row as (before, after). All rows are replaced at once."""
    with task.open_grader() as grader:
        pairs = [(row, _graded(row, grader)) for row in folder.rows]
    folder.rewrite(row for _, row in pairs)
    folder.save_run(with_grader(folder.run or {}, task.grader_version()))
    return [(before, now) for before, now in pairs if before.grade != now.grade]


def _graded(row: AttemptRow, grader: Grader) -> AttemptRow:
    return row.model_copy(update={"grade": grader.grade(row.text, row.gold)}) if row.status == "done" else row

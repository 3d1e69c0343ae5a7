"""Opens run folders, regrades answers and checks model files, without loading models."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from arbitrage_cli.app.manifest import with_grader
from arbitrage_cli.app.protocol import Display
from arbitrage_cli.errors import ModelFileError
from arbitrage_cli.model_files.checksums import sha256_seen
from arbitrage_cli.model_files.pairs import local_files
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


class AlteredFile(NamedTuple):
    """A model file that differs from the file recorded in a run."""

    role: str
    path: Path
    problem: Literal["missing", "changed", "unreadable"]


def altered_files(run: Mapping[str, Any]) -> Iterator[AlteredFile]:
    """Yield the model files that changed. Checksums are compared only for files that are newer than the run."""
    created = datetime.fromisoformat(run["created"]).timestamp()
    for role, model in run["models"].items():
        if not model.get("file"):
            continue
        path = Path(model["file"])
        try:
            files = local_files(str(path))
            states = [file.stat() for file in files]
            is_newer = any(state.st_mtime > created for state in states)
            if not files:
                yield AlteredFile(role, path, "missing")
            elif sum(state.st_size for state in states) != model["size"] or (
                is_newer and sha256_seen(files) != model["sha256"]
            ):
                yield AlteredFile(role, path, "changed")
        except (OSError, ModelFileError):
            yield AlteredFile(role, path, "unreadable")

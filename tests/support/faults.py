"""Run folders as tests write, read and compare them, without the program's help."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMES = frozenset(("run", "seconds", "wall_seconds", "timing", "cost", "speculation_cost", "target_alone_seconds_estimate"))
"""Fields of a row that differ from run to run."""


def write_problems(path: Path, questions: Sequence[str]) -> Path:
    """A data set of these lines of arithmetic, called p0, p1 ..., with their right answers."""
    rows = [
        {"id": f"p{number}", "question": question, "answer": str(eval(question)), "level": 1 + number % 2}  # noqa: S307
        for number, question in enumerate(questions)
    ]
    return write_rows(path, rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_json(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
    return content


def rows_of(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().split(b"\n") if line]


def essence(value: Any, unwanted: Collection[str] = ()) -> Any:
    """A row without times and the `unwanted` fields."""
    if isinstance(value, Mapping):
        return {name: essence(part, unwanted) for name, part in value.items() if name not in TIMES and name not in unwanted}
    if isinstance(value, list):
        return [essence(part, unwanted) for part in value]
    return value


def results(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Any]:
    """The essence of each row by its key; fails if one comes twice."""
    made: dict[tuple[Any, ...], Any] = {}
    for row in rows:
        key = (row["id"], row["sample"], row["policy"], row["tau"])
        assert key not in made, f"{key} twice"
        made[key] = essence(row)
    return made


def set_aside(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {"run.json", "results.jsonl", "lock"})

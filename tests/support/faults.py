"""Whole runs of the program, broken off anywhere, and what is left of them."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cli import HERE, Result, environment

TIMES = frozenset(("seconds", "wall_seconds", "timing", "throughput", "target_alone_seconds_estimate", "checksum"))
"""Fields of a row that differ from run to run."""


class Program:
    """Runs `arbitrage` in a new process each time, without the time that it takes to start one (see `fork_server`)."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()

    def run(self, folder: Path, *arguments: str | Path, **order: Any) -> Result:
        """Run one command line in a folder, to its end.

        `order` says what shall go wrong: `fault`, `kill_after` (seconds), `limits`, `noise`, `interrupt_in` or `fail_in` a
        function, `hang_on` a question, or be `slow_on` one for some seconds; which `load` there is, and what the
        `environment` has.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        streams = {name: folder / name for name in ("stdout", "stderr")}
        request = {"folder": str(folder), "arguments": list(map(str, arguments)), **order}
        request |= {name: order.get(name, str(path)) for name, path in streams.items()}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        out, err = (path.read_bytes() if path.exists() else b"" for path in streams.values())
        return Result(answer["code"], out, err)


def write_problems(path: Path, questions: Sequence[str]) -> Path:
    """A data set of these lines of arithmetic, called p0, p1 ..., with their right answers."""
    rows = [
        {"id": f"p{number}", "question": question, "answer": str(eval(question)), "level": 1 + number % 2}  # noqa: S307
        for number, question in enumerate(questions)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, read without the program's help."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_bytes().split(b"\n") if line]


def essence(value: Any) -> Any:
    """What must be the same in any two runs: everything but times."""
    if isinstance(value, Mapping):
        return {name: essence(part) for name, part in value.items() if name not in TIMES}
    if isinstance(value, list):
        return [essence(part) for part in value]
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
    """Names of what lies in a run folder beside what belongs there."""
    return sorted({path.name for path in folder.iterdir()} - {"run.json", "results.jsonl", "lock"})

"""Commands that replace files, killed at each change of a file: no file is lost or half-written, and the same command completes."""

import itertools
import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import run
from collected import World, questions, write_run
from made_up_runs import MadeUp, make_run, write_run_folder
from marks import rarely, within
from small_routers import write_router

from arbitrage_cli.routing.router import load

KILLED = -signal.SIGKILL
BUDGET = 40.0  # seconds for each case
Prepare = Callable[[Path], tuple[str, ...]]


def page(folder: Path) -> tuple[str, ...]:
    write_run_folder(folder / "run", make_run(6, columns=[("target", None), ("entropy", 0.5)]))
    (folder / "page.html").write_text("an older page")
    return "report", "run", "-o", "page.html"


def regrading(folder: Path) -> tuple[str, ...]:
    """Return the command that corrects the grades of a run, all of which are wrong."""
    made = make_run(6, columns=[("target", None), ("entropy", 0.5)])
    wrong = {"incorrect": "correct", "correct": "incorrect"}
    rows = [{**row, "grade": {**row["grade"], "value": wrong.get(row["grade"]["value"], "correct")}} for row in made.rows]
    write_run_folder(folder / "run", MadeUp({**made.run, "grader": "an older one"}, rows))
    return "report", "run", "--regrade"


def training(folder: Path) -> tuple[str, ...]:
    write_run(folder / "run", questions(60), World(steps=2))
    write_router(folder / "new.safetensors")
    return "train", "run", "-o", "new.safetensors", "--force"


def presets(folder: Path) -> tuple[str, ...]:
    write_run(folder / "run", questions(60), World(steps=2))
    write_router(folder / "small.safetensors")
    shutil.copy(folder / "small.safetensors", folder / "new.safetensors")
    return "train", "--from", "small.safetensors", "-o", "new.safetensors", "--force", "run"


def files(folder: Path) -> dict[str, bytes]:
    """Return all files without unfinished temporary files, whose names are hidden."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and path.suffix != ".new"}
    return {str(name): content(path) for name, path in found.items() if path.name not in ("lock", "started.jsonl")}


def content(path: Path) -> bytes:
    """Return a file's bytes. A router is loaded, and compared without the time when it was made."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    router = load(path)
    return json.dumps(router.card.to_json() | {"created": None}).encode() + router.network.output.tobytes()


def survives(folder: Path, prepare: Prepare, done: Mapping[str, bytes], fault: Mapping[str, Any]) -> bool:
    """Kill the command at a change of a file, check the files, and repeat it. False if the command ends before the change."""
    shutil.rmtree(folder / "run")
    command = prepare(folder)
    before = files(folder)
    killed = run(*command, cwd=folder, fault=fault)
    if killed.code == KILLED:
        left = files(folder)
        assert left.keys() == before.keys(), fault
        assert [name for name, content in left.items() if content not in (before[name], done[name])] == [], fault
        again = run(*command, cwd=folder)
        assert again.code == 0, again.err
    assert files(folder) == done
    return killed.code == KILLED


FAULTS: list[dict[str, Any]] = [
    {"action": "kill"},
    {"action": "half and killed", "calls": ["write"]},
    {"action": "after", "calls": ["replace"]},
]


@pytest.mark.parametrize(
    ("prepare", "fault"),
    [
        (regrading, FAULTS[0]),
        *rarely(*((one, fault) for one in (page, regrading, presets) for fault in FAULTS), (training, FAULTS[0])),
    ],
)
def test_a_killed_command_is_completed_by_the_same_command(
    quick_path: Path, prepare: Prepare, fault: Mapping[str, Any]
) -> None:
    assert run(*prepare(quick_path), cwd=quick_path).code == 0
    done = files(quick_path)
    num_survived = 0
    for number in within(BUDGET, itertools.count(1)):
        if not survives(quick_path, prepare, done, {**fault, "number": number}):
            break
        num_survived += 1
    assert num_survived

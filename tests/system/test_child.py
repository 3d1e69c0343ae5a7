"""Functions in child processes, and their failures."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from marks import rarely
from processes import awaited, is_running, process_of

from arbitrage_cli.system.child import Child, ChildError, describe_exit

MEMORY = 64 << 20
WORK = """
import os, pathlib, sys, time
count = 0
def load():
    return work
def work(kind, *details):
    global count
    count += 1
    print("noise")
    match kind:
        case "text": return "\u20ac" * 500_000
        case "count": return count
        case "time": return sum([[1]] * 10**6, [])
        case "sleep": time.sleep(100)
        case "memory": return "x" * (1 << 40)
        case "abort": os.abort()
        case "error": return 1 // 0
        case "exit": os._exit(0)
        case "killed": os.kill(os.getpid(), 9)
        case "object": return object()
        case "long": return "x" * (5 << 20)
        case "files": return [os.path.realpath(one) for one in pathlib.Path("/proc/self/fd").iterdir()]
        case "environment": return dict(os.environ)
        case "parent": return os.getppid()
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("arbitrage_cli.system.child.WALL_FACTOR", 100)  # for busy machines
    with Child("work:load", seconds=0.2, memory=MEMORY) as made:
        yield made


def test_answers_come_back_whole_and_depend_on_no_earlier_call(child: Child) -> None:
    assert child("text") == "\u20ac" * 500_000
    assert [child("count"), child("count")] == [1, 1]


def test_child_holds_no_file_and_no_secret_of_this_process(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inherited lock of a run folder would outlive this process."""
    monkeypatch.setenv("HF_TOKEN", "sk-SENTINEL")
    with (tmp_path / "lock").open("w") as stream:
        assert stream.name not in child("files")
    assert "HF_TOKEN" not in child("environment")


@pytest.mark.parametrize(
    ("harm", "cause", "reason"),
    [
        ("time", "time", "not finished after 0.2 s"), ("memory", "memory", "more than 64 MB"),
        ("abort", "crash", "SIGABRT"), ("error", "crash", "exit status 1"), ("exit", "crash", "exit status 0"),
        ("killed", "machine", "was killed"), ("object", "crash", "exit status 1"), ("long", "crash", "too long"),
    ],
)  # fmt: skip
def test_child_that_gives_no_answer_says_why(child: Child, harm: str, cause: str, reason: str) -> None:
    with pytest.raises(ChildError, match=reason) as error:
        child(harm)
    assert error.value.cause == cause
    assert child("count") == 1


def test_every_exit_status_can_be_described() -> None:
    assert [describe_exit(code) for code in (3, -9, -40)] == ["exit status 3", "SIGKILL", "signal 40"]


@pytest.mark.usefixtures("child")
def test_child_that_waits_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arbitrage_cli.system.child.WALL_FACTOR", 1 / 128)
    with Child("work:load", seconds=64, memory=MEMORY) as waiting, pytest.raises(ChildError) as error:
        waiting("sleep")
    assert (error.value.cause, str(error.value)) == ("machine", "not finished after 0.5 s of wall-clock time")


@pytest.mark.parametrize("number", [signal.SIGKILL, *rarely(signal.SIGSTOP)])
def test_process_that_is_killed_or_stopped_between_calls_is_replaced(child: Child, number: signal.Signals) -> None:
    child("count")
    before = process_of(child)
    assert before is not None
    os.kill(before, number)
    assert child("count") == 1
    assert process_of(child) not in (None, before)
    assert not is_running(before)


def test_failing_children_leave_nothing_open(child: Child) -> None:
    child("count")
    child.close()
    before = len(list(Path("/dev/fd").iterdir()))
    for harm in ("error", "killed"):
        with pytest.raises(ChildError):
            child(harm)
    child.close()
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize(
    "script", ["exit 3", "kill -9 $$", "echo nonsense; exit", "echo '[\"ready\"]'; exit", "echo '[\"ready\"]'; exec cat"]
)
def test_process_that_says_something_else_gives_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with Child("work:load", seconds=0.1, memory=MEMORY) as child, pytest.raises(ChildError) as error:
        child("count")
    assert error.value.cause == "machine"


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    code = (
        "from arbitrage_cli.system.child import Child\n"
        "with Child('work:load', seconds=1, memory=1 << 30) as child:\n"
        "    print(child('parent'), flush=True)\n"
        "    child('time')\n"
        "    input()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        process = int(parent.stdout.readline())
        parent.kill()
    awaited(lambda: not is_running(process))

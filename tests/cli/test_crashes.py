"""Processes that die while they solve: rows are kept, and a problem that ends the process three times becomes an error."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import MODELS, run
from faults import results, set_aside, write_problems, write_rows
from marks import rarely

QUESTIONS = [f"{number} * 12 + {number} * 23 - 5" for number in range(11, 20)]
NAMES = [f"p{number}" for number in range(len(QUESTIONS))]
DEADLY = QUESTIONS[3]
ABORTED = -signal.SIGABRT
SOLVE = ("solve", *MODELS, "-i", "problems.jsonl", "-q", "-o", "out.jsonl")
BENCH = ("bench", *MODELS, "--dataset", "problems.jsonl", "-o", "run", "--policy", "target,entropy")
COLLECT = ("collect", *MODELS, "--dataset", "problems.jsonl", "-q", "-o", "run", "--reward", "rollout")


@pytest.fixture
def here(quick_path: Path) -> Path:
    write_problems(quick_path / "problems.jsonl", QUESTIONS)
    return quick_path


def without_answers(here: Path) -> None:
    write_rows(
        here / "problems.jsonl", [{"id": name, "question": text} for name, text in zip(NAMES, QUESTIONS, strict=True)]
    )


def stored(here: Path) -> list[Mapping[str, Any]]:
    """The latest row of each attempt."""
    path = here / "out.jsonl" if (here / "out.jsonl").exists() else here / "run" / "results.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [*{(row["id"], row["policy"]): row for row in rows}.values()]


@pytest.mark.parametrize(
    ("command", "known"),
    [
        ((*SOLVE, "--concurrency", "3"), True),
        (BENCH, True),
        (COLLECT, False),
        *rarely(((*BENCH, "--concurrency", "2"), True)),
    ],
    ids=["solve, 3 at once", "bench", "collect, questions alone", "bench, 2 at once"],
)
def test_a_problem_that_ends_the_process_ends_as_an_error(here: Path, command: tuple[str, ...], known: bool) -> None:
    """The process of `collect` may crash while tokens are timed, while the target answers, or while states are collected."""
    if not known:
        without_answers(here)
    assert [run(*command, cwd=here, die_on=DEADLY).code for _ in range(4)] == [*[ABORTED] * 3, 1]
    rows = stored(here)
    lost = [row for row in rows if row["status"] == "error"]
    assert ({row["id"] for row in rows}, {row["id"] for row in lost}) == ({*NAMES}, {"p3"})
    assert "crashed 3 times" in lost[0]["error"]
    assert [run(*command, cwd=here, die_on=DEADLY).code for _ in range(2)] == [ABORTED, 1]
    assert run(*command, cwd=here).code == 0
    assert {row["status"] for row in stored(here)} == {"done"}
    assert set_aside(here / ("out.jsonl.run" if command[0] == "solve" else "run")) == []


def test_killed_process_is_not_the_problems_fault(here: Path) -> None:
    tick = "arbitrage_cli.inference.engine.Engine.tick"
    for _ in range(5):
        assert run(*BENCH, cwd=here, interrupt_in=tick, call=3, signals=[signal.SIGKILL]).code == -signal.SIGKILL
    end = run(*BENCH, cwd=here)
    assert (end.code, "crashed" in end.err) == (0, False)
    assert not any("conditions" in row for row in stored(here))
    killed = results(stored(here))
    assert run(*BENCH, "--fresh", cwd=here).code == 0
    assert results(stored(here)) == killed


def test_answers_of_the_target_are_kept_with_their_states(here: Path) -> None:
    """The target solves each problem before its states are collected. If the run ends early, one problem is lost."""
    without_answers(here)
    assert run(*COLLECT, "--concurrency", "1", cwd=here, die_on=QUESTIONS[7]).code == ABORTED
    assert [(row["id"], row["status"]) for row in stored(here)] == [(name, "done") for name in NAMES[:7]]
    assert all(state["target_reward"] == 1.0 for row in stored(here) for state in row["states"])

"""The task of a command: from its data set or `--task`, in its run, and what goes with it."""

import os
from pathlib import Path

import pytest
from cli import QUESTION, Terminal, assert_refused, run
from faults import rows_of, run_json, write_rows

from arbitrage_cli.problems.tasks import CODE

REFUSED = 2
BENCH = ("bench", "--pair", "scripted", "--policy", "draft", "--dataset", "rows.jsonl", "-o", "run", "-q")
MBPP = {"task_id": 7, "text": QUESTION, "code": "def f():\n    return 1", "test_list": ["assert f() == 1"]}


def test_a_data_set_of_code_is_run_only_if_that_is_allowed(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [MBPP])
    collect = ("collect", "--pair", "scripted", "--reward", "rollout", "--dataset", "rows.jsonl", "-o", "run")
    for command in (BENCH, collect):
        assert_refused(run(*command, cwd=tmp_path), REFUSED, "", "--run-code")
    assert not (tmp_path / "run").exists()
    assert run(*BENCH, "--run-code=unprotected", cwd=tmp_path, env={"PATH": str(tmp_path)}).code == 0
    made = run_json(tmp_path / "run")
    assert made["protections"] == ["resource limits"]
    assert tuple(made["decided"]["settings"][name] for name in ("task", "step_separator", "step_min_chars")) == (
        "code",
        CODE.step_end.separator,
        CODE.step_end.min_chars,
    )
    (row,) = rows_of(tmp_path / "run")
    assert row["grade"]["value"] == "incorrect"  # arithmetic is no function f
    assert_refused(run("report", "run", "--regrade", cwd=tmp_path), REFUSED, "", "--run-code")
    assert run("report", "run", "--regrade", "--run-code=unprotected", "-q", cwd=tmp_path).code == 0


@pytest.mark.parametrize(("reply", "runs"), [("y", True), ("", False), ("no", False)])
def test_question_in_a_terminal(tmp_path: Path, reply: str, runs: bool) -> None:
    """The sandbox of this test is a stand-in that runs no program."""
    write_rows(tmp_path / "rows.jsonl", [MBPP])
    (tmp_path / "bwrap").write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.11.0\nexit 0\n')
    (tmp_path / "bwrap").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with Terminal(*BENCH, cwd=tmp_path, env={"PATH": path}) as terminal:
        terminal.wait_until(lambda: "[y/N]" in terminal.text)
        assert not (tmp_path / "run").exists()
        terminal.process.sendline(reply)
        assert (terminal.wait() == REFUSED) == (not runs), terminal.text
    assert (tmp_path / "run").exists() == runs


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("setting", [None, "sandboxed"])
def test_programs_run_in_the_sandbox(tmp_path: Path, setting: str | None) -> None:
    write_rows(tmp_path / "rows.jsonl", [MBPP])
    (tmp_path / "code.toml").write_text(f'run_code = "{setting}"\n')
    assert run(*BENCH, *(["--config", "code.toml"] if setting else ["--run-code"]), cwd=tmp_path).code == 0
    assert run_json(tmp_path / "run")["protections"] == ["bubblewrap", "resource limits"]


def test_without_bubblewrap_they_run_only_unprotected(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [MBPP])
    refused = run(*BENCH, "--run-code", env={"PATH": str(tmp_path)}, cwd=tmp_path)
    assert_refused(refused, REFUSED, "--run-code: bubblewrap", "apt install", "unprotected")

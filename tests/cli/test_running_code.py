"""Programs that models wrote run only if the user allows it: on the command line, in a settings file, or when asked."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli import QUESTION, Terminal, assert_refused, run
from processes import wall_or_skip

REFUSED = 2
MBPP = {"task_id": 7, "text": QUESTION, "code": "def f():\n    return 1", "test_list": ["assert f() == 1"]}


@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(MBPP) + "\n")
    dataset, folder = str(tmp_path / "rows.jsonl"), str(tmp_path / "run")
    return ["bench", "--pair", "scripted", "--policy", "draft", "--dataset", dataset, "-o", folder]


def protections(folder: Path) -> Any:
    return json.loads((folder / "run" / "run.json").read_text())["protections"]


def test_it_is_refused_unless_it_is_allowed(bench: list[str], tmp_path: Path) -> None:
    wall_or_skip()
    assert_refused(run(*bench), REFUSED, "", "--run-code", 'run-code = "sandboxed"')
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", [None, "sandboxed"])
def test_programs_run_behind_the_wall(bench: list[str], tmp_path: Path, setting: str | None) -> None:
    """Allowed by the flag alone, or by a settings file; the run names the protections."""
    wall_or_skip()
    if setting:
        (tmp_path / "arbitrage.toml").write_text(f'run_code = "{setting}"\n')
    assert run(*bench, *([] if setting else ["--run-code"]), cwd=tmp_path).code == 0
    assert protections(tmp_path) == ["bubblewrap", "resource limits"]


def test_without_bubblewrap_they_run_only_unprotected(bench: list[str], tmp_path: Path) -> None:
    without = {"PATH": str(tmp_path)}
    assert_refused(run(*bench, "--run-code", env=without), REFUSED, "--run-code: bubblewrap", "apt install", "unprotected")
    assert run(*bench, "--run-code=unprotected", env=without).code == 0
    assert protections(tmp_path) == ["resource limits"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", REFUSED)])
def test_a_terminal_asks(bench: list[str], tmp_path: Path, answer: str, code: int) -> None:
    wall_or_skip()
    with Terminal(*bench) as terminal:
        terminal.wait_until(lambda: b"[y/N]" in terminal.raw)
        terminal.process.send(f"{answer}\n")
        assert terminal.wait() == code
    assert (tmp_path / "run").exists() == (code == 0)

"""Programs that models wrote run only if the user allows it: on the command line, in a settings file, or when asked."""

import json
from pathlib import Path

import pytest
from cli import QUESTION, Terminal, assert_refused, run

REFUSED = 2
MBPP = {"task_id": 7, "text": QUESTION, "code": "def f():\n    return 1", "test_list": ["assert f() == 1"]}


@pytest.fixture
def bench(tmp_path: Path) -> list[str]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(MBPP) + "\n")
    dataset, folder = str(tmp_path / "rows.jsonl"), str(tmp_path / "run")
    return ["bench", "--pair", "scripted", "--policy", "draft", "--dataset", dataset, "-o", folder]


def test_refusal_says_what_would_protect_this_machine(bench: list[str], tmp_path: Path) -> None:
    assert_refused(run(*bench), REFUSED, "", "--run-code", "run-code = true", "resource limits")
    assert not (tmp_path / "run").exists()


def test_a_settings_file_allows_it_and_the_run_names_the_protections(bench: list[str], tmp_path: Path) -> None:
    (tmp_path / "arbitrage.toml").write_text("run_code = true\n")
    assert run(*bench, cwd=tmp_path).code == 0
    assert "resource limits" in json.loads((tmp_path / "run" / "run.json").read_text())["protections"]


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", REFUSED)])
def test_a_terminal_asks(bench: list[str], tmp_path: Path, answer: str, code: int) -> None:
    with Terminal(*bench) as terminal:
        terminal.wait_until(lambda: b"[y/N]" in terminal.raw)
        terminal.process.send(f"{answer}\n")
        assert terminal.wait() == code
    assert (tmp_path / "run").exists() == (code == 0)

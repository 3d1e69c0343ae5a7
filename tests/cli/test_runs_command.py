"""`arbitrage runs`: what is listed, and what is removed only after a question."""

import json
import os
import time
from pathlib import Path

import pytest
from cli import Terminal, assert_refused, run
from made_up_runs import make_run, write_run_folder

from arbitrage_cli.runs.folder import encode

AGE = 3.2 * 24 * 3600  # seconds


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a benchmark, collected states, and a damaged run."""
    write_run_folder(tmp_path / "runs" / "one", make_run(3, columns=[("target", None), ("entropy", 0.5)]))
    write_run_folder(tmp_path / "runs" / "bad", make_run(1))
    (tmp_path / "runs" / "bad" / "run.json").write_text("{}")
    (tmp_path / "runs" / "no run").mkdir()
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (time.time() - AGE,) * 2)
    return tmp_path


def test_runs_are_listed(here: Path) -> None:
    shown = run("runs", cwd=here)
    assert (shown.code, shown.err) == (0, "")
    assert "runs/one  6/6 done, 3 days ago\n  made-up: target, entropy 0.5; " in shown.out
    assert "runs/bad, 3 days ago\n  runs/bad/run.json: line 1: " in shown.out
    assert "no run" not in shown.out
    records = {record["folder"]: record for record in json.loads(run("runs", "list", "--json", cwd=here).out)}
    assert (records["runs/one"]["done"], records["runs/one"]["planned"]) == (6, 6)
    assert run("runs", "list", "--csv", cwd=here).out.startswith("folder,age_seconds,")
    assert "no runs" in run("runs", "list", "elsewhere", cwd=here).err


@pytest.mark.parametrize("run_json", [{"schema": 1}, {"schema": 1, "ids": [], "models": "x", "policies": None}])
def test_a_run_of_another_program_spoils_no_list(run_json: dict[str, object], here: Path) -> None:
    """Its checksum is right."""
    (here / "runs" / "bad" / "run.json").write_bytes(encode(run_json))
    shown = run("runs", cwd=here)
    assert (shown.code, "runs/one  6/6 done" in shown.out, "runs/bad, " in shown.out) == (0, True, True)
    assert run("verify", "runs/bad", cwd=here).code == 6


def test_a_run_is_removed_after_a_question(here: Path) -> None:
    assert_refused(run("runs", "rm", "runs/no run", cwd=here), 2, "runs/no run: ")
    assert_refused(run("runs", "rm", "runs/one", cwd=here), 2, "Remove runs/one", "--yes")
    with Terminal("runs", "rm", str(here / "runs" / "one")) as terminal:
        terminal.wait_until(lambda: b"[y/N]" in terminal.raw)
        terminal.process.sendline("")
        assert terminal.wait() == 1
    assert (here / "runs" / "one" / "run.json").exists()
    assert run("runs", "rm", "runs/one", "--yes", cwd=here).code == 0
    assert not (here / "runs" / "one").exists()


def test_what_is_not_the_runs_is_kept(here: Path) -> None:
    folder = here / "runs" / "one"
    others = [folder / "thesis.tex", folder / "data" / "results.jsonl", folder / "run.json.bak"]
    (folder / "data").mkdir()
    for path in others:
        path.write_text("mine")
    (folder / "results.jsonl.torn-1").write_text("{")
    (folder / ".run.json.0a1b2c3d.new").write_text("{")
    assert run("runs", "rm", "runs/one", "--yes", cwd=here).code == 0
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(others)

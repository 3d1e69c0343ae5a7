"""`arbitrage runs`: what is listed."""

import json
import os
import time
from pathlib import Path

import pytest
from cli import run
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
    assert "runs/bad, 3 days ago\n  runs/bad/run.json: schema " in shown.out
    assert "no run" not in shown.out
    records = {record["folder"]: record for record in json.loads(run("runs", "--json", cwd=here).out)}
    assert (records["runs/one"]["done"], records["runs/one"]["planned"]) == (6, 6)
    assert "no runs" in run("runs", "elsewhere", cwd=here).err


@pytest.mark.parametrize("run_json", [{"schema": 1}, {"schema": 1, "ids": [], "models": "x", "policies": None}])
def test_a_run_of_another_program_spoils_no_list(run_json: dict[str, object], here: Path) -> None:
    (here / "runs" / "bad" / "run.json").write_bytes(encode(run_json))
    shown = run("runs", cwd=here)
    assert (shown.code, "runs/one  6/6 done" in shown.out, "runs/bad, " in shown.out) == (0, True, True)
    assert run("verify", "runs/bad", cwd=here).code == 6

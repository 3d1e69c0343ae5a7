"""The programs in tests/benchmarks that compute tables of its README run, on little data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_tuning import FAST_READER, pretend

TESTS = Path(__file__).parent


def output_of(program: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(TESTS / "benchmarks" / program), *arguments]
    env = {**os.environ, "PYTHONPATH": str(TESTS / "support")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_presets_from_few_solutions() -> None:
    lines = output_of("presets.py", "--tables", "2", "--solutions", "54")
    assert len([line for line in lines if line.startswith("  careful")]) == 6


def test_bounds_of_the_guide() -> None:
    """The guide's table has some of the rows that the program computes."""
    guide = (TESTS.parent / "arbitrage_cli" / "guides" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    lines = output_of("bounds.py")
    assert len([line for line in guide if line.startswith("| ") and "draft tokens |" in line and line in lines]) == 8


def test_router_scores() -> None:
    *_, row = output_of("router_scores.py", "--lengths", "200")
    assert row.startswith("| 200 | ")


def test_gain_of_shared_draft_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    pretend(tmp_path / "arbitrage" / "tuned.json", FAST_READER)
    heading, _, *rows = output_of("shared_drafts.py", "builtin:draft", "builtin:target")
    assert "94% kept" in heading
    figures = [[float(cell.strip(" x")) for cell in row.split("|")[2:-1]] for row in rows]
    assert all(row == sorted(row) for row in figures)
    assert figures[0][0] > figures[-1][0] > 1  # a batch of one problem costs as little as one of eight


def test_published_answers_of_policy_agree(tmp_path: Path) -> None:
    """Of 40 problems, the small models disagree about every fourth, and only the target is always right."""

    def answer(value: int, chars: int) -> dict[str, object]:
        return {"answer": str(value), "right": value == 1, "chars": chars}

    rows = [
        {
            "id": str(index),
            "models": {
                "small-1b": answer(1 if index % 4 else 2, 100),
                "other-2b": answer(1, 100),
                "large-70b": answer(1, 100),
            },
        }
        for index in range(40)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = output_of("replay.py", str(path), "--draft", "small-1b", "--check", "other-2b", "--target", "large-70b")
    assert all(part in lines[1] for part in ("target 100%, change +0.0", "target called for 25%", "0 lost, 0 gained"))
    speedup = float(lines[1].rsplit("; ", 1)[1].partition("x")[0])
    assert speedup == pytest.approx(70 / (1 + 2 + 0.25 * 70), abs=0.01)  # by the sizes of the models

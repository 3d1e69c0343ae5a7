"""Every architecture that llama.cpp and the tests can write solves problems, as draft and as target. Slow: `pytest -m slow`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_architectures
from cli import run
from tiny_architectures import HINTS, RECURRENT

SHORT = ("--threads", "1", "--ctx", "2048", "--policy", "random", "--tau", "0.5")
LIMITS = {"ARBITRAGE_MAX_STEPS": "4", "ARBITRAGE_MAX_STEP_TOKENS": "12"}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HINTS)
def test_an_architecture_solves_problems(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / f"{architecture}.gguf"
    folders = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, str(Path(tiny_architectures.__file__)), str(path), architecture]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": folders}, timeout=300)
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1 + 1"}\n{"question": "a longer question, of which nothing is known"}\n')
    models = ["--draft", str(path), "--target", str(path)]
    found = []
    for concurrency in ("1", "2"):
        done = run("solve", "--input", problems, *models, *SHORT, "--concurrency", concurrency, "--json", env=LIMITS)
        assert done.code == 0, done.err
        found.append({record["problem"]: record["text"] for record in done.records})
    assert len(found[0]) == 2
    assert found[0].keys() == found[1].keys()
    (model,) = run("models", "info", path, "--json").records[0]["models"]
    assert (model["state_bytes"] > 0) == (architecture in RECURRENT)

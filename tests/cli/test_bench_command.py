"""`arbitrage bench` as a command: what goes to standard output and standard error, and the command that run.json keeps."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli import Result, assert_refused, run
from faults import rows_of, run_json, write_problems

BENCH = ("bench", "--pair", "scripted", "--dataset", "arithmetic.jsonl", "-o", "run", "--policy", "target,draft,entropy")


def bench(folder: Path, *arguments: str, **options: Any) -> Result:
    return run(*BENCH, *arguments, cwd=folder, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with a run on three problems, the first of which the draft gets wrong. Tests copy it and do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_problems(folder / "arithmetic.jsonl", ("37 * 12 - 95", "1 + 1", "9 * 9"))
    return folder, bench(folder, noise="printed by a C library\n")


@pytest.fixture
def copy(finished: tuple[Path, Result], quick_path: Path) -> Path:
    shutil.copytree(finished[0], quick_path, dirs_exist_ok=True)
    return quick_path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_table_goes_to_stdout_and_a_line_an_attempt_to_stderr(finished: tuple[Path, Result]) -> None:
    """What a C library prints is not mixed with the results."""
    folder, result = finished
    assert (result.code, "C library" in result.out) == (0, False)
    assert re.search(r"^target +100\b", result.out, re.MULTILINE)
    assert re.search(r"^draft +6[67]", result.out, re.MULTILINE)
    assert "printed by a C library" in result.err
    heading, *lines, conclusion = (line for line in result.err.splitlines() if "C library" not in line)
    assert (heading, "arbitrage report run" in conclusion) == ("bench arithmetic.jsonl: 9 attempts", True)
    assert [line.split(maxsplit=1)[0] for line in lines] == [f"{number}/9" for number in range(1, 10)]
    for shown in (" p0, target: correct (349), ", " p0, draft: incorrect (359), "):
        assert shown in "".join(lines)
    made = run_json(folder / "run")
    assert made["asked"]["command"] == ["arbitrage", *BENCH]
    assert [len(model["chat_template_sha256"]) for model in made["loaded"].values()] == [64, 64]


def test_dry_run_shows_what_would_be_run_and_runs_nothing(copy: Path) -> None:
    planned = bench(copy, "--dry-run", "--samples", "2")
    assert (planned.code, planned.err, "attempts  9 of 18 to run\ntime      about " in planned.out) == (0, "", True)
    assert len(rows_of(copy / "run")) == 9
    assert_refused(bench(copy, "--dry-run", "--json"), 2, "--json: ")
    assert_refused(bench(copy, "--dry-run", "--temperature", "0.5"), 2, "--temperature: ")
    assert "attempts  0 of 3 to run" in bench(copy, "--dry-run", "--ids", "p1").out
    assert_refused(bench(copy, "--ids", "p1", "--limit", "1"), 2, "--ids: ", "--limit")


def test_conclusion_counts_all_attempts_of_a_run(copy: Path) -> None:
    added = run(*BENCH[:-1], "draft,entropy@2", cwd=copy)
    assert (added.code, "run has 12 attempts;" in added.err) == (0, True)


def test_finished_run_is_shown_and_not_changed(copy: Path) -> None:
    files = files_of(copy / "run")
    result = bench(copy, "--json")
    assert (result.code, "nothing to do" in result.err) == (0, True)
    policies = {policy["label"]: policy for policy in json.loads(result.out)["policies"]}
    assert policies["draft"]["correct"] == 2
    first = bench(copy, "--json", "--limit", "1")
    assert (first.code, first.out) == (0, result.out)
    assert files_of(copy / "run") == files

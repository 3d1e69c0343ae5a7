"""Paths that name nothing, or something that must not be overwritten: a clear error, and nothing is lost."""

from pathlib import Path

import pytest
from cli import run
from faults import write_problems

BENCH = ("bench", "--dataset", "one.jsonl", "-q", "--max-tokens", "1", "--threads", "1")


@pytest.fixture
def here(quick_path: Path) -> Path:
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    return quick_path


@pytest.mark.parametrize(
    "arguments",
    [
        (*BENCH, "--target", "no.gguf", "--policy", "target"),
        (*BENCH, "--policy", "rsd", "--prm", "no.gguf"),
        ("collect", *BENCH[1:], "--draft", "no.gguf", "--target", "no.gguf", "--reward", "rollout"),
        ("solve", "5 + 6", "--target", "no.gguf", "--policy", "target"),
        ("tune", "--draft", "no.gguf", "--target", "no.gguf"),
    ],
    ids=["bench", "bench --prm", "collect", "solve", "tune"],
)
def test_a_typo_in_the_path_of_a_model_is_named(here: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 3, with the path; never a defect."""
    result = run(*arguments, cwd=here)
    assert (result.code, "no.gguf" in result.err) == (3, True), result.err


def test_a_page_does_not_replace_a_file_of_any_run(here: Path) -> None:
    """Neither of the runs it shows, nor of another one."""
    for name in ("a", "b"):
        assert run(*BENCH, "--pair", "scripted", "--policy", "target", "-o", name, cwd=here).code == 0
    rows = (here / "b" / "results.jsonl").read_bytes()
    for name in ("a/run.json", "b/results.jsonl"):
        assert run("report", "a", "-o", name, cwd=here).code == 2
    assert (here / "b" / "results.jsonl").read_bytes() == rows

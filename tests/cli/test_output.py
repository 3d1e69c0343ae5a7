"""Standard output that is closed, full, or read by nobody: for every command the same few words and exit codes."""

import os
from pathlib import Path

import pytest
from cli import Result, run, run_shell
from collected import questions, write_run
from made_up_runs import make_run, write_run_folder

FULL, USAGE, CLOSED_PIPE = 1, 2, 141
INFORMING = (
    ("doctor",),
    ("models", "list"),
    ("models", "list", "--json"),
    ("models", "info", "builtin"),
    ("models", "path", "builtin"),
    ("models", "--help"),
    ("bench", "--help"),
    ("--help",),
    ("--version",),
)
SHOWING = (
    ("report", "made"),
    ("compare", "made", "made", "--json"),
    ("compare", "made", "made"),
    ("explain", "states"),
    ("explain", "states", "--json"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a benchmark, `made`, and one of collected states, `states`."""
    folder = tmp_path_factory.mktemp("output")
    write_run_folder(folder / "made", make_run(6))
    write_run(folder / "states", questions(20))
    return folder


def found(here: Path, *arguments: str) -> list[str]:
    return [str(here / part) if part in ("made", "states") else part for part in arguments]


def assert_no_defect(result: Result) -> None:
    assert "defect" not in result.err
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


@pytest.mark.parametrize("arguments", [*INFORMING, *SHOWING], ids=" ".join)
def test_closed(here: Path, arguments: tuple[str, ...]) -> None:
    result = run_shell(">&-", *found(here, *arguments))
    assert_no_defect(result)
    assert result.code == USAGE
    assert result.err.splitlines() == [
        "arbitrage: standard output is closed, so there is nowhere to write results",
        "  send it somewhere: > FILE",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("arguments", [*INFORMING, *SHOWING], ids=" ".join)
def test_full(here: Path, arguments: tuple[str, ...]) -> None:
    result = run_shell(">/dev/full", *found(here, *arguments))
    assert_no_defect(result)
    assert result.code == FULL
    assert "arbitrage: results cannot be written (No space left on device)" in result.err


@pytest.mark.parametrize("arguments", [*INFORMING, *SHOWING], ids=" ".join)
def test_read_by_nobody(here: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = run(*found(here, *arguments), stdout=pipe)
    assert (result.code, result.err) == (CLOSED_PIPE, "")


def test_closed_before_anything_is_made(here: Path) -> None:
    trained = run_shell(">&-", "train", *found(here, "states"), "-o", str(here / "head.safetensors"))
    shown = run_shell(">&-", "report", *found(here, "made"), "-o", str(here / "page.html"))
    assert (trained.code, shown.code) == (USAGE, USAGE)
    assert sorted(path.name for path in here.iterdir()) == ["made", "states"]

"""Standard output that is closed, full, or without a reader: every command ends in the same few words and exit codes."""

from pathlib import Path

import pytest
from cli import BROKEN, CLOSED, Result, assert_refused, run
from collected import questions, write_run
from made_up_runs import make_run, write_run_folder

FULL, USAGE, CLOSED_PIPE = 1, 2, 141
COMMANDS = (
    ("doctor",),
    ("runs", "."),
    ("models", "list"),
    ("models", "list", "--json"),
    ("models", "info", "builtin"),
    ("models", "path", "builtin"),
    ("--help",),
    ("--version",),
    ("report", "made"),
    ("compare", "made", "made", "--json"),
    ("compare", "made", "made"),
)
each_command = pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a benchmark, `made`, and one of collected states, `states`."""
    folder = tmp_path_factory.mktemp("output")
    write_run_folder(folder / "made", make_run(6))
    write_run(folder / "states", questions(20))
    return folder


def assert_no_defect(result: Result) -> None:
    assert not [word for word in ("defect", "Traceback", "Exception ignored") if word in result.err]


@each_command
def test_closed_output_is_one_error_with_a_hint(here: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, cwd=here, stdout=CLOSED)
    assert_no_defect(result)
    assert_refused(result, USAGE, "standard output is closed", "> FILE")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@each_command
def test_full_device_gives_the_systems_reason(here: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, cwd=here, stdout="/dev/full")
    assert_no_defect(result)
    assert_refused(result, FULL, "", "No space left on device")


@each_command
def test_missing_reader_ends_a_command_silently(here: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, cwd=here, stdout=BROKEN)
    assert (result.code, result.err) == (CLOSED_PIPE, "")


def test_closed_output_is_refused_before_anything_is_made(here: Path) -> None:
    trained = run("train", "states", "-o", "head.safetensors", cwd=here, stdout=CLOSED)
    shown = run("report", "made", "-o", "page.html", cwd=here, stdout=CLOSED)
    assert (trained.code, shown.code) == (USAGE, USAGE)
    assert sorted(path.name for path in here.iterdir()) == ["made", "states"]

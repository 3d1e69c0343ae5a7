"""Faults that a benchmark survives: kill -9 anywhere, signals, missing streams, and limits of the system.

The golden run is one that nothing happened to. After any fault the same command must end with the same rows, each once.
"""

import itertools
import json
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli import BROKEN, CLOSED, Result, assert_refused, run
from faults import results, rows_of, set_aside, write_problems
from marks import rarely, within

QUESTIONS = ("12 * 34", "1 + 1")
BENCH = ("bench", "--pair", "scripted", "--dataset", "arithmetic.jsonl", "-o", "run", "--policy", "target,entropy", "-q")
NUM_ROWS = 4
KILLED = -signal.SIGKILL
APPEND = "arbitrage_cli.runs.folder.RunFolder.append"
Golden = Mapping[tuple[Any, ...], Any]


def bench(folder: Path, *arguments: str, **options: Any) -> Result:
    return run(*BENCH, *arguments, cwd=folder, **options)


@pytest.fixture
def here(quick_path: Path) -> Path:
    write_problems(quick_path / "arithmetic.jsonl", QUESTIONS)
    return quick_path


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("golden")
    write_problems(folder / "arithmetic.jsonl", QUESTIONS)
    assert bench(folder).code == 0
    made = results(rows_of(folder / "run"))
    assert len(made) == NUM_ROWS
    return made


def rows_of_whole_lines(folder: Path) -> list[dict[str, Any]]:
    data = (folder / "results.jsonl").read_bytes()
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


# --- killed anywhere


def survives(here: Path, golden: Golden, fault: Mapping[str, Any], *flags: str) -> bool:
    """Kill a run at this fault, and check that the same command completes it. False if the run ends before the fault."""
    killed = bench(here, *flags, fault=fault)
    if killed.code != KILLED:
        assert killed.code == 0
        return False
    result = bench(here, *flags)
    assert (result.code, "Traceback" in result.err) == (0, False), f"{fault}: {result.err}"
    assert results(rows_of(here / "run")) == golden, fault
    assert all(name.startswith("results.jsonl.torn-") for name in set_aside(here / "run"))
    shutil.rmtree(here / "run")
    return True


ACTIONS = [
    ("kill", None, ("--concurrency", "2")),
    ("half and killed", ["write"], ()),
    ("after", ["replace", "ftruncate"], ()),
]


@pytest.mark.parametrize(
    ("action", "calls", "flags", "numbers"),
    [(*how, (3 - place,)) for place, how in enumerate(ACTIONS)] + rarely(*((*how, range(1, 999)) for how in ACTIONS)),
)
def test_killed_at_changes_of_files(
    here: Path, golden: Golden, action: str, calls: list[str] | None, flags: tuple[str, ...], numbers: Sequence[int]
) -> None:
    faults = ({"number": number, "action": action, "calls": calls} for number in within(60.0, numbers))
    num_survived = len([*itertools.takewhile(lambda fault: survives(here, golden, fault, *flags), faults)])
    assert num_survived >= (1 if action == "after" or len(numbers) == 1 else NUM_ROWS)


@pytest.mark.slow
def test_killed_while_it_repairs_a_torn_row(here: Path, golden: Golden) -> None:
    assert bench(here, fault={"number": 3, "action": "half and killed", "calls": ["write"]}).code == KILLED
    for number in within(60.0, range(1, 8)):
        assert bench(here, fault={"number": number, "action": "kill"}).code == KILLED
        results(rows_of_whole_lines(here / "run"))
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


# --- disks


@pytest.mark.parametrize(
    ("call", "action", "number"),
    [("write", "full", 4), *rarely(("write", "full", 1), *((call, "io", n) for call in ("write", "fsync") for n in (1, 4)))],
)
def test_disk_that_fails_costs_one_row_at_most(here: Path, golden: Golden, call: str, action: str, number: int) -> None:
    failed = bench(here, fault={"number": number, "action": action, "calls": [call]})
    assert_refused(failed, 2 if failed.code == 2 else 1, "run")  # 2: before it began
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


def test_file_that_may_not_grow_is_an_error_not_a_signal(here: Path, golden: Golden) -> None:
    failed = bench(here, limits={"RLIMIT_FSIZE": 5000})
    assert_refused(failed, 1, "run", "File too large")
    assert 0 < len(rows_of(here / "run")) < NUM_ROWS
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


# --- signals


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
        ([signal.SIGINT, signal.SIGINT], -signal.SIGINT),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGINT twice"],
)
def test_signal_keeps_whole_rows(here: Path, golden: Golden, signals: Sequence[int], code: int) -> None:
    result = run(*BENCH[:-1], cwd=here, interrupt_in=APPEND, call=3, signals=signals)
    assert result.code in (code, 130 if len(signals) > 1 else code)
    rows = results(rows_of_whole_lines(here / "run"))
    assert 2 <= len(rows) < NUM_ROWS
    if result.code > 0:
        *_, note, message = result.err.splitlines()
        assert note.startswith(f"{len(rows)} result")
        assert note.endswith(f"to resume: arbitrage {' '.join(BENCH[:-1])}")
        assert message == "arbitrage: interrupted"
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


def test_interrupt_while_models_load_is_one_line_and_makes_nothing(here: Path) -> None:
    result = bench(here, interrupt_in="arbitrage_cli.app.opening.open_models.open_model")
    assert (result.code, result.out, result.err.splitlines()[-1]) == (130, "", "arbitrage: interrupted")
    assert not (here / "run").exists()


# --- streams that are missing


@pytest.mark.parametrize(
    ("streams", "code"),
    [
        ({"stdin": CLOSED, "stderr": CLOSED}, 0), ({"stderr": "/dev/full"}, 0), ({"stderr": BROKEN}, 0),
        ({"stdout": BROKEN}, 141), ({"stdout": CLOSED}, 0),
    ],
    ids=["no stdin and stderr", "no room for stderr", "no reader of stderr", "no reader", "no stdout"],
)  # fmt: skip
def test_run_is_complete_if_a_stream_is_missing(here: Path, streams: dict[str, str], code: int) -> None:
    result = run(*BENCH[:-1], cwd=here, **streams)
    assert result.code == code
    assert "Traceback" not in result.err
    assert len(results(rows_of(here / "run"))) == NUM_ROWS


# --- limits


def test_many_problems_need_few_open_files(here: Path) -> None:
    write_problems(here / "arithmetic.jsonl", [f"{number} + 1" for number in range(100)])
    draft_alone = (part.replace("target,entropy", "draft") for part in BENCH)
    result = run(*draft_alone, cwd=here, limits={"RLIMIT_NOFILE": 64})
    assert result.code == 0
    assert len(results(rows_of(here / "run"))) == 100


def test_too_little_memory_is_no_defect(here: Path) -> None:
    assert_refused(run("solve", "1 + 1", "-q", cwd=here, limits={"RLIMIT_AS": 1 << 26}), 3, "", "memory")

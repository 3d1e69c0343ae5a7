"""What a benchmark survives: kill -9 anywhere, full and broken disks, signals, a step that hangs, two of it at once.

The golden run is one that nothing happened to. After any fault the same command must end with the same rows, each once.
"""

import json
import random
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import PROGRAM, environment, run, run_shell, start
from faults import results, rows_of, set_aside, write_problems

QUESTIONS = ("12 * 34", "1 + 1")
BENCH = ("bench", "--pair", "scripted", "--dataset", "arithmetic.jsonl", "-o", "run", "--policy", "target,entropy", "-q")
NUM_ROWS = 4
KILLED = -signal.SIGKILL


@pytest.fixture
def here(quick_path: Path) -> Path:
    """A folder with a data set of two problems."""
    write_problems(quick_path / "arithmetic.jsonl", QUESTIONS)
    return quick_path


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[Any, ...], Any]:
    """The rows of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("golden")
    write_problems(folder / "arithmetic.jsonl", QUESTIONS)
    assert bench(folder).code == 0
    made = results(rows_of(folder / "run"))
    assert len(made) == NUM_ROWS
    return made


def forget(folder: Path) -> None:
    """Take the run away, and nothing else."""
    for path in (folder / "run").iterdir():
        path.unlink()
    (folder / "run").rmdir()


# --- F1, F2: killed anywhere


@pytest.mark.parametrize(
    ("action", "calls"),
    [("kill", None), ("half and killed", ["write"]), ("after", ["replace", "ftruncate"])],
    ids=["before any call", "within a write", "after a replacement"],
)
def test_killed_at_every_change_of_a_file(
    here: Path, golden: Mapping[tuple[Any, ...], Any], action: str, calls: list[str] | None
) -> None:
    number = 0
    while True:
        number += 1
        killed = bench(here, fault={"number": number, "action": action, "calls": calls})
        if killed.code != KILLED:
            break
        result = bench(here)
        assert (result.code, "Traceback" in result.err) == (0, False), f"after {action} {number}: {result.err}"
        assert results(rows_of(here / "run")) == golden, f"after {action} {number}"
        assert all(name.startswith("results.jsonl.torn-") for name in set_aside(here / "run") if not name.startswith("."))
        forget(here)
    assert killed.code == 0
    assert number > (1 if action == "after" else NUM_ROWS)


def test_killed_while_it_repairs_what_a_kill_left(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    torn = bench(here, fault={"number": 3, "action": "half and killed", "calls": ["write"]})
    assert torn.code == KILLED
    for number in range(1, 8):
        assert bench(here, fault={"number": number, "action": "kill"}).code == KILLED
        results(rows_of_whole_lines(here / "run"))
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


def rows_of_whole_lines(folder: Path) -> list[dict[str, Any]]:
    data = (folder / "results.jsonl").read_bytes()
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def test_killed_at_random_again_and_again(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    draw = random.Random(7)
    for _ in range(5):
        done: dict[tuple[Any, ...], Any] = {}
        for _ in range(10):
            bench(here, kill_after=draw.uniform(0.01, 0.3))
            if (here / "run" / "results.jsonl").exists():
                now = results(rows_of_whole_lines(here / "run"))
                assert done.items() <= now.items()
                done = now
        assert bench(here).code == 0
        assert results(rows_of(here / "run")) == golden
        forget(here)


def test_throughput_run_killed_anywhere(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    number = 0
    while bench(here, "--concurrency", "2", fault={"number": (number := number + 1), "action": "kill"}).code == KILLED:
        assert bench(here, "--concurrency", "2").code == 0
        assert results(rows_of(here / "run")) == golden
        forget(here)
    assert number > NUM_ROWS


def test_real_models_end_alike_in_any_order_and_after_a_kill(quick_path: Path) -> None:
    bench = ("bench", "--dataset", "builtin-dev", "--policy", "target,entropy@0.1,random", "--threads", "1", "-q", "-o")
    ids = [f"dev/1/{number}" for number in (1, 2, 3)]
    assert run(*bench, "whole", "--ids", ",".join(ids), cwd=quick_path).code == 0
    undisturbed = results(rows_of(quick_path / "whole"))
    assert len(undisturbed) == 9
    torn = run(
        *bench,
        "torn",
        "--ids",
        ",".join(ids),
        cwd=quick_path,
        fault={"number": 6, "action": "half and killed", "calls": ["write"]},
    )
    assert torn.code == KILLED
    assert 0 < len(rows_of_whole_lines(quick_path / "torn")) < 9
    assert run(*bench, "torn", "--ids", ",".join(ids), cwd=quick_path).code == 0
    for identifier in reversed(ids):
        assert run(*bench, "backwards", "--ids", identifier, cwd=quick_path).code == 0
    for other in ("torn", "backwards"):
        assert results(rows_of(quick_path / other)) == undisturbed


# --- F4, F5, F6: damage


def test_row_with_a_flipped_bit_is_done_again(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    bench(here)
    path = here / "run" / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    flipped = lines[1].replace(b"boxed", b"bozed", 1)
    assert flipped != lines[1]
    path.write_bytes(b"".join([lines[0], flipped, *lines[2:]]))
    read = run("report", "run", cwd=here)
    assert (read.code, read.out) == (5, "")
    assert "run/results.jsonl: line 2: " in read.err
    repaired = bench(here)
    assert repaired.code == 0
    (note,) = [line for line in repaired.err.splitlines() if "results.jsonl.damaged-1" in line]
    assert "run/results.jsonl" in note
    assert "line 2: " in note
    assert (here / "run" / "results.jsonl.damaged-1").read_bytes() == flipped
    kept = path.read_bytes().splitlines(keepends=True)
    assert kept[:3] == [lines[0], *lines[2:]]
    assert results(rows_of(here / "run")) == golden


def test_rows_without_run_json_are_not_believed(here: Path) -> None:
    bench(here)
    (here / "run" / "run.json").unlink()
    result = bench(here)
    assert (result.code, result.out) == (5, "")
    assert "run/run.json is missing" in result.err
    assert bench(here, "--fresh").code == 0
    assert set_aside(here / "run") == ["results.jsonl.old-1"]


def test_odd_texts_are_kept_to_the_letter(here: Path) -> None:
    question = "\u0085 1 + 3 \u2028 }{ \u001b]0;title\u0007 \\boxed{9} \u202e"
    (here / "arithmetic.jsonl").write_text(
        json.dumps({"id": "odd\u2028\u001b[2J", "question": question, "answer": 4}) + "\n"
    )
    for arguments in (("--limit", "1"), ("--samples", "2")):
        result = run(*BENCH[:-1], *arguments, cwd=here)
        assert result.code == 0
        assert b"\x1b" not in result.stdout + result.stderr
    assert {row["problem"] for row in rows_of(here / "run")} == {question.strip()}
    assert len(results(rows_of(here / "run"))) == 4


# --- F7 to F11: disks


@pytest.mark.parametrize(("call", "action"), [("write", "full"), ("write", "io"), ("fsync", "io")])
def test_disk_that_fails_costs_one_row_at_most(
    here: Path, golden: Mapping[tuple[Any, ...], Any], call: str, action: str
) -> None:
    for number in (1, 4):
        failed = bench(here, fault={"number": number, "action": action, "calls": [call]})
        assert failed.code in (1, 2)  # 2: before it began
        assert (failed.out, "Traceback" in failed.err) == ("", False)
        assert "arbitrage: run" in failed.err
        assert bench(here).code == 0
        assert results(rows_of(here / "run")) == golden
        forget(here)


def test_replacement_that_fails_leaves_what_was_there(here: Path) -> None:
    bench(here)
    before = (here / "run" / "results.jsonl").read_bytes()
    failed = run("grade", "run", cwd=here, fault={"number": 1, "action": "full", "calls": ["replace"]})
    assert (failed.code, failed.out) == (1, "")
    assert "No space left on device" in failed.err
    assert (here / "run" / "results.jsonl").read_bytes() == before
    assert set_aside(here / "run") == []


@pytest.mark.parametrize(("flags", "again"), [((), "the same command"), (("--fresh",), "the same command without --fresh")])
def test_full_disk_tells_what_goes_on(here: Path, flags: tuple[str, ...], again: str) -> None:
    failed = bench(here, *flags, fault={"number": 4, "action": "full", "calls": ["write"]})
    assert failed.code == 1
    assert f"when there is room, {again} goes on from there" in failed.err


def test_file_that_may_not_grow(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    failed = bench(here, limits={"RLIMIT_FSIZE": 4000})
    assert (failed.code, failed.out) == (1, "")
    assert "File too large" in failed.err
    assert 0 < len(rows_of(here / "run")) < NUM_ROWS
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


def test_unusable_folder_is_refused_before_any_model_is_loaded(here: Path) -> None:
    (here / "file").touch()
    models = ("--draft", "nowhere.gguf", "--target", "nowhere.gguf")
    arguments = ("bench", *models, "--dataset", "arithmetic.jsonl", "-o")
    for folder in ("file", "file/run", "/proc/run"):
        result = run(*arguments, folder, cwd=here)
        assert (result.code, result.out) == (2, "")
        assert "cannot be used for a run" in result.err
    read_only = run(*arguments, "run", cwd=here, fault={"number": 1, "action": "read-only", "calls": ["open"]})
    assert read_only.code == 2
    assert "Read-only file system" in read_only.err


def test_no_home_is_needed(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    assert bench(here, env={"HOME": "/nowhere"}).code == 0
    assert results(rows_of(here / "run")) == golden


# --- F12, F13: signals


def many(folder: Path) -> tuple[str, ...]:
    """A run that takes a while."""
    problems = write_problems(folder / "many.jsonl", [f"{number} * 12 - 95" for number in range(101, 500)])
    return ("bench", "--pair", "scripted", "--dataset", str(problems), "-o", str(folder / "run"), "--policy", "target")


def wait_for_rows(folder: Path, process: "subprocess.Popen[bytes]", number: int) -> None:
    """Wait until the run has so many rows, by the lines that it tells on stderr."""
    assert process.stderr is not None
    for _ in range(number + 1):
        assert process.stderr.readline()


@pytest.fixture
def hangup_ends() -> Iterator[None]:
    """SIGHUP ends a process: not where the tests run under nohup, whose children ignore it too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, -signal.SIGHUP)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
@pytest.mark.usefixtures("hangup_ends")
def test_signal_leaves_whole_rows(here: Path, number: int, code: int) -> None:
    arguments = many(here)
    with start(*arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_rows(here, process, 3)
        process.send_signal(number)
        _, told = process.communicate(timeout=10)
    assert process.returncode == code
    rows = results(rows_of(here / "run"))
    assert 3 <= len(rows) < 399
    if code > 0:
        lines = told.decode().splitlines()
        assert lines[-2].startswith(f"{len(rows)} of 399 attempts are safe in ")
        assert lines[-2].endswith(f"to resume: arbitrage {' '.join(arguments)}")
        assert lines[-1] == "arbitrage: interrupted"


def test_how_to_go_on_never_begins_anew(here: Path) -> None:
    arguments = many(here)
    with start(*arguments, "--fresh", stdin=subprocess.DEVNULL) as process:
        wait_for_rows(here, process, 3)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=10)
    assert told.decode().splitlines()[-2].endswith(f"to resume: arbitrage {' '.join(arguments)}")


def test_second_signal_ends_it_at_once(here: Path) -> None:
    arguments = many(here)
    with start(*arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_rows(here, process, 3)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode in (130, -signal.SIGINT)
    assert len(results(rows_of_whole_lines(here / "run"))) >= 3
    assert run(*arguments, "--limit", "5", "-q").code == 0


def test_interrupt_while_models_load(here: Path) -> None:
    result = bench(here, interrupt_in="arbitrage_cli.cli.session.open_model")
    assert (result.code, result.out) == (130, "")
    assert result.err == "arbitrage: interrupted\n"
    assert not (here / "run").exists()


def test_interrupt_while_an_answer_is_graded(here: Path, golden: Mapping[tuple[Any, ...], Any]) -> None:
    result = bench(here, interrupt_in="arbitrage_cli.grading.grader.Grader.grade")
    assert (result.code, result.out) == (130, "")
    assert bench(here).code == 0
    assert results(rows_of(here / "run")) == golden


# --- F16: a step that hangs


def test_hanging_step_ends_in_an_error_row(here: Path) -> None:
    hanging = bench(here, "--timeout", "0.4", hang_on="12 * 34")
    assert hanging.code == 1
    rows = {(row["id"], row["policy"]): row for row in rows_of(here / "run")}
    assert len(rows) == NUM_ROWS
    (hung,) = [row for row in rows.values() if row["status"] == "error"]
    assert (hung["id"], hung["error"]) == ("p0", "not finished after 0.4 s")
    assert 0.4 < hung["wall_seconds"] < 5


def test_a_slow_step_ends_only_its_attempt(here: Path) -> None:
    result = bench(here, "--timeout", "0.2", slow_on=("12 * 34", 1.0))
    assert result.code == 1
    assert "hung" not in result.err
    late = [(row["id"], row["error"]) for row in rows_of(here / "run") if row["status"] == "error"]
    assert late
    assert {identifier for identifier, _ in late} == {"p0"}
    assert all("not finished after 0.2 s" in error for _, error in late)
    assert len(rows_of(here / "run")) == NUM_ROWS


# --- F17: streams


def test_reader_that_goes_away(here: Path) -> None:
    arguments = " ".join((*PROGRAM, *BENCH))
    ended = subprocess.run(
        ["/bin/bash", "-c", f"{arguments} | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        cwd=here,
        env=environment(),
        check=False,
    )
    assert ended.returncode in (0, 141)
    assert ended.stdout == b"arithmetic.jsonl: 2 problems\n"
    assert ended.stderr == b""
    assert len(results(rows_of(here / "run"))) == NUM_ROWS


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", ">&-"])
def test_closed_streams(here: Path, redirection: str) -> None:
    arguments = [str(here / part) if part in ("arithmetic.jsonl", "run") else part for part in BENCH]
    result = run_shell(redirection, *arguments)
    assert "Traceback" not in result.err
    if redirection == ">&-":
        assert result.code == 2
        assert not (here / "run").exists()
    else:
        assert result.code == 0
        assert len(results(rows_of(here / "run"))) == NUM_ROWS


# --- F18, F26, F27


def test_two_at_once(here: Path) -> None:
    arguments = many(here)
    with start(*arguments, stdin=subprocess.DEVNULL) as process:
        wait_for_rows(here, process, 2)
        second = run(*arguments)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert (second.code, second.out) == (2, "")
    assert "another process is writing to this run" in second.err
    assert process.returncode == 143
    results(rows_of(here / "run"))


def test_many_problems_need_few_files(here: Path) -> None:
    write_problems(here / "arithmetic.jsonl", [f"{number} + 1" for number in range(500)])
    result = bench(here, "--policy", "draft", limits={"RLIMIT_NOFILE": 64})
    assert result.code == 0
    assert len(results(rows_of(here / "run"))) == 500


def test_noise_does_not_reach_the_results(here: Path) -> None:
    result = bench(here, "--json", noise="ggml: hello\n")
    assert result.code == 0
    (line,) = result.out.splitlines()
    assert json.loads(line)["n"] == 2
    assert "ggml: hello" in result.err

"""Input and streams that cannot be used: one clear message on stderr, the right exit code, never a traceback."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from cli import (
    BROKEN,
    CLOSED,
    ESCAPE,
    MODELS,
    PROGRAM,
    QUESTION,
    TIMEOUT,
    assert_refused,
    environment,
    many_problems,
    read_line,
    run,
    solve,
    start,
)
from faults import write_problems
from made_up_runs import make_run, write_run_folder

RUN_FAILED, USAGE, MODEL, CLOSED_PIPE = 1, 2, 3, 141
SOLVE = ("solve", *MODELS, QUESTION)
DRAFT_ALONE = ("solve", QUESTION, "--policy", "draft", "--draft")
BENCH = ("bench", "--pair", "scripted", "--dataset", "two.jsonl", "-o", "run", "-q")


@pytest.mark.parametrize(
    ("arguments", "message", "word"),
    [
        (["solve"], "no problem given", ""),
        ([*SOLVE[:-1], "two.jsonl"], "", "--input"),
        (["solve", "1 + 1", *MODELS[2:]], "policy entropy needs a draft model", "--draft MODEL"),
        ([*DRAFT_ALONE, "x.gguf"], "x.gguf: no such file", ""),
        (["solv"], "No such command 'solv'. Did you mean 'solve'?", ""),
        (["models", "pul"], "", "'pull'"),
        ([*SOLVE, "--polcy", "target"], "No such option: --polcy", ""),
        ([*SOLVE, "--temperature", "nan"], "--temperature: ", ""),
        ([*SOLVE, "--max-tokens", "0"], "--max-tokens: must be at least 1", ""),
        ([*SOLVE, "--policy", "entrop"], "--policy: unknown policy 'entrop'", "did you mean 'entropy'"),
        ([*SOLVE, "--tau", ""], "--tau: the value is empty", ""),
        ([*SOLVE, "--policy", "entropy@0.5", "--tau", "0.4"], "--tau: the policy has tau 0.5", ""),
        ([*SOLVE, "--policy", "entropy@"], "--policy: invalid tau", "entropy@0.5"),
        (["solve", "-i", "two.jsonl", "-o", "out.csv"], "--output: out.csv", "JSONL"),
        ([*BENCH, "--limit", "4-9"], "--limit: '4-9' ", ""),
        ([*BENCH, "--policy", "target", "--policy=draft"], "--policy: ", "--policy FIRST,SECOND"),
        (["advise", "--costs", "--draft", "no.gguf", "--target", "no.gguf"], "no.gguf", ""),
        (["chat", "--policy", "agree"], "--policy: ", "conversation"),
        (["advise", "--concurrency", "4"], "", "--concurrency"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named(quick_path: Path, arguments: list[str], message: str, word: str) -> None:
    """The wording of typical errors, whole: the only test of prose."""
    write_problems(quick_path / "two.jsonl", ["1 + 1", "2 + 2"])
    assert_refused(run(*arguments, cwd=quick_path), MODEL if ".gguf" in message else USAGE, message, word)
    assert not (quick_path / "run").exists()


@pytest.mark.parametrize("command", [("report",), ("models", "info"), ("solve", QUESTION, "-o")], ids=" ".join)
def test_a_name_that_no_file_can_have_is_no_bug(quick_path: Path, command: tuple[str, ...]) -> None:
    result = run(*command, "x" * 300 + ".jsonl", cwd=quick_path)
    assert (result.code in (RUN_FAILED, USAGE, MODEL), "bug" in result.err) == (True, False), result.err


def test_problem_that_is_too_long_does_not_stop_the_others() -> None:
    result = solve("-q", "--ctx", "128", stdin=b"1 + 1 " * 100 + b"\n1 + 1\n")
    assert (result.code, [record["answer"] for record in result.records]) == (RUN_FAILED, [None, "2"])
    (message,) = result.err.splitlines()
    assert message.startswith("problem 1: ")
    assert "--ctx" in message


@pytest.mark.parametrize("name", ["problems.jsonl", "problems.NDJSON"])
def test_lines_of_a_jsonl_file_that_are_no_json_are_errors_of_these_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('5 + 6\n{"question": "1 + 2"}\n')
    ended = run("solve", *MODELS, "--input", name, "--format", "json", "-q", cwd=tmp_path)
    assert ended.code == 1
    assert [(record["id"], record["status"]) for record in ended.records] == [("1", "error"), ("2", "done")]
    assert ended.records[0]["error"].startswith("line 1: not valid JSON")


def test_input_that_is_no_text_ends_early(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00\n" * 5000)
    result = solve("--input", "model.bin", cwd=tmp_path)
    assert (result.code, result.out) == (USAGE, "")
    assert len(result.err.splitlines()) < 50


@pytest.mark.slow
def test_line_of_50_megabytes_is_skipped_in_bounded_memory() -> None:
    with start("solve", *MODELS, "-q") as process:
        for _ in range(50):
            process.stdin.write(b"7" * (1 << 20))
        process.stdin.write(b"\n1 + 1\n")
        process.stdin.flush()
        assert b'"error": "line 1: ' in read_line(process)
        assert b'"answer": "2"' in read_line(process)
        status = Path(f"/proc/{process.pid}/status")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None  # only on Linux
        process.stdin.close()
        assert process.wait(TIMEOUT) == RUN_FAILED
        assert process.stderr.read().startswith(b"line 1: ")
    if peak is None:
        pytest.skip("this system does not report how much memory a process took")
    assert int(peak.group(1)) < 100_000  # without the line it is about 63,000


@pytest.mark.parametrize("flags", [[], ["--debug"]], ids=["usual", "debug"])
def test_file_name_cannot_drive_the_terminal(flags: list[str]) -> None:
    result = run("solve", QUESTION, *flags, "--policy", "draft", "--draft", "x\x1b]0;pwned\x07.gguf")
    assert result.code == MODEL
    assert not {ESCAPE, b"\x07"} & {bytes([byte]) for byte in result.stderr}


@pytest.mark.parametrize(
    ("before", "redirection", "code", "out"),
    [
        ("", ">&-", USAGE, ""), ("", "2>&-", 0, "349\n"), ("", "<&-", 0, "349\n"), ("ulimit -n 8;", "", MODEL, ""),
    ],
)  # fmt: skip
def test_streams_of_a_shell(before: str, redirection: str, code: int, out: str) -> None:
    command = f"{before} {shlex.join([*PROGRAM, 'solve', *MODELS, '-q', QUESTION])} {redirection}"
    ended = subprocess.run(["/bin/sh", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, "raise the limit" in ended.stderr) == (code, out, bool(before))
    assert not re.search("Traceback|defect|Exception ignored", ended.stderr)


def test_closed_stdin_and_devices_are_no_source_of_problems() -> None:
    for stdin in (CLOSED, "/dev/null"):
        assert_refused(solve(stdin=stdin), USAGE, "no problem given")
    assert solve(QUESTION, "--policy", "best", stderr=CLOSED).code == USAGE


def test_character_that_stdout_cannot_encode_does_not_fail_the_run() -> None:
    result = solve("\u0663 + \u0664", "-q", env={"PYTHONIOENCODING": "ascii", "ARBITRAGE_MAX_STEPS": "1"})
    assert result.code == 0, result.err
    assert "= 7." in result.out


def test_debug_shows_the_traceback_before_the_message() -> None:
    result = solve(QUESTION, "--policy", "best", "--debug")
    assert result.code == USAGE
    assert result.err.startswith("Traceback")
    assert "\narbitrage: --policy: " in result.err


COMMANDS = (
    (*SOLVE, "-q"), ("doctor",), ("report", "."), ("models", "list", "--json"), ("--help",), ("compare", "made", "made"),
)  # fmt: skip
each_command = pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a benchmark, `made`."""
    folder = tmp_path_factory.mktemp("output")
    write_run_folder(folder / "made", make_run(6))
    return folder


@pytest.mark.parametrize(
    ("stdout", "code", "place", "word"),
    [
        (CLOSED, USAGE, "standard output is closed", "> FILE"),
        ("/dev/full", RUN_FAILED, "", "No space left on device"),
    ],
    ids=["closed", "full"],
)
@each_command
def test_output_that_cannot_be_written_is_one_error(
    here: Path, arguments: tuple[str, ...], stdout: str, code: int, place: str, word: str
) -> None:
    result = run(*arguments, cwd=here, stdout=stdout)
    assert not [word for word in ("defect", "Exception ignored") if word in result.err]
    assert_refused(result, code, place, word)


@each_command
def test_missing_reader_ends_a_command_silently(here: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments, cwd=here, stdout=BROKEN)
    assert (result.code, result.err) == (CLOSED_PIPE, "")


def test_reader_that_takes_one_line_and_leaves_ends_the_run_silently(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 500)
    with start("solve", *MODELS, "-q", "--threads", "1", "--input", str(path), stdin=subprocess.DEVNULL) as process:
        read_line(process)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT) == CLOSED_PIPE


def test_results_that_go_to_a_file_need_no_standard_output(here: Path) -> None:
    assert run("report", "made", "-o", "page.html", cwd=here, stdout=CLOSED).code == 0
    assert solve(QUESTION, "-o", "solved.jsonl", cwd=here, stdout=CLOSED).code == 0
    assert [path.stat().st_size > 0 for path in (here / "page.html", here / "solved.jsonl")] == [True, True]

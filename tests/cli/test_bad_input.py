"""Input that cannot be used: one clear message on stderr, the right exit code, never a traceback."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cli import (
    CLOSED,
    ESCAPE,
    MODELS,
    QUESTION,
    Result,
    assert_refused,
    many_problems,
    read_line,
    run,
    run_shell,
    solve,
    start,
)
from faults import write_problems

RUN_FAILED, USAGE, MODEL, CLOSED_PIPE = 1, 2, 3, 141
SOLVE = ("solve", *MODELS, QUESTION)
BENCH = ("bench", "--dataset", "one.jsonl", "-q", "--max-tokens", "1", "--threads", "1")
UNREADABLE = ("no/such/file.txt", ".", "~nobody-here/x.txt", "/proc/self/mem")


def draft_alone(model: str | bytes) -> Result:
    return run("solve", QUESTION, "--policy", "draft", "--draft", model)


def answers(result: Result) -> list[str | None]:
    return [record["answer"] for record in result.records]


# --- models


def test_place_without_a_model_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, word in [("fifo", "regular file"), ("", "folder"), ("missing.gguf", "no such file")]:
        assert_refused(draft_alone(str(tmp_path / name)), MODEL, str(tmp_path / name).rstrip("/"), word)
    assert_refused(draft_alone("~nobody-here/x.gguf"), MODEL, "~nobody-here/x.gguf: ")


# --- options


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([*SOLVE, "--ctx", "100000000000"], USAGE, ["--ctx: "]),
        ([*SOLVE, "--threads", "100000"], USAGE, ["--threads: "]),
        ([*SOLVE, "--temperature", "nan"], USAGE, ["--temperature: "]),
        ([*SOLVE, "--tau", "nan"], USAGE, ["--tau: "]),
        ([*SOLVE, "--policy", "entrop"], USAGE, ["--policy: ", "did you mean 'entropy'"]),
        ([*SOLVE, "--polcy", "target"], USAGE, ["--policy"]),
        ([*SOLVE, "--pair", "buildin"], USAGE, ["--pair: ", "did you mean 'builtin'"]),
        (["solve", *MODELS, "-", "--input", "one.jsonl"], USAGE, ["--input"]),
        (["solve", *MODELS, ""], USAGE, ["the problem is empty"]),
        (["solve", *MODELS, " \t\n "], USAGE, ["the problem is empty"]),
        (["solve", *MODELS, "one.jsonl"], USAGE, ["--input"]),
        *((["solve", *MODELS, "-q", "--input", name], USAGE, [f"{name}: "]) for name in UNREADABLE),
        (["solve", QUESTION, *MODELS[2:]], USAGE, ["policy entropy", "--draft", "--pair scripted"]),
        (
            ["solve", QUESTION, "--policy", "draft", "--draft", "scripted:oracle"],
            USAGE,
            ["scripted:oracle", "scripted:target"],
        ),
        (["models", "pul"], USAGE, ["'pull'"]),
        (["guide", "trainign"], USAGE, ["did you mean 'training'"]),
        (["tune", "--draft", "no.gguf", "--target", "no.gguf"], MODEL, ["no.gguf"]),
        ([*BENCH, "--target", "no.gguf", "--policy", "target"], MODEL, ["no.gguf"]),
        ([*BENCH, "--policy", "rsd", "--prm", "no.gguf"], MODEL, ["no.gguf"]),
        (["collect", *BENCH[1:], "--draft", "no.gguf", "--target", "no.gguf", "--reward", "rollout"], MODEL, ["no.gguf"]),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named(quick_path: Path, arguments: list[str], code: int, words: list[str]) -> None:
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    assert_refused(run(*arguments, cwd=quick_path), code, "", *words)


# --- where problems come from


@pytest.mark.parametrize("content", [b"", b"\n \n\t\r\n", b"\xef\xbb\xbf"], ids=["empty", "blank lines", "only a BOM"])
def test_input_without_a_problem_is_refused_before_models_are_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "input").write_bytes(content)
    missing = str(tmp_path / "missing.gguf")
    result = run("solve", "--draft", missing, "--target", missing, "-q", stdin=tmp_path / "input")
    assert_refused(result, USAGE, "the input has no problem")


# --- bad lines among good ones


def test_line_of_50_megabytes_is_skipped_in_bounded_memory() -> None:
    with start("solve", *MODELS, "-q") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        for _ in range(50):
            process.stdin.write(b"7" * (1 << 20))
        process.stdin.write(b"\n1 + 1\n")
        process.stdin.flush()
        assert b'"error": "line 1: ' in read_line(process)
        assert b'"answer": "2"' in read_line(process)
        status = Path(f"/proc/{process.pid}/status")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None  # only on Linux
        process.stdin.close()
        assert process.wait(10) == RUN_FAILED
        assert process.stderr.read().startswith(b"line 1: ")
    if peak is None:
        pytest.skip("this system does not report how much memory a process took")
    assert int(peak.group(1)) < 100_000  # without the line it is about 50,000


# --- problems that cannot be solved


@pytest.mark.parametrize(
    ("problem", "flags"),
    [(b"Who wrote Faust?", ()), (b"[" * 100_000, ()), (b"1 + 1 " * 100, ("--ctx", "128"))],
    ids=["unknown", "brackets", "too long"],
)
def test_problem_that_fails_has_a_record_and_does_not_stop_the_others(problem: bytes, flags: tuple[str, ...]) -> None:
    result = solve("-q", *flags, stdin=problem + b"\n1 + 1\n")
    assert result.code == RUN_FAILED
    assert [(record["answer"], bool(record["error"])) for record in result.records] == [(None, True), ("2", False)]
    (message,) = result.err.splitlines()
    assert message.startswith("problem 1: ")
    assert (not flags) or ("--ctx" in message)


def test_steps_are_kept_when_the_context_fills_up() -> None:
    result = solve("1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9", "-q", "--json", "--ctx", "160")
    (record,) = result.records
    assert (result.code, record["stop"]) == (RUN_FAILED, "context")
    assert record["text"].startswith("1 + 2 = 3.\n\n3 + 3 = 6.\n\n")
    assert record["steps"]
    assert record["error"]
    assert "--ctx" in result.err


# --- standard streams that are closed or broken


def test_reader_that_takes_one_line_and_leaves_ends_the_run_silently(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 500)
    with start("solve", *MODELS, "-q", "--input", str(path), stdin=subprocess.DEVNULL) as process:
        read_line(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == CLOSED_PIPE


@pytest.mark.parametrize(
    ("redirection", "code", "out"),
    [(">&-", USAGE, ""), (">/dev/full", RUN_FAILED, ""), ("2>&-", 0, "349\n"), ("<&-", 0, "349\n")],
)
def test_streams_of_a_shell(redirection: str, code: int, out: str) -> None:
    result = run_shell(redirection, "solve", *MODELS, "-q", QUESTION)
    assert (result.code, result.out) == (code, out)
    assert not re.search("Traceback|defect|Exception ignored", result.err)


def test_closed_stdin_and_devices_are_no_source_of_problems() -> None:
    for stdin in (CLOSED, "/dev/null"):
        assert_refused(solve(stdin=stdin), USAGE, "no problem given")
    assert solve(QUESTION, "--policy", "best", stderr=CLOSED).code == USAGE


def test_character_that_stdout_cannot_encode_does_not_fail_the_run() -> None:
    result = solve("\u0663 + \u0664", "-q", env={"PYTHONIOENCODING": "ascii", "ARBITRAGE_MAX_STEPS": "1"})
    assert result.code == 0, result.err
    assert "= 7." in result.out


# --- --debug


def test_debug_shows_the_traceback_before_the_message() -> None:
    result = solve(QUESTION, "--policy", "best", "--debug")
    assert result.code == USAGE
    assert result.err.startswith("Traceback")
    assert "\narbitrage: --policy: " in result.err


@pytest.mark.parametrize("flags", [[], ["--debug"]], ids=["usual", "debug"])
def test_file_name_cannot_drive_the_terminal(flags: list[str]) -> None:
    result = run("solve", QUESTION, *flags, "--policy", "draft", "--draft", "x\x1b]0;pwned\x07.gguf")
    assert result.code == MODEL
    assert ESCAPE not in result.stderr
    assert b"\x07" not in result.stderr


def test_input_that_is_no_text_ends_early(tmp_path: Path) -> None:
    """One bad line is skipped; a binary file is not reported line by line."""
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00\n" * 5000)
    result = solve("--input", "model.bin", cwd=tmp_path)
    assert (result.code, result.out) == (USAGE, "")
    assert len(result.err.splitlines()) < 50

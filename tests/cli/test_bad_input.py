"""Input that cannot be used: one clear line on stderr, what to do about it, the right exit code, never a traceback."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from cli import ESCAPE, MODELS, QUESTION, Result, many_problems, read_line, run, run_shell, solve, start

RUN_FAILED, USAGE, MODEL = 1, 2, 3
CLOSED_PIPE = 141
EMPTY_GGUF = b"GGUF\x03" + bytes(19)  # version 3, no tensors, no metadata


def assert_refused(result: Result, code: int, *words: str) -> None:
    """The run ended with `code`, nothing on stdout, and one message that has all the words, with at most one hint."""
    assert "Traceback" not in result.err
    assert (result.code, result.stdout) == (code, b""), result.err
    first, *hint = result.err.splitlines()
    assert first.startswith("arbitrage: ")
    assert len(hint) <= 1
    for word in words:
        assert word in result.err


def assert_line_skipped(result: Result, number: int, *words: str) -> None:
    """The bad line was named by its number on one line of stderr, and the run ended with exit code 1."""
    assert "Traceback" not in result.err
    assert result.code == RUN_FAILED, result.err
    (message,) = [line for line in result.err.splitlines() if line.startswith(f"line {number}: ")]
    for word in words:
        assert word in message


def answers(result: Result) -> list[str]:
    return [record["answer"] for record in result.records]


# --- models


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "only 0 bytes"),
        (b"hello, this is not a model at all", "not a GGUF model"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"GGUF" + b"\xff" * 60, "damaged GGUF file"),
    ],
    ids=["empty", "text", "web page", "git-lfs pointer", "damaged"],
)
def test_file_that_is_no_model(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert_refused(run("solve", QUESTION, "--policy", "draft", "--draft", str(path)), MODEL, str(path), words)


def test_missing_model_file() -> None:
    assert_refused(run("solve", QUESTION, *MODELS[:2], "--target", "no/model.gguf"), MODEL, "no/model.gguf: no such file")


def test_folder_as_model(tmp_path: Path) -> None:
    result = run("solve", QUESTION, "--policy", "target", "--target", str(tmp_path))
    assert_refused(result, MODEL, "a folder, not a GGUF file", "name the .gguf file inside it")


def test_fifo_as_model_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    os.mkfifo(path)
    assert_refused(run("solve", QUESTION, "--policy", "draft", "--draft", str(path)), MODEL, "not a regular file")


def test_model_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.gguf")
    path.write_bytes(EMPTY_GGUF)
    result = run("solve", QUESTION, "--policy", "draft", "--draft", os.fsencode(path))
    assert_refused(result, MODEL, "cannot load it")


def test_unknown_scripted_model() -> None:
    result = run("solve", QUESTION, "--policy", "draft", "--draft", "scripted:oracle")
    assert_refused(result, USAGE, "scripted:oracle", "scripted:draft and scripted:target")


@pytest.mark.parametrize(("given", "missing"), [(MODELS[2:], "draft"), (MODELS[:2], "target")])
def test_model_that_the_policy_needs_and_nobody_gave(given: list[str], missing: str) -> None:
    assert_refused(run("solve", QUESTION, *given), USAGE, f"needs a {missing} model", f"--{missing}", "--pair scripted")


def test_home_folder_of_nobody_as_model() -> None:
    assert_refused(run("solve", QUESTION, "--policy", "draft", "--draft", "~nobody-here/x.gguf"), MODEL, "~nobody-here")


# --- options


@pytest.mark.parametrize(
    ("policy", "flag"),
    [
        ("target", "--tau=0.3"),
        ("draft", "--budget=0.5"),
        ("target", "--head=builtin:builtin"),
        ("entropy", "--head=builtin:builtin"),
    ],
)
def test_flag_that_the_policy_does_not_go_by(policy: str, flag: str) -> None:
    name, value = flag.removeprefix("--").split("=")
    arguments = ("--pair", "builtin", "--policy", policy, "--max-tokens", "1", "-q")
    assert_refused(run("solve", QUESTION, *arguments, flag), USAGE, f"--{name}: policy {policy}")
    assert run("solve", QUESTION, *arguments, env={f"ARBITRAGE_{name.upper()}": value}).code == 0


def test_unknown_policy() -> None:
    assert_refused(
        solve(QUESTION, "--policy", "best"),
        USAGE,
        "unknown policy 'best'",
        "arbitrage, entropy, logprob, logprob-min, random",
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-steps", "0"),
        ("--max-tokens", "-1"),
        ("--ctx", "1"),
        ("--ctx", "100000000000"),
        ("--threads", "100000"),
        ("--temperature", "nan"),
        ("--top-p", "nan"),
        ("--tau", "x"),
        ("--tau", "nan"),
    ],
)
def test_option_out_of_range(option: str, value: str) -> None:
    result = solve(QUESTION, option, value)
    assert (result.code, result.stdout) == (USAGE, b"")
    assert option in result.err
    assert "Traceback" not in result.err


# --- where problems come from


@pytest.mark.parametrize("problem", ["", " \t\n "])
def test_empty_problem(problem: str) -> None:
    assert_refused(solve(problem), USAGE, "the problem is empty", "for example")


def test_problem_and_input_file_together(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 1)
    assert_refused(solve(QUESTION, "--input", str(path)), USAGE, "a problem and --input were both given")


def test_dash_and_input_file_together(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 1)
    assert_refused(solve("-", "--input", str(path), stdin=b"1 + 1\n"), USAGE, "--input")


@pytest.mark.parametrize("name", ["no/such/file.txt", "."], ids=["missing", "folder"])
def test_input_file_that_cannot_be_opened(name: str) -> None:
    assert_refused(solve("--input", name), USAGE, f"{name}: cannot be read", "--input")


def test_input_file_in_the_home_folder_of_nobody() -> None:
    assert_refused(solve("--input", "~nobody-here/x.txt"), USAGE, "~nobody-here")


def test_input_file_that_fails_while_it_is_read() -> None:
    assert_refused(solve("--input", "/proc/self/mem", "-q"), USAGE, "/proc/self/mem")


@pytest.mark.parametrize("content", [b"", b"\n \n\t\r\n", b"\xef\xbb\xbf"], ids=["empty", "blank lines", "only a BOM"])
def test_input_without_a_problem(content: bytes) -> None:
    assert_refused(solve("-q", stdin=content), USAGE, "there is no problem in the input")


def test_input_without_a_problem_loads_no_model(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.gguf")
    result = run("solve", "--draft", missing, "--target", missing, stdin=b"")
    assert_refused(result, USAGE, "there is no problem in the input")


def test_text_that_begins_with_a_set(tmp_path: Path) -> None:
    path = tmp_path / "problems.txt"
    path.write_text("{1 + 1}\n2 + 2\n")
    assert answers(solve("-q", "--input", str(path))) == ["2", "4"]


# --- bad lines among good ones


BAD_JSON_LINES = [
    (b'{"problem": "2 + 2"', "not valid JSON"),
    (b"2 + 2", "not valid JSON"),
    (b'["2 + 2"]', "not a JSON object"),
    (b'{"prompt": "2 + 2"}', '"problem" or "question"'),
    (b'{"problem": 4}', "no text"),
    (b'{"problem": NaN}', "no text"),
    (b'{"problem": " "}', "the problem is empty"),
    (b'{"problem": ' + b"[" * 100_000, "not valid JSON (nested too deep"),
    (b'{"problem": "2 + 2", "id": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"problem": "2 + \\u0000 2"}', "NUL"),
    (b'{"problem": "\xff"}', "not UTF-8"),
]
BAD_PLAIN_LINES = [(b"2 \xff 2", "not UTF-8 text (byte 3"), (b"2 + \0 2", "NUL")]


@pytest.mark.parametrize(
    ("good", "bad"), [(b'{"problem": "1 + 1"}', BAD_JSON_LINES), (b"1 + 1", BAD_PLAIN_LINES)], ids=["JSON", "plain"]
)
def test_bad_lines_are_named_and_the_others_go_on(good: bytes, bad: list[tuple[bytes, str]]) -> None:
    result = solve("-q", stdin=b"\n".join([good, *(line for line, _ in bad), good]))
    assert answers(result) == ["2", "2"]
    for number, (_, words) in enumerate(bad, start=2):
        assert_line_skipped(result, number, words)
    assert len(result.err.splitlines()) == len(bad)


@pytest.mark.parametrize(
    "content",
    [b'[{"problem": "1 + 1"}]', b'[\n  {"problem": "1 + 1"}\n]\n', b'["1 + 1", "2 + 2"]'],
    ids=["line", "pretty", "texts"],
)
def test_json_list_instead_of_json_lines(content: bytes) -> None:
    result = solve("-q", stdin=content)
    assert_line_skipped(result, 1, "JSON list", "one JSON object a line")
    assert result.stdout == b""


@pytest.mark.parametrize("line", [b"1 + 1", b'{"problem": "1 + 1"}'], ids=["plain", "JSON"])
def test_byte_order_mark_and_windows_line_ends(line: bytes) -> None:
    result = solve("-q", stdin=b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    assert (result.code, result.err) == (0, "")
    assert [record["problem"] for record in result.records] == ["1 + 1", "1 + 1"]


def test_duplicate_ids_are_all_solved() -> None:
    result = solve("-q", stdin=b'{"problem": "1 + 1", "id": "x"}\n{"problem": "2 + 2", "id": "x"}\n')
    assert [(record["id"], record["answer"]) for record in result.records] == [("x", "2"), ("x", "4")]
    assert result.code == 0


@pytest.mark.parametrize("policy", ["entropy", "random"])
def test_lone_surrogates_are_survived(policy: str) -> None:
    result = solve("-q", "--policy", policy, stdin=b'{"problem": "1 + 1 \\ud800", "id": "\\ud800"}\n{"problem": "2 + 2"}\n')
    assert result.code == 0, result.err
    assert answers(result) == ["2", "4"]


def test_brackets_without_end_are_only_a_strange_problem() -> None:
    result = solve("-q", stdin=b"[" * 100_000 + b"\n1 + 1\n")
    assert result.code == RUN_FAILED
    assert answers(result) == [None, "2"]
    assert "problem 1: " in result.err


def test_line_of_50_megabytes_is_skipped_in_bounded_memory() -> None:
    with start("solve", *MODELS, "-q") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        for _ in range(50):
            process.stdin.write(b"7" * (1 << 20))
        process.stdin.write(b"\n1 + 1\n")
        process.stdin.flush()
        assert b'"answer": "2"' in read_line(process)
        status = Path(f"/proc/{process.pid}/status")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None  # Linux tells
        process.stdin.close()
        assert process.wait(10) == RUN_FAILED
        assert b"line 1: the line is longer than 1,048,576 bytes" in process.stderr.read()
    if peak is None:
        pytest.skip("this system does not tell how much memory a process took")
    assert int(peak.group(1)) < 100_000  # without the line it is about 50,000


# --- problems that cannot be solved


def test_problem_that_the_models_do_not_know() -> None:
    result = solve("-q", stdin=b"Who wrote Faust?\n1 + 1\n")
    assert result.code == RUN_FAILED
    assert [(record["answer"], bool(record["error"])) for record in result.records] == [(None, True), ("2", False)]
    (message,) = result.err.splitlines()
    assert message.startswith("problem 1: ")
    assert "--draft DRAFT.gguf" in message


def test_failure_is_told_once() -> None:
    result = solve("Who wrote Faust?")
    assert (result.code, result.stdout) == (RUN_FAILED, b"")
    assert result.err.count("only know one line of arithmetic, such as") == 1


def test_problem_too_long_for_the_context() -> None:
    result = solve("-q", "--ctx", "128", stdin=b"1 + 1 " * 100 + b"\n1 + 1\n")
    assert result.code == RUN_FAILED
    assert [record["answer"] for record in result.records] == [None, "2"]
    (message,) = result.err.splitlines()
    assert message.startswith("problem 1: ")
    assert "holds 128" in message
    assert "give a larger --ctx" in message


def test_context_too_small_for_any_problem() -> None:
    result = solve(QUESTION, "--ctx", "64", "-q")
    assert (result.code, result.stdout) == (RUN_FAILED, b"")
    assert "holds 64; give a larger --ctx" in result.err


def test_steps_are_kept_when_the_context_fills_up() -> None:
    problem = "1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9"
    result = solve(problem, "-q", "--json", "--ctx", "160")
    (record,) = result.records
    assert (result.code, record["stop"]) == (RUN_FAILED, "context")
    assert record["text"].startswith("1 + 2 = 3.\n\n3 + 3 = 6.\n\n")
    assert record["steps"]
    assert "the context was full after" in record["error"]
    assert "give a larger --ctx" in result.err


# --- standard streams that are closed or broken


def test_reader_that_takes_one_line_and_leaves(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "problems.txt", 500)
    with start("solve", *MODELS, "-q", "--input", str(path), stdin=subprocess.DEVNULL) as process:
        read_line(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(10) == CLOSED_PIPE
    assert told == b""


def test_closed_stdout_is_an_error_not_a_defect() -> None:
    result = run_shell(">&-", "solve", *MODELS, "-q", QUESTION)
    assert result.code not in (0, 70)
    assert "Traceback" not in result.err
    assert "defect" not in result.err
    assert "standard output" in result.err


def test_full_disk_under_stdout_is_an_error_not_a_defect() -> None:
    result = run_shell(">/dev/full", "solve", *MODELS, "-q", QUESTION)
    assert result.code == RUN_FAILED
    assert "No space left on device" in result.err
    assert "defect" not in result.err
    assert "Exception ignored" not in result.err


def test_closed_stderr_loses_no_result() -> None:
    result = run_shell("2>&-", "solve", *MODELS, QUESTION)
    assert (result.code, result.out) == (0, "349\n")


def test_closed_stderr_keeps_the_exit_code() -> None:
    assert run_shell("2>&-", "solve", QUESTION, "--policy", "best").code == USAGE


def test_closed_stdin() -> None:
    assert_refused(run_shell("<&-", "solve", *MODELS), USAGE, "no problem given")
    assert run_shell("<&-", "solve", *MODELS, QUESTION).out == "349\n"


def test_stdout_that_cannot_show_a_character() -> None:
    result = solve("\u0663 + \u0664", "-q", "--max-steps", "1", env={"PYTHONIOENCODING": "ascii"})
    assert result.code == 0, result.err
    assert "= 7." in result.out


# --- --debug


def test_debug_shows_the_traceback() -> None:
    result = solve(QUESTION, "--policy", "best", "--debug")
    assert result.code == USAGE
    assert "Traceback" in result.err
    assert "arbitrage: --policy: unknown policy 'best'" in result.err


@pytest.mark.parametrize("flags", [[], ["--debug"]], ids=["usual", "debug"])
def test_file_name_cannot_drive_the_terminal(flags: list[str]) -> None:
    result = run("solve", QUESTION, *flags, "--policy", "draft", "--draft", "x\x1b]0;pwned\x07.gguf")
    assert result.code == MODEL
    assert ESCAPE not in result.stderr
    assert b"\x07" not in result.stderr

"""`arbitrage solve` with the scripted models: what goes in, what comes out, and where."""

import os
import re
from pathlib import Path

import pytest
from cli import ESCAPE, MODELS, QUESTION, RIGHT, TIMEOUT, Terminal, flat, read_line, run, solve, start

from arbitrage_cli.system.machine import default_threads


def test_answer_goes_to_stdout_and_the_view_to_stderr() -> None:
    result = solve(QUESTION, "--policy", "logprob")  # it stops no step early, so the whole drafted step is shown
    assert (result.code, result.out) == (0, f"{RIGHT}\n")
    for shown in ("37 * 12 = 454.", "37 * 12 = 444.", "444 - 95 = 349.", "  1  target  escalate", "  2  draft   accept"):
        assert result.err.count(shown) == 1
    assert "problems" not in result.err.splitlines()[-1]
    quiet = solve(QUESTION, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, f"{RIGHT}\n", "")
    assert solve(QUESTION, env={"ARBITRAGE_MAX_STEPS": "1"}).out == "37 * 12 = 444.\n"  # no boxed answer: the text


@pytest.mark.parametrize("arguments", [["-"], ["--input", "-"], ["-i", "-"], ["--input", "problems.txt"]])
def test_dash_is_standard_input_and_a_file_wins_over_it(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "problems.txt").write_text("{1 + 1}\n2 + 2\n")
    result = solve("-q", *arguments, cwd=tmp_path, stdin=b"9 + 9\n")
    assert [record["answer"] for record in result.records] == (["2", "4"] if "problems.txt" in arguments else ["18"])


def test_problem_on_the_command_line_leaves_a_pipe_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pipe = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        os.write(pipe, b"9 + 9\n")
        result = solve(QUESTION, stdin=tmp_path / "fifo")
        assert (result.code, result.out) == (0, f"{RIGHT}\n")
        assert os.read(pipe, 100) == b"9 + 9\n"
    finally:
        os.close(pipe)


def test_terminal_on_standard_input_is_not_read() -> None:
    with Terminal("solve", *MODELS, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 2
    assert "no problem given" in terminal.text
    assert ESCAPE not in terminal.raw


def test_each_record_is_written_while_the_pipe_is_open() -> None:
    with start("solve", *MODELS, "-q", "--concurrency", "4") as process:
        for line, answer in ((b"1 + 1\n\n", b'"answer": "2"'), (b"2 + 2\n", b'"answer": "4"')):
            process.stdin.write(line)
            process.stdin.flush()
            assert answer in read_line(process)
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize(("policy", "has_note"), [("target", True), ("entropy", True), ("arbitrage", False)])
def test_a_policy_without_explanations_says_so(policy: str, *, has_note: bool) -> None:
    result = run("solve", "--pair", "builtin", "--policy", policy, "--explain", "What is 12 + 7?")
    assert (result.out, "--explain" in result.err) == ("19\n", has_note)


def test_many_problems_end_with_their_total() -> None:
    result = solve(stdin=b"37 * 12\nwho?\n1 + 1\n")
    assert result.err.splitlines()[-1].startswith("3 problems, 1 failed; accepted 3/4 steps (75%); ")


@pytest.mark.parametrize("arguments", [[*MODELS, "--debug", QUESTION], ["--help"], ["--max-tokens", "0", "1"]])
def test_no_escape_bytes_without_a_terminal(arguments: list[str]) -> None:
    """Nor in a CI service, which would show them."""
    result = run("solve", *arguments, env={"GITHUB_ACTIONS": "true"})
    assert ESCAPE not in result.stdout + result.stderr


def test_a_quiet_command_prints_the_answer_alone(tmp_path: Path) -> None:
    command = ("solve", "What is 5 + 6?", "--policy", "draft", "--threads", "1")
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run(*command, "-q", env=env).stderr == b""
    lines = [line for line in run(*command, env=env).err.splitlines() if not line.startswith("loading")]  # on a busy machine
    assert lines[0] == f"arbitrage built-in draft; draft; 1 thread of {default_threads()}"
    last = [run("solve", question, *command[2:]).err.splitlines()[-1] for question in (command[1], "Who was Bach?")]
    assert [line.startswith("answer") for line in last] == [True, False]  # a note on an answer that is not arithmetic


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("solve", "input map limit output format json"),
        ("bench", "dataset map limit ids run-code dry-run samples"),
        ("advise", "dataset map minutes save"),
        ("serve", "host port"),
    ],
)
def test_help_begins_with_what_people_need_first(command: str, first: str) -> None:
    """The command's own options come first. Rare shared options are only named."""
    shown = run(command, "--help").out
    named, _, described = shown.partition("\nOptions:")
    options = re.findall(r"^  (?:-\w, )?--([a-z-]+)", described, re.MULTILINE)
    assert options[: len(first.split())] == first.split()
    assert {"draft", "target", "pair", "quiet", "debug"} <= set(options)
    assert "--temperature" in flat(named)
    assert "temperature" not in options
    assert "env var" not in shown
    assert "logprob-min" not in shown  # rare: in the guide

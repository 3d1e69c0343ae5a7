"""`arbitrage solve` as a process, with the scripted models: what goes in, what comes out, and where."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import ESCAPE, MODELS, QUESTION, RIGHT, WRONG, Terminal, flat, many_problems, read_line, run, solve, start
from gguf import GGUFWriter

from arbitrage_cli import __version__
from arbitrage_cli.routing.policies import POLICIES

FIELDS = {
    "id": str,
    "problem": str,
    "text": str,
    "answer": str,
    "steps": list,
    "acceptance_rate": float,
    "token_acceptance_rate": float,
    "seconds": float,
    "policy": str,
    "tau": float,
    "draft": str,
    "target": str,
}
STEP_FIELDS = {"model", "text", "tokens", "seconds", "decision", "probability", "discarded"}


def solve_one(*arguments: str, **options: Any) -> dict[str, Any]:
    """The one record of a run that went well."""
    result = solve(QUESTION, "--json", "-q", *arguments, **options)
    assert result.code == 0, result.err
    (record,) = result.records
    return record


# --- one problem


def test_answer_goes_to_stdout_and_the_view_to_stderr() -> None:
    result = solve(QUESTION)
    assert (result.code, result.out) == (0, f"{RIGHT}\n")
    for shown in ("37 * 12 = 454.", "37 * 12 = 444.", "444 - 95 = 349.", "step 1: target escalate", "step 2: draft accept"):
        assert result.err.count(shown) == 1


def test_demo_models_are_named_as_such() -> None:
    assert "scripted demo models, not language models" in solve(QUESTION).err


def test_json_record_has_every_field() -> None:
    record = solve_one()
    assert {name: type(record[name]) for name in FIELDS} == FIELDS
    assert (record["id"], record["problem"], record["answer"]) == ("1", QUESTION, RIGHT)
    assert (record["policy"], record["tau"]) == ("entropy", POLICIES["entropy"].default_tau)
    assert (record["draft"], record["target"]) == ("scripted:draft", "scripted:target")
    for step in record["steps"]:
        assert step.keys() >= STEP_FIELDS
    escalated, accepted, _ = record["steps"]
    assert (escalated["model"], escalated["decision"]) == ("target", "escalate")
    assert (accepted["model"], accepted["decision"], accepted["discarded"]) == ("draft", "accept", None)
    assert escalated["probability"] > record["tau"] >= accepted["probability"]
    assert escalated["discarded"]["model"] == "draft"
    assert escalated["discarded"]["text"] == "37 * 12 = 454.\n\n"


def test_json_figures_follow_from_the_steps() -> None:
    record = solve_one()
    steps = record["steps"]
    accepted = [step for step in steps if step["decision"] == "accept"]
    drafted = [step["discarded"] or step for step in steps]
    written = steps + [step["discarded"] for step in steps if step["discarded"]]
    assert record["text"] == "".join(step["text"] for step in steps)
    assert record["acceptance_rate"] == len(accepted) / len(drafted)
    assert record["token_acceptance_rate"] == sum(s["tokens"] for s in accepted) / sum(s["tokens"] for s in drafted)
    assert record["seconds"] == pytest.approx(sum(step["seconds"] for step in written))


def test_same_command_gives_the_same_record() -> None:

    def without_times(record: dict[str, Any]) -> dict[str, Any]:
        timed = ("seconds", "timing", "target_alone_seconds_estimate")
        kept = {name: value for name, value in record.items() if name not in timed}
        return kept | {"steps": [(step["model"], step["text"], step["probability"]) for step in record["steps"]]}

    assert without_times(solve_one("--policy", "random")) == without_times(solve_one("--policy", "random"))


# --- policies and tau


@pytest.mark.parametrize(
    ("policy", "answer", "writers"),
    [
        ("entropy", RIGHT, {"draft", "target"}),
        ("logprob", RIGHT, {"draft", "target"}),
        ("draft", WRONG, {"draft"}),
        ("target", RIGHT, {"target"}),
    ],
)
def test_each_policy_shares_the_steps_in_its_way(policy: str, answer: str, writers: set[str]) -> None:
    record = solve_one("--policy", policy)
    assert (record["policy"], record["answer"]) == (policy, answer)
    assert {step["model"] for step in record["steps"]} == writers


@pytest.mark.parametrize("policy", ["logprob", "draft", "target"])
def test_early_stop_is_refused_where_nothing_is_stopped(policy: str) -> None:
    result = solve(QUESTION, *MODELS, "--policy", policy, "--early-stop")
    assert result.code == 2
    assert f"policy {policy} does not use it" in result.err
    assert "early_stop" not in solve_one("--policy", policy, env={"ARBITRAGE_EARLY_STOP": "1"})["settings"]


def test_early_stop_changes_no_text_of_policy_entropy() -> None:
    whole, stopped = (solve_one("--policy", "entropy", flag) for flag in ("--no-early-stop", "--early-stop"))
    assert whole["text"] == stopped["text"]
    assert [record["settings"]["early_stop"] for record in (whole, stopped)] == [False, True]
    discarded = [step["discarded"] for step in stopped["steps"] if step["discarded"]]
    assert {(step["tokens"], step["stop"]) for step in discarded} == {(1, "early")}


def test_policy_speculative_writes_the_targets_text() -> None:
    record, alone = solve_one("--policy", "speculative"), solve_one("--policy", "target")
    assert record["text"] == alone["text"]
    assert {step["model"] for step in record["steps"]} == {"target"}
    assert (set(record["models"]), record["tau"], record["acceptance_rate"]) == ({"draft", "target"}, None, None)
    told = solve(QUESTION, *MODELS, "--policy", "speculative").err
    assert "policy speculative: the target writes every step, and the draft says what may come next" in told
    assert "one problem is solved at a time" not in told
    several = run("solve", *MODELS, "--policy", "speculative", "--concurrency", "2", stdin=b"1 + 2\n3 + 4\n")
    assert "policy speculative saves time with one problem at a time" in flat(several.err)


def test_policy_random_follows_its_seed() -> None:
    draws = [[s["probability"] for s in solve_one("--policy", "random", "--seed", seed)["steps"]] for seed in ("1", "2")]
    assert draws[0] != draws[1]


@pytest.mark.parametrize("model", ["draft", "target"])
def test_single_model_needs_no_other(model: str) -> None:
    result = run("solve", QUESTION, "--policy", model, f"--{model}", f"scripted:{model}", "--json", "-q")
    (record,) = result.records
    assert {(step["model"], step["decision"], step["probability"]) for step in record["steps"]} == {(model, None, None)}
    assert record["tau"] is None


@pytest.mark.parametrize(("tau", "written", "verdict"), [("inf", "inf", "accept"), ("-1", -1.0, "escalate")])
def test_extreme_tau_is_one_model_alone(tau: str, written: object, verdict: str) -> None:
    record = solve_one("--tau", tau)
    assert {step["decision"] for step in record["steps"]} == {verdict}
    assert record["tau"] == written
    assert record["acceptance_rate"] == (1.0 if verdict == "accept" else 0.0)


# --- limits


@pytest.mark.parametrize(("option", "stop"), [("--max-steps", "max_steps"), ("--max-tokens", "max_tokens")])
def test_limit_ends_a_solution_and_is_named(option: str, stop: str) -> None:
    result = solve(QUESTION, "--json", option, "1")
    assert result.code == 0
    assert result.records[0]["stop"] == stop
    assert f"stopped at the limit {option}" in result.err


def test_text_is_printed_where_there_is_no_boxed_answer() -> None:
    assert solve(QUESTION, "--max-steps", "1").out == "37 * 12 = 444.\n"


# --- where problems come from


def test_piped_lines_give_one_record_each_in_order() -> None:
    result = solve("-q", stdin=b"1 + 1\n\n  2 + 2  \n3 + 3")
    assert result.code == 0
    assert [(record["id"], record["answer"]) for record in result.records] == [("1", "2"), ("3", "4"), ("4", "6")]


def test_piped_jsonl_gives_one_record_each_in_order() -> None:
    lines = [
        b'{"problem": "1 + 1", "id": "first"}',
        b'{"question": "2 + 2", "unique_id": "test/second"}',
        b'{"problem": "3 + 3", "id": 42}',
        b'{"problem": "4 + 4", "answer": "8"}',
    ]
    records = solve("-q", stdin=b"\n".join(lines)).records
    assert [record["id"] for record in records] == ["first", "test/second", "42", "4"]
    assert [record["answer"] for record in records] == ["2", "4", "6", "8"]


@pytest.mark.parametrize("arguments", [["-"], ["--input", "-"], ["-i", "-"]])
def test_dash_is_standard_input(arguments: list[str]) -> None:
    assert [record["answer"] for record in solve("-q", *arguments, stdin=b"1 + 1\n").records] == ["2"]


def test_input_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "problems.txt"
    path.write_text("1 + 1\n2 + 2\n")
    result = solve("-q", "--input", str(path), stdin=b"9 + 9\n")
    assert [record["answer"] for record in result.records] == ["2", "4"]


def test_file_as_standard_input_is_read(tmp_path: Path) -> None:
    path = tmp_path / "problems.txt"
    path.write_text("1 + 1\n")
    with path.open("rb") as file:
        assert solve("-q", stdin=file).records[0]["answer"] == "2"


def test_problem_on_the_command_line_leaves_standard_input_alone() -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"9 + 9\n")
        result = solve(QUESTION, stdin=read_end)
        assert (result.code, result.out) == (0, f"{RIGHT}\n")
        assert os.read(read_end, 100) == b"9 + 9\n"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_device_on_standard_input_is_not_read() -> None:
    result = solve(stdin=subprocess.DEVNULL)
    assert (result.code, result.stdout) == (2, b"")
    assert "no problem given" in result.err


def test_socket_on_standard_input_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = solve(stdin=theirs.fileno())
    assert result.code == 2
    assert "no problem given" in result.err


def test_terminal_on_standard_input_is_not_read() -> None:
    with Terminal("solve", *MODELS) as terminal:
        assert terminal.wait() == 2
    assert "no problem given" in terminal.text


def test_records_are_written_one_by_one() -> None:
    with start("solve", *MODELS, "-q") as process:
        assert process.stdin is not None
        for line, answer in ((b"1 + 1\n", b'"answer": "2"'), (b"2 + 2\n", b'"answer": "4"')):
            process.stdin.write(line)
            process.stdin.flush()
            assert answer in read_line(process)
        process.stdin.close()
        assert process.wait(10) == 0


# --- several at once


@pytest.mark.parametrize("concurrency", ["3", "auto"])
def test_several_at_once_come_out_in_order(concurrency: str) -> None:
    lines = b"37 * 12 - 95 + 4 * 4\n1 + 1\nwho?\n2 + 2\n\n3 + 3 * 7\n9 * 9\n"
    alone, together = (solve("-q", *flags, stdin=lines) for flags in ([], ["--concurrency", concurrency]))
    assert (alone.code, together.code) == (1, 1)
    for name in ("id", "text", "answer", "error"):
        assert [record[name] for record in together.records] == [record[name] for record in alone.records]
    assert {record["target_alone_seconds_estimate"] for record in together.records} == {None}


def test_several_at_once_do_not_wait_for_a_pipe() -> None:
    with start("solve", *MODELS, "-q", "--concurrency", "4") as process:
        assert process.stdin is not None
        for line, answer in ((b"1 + 1\n\n", b'"answer": "2"'), (b"2 + 2\n", b'"answer": "4"')):
            process.stdin.write(line)
            process.stdin.flush()
            assert answer in read_line(process)
        process.stdin.close()
        assert process.wait(10) == 0


def test_steps_of_several_at_once_name_their_problem() -> None:
    told = solve("-v", "--concurrency", "2", stdin=b"37 * 12 - 95\n1 + 1\n").err
    assert re.search(r"^problem 1, step 2: ", told, re.MULTILINE)
    assert re.search(r"^problem 2, step 1: ", told, re.MULTILINE)
    assert re.search(r"^step 1: ", solve("-v", "--concurrency", "2", "1 + 1").err, re.MULTILINE)


def test_reader_of_several_at_once_loses_nothing_to_ctrl_c(tmp_path: Path) -> None:
    path = many_problems(tmp_path / "many.txt", 3000)
    with start("solve", *MODELS, "-q", "--concurrency", "4", "--input", str(path)) as process:
        first = b"".join(read_line(process) for _ in range(3))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    numbers = [int(json.loads(line)["id"]) for line in (first + rest).splitlines()]
    assert numbers == sorted(set(numbers))
    assert 3 <= len(numbers) < 3000


def test_what_does_not_fit_in_memory_is_refused(tiny: Mapping[str, Path]) -> None:
    models = ("--draft", str(tiny["draft"]), "--target", str(tiny["target"]))
    result = run("solve", *models, "--concurrency", "64", "--ctx", "16777216", "--gpu-layers", "0", stdin=b"1 + 1\n" * 64)
    assert (result.code, result.out) == (3, "")
    assert "problems at once need" in result.err


@pytest.mark.parametrize("command", [("solve", "1 + 1", "--policy", "entropy"), ("tune",)], ids=["solve", "tune"])
def test_models_that_are_too_large_are_refused_for_one_problem(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    writer.add_head_count(64)
    writer.add_block_count(2)
    writer.add_key_length(512)
    writer.add_value_length(4096)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    result = run(*command, "--draft", str(path), "--target", str(path), "--ctx", "16777216", "--gpu-layers", "0")
    assert (result.code, result.out) == (3, "")
    assert "the models need" in flat(result.err)
    assert "and this machine has" in flat(result.err)


# --- what is shown


def test_many_problems_end_with_their_total() -> None:
    result = solve(stdin=b"37 * 12\nwho?\n1 + 1\n")
    assert result.err.splitlines()[-1].startswith("3 problems, 1 failed; accepted 3/4 steps (75%); tokens: drafted ")
    assert "problems" not in solve(QUESTION).err.splitlines()[-1]


def test_quiet_shows_results_only() -> None:
    result = solve(QUESTION, "-q")
    assert (result.code, result.out, result.err) == (0, f"{RIGHT}\n", "")


def test_many_problems_are_told_in_one_line_each_unless_verbose() -> None:
    usual, verbose = (solve(*flags, stdin=b"1 + 1\n2 + 2\n") for flags in ([], ["-v"]))
    assert [line for line in usual.err.splitlines() if line.startswith("step")] == []
    for number, answer in (("1", "2"), ("2", "4")):
        assert usual.err.count(f"problem {number}: answer {answer}") == 1
    assert [line.split()[1] for line in verbose.err.splitlines() if line.startswith("step")] == ["1:", "2:"] * 2


@pytest.mark.parametrize(
    "arguments", [[*MODELS, QUESTION], [*MODELS, "-v", QUESTION], ["--help"], ["--max-steps", "0", "1"]]
)
def test_no_escape_bytes_without_a_terminal(arguments: list[str]) -> None:
    result = run("solve", *arguments)
    assert ESCAPE not in result.stdout + result.stderr


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
@pytest.mark.parametrize(
    "arguments", [[*MODELS, QUESTION], ["--help"], ["--max-steps", "0", "1"]], ids=["run", "help", "usage"]
)
def test_no_escape_bytes_on_a_terminal_that_declines_them(variables: dict[str, str | None], arguments: list[str]) -> None:
    with Terminal("solve", *arguments, env=variables) as terminal:
        terminal.wait()
    assert terminal.raw
    assert ESCAPE not in terminal.raw


def test_no_escape_bytes_in_a_pipe_of_a_ci_service() -> None:
    result = run("solve", "--max-steps", "0", "1", env={"GITHUB_ACTIONS": "true"})
    assert ESCAPE not in result.stdout + result.stderr


# --- environment variables


def test_environment_gives_options() -> None:
    variables = {
        "ARBITRAGE_DRAFT": "scripted:draft",
        "ARBITRAGE_TARGET": "scripted:target",
        "ARBITRAGE_POLICY": "logprob",
        "ARBITRAGE_TAU": "-1",
        "ARBITRAGE_JSON": "1",
        "ARBITRAGE_QUIET": "1",
        "ARBITRAGE_MAX_STEPS": "2",
        "ARBITRAGE_SEED": "7",
    }
    result = run("solve", QUESTION, env=variables)
    (record,) = result.records
    assert (record["policy"], record["tau"], record["seed"], record["stop"]) == ("logprob", -1.0, 7, "max_steps")
    assert result.stderr == b""


def test_flag_beats_environment() -> None:
    record = solve_one("--policy", "entropy", "--tau", "inf", env={"ARBITRAGE_POLICY": "target", "ARBITRAGE_TAU": "-1"})
    assert (record["policy"], record["tau"]) == ("entropy", "inf")


def test_bad_value_in_the_environment_is_named() -> None:
    result = solve(QUESTION, env={"ARBITRAGE_MAX_STEPS": "high", "COLUMNS": "200"})
    assert result.code == 2
    assert "ARBITRAGE_MAX_STEPS" in result.err


def test_sampled_text_does_not_depend_on_the_order_of_problems() -> None:
    sampled = ("-q", "--temperature", "2")
    forwards, backwards = (solve(*sampled, stdin=lines).records for lines in (b"1 + 1\n2 * 3\n", b"2 * 3\n1 + 1\n"))
    assert [record["text"] for record in forwards] == [record["text"] for record in reversed(backwards)]


# --- settings files


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["solve", "--help"], ["solve", "-h"], ["doctor"]])
def test_help_works_with_a_bad_settings_file(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "arbitrage.toml").write_text("foo = 1\n")
    assert run(*arguments, cwd=tmp_path).code == 0


def test_project_file_gives_defaults(tmp_path: Path) -> None:
    (tmp_path / "arbitrage.toml").write_text('draft = "scripted:draft"\ntarget = "scripted:target"\ntau = -1\nseed = 3\n')
    result = run("solve", QUESTION, "--json", "-q", "--seed", "5", cwd=tmp_path)
    (record,) = result.records
    assert (record["tau"], record["seed"]) == (-1.0, 5)
    (record,) = run("solve", QUESTION, "--json", "-q", cwd=tmp_path, env={"ARBITRAGE_TAU": "inf"}).records
    assert (record["tau"], record["seed"]) == ("inf", 3)


def test_project_file_wins_over_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "arbitrage").mkdir()
    (tmp_path / "arbitrage" / "config.toml").write_text("seed = 1\ntau = -1\n")
    (tmp_path / "arbitrage.toml").write_text("seed = 2\n")
    record = solve_one(cwd=tmp_path, env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert (record["seed"], record["tau"]) == (2, -1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [("taus = 1\n", "unknown setting 'taus'"), ("tau = \n", "cannot be read as TOML"), ("tau = [1]\n", "tau")],
    ids=["unknown key", "broken", "wrong type"],
)
def test_bad_settings_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "arbitrage.toml").write_text(content)
    result = solve(QUESTION, cwd=tmp_path)
    assert (result.code, result.stdout) == (2, b"")
    assert words in result.err
    assert "Traceback" not in result.err


# --- help and version


def test_help_names_every_option_with_its_variable() -> None:
    shown = run("solve", "--help", env={"COLUMNS": "200"}).out
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", shown, re.MULTILINE))
    assert {"--draft", "--target", "--policy", "--tau", "--json", "--ctx", "--temperature"} <= options
    variables = set(re.findall(r"ARBITRAGE_[A-Z_]+", shown))
    named = {"ARBITRAGE_" + option[2:].upper().replace("-", "_") for option in options - {"--help", "--input"}}
    assert variables == named


@pytest.mark.parametrize("command", [[], ["solve"], ["models"], ["models", "pull"]])
def test_help_has_a_short_flag(command: list[str]) -> None:
    short, full = (run(*command, flag) for flag in ("-h", "--help"))
    assert (short.code, short.out) == (0, full.out)
    assert "Usage: arbitrage" in short.out


def test_version() -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"arbitrage {__version__}\n")


def test_no_arguments_show_the_help() -> None:
    result = run()
    assert "Usage: arbitrage" in result.out + result.err
    assert "solve" in result.out + result.err

"""`arbitrage bench` and `arbitrage report --regrade`: what they take, what comes out, how a run is resumed, what is refused."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cli import Result, assert_refused, run
from collected import write_run
from faults import results, rows_of, run_json, write_problems

from arbitrage_cli.model_files.checksums import sha256_of
from arbitrage_cli.runs.folder import encode

QUESTIONS = ("37 * 12 - 95", "1 + 1", "9 * 9")
PAIR = ("--pair", "scripted")
BENCH = ("bench", *PAIR, "--dataset", "arithmetic.jsonl", "-o", "run")
POLICIES = ("--policy", "target,draft,entropy")


def bench(folder: Path, *arguments: str, **options: Any) -> Result:
    chosen = () if "--policy" in arguments else POLICIES
    return run(*BENCH, *chosen, *arguments, cwd=folder, **options)


@pytest.fixture
def here(quick_path: Path) -> Path:
    """A folder with a data set of three problems, the first of which the draft gets wrong."""
    write_problems(quick_path / "arithmetic.jsonl", QUESTIONS)
    return quick_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the default policies. Tests copy it and do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_problems(folder / "arithmetic.jsonl", QUESTIONS)
    assert bench(folder, "-q").code == 0
    return folder


@pytest.fixture
def copy(finished: Path, quick_path: Path) -> Path:
    shutil.copytree(finished, quick_path, dirs_exist_ok=True)
    return quick_path


def columns_of(folder: Path) -> list[tuple[str, Any]]:
    return [(one["policy"], one["tau"]) for one in run_json(folder / "run")["decided"]["routes"]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def policies(out: str) -> dict[str, Mapping[str, Any]]:
    return {policy["label"]: policy for policy in json.loads(out.splitlines()[-1])["policies"]}


# --- what comes out


def test_table_goes_to_stdout_and_a_line_an_attempt_to_stderr(here: Path) -> None:
    result = bench(here)
    assert result.code == 0
    assert re.search(r"^target +100\b", result.out, re.MULTILINE)
    assert re.search(r"^draft +6[67]", result.out, re.MULTILINE)
    heading, *lines, conclusion = result.err.splitlines()
    assert (heading, "arbitrage report run" in conclusion) == ("bench arithmetic.jsonl: 9 attempts", True)
    assert [line.split(maxsplit=1)[0] for line in lines] == [f"{number}/9" for number in range(1, 10)]
    assert [" p0, target: correct (349), " in "".join(lines), " p0, draft: incorrect (359), " in "".join(lines)] == [
        True
    ] * 2
    assert len(results(rows_of(here / "run"))) == 9


def test_run_json_has_everything_that_results_depend_on(finished: Path) -> None:
    made = run_json(finished / "run")
    assert made["asked"]["command"] == ["arbitrage", *BENCH, *POLICIES, "-q"]
    assert (made["dataset"]["name"], made["dataset"]["count"], len(made["dataset"]["sha256"])) == ("arithmetic.jsonl", 3, 64)
    assert ([*made["levels"]], made["samples"], bool(made["grader"])) == (["p0", "p1", "p2"], 1, True)
    assert columns_of(finished) == [("target", None), ("draft", None), ("entropy", 1.0)]
    assert [len(model["chat_template_sha256"]) for model in made["loaded"].values()] == [64, 64]


def test_models_are_identified_by_their_sha256(here: Path, tiny: Mapping[str, Path]) -> None:
    """What a C library prints is not mixed with the results."""
    path = str(tiny["draft"])
    sizes = ("--threads", "1", "--ctx", "256", "--max-tokens", "8", "--limit", "1")
    arguments = ("bench", "--draft", path, *BENCH[3:], "--policy", "draft", *sizes, "--json")
    result = run(*arguments, cwd=here, noise="printed by a C library\n")
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert "printed by a C library" in result.err
    made = run_json(here / "run")["decided"]["models"]["draft"]
    assert (made["file"], made["size"]) == (path, tiny["draft"].stat().st_size)
    assert (made["sha256"], made["context_size"]) == (sha256_of([tiny["draft"]]), 256)


# --- what would be run, and other settings


def test_dry_run_shows_what_would_be_run_and_runs_nothing(copy: Path) -> None:
    for flags, attempts in ((("--samples", "2"), "9 of 18"), (("--fresh",), "9 of 9"), (("-o", "other"), "9 of 9")):
        planned = bench(copy, "--dry-run", *flags)
        assert (planned.code, planned.err, f"attempts  {attempts} to run\n" in planned.out) == (0, "", True)
    assert len(rows_of(copy / "run")) == 9
    assert not (copy / "other").exists()
    assert_refused(bench(copy, "--dry-run", "--json"), 2, "--json: ")


def test_a_run_and_a_dry_run_refuse_other_settings(copy: Path) -> None:
    files = files_of(copy / "run")
    others = (("--temperature", "0.5"), ("--early-stop",), ("--draft", "scripted:target"), ("--concurrency", "2"))
    for flag, *value in others:
        for dry in ((), ("--dry-run",)):
            assert_refused(bench(copy, flag, *value, *dry), 2, f"{flag}: ")
    assert files_of(copy / "run") == files
    assert bench(copy, "--dry-run", *others[0], "--fresh").code == 0


# --- several at once


def test_several_at_once_make_the_same_rows(here: Path) -> None:
    bench(here, "-q")
    usual = results(rows_of(here / "run"))
    arguments = ("bench", *PAIR, "--dataset", "arithmetic.jsonl", "--concurrency", "2")
    result = run(*arguments, cwd=here)
    assert result.code == 0
    folder = here / "runs" / "arithmetic--scripted--concurrency-2"
    assert results(rows_of(folder)) == usual
    figures = json.loads(run(*arguments, "--json", cwd=here).out)
    assert figures["concurrency"] == 2
    assert {one["measured_seconds_mean"] for one in figures["policies"]} == {None}
    assert len(rows_of(folder)) == 9


def test_policy_needs_its_models_and_no_others(here: Path) -> None:
    arguments = ("bench", "--dataset", "arithmetic.jsonl", "-o", "run", "--draft", "scripted:draft", "-q")
    assert run(*arguments, "--policy", "draft", cwd=here).code == 0
    assert list(run_json(here / "run")["decided"]["models"]) == ["draft"]
    later = run(*arguments, "--policy", "target", "--target", "scripted:target", cwd=here)
    assert later.code == 0
    assert {*run_json(here / "run")["decided"]["models"]} == {"draft", "target"}
    assert "target" in run_json(here / "run")["warnings"][0]


# --- resuming


def test_finished_run_is_shown_and_not_changed(copy: Path) -> None:
    files = files_of(copy / "run")
    result = bench(copy, "--json")
    assert (result.code, "nothing to do" in result.err) == (0, True)
    assert policies(result.out)["draft"]["correct"] == 2
    first = bench(copy, "--json", "--limit", "1")
    assert (first.code, first.out) == (0, result.out)
    assert files_of(copy / "run") == files


def test_samples_and_policies_may_be_added(copy: Path) -> None:
    before = (copy / "run" / "results.jsonl").read_bytes()
    added = ("--policy", "target,random@0.5", "--samples", "2", "--limit", "1", "-q")
    assert bench(copy, *added).code == 0
    assert (copy / "run" / "results.jsonl").read_bytes().startswith(before)
    rows = rows_of(copy / "run")[9:]
    assert sorted((row["policy"], row["sample"]) for row in rows) == [("random", 0), ("random", 1), ("target", 1)]
    assert run_json(copy / "run")["samples"] == 2
    assert [policy for policy, _ in columns_of(copy)] == ["target", "draft", "entropy", "random"]


def test_errors_are_retried_and_wrong_answers_are_not(here: Path) -> None:
    problems = here / "arithmetic.jsonl"
    problems.write_text('{"id": "odd", "question": "who?", "answer": 1}\n' + problems.read_text())
    first = bench(here, "--limit", "1-2")
    assert first.code == 1
    assert " odd, target: error (the scripted models understand only single-line arithmetic" in first.err
    assert len(rows_of(here / "run")) == 6
    again = bench(here, "--limit", "1-3", "-q")
    assert again.code == 1
    ids = [row["id"] for row in rows_of(here / "run")][6:]
    assert ids == ["p1"] * 3 + ["odd"] * 3
    assert {row["id"] for row in rows_of(here / "run") if row["grade"] and row["grade"]["value"] == "incorrect"} == {"p0"}
    assert bench(here, "--limit", "2-2").code == 0


# --- what is refused


def test_run_of_another_command_is_refused(copy: Path) -> None:
    write_run(copy / "states", ["1 + 1?"])
    commands = {
        "states": [
            ("bench", *PAIR, "--dataset", "arithmetic.jsonl", "-o", "states"),
            ("report", "states", "--regrade"),
            ("report", "states"),
            ("compare", "states", "run"),
        ],
        "run": [("collect", *PAIR, "--dataset", "arithmetic.jsonl", "--reward", "rollout", "-o", "run"), ("train", "run")],
    }
    for folder, each in commands.items():
        files = files_of(copy / folder)
        for arguments in each:
            assert_refused(run(*arguments, cwd=copy), 2, f"{folder}: ", "a run of arbitrage ")
        assert files_of(copy / folder) == files


def test_another_data_set_is_refused(copy: Path) -> None:
    path = copy / "arithmetic.jsonl"
    text = path.read_text()
    for edited in (text.split("\n", 1)[1], text.replace("349", "350"), text.replace("9 * 9", "9 * 8")):
        path.write_text(edited)
        assert_refused(bench(copy), 2, "--dataset: ", "sha256 ")


def change_run_json(folder: Path, path: str, value: Any) -> None:
    made = place = run_json(folder / "run")
    *parents, name = path.split(".")
    for parent in parents:
        place = place[parent]
    place[name] = value
    (folder / "run" / "run.json").write_bytes(encode(made))


def test_what_changes_no_answer_is_noted_and_in_the_rows(here: Path, tiny: Mapping[str, Path]) -> None:
    """Another processor, another llama.cpp or other threads; for models without files nothing."""
    files = [part for role in ("draft", "target") for part in (f"--{role}", str(tiny[role]))]
    arguments = ("bench", *files, *BENCH[3:], "--policy", "draft", "--ctx", "256", "--max-tokens", "8")
    assert run(*arguments, "--limit", "1", "--threads", "1", "-q", cwd=here).code == 0
    change_run_json(here, "decided.machine.cpu", "slide rule")
    change_run_json(here, "decided.machine.llama_cpp_python", "0.0")
    assert run(*arguments, "--threads", "2", "-q", cwd=here).code == 0
    first, *others = rows_of(here / "run")
    assert "conditions" not in first
    assert {tuple(row["conditions"]) for row in others} == {("cpu", "llama_cpp_python", "threads")}
    assert len([one for one in run_json(here / "run")["warnings"] if "slide rule" in one or "0.0" in one]) == 2


def test_a_run_without_model_files_depends_on_no_machine_but_on_the_version(copy: Path) -> None:
    change_run_json(copy, "decided.machine.cpu", "slide rule")
    change_run_json(copy, "tool", "0.0")
    assert bench(copy, "--samples", "2", "-q").code == 0
    (warning,) = run_json(copy / "run")["warnings"]
    assert " 0.0 and " in warning
    assert not any("conditions" in row for row in rows_of(copy / "run"))


def test_another_grader_is_refused_until_the_run_is_graded_again(copy: Path) -> None:
    change_run_json(copy, "grader", "older")
    refused = bench(copy, "--samples", "2")
    assert_refused(refused, 2, "", "grader changed from older", "arbitrage report run --regrade")
    assert run("report", "run", "--regrade", "-q", cwd=copy).code == 0
    assert bench(copy, "-q").code == 0


# --- grading again


def test_grade_replaces_grades_without_models(copy: Path) -> None:
    before = files_of(copy / "run")
    wrong = {"value": "unscored", "answer": None, "explanation": "the grader was not there"}
    rows = [row | {"grade": wrong} if row["id"] == "p0" else row for row in rows_of(copy / "run")]
    (copy / "run" / "results.jsonl").write_bytes(b"".join(map(encode, rows)))
    result = run("report", "run", "--regrade", "--json", cwd=copy)
    assert (result.code, result.err.count("was unscored, now")) == (0, 3)
    assert policies(result.out)["draft"]["correct"] == 2
    assert files_of(copy / "run") == before
    again = run("report", "run", "--regrade", cwd=copy)
    assert (again.code, again.err) == (0, "")

"""`arbitrage solve` with many problems: output formats, and files that the same command resumes."""

import signal
from pathlib import Path
from typing import Any

import pytest
from cli import (
    TIMEOUT,
    Result,
    assert_refused,
    solve,
    start,
)
from faults import essence, rows_of, write_rows

INPUT = '{"problem": "1 + 1", "id": "a"}\n{bad\n\n{"problem": "37 * 12 - 95", "id": "a"}\n{"problem": "who?"}\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with three lines of problems: one is no JSON, and one has the id of another."""
    (tmp_path / "in.jsonl").write_text('{"problem": "1 + 1", "id": "a"}\n{bad\n\n{"problem": "37 * 12 - 95", "id": "a"}\n')
    return tmp_path


def solve_file(folder: Path, *arguments: str, **options: Any) -> Result:
    return solve("--input", "in.jsonl", *arguments, cwd=folder, **options)


def test_every_line_has_a_result_on_standard_output_or_in_a_file(here: Path) -> None:
    straight = solve_file(here, "-q")
    found = [(one["id"], one["answer"], bool(one["error"])) for one in straight.records]
    assert (straight.code, found) == (1, [("a", "2", False), ("2", None, True), ("a-2", "349", False)])
    assert straight.records[1]["error"].startswith("line 2: ")
    assert solve_file(here, "-q", "--format", "text").out == "2\n\n349\n"
    for said, absent in (("retry", "nothing to do"), ("nothing to do", "retry")):
        result = solve_file(here, "-o", "out.jsonl")
        assert (result.code, result.out, said in result.err, absent in result.err) == (1, "", True, False)
    assert essence(rows_of(here, "out.jsonl")) == essence(straight.records)


def test_answers_are_text_for_problems_that_were_typed() -> None:
    assert solve("What is 5 + 6?", "5 + 7", "-q").out == "11\n12\n"
    assert solve("1 + 1", "--format", "json", "-q").record["answer"] == "2"
    assert solve("1 + 1", "--format", "text", env={"ARBITRAGE_JSON": "1"}).out == "2\n"
    unfinished = solve("--format", "text", "--max-tokens", "3", "-q", stdin=b"5 + 6\n5 + 7\n")
    assert (unfinished.code, unfinished.out) == (1, "\n\n")
    assert_refused(solve("What", "is", "5", "+", "6?"), 2, "found 5 problems", '"What is 5 + 6?"')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_finished_results_are_saved_while_an_earlier_problem_is_unfinished(here: Path, number: signal.Signals) -> None:
    """The first problem is longer than all that end before the twentieth begins. The ids are not those of the lines."""
    questions = ["+".join(["1"] * 60), *(f"{number} * 12 - 95" for number in range(101, 130))]
    write_rows(here / "in.jsonl", [{"id": f"p{n}", "problem": text} for n, text in enumerate(questions)])
    command = ("-o", "out.jsonl", "--concurrency", "4", "--format", "json")
    fault = {"interrupt_in": "arbitrage_cli.runs.started.StartedMarks.begin", "call": 20, "signals": [number]}
    broken = solve_file(here, *command, **fault)
    saved = {one["id"]: one for one in rows_of(here, "out.jsonl")}
    assert broken.code == (130 if number == signal.SIGINT else -number)
    assert len(saved) >= 16
    assert "p0" not in saved
    assert (f"{len(saved)} results saved in out.jsonl; to resume: arbitrage solve " in broken.err) == (
        number == signal.SIGINT
    )
    resumed = solve_file(here, *command)
    assert resumed.code == 0, resumed.err
    records = rows_of(here, "out.jsonl")
    expected = [(f"p{n}", str(eval(text))) for n, text in enumerate(questions)]  # noqa: S307
    assert sorted((one["id"], one["answer"]) for one in records) == sorted(expected)
    assert [(one["id"], one["answer"]) for one in resumed.records] == expected  # in input order on standard output
    assert {one["id"]: one for one in records if one["id"] in saved} == saved  # none is solved again


def test_only_lines_that_are_written_can_lack_an_answer(here: Path) -> None:
    """A problem whose first attempt failed is solved by the second; a result outside the limit is not written."""
    write_rows(here / "in.jsonl", [{"id": "a", "problem": "1 + 1"}, {"id": "b", "problem": "+".join(["1"] * 60)}])
    command = ("-o", "out.jsonl", "--format", "text", "--max-tokens", "100")
    assert (solve_file(here, *command).out, [row["answer"] for row in rows_of(here, "out.jsonl")]) == ("2\n\n", ["2", None])
    first, last = rows_of(here, "out.jsonl")
    failed = first | {"status": "error", "error": "lost", "stop": None, "text": "", "answer": None, "steps": []}
    write_rows(here / "out.jsonl", [failed, last])
    retried = solve_file(here, *command, "--limit", "1", "-q")
    assert (retried.code, retried.out, retried.err) == (0, "2\n", "")
    assert solve_file(here, *command, "-q").code == 1


def test_damaged_run_json_is_refused_without_an_option_that_solve_lacks(here: Path) -> None:
    assert solve_file(here, "-o", "out.jsonl", "--limit", "1").code == 0
    (here / "out.jsonl.run" / "run.json").write_text("{")
    result = solve_file(here, "-o", "out.jsonl")
    assert_refused(result, 5, "out.jsonl.run/run.json: ", "--output")
    assert "--fresh" not in result.err


def test_another_pipe_is_refused_before_it_ends(tmp_path: Path) -> None:
    assert solve("-o", "out.jsonl", stdin=b"1 + 1\n", cwd=tmp_path).code == 0
    with start("solve", "-o", "out.jsonl", cwd=tmp_path) as process:
        process.stdin.write(b"2 + 2\n3 + 3\n")
        process.stdin.flush()
        assert process.wait(TIMEOUT) == 2

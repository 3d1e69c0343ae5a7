"""`arbitrage solve` with many problems: output formats, and files that the same command resumes."""

import json
import signal
from collections.abc import Mapping
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
from faults import essence, write_rows

INPUT = '{"problem": "1 + 1", "id": "a"}\n{bad\n\n{"problem": "37 * 12 - 95", "id": "a"}\n{"problem": "who?"}\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with four lines of problems: one is no JSON, one has the id of another, one cannot be solved."""
    (tmp_path / "in.jsonl").write_text(INPUT)
    return tmp_path


def solve_file(folder: Path, *arguments: str, **options: Any) -> Result:
    return solve("--input", "in.jsonl", *arguments, cwd=folder, **options)


def records_of(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


CSV = 'n,prompt,gold\na,"1 + 1",2\nb,"37 * 12\n- 95",349\nc,2 + 2,5\n'


def test_a_table_has_a_header(tmp_path: Path) -> None:
    """A question may have lines of its own; --map names the fields, as for a data set, also those of JSONL."""
    (tmp_path / "in.csv").write_text(CSV)
    rows = [{"n": "a", "prompt": "1 + 1", "gold": "2"}, {"n": "c", "prompt": "2 + 2", "gold": "5"}]
    write_rows(tmp_path / "in.jsonl", rows)
    mapped = ("--map", "question=prompt,answer=gold,id=n")
    piped = (tmp_path / "in.jsonl").read_bytes()
    for given, stdin, found in (
        (("--input", "in.csv", "--limit", "2-3"), b"", [("b", "349"), ("c", "4")]),
        (("--input", "in.jsonl"), b"", [("a", "2"), ("c", "4")]),
        ((), piped, [("a", "2"), ("c", "4")]),
    ):
        records = solve(*given, *mapped, "--json", cwd=tmp_path, stdin=stdin).records
        assert [(row["id"], row["answer"]) for row in records] == found
    assert_refused(solve("--input", "in.csv", cwd=tmp_path), 2, "", "prompt", "--map")
    assert_refused(solve("--input", "in.jsonl", "--map", "question=prompt,id=m", cwd=tmp_path), 2, "", "'m'")
    assert_refused(solve("--input", "missing.csv", cwd=tmp_path), 2, "missing.csv: cannot be read", "--input")


def test_a_file_in_which_no_line_has_the_field_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [{"prompt": "1 + 1", "gold": "2"}] * 3)
    for mapped in ((), ("--map", "question=problem")):
        result = solve("--input", "in.jsonl", *mapped, cwd=tmp_path)
        assert_refused(result, 2, "", "prompt, gold", "--map")


@pytest.mark.parametrize(
    ("text", "is_hinted"),
    [
        ("1 + 1\n\n2 + 2\n\n3 + 3\n", True),
        ("1 + 1\n2 + 2\n\n", False),
        ('{"problem": "1 + 1"}\n\n{"problem": "2"}\n', False),
        ("1 + 1\n\xff\n2 + 2\n", False),
    ],
    ids=["text", "at the end", "JSONL", "a line that is not text"],
)
def test_a_blank_line_within_text_is_pointed_out_once(text: str, is_hinted: bool) -> None:
    assert solve(stdin=text.encode("latin-1")).err.count("$(cat FILE)") == is_hinted


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_every_line_has_a_result_in_its_place(here: Path, concurrency: str) -> None:
    result = solve_file(here, "-q", "--concurrency", concurrency)
    assert result.code == 1
    assert [(one["id"], one["answer"], bool(one["error"])) for one in result.records] == [
        ("a", "2", False),
        ("2", None, True),
        ("a-2", "349", False),
        ("5", None, True),
    ]
    assert result.records[1]["error"].startswith("line 2: ")


def test_results_as_lines_of_text(here: Path) -> None:
    assert solve_file(here, "-q", "--format", "text").out == "2\n\n349\n\n"
    assert solve("1 + 1", "--format", "json", "-q").record["answer"] == "2"
    assert solve("1 + 1", "--format", "text", env={"ARBITRAGE_JSON": "1"}).out == "2\n"


def test_an_unfinished_problem_without_an_answer_has_an_empty_line() -> None:
    result = solve("--format", "text", "--max-tokens", "3", "-q", stdin=b"5 + 6\n5 + 7\n")
    assert (result.code, result.out) == (1, "\n\n")


def test_each_quoted_argument_is_a_problem() -> None:
    assert solve("What is 5 + 6?", "5 + 7", "-q").out == "11\n12\n"
    assert_refused(solve("What", "is", "5", "+", "6?"), 2, "found 5 problems", '"What is 5 + 6?"')


def test_answers_in_the_input_are_said_to_be_ignored(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"problem": "1 + 1", "answer": "2"}\n' * 2), ("a.csv", "problem,answer\n1 + 1,2\n")):
        (tmp_path / name).write_text(text)
        assert solve("--input", name, cwd=tmp_path).err.count("the answers in the input are ignored") == 1


def test_a_mistyped_folder_is_not_created(tmp_path: Path) -> None:
    assert_refused(solve("1 + 1", "-o", "typo/out.jsonl", cwd=tmp_path), 2, "--output: typo: no such folder")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("header", [b"id,question\n", b"problem , answer\n", b"question\n"])
def test_a_csv_table_in_a_pipe_is_refused(header: bytes) -> None:
    assert_refused(solve(stdin=header + b"a,5 + 6\n"), 2, "", "--input FILE.csv")


def test_results_go_to_a_file_and_nothing_to_standard_output(here: Path) -> None:
    straight = solve_file(here, "-q", "--limit", "3")
    result = solve_file(here, "-o", "out.jsonl", "--limit", "3")
    assert (result.code, result.out) == (1, "")
    assert essence(records_of(here / "out.jsonl")) == essence(straight.records)
    before = (here / "out.jsonl").read_bytes()
    again = solve_file(here, "-o", "out.jsonl", "--limit", "3", "--format", "text")
    assert (again.code, again.out.splitlines()) == (1, ["2", "", "349"])
    assert "nothing to do" in again.err
    assert_refused(solve_file(here, "-o", "out.jsonl", "--limit", "2-9"), 2, "out.jsonl: ")
    assert (here / "out.jsonl").read_bytes() == before


def test_a_full_context_is_a_result_and_only_errors_that_are_tried_again_are_called_so(here: Path) -> None:
    (here / "in.jsonl").write_text("1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9\n")
    first, second = (solve_file(here, "-o", "out.jsonl", "--ctx", "160") for _ in range(2))
    assert (first.code, second.code, "retry" in first.err + second.err) == (0, 0, False)
    (here / "in.jsonl").write_text(INPUT)
    first, second = (solve_file(here, "-o", "bad.jsonl", "--limit", "2") for _ in range(2))
    assert (first.code, second.code, "retry" in second.err) == (1, 1, False)  # an invalid line is not tried again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_finished_results_are_saved_while_an_earlier_problem_is_unfinished(here: Path, number: signal.Signals) -> None:
    """The first problem is longer than all that end before the twentieth begins. The ids are not those of the lines."""
    questions = ["+".join(["1"] * 60), *(f"{number} * 12 - 95" for number in range(101, 130))]
    write_rows(here / "in.jsonl", [{"id": f"p{n}", "problem": text} for n, text in enumerate(questions)])
    command = ("-o", "out.jsonl", "--concurrency", "4", "--format", "json")
    fault = {"interrupt_in": "arbitrage_cli.runs.started.StartedMarks.begin", "call": 20, "signals": [number]}
    broken = solve_file(here, *command, **fault)
    saved = {one["id"]: one for one in records_of(here / "out.jsonl")}
    assert broken.code == (130 if number == signal.SIGINT else -number)
    assert len(saved) >= 16
    assert "p0" not in saved
    assert (f"{len(saved)} results saved in out.jsonl; to resume: arbitrage solve " in broken.err) == (
        number == signal.SIGINT
    )
    resumed = solve_file(here, *command)
    assert resumed.code == 0, resumed.err
    records = records_of(here / "out.jsonl")
    expected = [(f"p{n}", str(eval(text))) for n, text in enumerate(questions)]  # noqa: S307
    assert sorted((one["id"], one["answer"]) for one in records) == sorted(expected)
    assert [(one["id"], one["answer"]) for one in resumed.records] == expected  # in input order on standard output
    assert {one["id"]: one for one in records if one["id"] in saved} == saved  # none is solved again


def test_another_pipe_is_refused_before_it_ends(tmp_path: Path) -> None:
    assert solve("-o", "out.jsonl", stdin=b"1 + 1\n", cwd=tmp_path).code == 0
    with start("solve", "-o", "out.jsonl", cwd=tmp_path) as process:
        process.stdin.write(b"2 + 2\n3 + 3\n")
        process.stdin.flush()
        assert process.wait(TIMEOUT) == 2


def test_only_a_file_of_results_is_written_to(here: Path) -> None:
    assert_refused(solve_file(here, "-o", "in.jsonl"), 2, "in.jsonl: ", "run.json")
    for path in (".", "/dev/zero"):  # a device may be read without end
        assert_refused(solve_file(here, "-o", path), 2, f"{path}: ")
    assert_refused(solve("--input", "none", "-o", "out.jsonl", cwd=here), 2, "none: ")
    assert (here / "in.jsonl").read_text() == INPUT
    assert not (here / "out.jsonl").exists()


def test_links_are_refused_and_left_alone(here: Path) -> None:
    (here / "empty").touch()
    for number, place in enumerate(("nowhere", "link1", "empty")):
        link = here / f"link{number}"
        link.symlink_to(place)
        before = sorted(here.iterdir())
        assert_refused(solve_file(here, "-o", link.name), 2, f"{link.name}: ")
        assert (sorted(here.iterdir()), link.is_symlink()) == (before, True)


@pytest.mark.parametrize("text", ["my notes", '{"id": "a", "steps": []}\n'])
def test_file_of_somebody_else_is_not_changed(here: Path, text: str) -> None:
    (here / "mine").write_text(text)
    assert_refused(solve_file(here, "-o", "mine"), 2, "mine: ", "run.json")
    assert [path.name for path in here.iterdir() if path.name.startswith("mine")] == ["mine"]
    assert solve_file(here, "-o", "out.jsonl", "--limit", "1").code == 0
    (here / "out.jsonl").write_text(f"{text}\n\n")
    result = solve_file(here, "-o", "out.jsonl", "--limit", "1")
    assert (result.code, result.err.count("out.jsonl: line 1: ")) == (0, 1)
    assert ((here / "mine").read_text(), (here / "out.jsonl.torn-1").read_text()) == (text, f"{text}\n\n")
    assert [one["answer"] for one in records_of(here / "out.jsonl")] == ["2"]

"""`arbitrage report` and `arbitrage compare`: what goes where, and what is refused."""

import json
from pathlib import Path

import pytest
from cli import ESCAPE, Terminal, run
from made_up_runs import MadeUp, failed, make_run, write_run_folder

from arbitrage_cli.evaluation.metrics import figures

MADE = make_run(6, columns=[("target", None), ("draft", None), ("entropy", 0.5)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run_folder(tmp_path / "run", MADE)
    return tmp_path / "run"


def test_report_shows_the_table(folder: Path) -> None:
    shown = run("report", str(folder))
    assert (shown.code, shown.stderr) == (0, b"")
    assert shown.out.startswith("made-up: 6 problems\n")
    assert "entropy 0.5" in shown.out
    assert ESCAPE not in shown.stdout


def test_report_is_styled_in_a_terminal(folder: Path) -> None:
    with Terminal("report", str(folder)) as terminal:
        assert terminal.wait() == 0
    assert b"\x1b[1m" in terminal.raw
    (heading,) = [line for line in terminal.text.splitlines() if line.startswith("policy ")]
    assert heading.endswith("accepted")


def test_json_has_all_figures_in_one_line(folder: Path) -> None:
    shown = run("report", str(folder), str(folder), "--json", "--cost-ratio", "8")
    expected = json.loads(json.dumps(figures(MADE.run, MADE.rows, cost_ratio=8.0)))
    assert shown.code == 0
    assert shown.records == [expected]
    assert shown.stdout.count(b"\n") == 1


def test_page_is_written_and_named(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run_folder(other, make_run(2))
    page = tmp_path / "report.html"
    page.write_text("an older one")
    shown = run("report", str(folder), str(other), "-o", str(page))
    assert (shown.code, shown.stdout) == (0, b"")
    assert str(page) in shown.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.count('"explanation"') == len(MADE.rows) + 14
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "report.html", "run"]


def test_step_of_ten_megabytes(tmp_path: Path) -> None:
    huge = "a long step " * 800_000
    rows = [{**one, "steps": [{**step, "text": huge} for step in one["steps"][:1]]} for one in MADE.rows[:1]]
    write_run_folder(tmp_path / "run", MadeUp(MADE.run, rows))
    shown = run("report", str(tmp_path / "run"), "-o", str(tmp_path / "report.html"))
    assert (shown.code, shown.stdout) == (0, b"")
    assert huge in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("report", "file"), ("compare", "file", "file")):
        shown = run(*arguments[:1], *(str(tmp_path / name) for name in arguments[1:]))
        assert (shown.code, shown.stdout) == (2, b"")
        assert "cannot be read" in shown.err
        assert "--output" not in shown.err


def test_page_that_cannot_be_written_is_an_error(folder: Path, tmp_path: Path) -> None:
    for page in (tmp_path / "nowhere" / "report.html", tmp_path):
        shown = run("report", str(folder), "-o", str(page))
        assert (shown.code, shown.stdout) == (1, b"")
        assert "cannot be written" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "name", ["results.jsonl", "run.json", "lock", "results.jsonl.torn-1", "run.json.old-2", "./Results.jsonl"]
)
def test_page_does_not_take_the_place_of_the_run(folder: Path, tmp_path: Path, name: str) -> None:
    write_run_folder(tmp_path / "other", MADE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for runs in ((folder,), (tmp_path / "other", folder)):
        shown = run("report", *map(str, runs), "-o", f"{tmp_path}/other/../run/{name}")
        assert (shown.code, shown.stdout) == (2, b"")
        assert "is a file of the run" in shown.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run("report", str(folder), "-o", str(folder / "results.jsonl.html")).code == 0


def test_error_that_was_retried_is_no_more_counted(tmp_path: Path) -> None:
    write_run_folder(tmp_path / "run", MadeUp(MADE.run, [failed(MADE.rows[0]), *MADE.rows]))
    shown = run("report", str(tmp_path / "run"), "--json", "-o", str(tmp_path / "report.html"))
    assert shown.records[0]["policies"][0]["errors"] == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('"explanation"') == len(MADE.rows)


def test_no_run_is_a_usage_error(tmp_path: Path) -> None:
    for arguments in (("report", str(tmp_path)), ("compare", str(tmp_path), str(tmp_path))):
        shown = run(*arguments)
        assert (shown.code, shown.stdout) == (2, b"")
        assert "no run in this folder" in shown.err


def test_damaged_run_is_not_reported_on(folder: Path) -> None:
    rows = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(rows.replace(b'"incorrect"', b'"correct"', 1))
    shown = run("report", str(folder))
    assert (shown.code, shown.stdout) == (5, b"")
    assert "results.jsonl: line" in shown.err


@pytest.mark.parametrize("ratio", ["0", "-3", "nan", "inf"])
def test_impossible_cost_ratio_is_a_usage_error(folder: Path, ratio: str) -> None:
    assert run("report", str(folder), "--cost-ratio", ratio).code == 2


def test_compare_shows_both_runs(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run_folder(other, make_run(6, columns=[("entropy", 0.5)], drift=0.3))
    shown = run("compare", str(folder), str(other))
    assert (shown.code, shown.stderr) == (0, b"")
    assert "entropy 0.5" in shown.out
    (record,) = run("compare", str(folder), str(other), "--json").records
    assert [entry["first"] for entry in record["policies"]] == ["entropy 0.5"]
    assert record["policies"][0]["accuracy_difference"] == 0.0


def test_compare_without_anything_in_common_is_a_usage_error(folder: Path, tmp_path: Path) -> None:
    write_run_folder(tmp_path / "other", make_run(3, columns=[("random", 0.3), ("random", 0.6)]))
    shown = run("compare", str(folder), str(tmp_path / "other"))
    assert (shown.code, shown.stdout) == (2, b"")
    assert "no policy in common" in shown.err

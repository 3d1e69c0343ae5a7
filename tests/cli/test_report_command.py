"""`arbitrage report` and `arbitrage compare`: what goes where, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli import ESCAPE, Terminal, assert_refused, run
from faults import write_problems
from made_up_runs import MadeUp, make_run, unpacked, write_run_folder

from arbitrage_cli.evaluation.metrics import figures
from arbitrage_cli.evaluation.projection import parse_speeds

MADE = make_run(6, columns=[("target", None), ("draft", None), ("entropy", 0.5)])


def traces(page: Path) -> list[dict[str, Any]]:
    """The attempts that a page carries, as its script unpacks them."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return [attempt for _, block in json.loads(data)["blocks"] for attempt in unpacked(block)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run_folder(tmp_path / "run", MADE)
    return tmp_path / "run"


def test_report_shows_the_table_alone(folder: Path) -> None:
    shown = run("report", folder)
    assert (shown.code, shown.stderr) == (0, b"")
    assert shown.out.startswith("made-up: 6 problems\n")
    assert "entropy 0.5" in shown.out
    assert ESCAPE not in shown.stdout


def test_terminal_of_80_columns_gets_a_bold_heading_that_is_not_cut(folder: Path) -> None:
    with Terminal("report", str(folder)) as terminal:
        assert terminal.wait() == 0
    assert b"\x1b[1m" in terminal.raw
    (heading,) = [line for line in terminal.text.splitlines() if line.startswith("policy ")]
    assert heading.endswith("accepted")


SPEEDS = "draft=2000/100,target=1000/50"


def test_json_has_all_figures_in_one_line(folder: Path) -> None:
    shown = run("report", folder, "--json", "--project", SPEEDS)
    assert shown.code == 0
    assert shown.records == [json.loads(json.dumps(figures(MADE.run, MADE.rows, speeds=parse_speeds(SPEEDS))))]
    assert shown.stdout.count(b"\n") == 1


def test_page_replaces_an_older_one_and_has_every_trace(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("an older one")
    shown = run("report", folder, "-o", page)
    assert (shown.code, shown.stdout) == (0, b"")
    assert str(page) in shown.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert len(traces(page)) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_step_of_ten_megabytes_is_whole_in_the_page(tmp_path: Path) -> None:
    huge = "a long step, " * 800_000
    rows = [{**one, "steps": [{**step, "text": huge} for step in one["steps"][:1]]} for one in MADE.rows[:1]]
    write_run_folder(tmp_path / "run", MadeUp(MADE.run, rows))
    shown = run("report", tmp_path / "run", "-o", tmp_path / "report.html")
    assert (shown.code, shown.stdout) == (0, b"")
    (attempt,) = traces(tmp_path / "report.html")
    assert attempt["steps"][0]["text"] == huge


def test_place_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path):
        for arguments in (("report", place), ("compare", place, place)):
            shown = run(*arguments)
            assert_refused(shown, 2, f"{place}: ", "no run")
            assert "--output" not in shown.err


def test_page_that_cannot_be_written_is_an_error_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for page in (tmp_path / "nowhere" / "report.html", tmp_path / "folder.html"):
        assert_refused(run("report", folder, "-o", page), 1, "", str(page), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "run"]


@pytest.mark.parametrize("name", ["results.jsonl", "run.json", "lock", "report.pdf", "report", "results.html.jsonl"])
def test_file_that_is_no_page_is_refused(folder: Path, name: str) -> None:
    """So a page never takes the place of a file of a run."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_refused(run("report", folder, "-o", folder / name), 2, f"{folder / name}: ", ".html")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_page_is_opened_in_the_browser(folder: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    shown = run("report", folder, "--open", env={"BROWSER": f"{browser} %s"})
    assert (shown.code, shown.stdout) == (0, b"")
    assert (tmp_path / "opened").read_text() == f"file://{folder}/report.html\n"
    assert (folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
    shown = run("report", folder, "--open", "-o", tmp_path / "page.html", env={"BROWSER": f"{tmp_path}/none", "PATH": ""})
    assert shown.code == 0
    assert f"open {tmp_path}/page.html" in shown.err


def test_damaged_run_is_not_reported_on(folder: Path) -> None:
    rows = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(rows.replace(b'"incorrect"', b'"perhaps"', 1))
    assert_refused(run("report", folder), 5, "", "results.jsonl: line")


def test_compare_shows_both_runs_as_a_table_or_a_line(folder: Path, tmp_path: Path) -> None:
    write_run_folder(tmp_path / "other", make_run(6, columns=[("entropy", 0.5)], drift=0.3))
    shown = run("compare", folder, tmp_path / "other")
    assert (shown.code, shown.stderr) == (0, b"")
    assert "entropy 0.5" in shown.out
    (record,) = run("compare", folder, tmp_path / "other", "--json").records
    assert [entry["first"] for entry in record["policies"]] == ["entropy 0.5"]
    assert record["policies"][0]["accuracy_difference"] == 0.0


def test_compare_of_runs_without_a_common_policy_is_refused(folder: Path, tmp_path: Path) -> None:
    write_run_folder(tmp_path / "other", make_run(3, columns=[("random", 0.3), ("random", 0.6)]))
    assert_refused(run("compare", folder, tmp_path / "other"), 2, "", "no policy in common")


def test_a_page_does_not_replace_a_file_of_any_run(quick_path: Path) -> None:
    write_problems(quick_path / "one.jsonl", ["5 + 6"])
    for name in ("a", "b"):
        bench = ("bench", "--dataset", "one.jsonl", "-q", "--pair", "scripted", "--policy", "target", "-o", name)
        assert run(*bench, cwd=quick_path).code == 0
    rows = (quick_path / "b" / "results.jsonl").read_bytes()
    for name in ("a/run.json", "b/results.jsonl"):
        assert run("report", "a", "-o", name, cwd=quick_path).code == 2
    assert (quick_path / "b" / "results.jsonl").read_bytes() == rows
